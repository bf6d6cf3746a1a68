#include "kernels/move.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define WIDEN_AT_ONCE 16u
#define EMBED_ROWS 8u /* of one task */

static void widen(float *y, const unsigned char *bits, size_t n)
{
    size_t i = 0;

    /* As scalar_from_bf16(); a number of rounds that is known, and no call,
     * make vectors of them. */
    for (; i + WIDEN_AT_ONCE <= n; i += WIDEN_AT_ONCE) {
        uint16_t some[WIDEN_AT_ONCE];

        memcpy(some, bits + i * sizeof(*some), sizeof(some));
        for (size_t k = 0; k < WIDEN_AT_ONCE; k++) {
            const uint32_t wide = (uint32_t)some[k] << 16;

            memcpy(&y[i + k], &wide, sizeof(wide));
        }
    }
    for (; i < n; i++) {
        uint16_t one;

        memcpy(&one, bits + i * sizeof(one), sizeof(one));
        y[i] = scalar_from_bf16(one);
    }
}

static void embed_task(void *arg, uint32_t task, void *scratch)
{
    const struct embed_args *a = arg;
    const uint32_t first = task * EMBED_ROWS, left = a->n_row - first;
    const uint32_t end = first + (left < EMBED_ROWS ? left : EMBED_ROWS);

    (void)scratch;
    for (uint32_t row = first; row < end; row++) {
        const unsigned char *table = a->table;
        const size_t from = (size_t)a->token[row] * a->dim;
        float *y = a->y + (size_t)row * a->dim;

        if (a->type == LINEAR_F32)
            memcpy(y, table + from * sizeof(float), a->dim * sizeof(float));
        else
            widen(y, table + from * sizeof(uint16_t), a->dim);
    }
}

void move_embed(struct pool *pool, const struct embed_args *args)
{
    /* A few rows cost less than waking a thread. */
    struct pool *run_on = args->n_row < 16 ? NULL : pool;

    pool_run(run_on, (args->n_row + EMBED_ROWS - 1) / EMBED_ROWS, embed_task,
             (void *)args);
}

/* Dims of a head as the tiles of MMA, and those of int8, pad them. */
static size_t head_tile(size_t d_head)
{
    size_t d = 64;

    while (d < d_head)
        d *= 2;
    return d;
}

/* Bytes of one KV head's keys, and of its values. */
static size_t key_bytes(struct attend_shape shape)
{
    size_t d_head = shape.d_head;

    if (shape.kv == KV_INT8)
        return head_tile(d_head) / KV_TILE_DIMS * sizeof(struct kv_tile);
    switch (shape.arithmetic) {
    case ARITHMETIC_FP32:
        return d_head * KV_BLOCK * sizeof(float);
    case ARITHMETIC_MMA:
    case ARITHMETIC_FAST:
        return head_tile(d_head) * KV_BLOCK * sizeof(uint16_t);
    default:
        return (d_head + 1) / 2 * KV_BLOCK * sizeof(uint16_t[2]);
    }
}

static size_t value_bytes(struct attend_shape shape)
{
    if (arithmetic_is_mma(shape.arithmetic) || shape.kv == KV_INT8)
        return key_bytes(shape);
    return shape.d_head * KV_BLOCK *
           (shape.arithmetic == ARITHMETIC_FP32 ? sizeof(float)
                                                : sizeof(uint16_t));
}

size_t kv_keys_at(struct attend_shape shape, size_t head)
{
    return head * key_bytes(shape);
}

size_t kv_values_at(struct attend_shape shape, size_t head)
{
    return shape.n_kv_head * key_bytes(shape) + head * value_bytes(shape);
}

size_t kv_block_bytes(struct attend_shape shape)
{
    return kv_values_at(shape, shape.n_kv_head);
}

/* Token `at` of a block; to_k and to_v are the head's. */
static void append_f32(float *to_k, float *to_v, size_t at, const float *k,
                       const float *v, size_t d_head)
{
    for (size_t d = 0; d < d_head; d++)
        to_k[d * KV_BLOCK + at] = k[d];
    memcpy(to_v + at * d_head, v, d_head * sizeof(float));
}

