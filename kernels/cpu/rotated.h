#ifndef KERNELS_CPU_ROTATED_H
#define KERNELS_CPU_ROTATED_H
/*
 * Keys of a block as floats, rotated by their true positions and not rounded
 * again: for what looks at keys outside of attention. Included by sources of
 * lanes, for each instruction set.
 */
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"

/* One KV head's keys of block `at` of a session. */
struct rotated {
    struct attend_shape shape;
    const struct rope_table *table;
    const void *block;
    uint64_t at;
    uint32_t head;
};

/* k: [d_head][KV_BLOCK] */
static inline void widened_keys(const struct rotated *it, float *k)
{
    const void *from =
        (const char *)it->block + kv_keys_at(it->shape, it->head);
    const size_t d_head = it->shape.d_head;

    if (it->shape.arithmetic == ARITHMETIC_FP32) {
        for (size_t i = 0; i < d_head * KV_BLOCK; i += LANES)
            v16_store(k + i, v16_load((const float *)from + i));
        return;
    }
    for (size_t d = 0; d < d_head; d += 2)
        for (size_t j = 0; j < KV_BLOCK; j += LANES) {
            v16 high, low = v16_load_bf16(
                          (const uint32_t *)from + d / 2 * KV_BLOCK + j, &high);

            v16_store(k + d * KV_BLOCK + j, low);
            if (d + 1 < d_head)
                v16_store(k + (d + 1) * KV_BLOCK + j, high);
        }
}

static inline void rotated_keys(const struct rotated *it, float *k)
{
    const size_t n_pair = it->table->n_rot / 2;

    widened_keys(it, k);
    for (size_t i = 0; i < n_pair; i++) {
        const size_t at = (it->at * n_pair + i) * KV_BLOCK;
        float *x = k + i * KV_BLOCK, *y = x + n_pair * KV_BLOCK;

        for (size_t j = 0; j < KV_BLOCK; j += LANES) {
            const v16 c = v16_load(it->table->cos + at + j);
            const v16 s = v16_load(it->table->sin + at + j);
            const v16 a = v16_load(x + j), b = v16_load(y + j);

            v16_store(x + j, v16_fms(a, c, v16_mul(b, s)));
            v16_store(y + j, v16_fma(b, c, v16_mul(a, s)));
        }
    }
}
#endif
