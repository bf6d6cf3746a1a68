#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rotated.h"

#include <string.h>

/*
 * One query meets each key once: the way from memory and the rotation are all
 * the time it takes. Tasks are runs of blocks.
 */

enum { N_PART = KV_BLOCK / LANES };
#define BLOCKS_A_TASK 16u

/* Adds what one KV head's keys k of a block say to sum. */
static void add_head(const struct kv_match_args *a, uint32_t head,
                     const float *k, float sum[KV_BLOCK])
{
    const size_t d_head = a->shape.d_head;
    const uint32_t n_query = a->shape.n_head / a->shape.n_kv_head;
    const float *q = a->q + (size_t)head * n_query * d_head;
    v16 match[N_PART];

    for (size_t i = 0; i < N_PART; i++)
        match[i] = v16_zero();
    for (size_t d = 0; d < d_head; d++) {
        float u = q[d];

        for (uint32_t h = 1; h < n_query; h++)
            u += q[h * d_head + d];
        for (size_t i = 0; i < N_PART; i++)
            match[i] = v16_fma(
                v16_set1(u), v16_load(k + d * KV_BLOCK + i * LANES), match[i]);
    }
    for (size_t i = 0; i < N_PART; i++)
        v16_store(sum + i * LANES,
                  v16_add(v16_load(sum + i * LANES), match[i]));
}

static void match_task(void *arg, uint32_t task, void *scratch)
{
    const struct kv_match_args *a = arg;
    const uint64_t n_block = (a->n_key + KV_BLOCK - 1) / KV_BLOCK;
    const uint64_t first = (uint64_t)task * BLOCKS_A_TASK;
    const uint64_t end =
        first + BLOCKS_A_TASK < n_block ? first + BLOCKS_A_TASK : n_block;

    for (uint64_t b = first; b < end; b++) {
        const uint64_t left = a->n_key - b * KV_BLOCK;
        float sum[KV_BLOCK] = {0.0f};

        for (uint32_t head = 0; head < a->shape.n_kv_head; head++) {
            rotated_keys(
                &(struct rotated){a->shape, a->table, a->block[b], b, head},
                scratch);
            add_head(a, head, scratch, sum);
        }
        memcpy(a->match + b * KV_BLOCK, sum,
               (left < KV_BLOCK ? left : KV_BLOCK) * sizeof(*sum));
    }
}

void LANES_NAME(kv_match)(struct pool *pool, const struct kv_match_args *args)
{
    const uint64_t n_block = (args->n_key + KV_BLOCK - 1) / KV_BLOCK;

    pool_run(pool, (uint32_t)((n_block + BLOCKS_A_TASK - 1) / BLOCKS_A_TASK),
             match_task, (void *)args);
}