static void append_bf16(uint16_t *to_k, uint16_t *to_v, size_t at,
                        const float *k, const float *v, size_t d_head)
{
    to_k += at * 2;
    to_v += at / 2 * d_head * 2 + at % 2;
    for (size_t d = 0; d < d_head; d += 2, to_k += KV_BLOCK * 2) {
        to_k[0] = scalar_to_bf16(k[d]);
        to_k[1] = d + 1 < d_head ? scalar_to_bf16(k[d + 1]) : 0;
    }
    for (size_t e = 0; e < d_head; e++)
        to_v[e * 2] = scalar_to_bf16(v[e]);
}

/* Up to KV_TILE_DIMS dims of token `at`. */
static void append_int8(struct kv_tile *to, size_t at, const float *x, size_t n)
{
    float largest = 0.0f, zero = 0.0f, scale, inverse;

    for (size_t d = 0; d < n; d++) {
        largest = fabsf(x[d]) > largest ? fabsf(x[d]) : largest;
        zero += x[d] * 0.0f; /* NaN as soon as one is not finite */
    }
    scale = largest / 127.0f < FLT_MIN ? 0.0f : largest / 127.0f;
    inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    to->scale[at] = zero == 0.0f ? scale : NAN;
    for (size_t d = 0; d < KV_TILE_DIMS; d++) {
        const float q = zero == 0.0f && d < n ? x[d] * inverse : 0.0f;

        to->q[at][d] = (int8_t)lrintf(q > 127.0f    ? 127.0f
                                      : q < -127.0f ? -127.0f
                                                    : q);
    }
}

static void append_tiles(struct kv_tile *to_k, struct kv_tile *to_v, size_t at,
                         const float *k, const float *v, size_t d_head)
{
    for (size_t d = 0; d < d_head; d += KV_TILE_DIMS, to_k++, to_v++) {
        const size_t n = d_head - d < KV_TILE_DIMS ? d_head - d : KV_TILE_DIMS;

        append_int8(to_k, at, k + d, n);
        append_int8(to_v, at, v + d, n);
    }
}

void move_kv_append_row(const struct kv_append_args *a,
                        const struct attend_span *span, size_t head, size_t r)
{
    const size_t d_head = a->shape.d_head;
    const uint64_t p = span->position + r;
    const size_t row = span->first_row + r, at = p % KV_BLOCK;
    unsigned char *block = span->block[p / KV_BLOCK];
    void *to_k = block + kv_keys_at(a->shape, head);
    void *to_v = block + kv_values_at(a->shape, head);
    const float *k = a->k + row * a->k_stride + head * d_head;
    const float *v = a->v + row * a->v_stride + head * d_head;

    if (a->shape.kv == KV_INT8)
        append_tiles(to_k, to_v, at, k, v, d_head);
    else if (a->shape.arithmetic == ARITHMETIC_FP32)
        append_f32(to_k, to_v, at, k, v, d_head);
    else
        append_bf16(to_k, to_v, at, k, v, d_head);
}

/* Task: one KV head of one span. */
static void append_head(void *arg, uint32_t task, void *scratch)
{
    const struct kv_append_args *a = arg;
    const struct attend_span *span = &a->span[task / a->shape.n_kv_head];

    (void)scratch;
    for (size_t r = 0; r < span->n_row; r++)
        move_kv_append_row(a, span, task % a->shape.n_kv_head, r);
}

/* Their keys lie in a line for each two dims, all of them in memory. */
#define APPEND_ROWS 4u

struct pool *move_kv_append_pool(struct pool *pool,
                                 const struct kv_append_args *args)
{
    uint32_t n_row = 0;

    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    return n_row < APPEND_ROWS ? NULL : pool;
}

void move_kv_append(struct pool *pool, const struct kv_append_args *args)
{
    pool_run(move_kv_append_pool(pool, args),
             args->n_span * args->shape.n_kv_head, append_head, (void *)args);
}
