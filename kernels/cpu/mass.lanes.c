#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rotated.h"

#include <math.h>

/*
 * Twice over the keys, first for what the rows' weights are divided by, then
 * for the blocks' shares: keeping the scores would take as much room as the
 * keys. A block's keys are rotated once for all rows and heads that meet them.
 */

enum { N_PART = KV_BLOCK / LANES };
#define BLOCKS_A_TASK 8u

/* Keys of one block and KV head, as [d_head][KV_BLOCK] floats, rotated. */
struct keys {
    const struct kv_mass_args *args;
    uint64_t block;
    uint32_t head; /* KV head */
    float *k;
};

static void read_keys(const struct keys *it)
{
    rotated_keys(&(struct rotated){it->args->shape, it->args->table,
                                   it->args->block[it->block], it->block,
                                   it->head},
                 it->k);
}

/* Keys of the block that are not behind a row. */
static uint32_t count_keys(const struct keys *it, uint32_t row)
{
    const uint64_t n = it->args->position + row + 1;
    const uint64_t before = it->block * KV_BLOCK;

    if (n <= before)
        return 0;
    return n - before < KV_BLOCK ? (uint32_t)(n - before) : KV_BLOCK;
}

/* Of one row and head; behind n_key there is anything. */
LANES_INLINE void scores(const struct keys *it, uint32_t row, uint32_t head,
                         v16 out[N_PART])
{
    const struct kv_mass_args *a = it->args;
    const size_t d_head = a->shape.d_head;
    const float *q = a->q + ((size_t)row * a->shape.n_head + head) * d_head;
    const v16 scale = v16_set1(a->scale);

    for (size_t i = 0; i < N_PART; i++)
        out[i] = v16_zero();
    for (size_t d = 0; d < d_head; d++) {
        const v16 x = v16_set1(q[d]);

#pragma GCC unroll 4
        for (size_t i = 0; i < N_PART; i++)
            out[i] =
                v16_fma(x, v16_load(it->k + d * KV_BLOCK + i * LANES), out[i]);
    }
    for (size_t i = 0; i < N_PART; i++)
        out[i] = v16_mul(out[i], scale);
}

/* The first n_key lanes of the parts, `other` in those behind. */
LANES_INLINE v16 first_keys(v16 x, v16 other, uint32_t part, uint32_t n_key)
{
    const uint32_t before = part * LANES;

    return n_key <= before ? other : v16_first(x, other, n_key - before);
}

LANES_INLINE float sum_above(const v16 score[N_PART], uint32_t n_key, float max)
{
    const v16 shift = v16_set1(max);
    v16 sum = v16_zero();

    for (uint32_t i = 0; i < N_PART; i++)
        sum = v16_add(sum, first_keys(v16_exp(v16_sub(score[i], shift)),
                                      v16_zero(), i, n_key));
    return v16_fold(sum);
}

LANES_INLINE float largest(const v16 score[N_PART], uint32_t n_key)
{
    const v16 none = v16_set1(-INFINITY);
    v16 max = none;

    for (uint32_t i = 0; i < N_PART; i++)
        max = v16_max(max, first_keys(score[i], none, i, n_key));
    return v16_largest(max);
}

static float exponential(float x)
{
    float all[LANES];

    v16_store(all, v16_exp(v16_set1(x)));
    return all[0];
}

/* One block into M and L of a row and head. */
static void merge(const struct keys *it, uint32_t row, uint32_t head)
{
    const struct kv_mass_args *a = it->args;
    const uint32_t n_key = count_keys(it, row);
    float *stat = a->stat + 2 * ((size_t)row * a->shape.n_head + head);
    v16 score[N_PART];
    float max, sum, top;

    if (n_key == 0)
        return;
    scores(it, row, head, score);
    max = largest(score, n_key);
    sum = sum_above(score, n_key, max);
    if (it->block == 0) {
        stat[0] = max;
        stat[1] = sum;
        return;
    }
    top = max > stat[0] ? max : stat[0];
    stat[1] = __builtin_fmaf(stat[1], exponential(stat[0] - top),
                             sum * exponential(max - top));
    stat[0] = top;
}

static void measure_task(void *arg, uint32_t kv_head, void *scratch)
{
    const struct kv_mass_args *a = arg;
    const uint32_t n_query = a->shape.n_head / a->shape.n_kv_head;
    struct keys it = {.args = a, .head = kv_head, .k = scratch};
    const uint64_t last = (a->position + a->n_row - 1) / KV_BLOCK;

    for (it.block = 0; it.block <= last; it.block++) {
        read_keys(&it);
        for (uint32_t h = kv_head * n_query; h < (kv_head + 1) * n_query; h++)
            for (uint32_t row = 0; row < a->n_row; row++)
                merge(&it, row, h);
    }
    for (uint32_t h = kv_head * n_query; h < (kv_head + 1) * n_query; h++)
        for (uint32_t row = 0; row < a->n_row; row++) {
            float *sum = a->stat + 2 * ((size_t)row * a->shape.n_head + h) + 1;

            *sum = 1.0f / *sum;
        }
}

/* What rows give to a block by the heads of one KV head, behind `mass`. */
static float add_shares(const struct keys *it, float mass)
{
    const struct kv_mass_args *a = it->args;
    const uint32_t n_query = a->shape.n_head / a->shape.n_kv_head;

    for (uint32_t h = it->head * n_query; h < (it->head + 1) * n_query; h++)
        for (uint32_t row = 0; row < a->n_row; row++) {
            const float *stat =
                a->stat + 2 * ((size_t)row * a->shape.n_head + h);
            const uint32_t n_key = count_keys(it, row);
            v16 score[N_PART];

            if (n_key == 0)
                continue;
            scores(it, row, h, score);
            mass += sum_above(score, n_key, stat[0]) * stat[1];
        }
    return mass;
}

static void share_task(void *arg, uint32_t task, void *scratch)
{
    const struct kv_mass_args *a = arg;
    const uint64_t first = a->first + (uint64_t)task * BLOCKS_A_TASK;
    const uint64_t end =
        first + BLOCKS_A_TASK < a->end ? first + BLOCKS_A_TASK : a->end;
    struct keys it = {.args = a, .k = scratch};

    for (it.block = first; it.block < end; it.block++) {
        float mass = 0.0f;

        for (it.head = 0; it.head < a->shape.n_kv_head; it.head++) {
            read_keys(&it);
            mass = add_shares(&it, mass);
        }
        a->mass[it.block - a->first] = mass;
    }
}

void LANES_NAME(kv_mass)(struct pool *pool, const struct kv_mass_args *args)
{
    const uint64_t n = args->end - args->first;

    pool_run(pool, args->shape.n_kv_head, measure_task, (void *)args);
    pool_run(pool, (uint32_t)((n + BLOCKS_A_TASK - 1) / BLOCKS_A_TASK),
             share_task, (void *)args);
}
