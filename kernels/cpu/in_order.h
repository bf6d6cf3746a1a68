#ifndef KERNELS_CPU_IN_ORDER_H
#define KERNELS_CPU_IN_ORDER_H
/*
 * A product of few rows whose right side comes from afar: it is read once,
 * front to back and in whole rows, two rows of the left side at a time by four
 * steps, so that each vector that comes meets both. A page at a time: all lines
 * of the next one are asked for in one go before this one is computed, because
 * lines that are asked for one by one, as they are reached, leave memory idle
 * (docs/performance/cpu-kernels.md).
 */
#include "kernels/cpu/tile.h"

#include <assert.h>
#include <stdbool.h>

/* Nobody measured it with AVX-512. */
#if defined(LANES_AVX512)
#define IN_ORDER_PAYS false
#else
#define IN_ORDER_PAYS true
#endif
#define IN_ORDER_PAGE 1024u /* floats that are asked for in one go */
#define IN_ORDER_STEPS 4u   /* their factors stay in registers */

/* Rows of n floats each, at some distance. */
struct in_order_rows {
    const float *at;
    size_t stride;
    uint32_t n_row, n;
};

LANES_INLINE void in_order_ask(struct in_order_rows rows)
{
    for (uint32_t r = 0; r < rows.n_row; r++)
        for (uint32_t i = 0; i < rows.n; i += LANES)
            _mm_prefetch((const char *)(rows.at + r * rows.stride + i),
                         _MM_HINT_T0);
}

/* Rows of the right side to a page. */
LANES_INLINE uint32_t in_order_page(uint32_t n_col)
{
    return n_col < IN_ORDER_PAGE ? IN_ORDER_PAGE / n_col : 1;
}

/* The first page of a right side of n_k rows. */
LANES_INLINE struct in_order_rows in_order_first(const float *b, size_t stride,
                                                 uint32_t n_k, uint32_t n_col)
{
    const uint32_t n = in_order_page(n_col);

    return (struct in_order_rows){b, stride, n_k < n ? n_k : n, n_col};
}

/* Sums of n_row rows go on by n_step steps, all of one column on. */
LANES_INLINE void in_order_steps(const struct tile *t, const float *a, float *c,
                                 const float *b, uint32_t n_row,
                                 uint32_t n_step)
{
    v16 x[2][IN_ORDER_STEPS];

#pragma GCC unroll 2
    for (uint32_t r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_step; k++)
            x[r][k] = v16_set1(a[r * t->a_stride + k]);
    for (uint32_t e = 0; e < t->n_col; e += LANES) {
        const bool is_whole = t->n_col - e >= LANES;
        v16 sum[2];

#pragma GCC unroll 2
        for (uint32_t r = 0; r < n_row; r++)
            sum[r] = is_whole ? v16_load(c + r * t->c_stride + e)
                              : v16_load_part(c + r * t->c_stride, e, t->n_col);
#pragma GCC unroll 4
        for (uint32_t k = 0; k < n_step; k++) {
            const float *row = b + k * t->b_stride;
            const v16 w =
                is_whole ? v16_load(row + e) : v16_load_part(row, e, t->n_col);
#pragma GCC unroll 2
            for (uint32_t r = 0; r < n_row; r++)
                sum[r] = v16_fma(x[r][k], w, sum[r]);
        }
#pragma GCC unroll 2
        for (uint32_t r = 0; r < n_row; r++)
            if (is_whole)
                v16_store(c + r * t->c_stride + e, sum[r]);
            else
                v16_store_part(c + r * t->c_stride, sum[r], e, t->n_col);
    }
}

/* n_row rows, a constant, by the steps of a page. */
LANES_INLINE void in_order_run(const struct tile *t, const float *a, float *c,
                               const float *b, uint32_t n_row, uint32_t n)
{
    uint32_t k = 0;

    for (; k + IN_ORDER_STEPS <= n; k += IN_ORDER_STEPS)
        in_order_steps(t, a + k, c, b + k * t->b_stride, n_row, IN_ORDER_STEPS);
    for (; k < n; k++)
        in_order_steps(t, a + k, c, b + k * t->b_stride, n_row, 1);
}

LANES_INLINE void in_order_clear(const struct tile *t)
{
    for (uint32_t r = 0; r < t->n_row; r++)
        for (uint32_t e = 0; e < t->n_col; e += LANES)
            v16_store_part(t->c + r * t->c_stride, v16_zero(), e, t->n_col);
}

/* tile_set() if is_start, else tile_onto(), of a plain right side; behind: what
 * is read next, of which nothing may be. */
LANES_INLINE void in_order(const struct tile *t, bool is_start,
                           struct in_order_rows behind)
{
    assert(t->n_col);
    const uint32_t page = in_order_page(t->n_col);
    const float *b = t->b;

    if (is_start)
        in_order_clear(t);
    for (uint32_t k = 0, n; k < t->n_k; k += n, b += n * t->b_stride) {
        const uint32_t left = t->n_k - k;
        uint32_t r = 0;

        n = left < page ? left : page;
        in_order_ask(left > n ? in_order_first(b + n * t->b_stride, t->b_stride,
                                               left - n, t->n_col)
                              : behind);
        for (; r + 2 <= t->n_row; r += 2)
            in_order_run(t, t->a + r * t->a_stride + k, t->c + r * t->c_stride,
                         b, 2, n);
        if (r < t->n_row)
            in_order_run(t, t->a + r * t->a_stride + k, t->c + r * t->c_stride,
                         b, 1, n);
    }
}
#endif
