#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

/* Dimension d of key j of a KV head of block b, as it lies there. */
static float key_at(const struct kv_match_args *a, uint32_t head, uint64_t b,
                    const size_t at[2])
{
    const void *k = (const char *)a->block[b] + kv_keys_at(a->shape, head);
    const size_t d = at[0], j = at[1];

    if (a->shape.arithmetic == ARITHMETIC_FP32)
        return ((const float *)k)[d * KV_BLOCK + j];
    return scalar_from_bf16(
        ((const uint16_t *)k)[(d / 2 * KV_BLOCK + j) * 2 + d % 2]);
}

static float rotated(const struct kv_match_args *a, uint32_t head, uint64_t key,
                     size_t d)
{
    const size_t n_pair = a->table->n_rot / 2, i = d < n_pair ? d : d - n_pair;
    const size_t j = key % KV_BLOCK;
    const uint64_t b = key / KV_BLOCK;
    float x, y, cosine, sine;

    if (d >= 2 * n_pair)
        return key_at(a, head, b, (size_t[]){d, j});
    x = key_at(a, head, b, (size_t[]){i, j});
    y = key_at(a, head, b, (size_t[]){i + n_pair, j});
    cosine = a->table->cos[(b * n_pair + i) * KV_BLOCK + j];
    sine = a->table->sin[(b * n_pair + i) * KV_BLOCK + j];
    return d < n_pair ? fmaf(x, cosine, -(y * sine))
                      : fmaf(y, cosine, x * sine);
}

void ref_kv_match(struct pool *pool, const struct kv_match_args *a)
{
    const size_t d_head = a->shape.d_head;
    const uint32_t n_query = a->shape.n_head / a->shape.n_kv_head;

    (void)pool;
    for (uint64_t key = 0; key < a->n_key; key++) {
        float match = 0.0f;

        for (uint32_t head = 0; head < a->shape.n_kv_head; head++) {
            const float *q = a->q + (size_t)head * n_query * d_head;
            float sum = 0.0f;

            for (size_t d = 0; d < d_head; d++) {
                float u = q[d];

                for (uint32_t h = 1; h < n_query; h++)
                    u += q[h * d_head + d];
                sum = fmaf(u, rotated(a, head, key, d), sum);
            }
            match += sum;
        }
        a->match[key] = match;
    }
}
