#ifndef KERNELS_CPU_ATTEND_SOFTMAX_H
#define KERNELS_CPU_ATTEND_SOFTMAX_H
/*
 * Between the two products of attention: a group's scores become weights, and
 * its maxima and sums join those of the blocks before. Inlined into each
 * kernel, which says how weights are kept.
 */
#include "kernels/cpu/attend.h"

#include <math.h>

/* Keys that row r of a group sees. */
LANES_INLINE uint32_t keys_seen(const struct group *g, uint32_t r,
                                bool is_whole)
{
    return is_whole ? KV_BLOCK : g->n_key + r / g->rows->n_query;
}

/* Lane by lane the largest score of n_row rows from p on. */
LANES_INLINE void largest_scores(const struct group *g, uint32_t first,
                                 uint32_t n_row, bool is_whole)
{
    v16 none = v16_set1(-INFINITY), row[LANES];
    const float *p = g->p + (size_t)first * KV_BLOCK;

    for (uint32_t r = 0; r < n_row; r++) {
        uint32_t n_key = keys_seen(g, first + r, is_whole);
        v16 max = none;
#pragma GCC unroll 4
        for (uint32_t j = 0; j < KV_BLOCK; j += LANES)
            if (j < n_key)
                max = v16_max(max, v16_first(v16_load(p + r * KV_BLOCK + j),
                                             none, n_key - j));
        row[r] = max;
    }
    v16_largest_rows(row, n_row, g->max1 + first);
}

/*
 * Scores of up to 16 rows from first on to weights, with their maxima and
 * sums. Keys that a row does not see hold anything; they become zero, which
 * no sum notices. No score is above its maximum, so no exp overflows. Weights
 * in bf16 take the first half of their row of scores.
 */
LANES_INLINE void weigh(const struct group *g, uint32_t first, uint32_t n_row,
                        bool is_whole, bool is_bf16)
{
    v16 row[LANES];

    largest_scores(g, first, n_row, is_whole);
    for (uint32_t r = 0; r < n_row; r++) {
        uint32_t n_key = keys_seen(g, first + r, is_whole);
        float *p = g->p + (size_t)(first + r) * KV_BLOCK;
        v16 shift = v16_set1(g->max1[first + r]), sum = v16_zero();
#pragma GCC unroll 4
        for (uint32_t j = 0; j < KV_BLOCK; j += LANES) {
            v16 w = v16_zero();
            if (j < n_key) {
                w = v16_sub(v16_load(p + j), shift);
                w = v16_first(v16_exp_small(w), v16_zero(), n_key - j);
            }
            if (is_bf16)
                v16_store_bf16((uint16_t *)(void *)p + j, w);
            else
                v16_store(p + j, w);
            sum = v16_add(sum, w);
        }
        row[r] = sum;
    }
    v16_fold_rows(row, n_row, g->sum1 + first);
}

LANES_INLINE void weigh_all(const struct group *g, bool is_bf16)
{
    for (uint32_t r = 0; r < g->n_row; r += LANES) {
        uint32_t n = g->n_row - r < LANES ? g->n_row - r : LANES;
        if (g->is_whole)
            weigh(g, r, n, true, is_bf16);
        else
            weigh(g, r, n, false, is_bf16);
    }
}

/* The maxima and sums of one block into those of all blocks before it, and
 * the factors with which the results follow. */
LANES_INLINE void merge_sums(const struct group *g)
{
    uint32_t n_row = g->n_row;
    float *max = g->rows->max + g->first, *sum = g->rows->sum + g->first;

    for (uint32_t r = 0; r < n_row; r += LANES) {
        v16 old = v16_load_part(max, r, n_row);
        v16 new = v16_load_part(g->max1, r, n_row);
        v16 top = v16_max(old, new);
        v16 keep = v16_exp(v16_sub(old, top));
        v16 take = v16_exp(v16_sub(new, top));
        v16 all = v16_mul(v16_load_part(g->sum1, r, n_row), take);
        all = v16_fma(v16_load_part(sum, r, n_row), keep, all);
        v16_store_part(max, top, r, n_row);
        v16_store_part(sum, all, r, n_row);
        v16_store(g->keep + r, keep);
        v16_store(g->take + r, take);
    }
}

/* Scores to weights and factors; at the start of a merge there are none, and
 * the maxima and sums are those of the rows. */
LANES_INLINE void weigh_and_merge(const struct group *g, bool is_bf16)
{
    struct group start = *g;

    if (g->is_start) {
        start.max1 = g->rows->max + g->first;
        start.sum1 = g->rows->sum + g->first;
        weigh_all(&start, is_bf16);
    } else {
        weigh_all(g, is_bf16);
        merge_sums(g);
    }
}
#endif
