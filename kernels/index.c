#include "kernels/index.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

size_t index_key_words(struct attend_shape shape)
{
    return (shape.d_head + INDEX_GROUP - 1) / INDEX_GROUP * (INDEX_GROUP / 2);
}

size_t index_head_bytes(struct attend_shape shape, enum index_kind kind)
{
    switch (kind) {
    case INDEX_KEYS:
        return INDEX_CHOSEN * index_key_words(shape) * sizeof(uint32_t);
    case INDEX_BOUNDS:
        return 2 * shape.d_head * sizeof(float);
    case INDEX_NONE:
    case INDEX_MASS:
    case INDEX_SURPRISE:
    case N_INDEX:
        break;
    }
    return 0;
}

size_t kv_index_bytes(struct attend_shape shape, enum index_kind kind)
{
    return shape.n_kv_head * index_head_bytes(shape, kind);
}

size_t kv_short_bounds_bytes(struct attend_shape shape)
{
    return shape.n_kv_head * 2 * index_key_words(shape) * sizeof(uint32_t);
}

size_t index_scored_bytes(const struct kv_score_args *args)
{
    return args->is_short ? 2 * index_key_words(args->shape) * sizeof(uint32_t)
                          : index_head_bytes(args->shape, args->kind);
}

/* Dimension d of a head's keys, widened. */
static void read_keys(const struct kv_seal_args *a, size_t head, size_t d,
                      float *out)
{
    const unsigned char *keys =
        (const unsigned char *)a->block + kv_keys_at(a->shape, head);

    if (a->shape.arithmetic == ARITHMETIC_FP32) {
        memcpy(out, keys + d * KV_BLOCK * sizeof(float),
               KV_BLOCK * sizeof(float));
        return;
    }
    for (size_t j = 0; j < KV_BLOCK; j++) {
        const size_t at = (d / 2 * KV_BLOCK + j) * 2 + d % 2;
        uint16_t bits;

        memcpy(&bits, keys + at * sizeof(bits), sizeof(bits));
        out[j] = scalar_from_bf16(bits);
    }
}

/* far[j] = squared distance of each key to a point of [d_head]. */
static void distances(const float *k, const float *point, size_t d_head,
                      float *far)
{
    memset(far, 0, KV_BLOCK * sizeof(*far));
    for (size_t d = 0; d < d_head; d++)
        for (size_t j = 0; j < KV_BLOCK; j++) {
            const float x = k[d * KV_BLOCK + j] - point[d];

            far[j] += x * x;
        }
}

static size_t farthest(const float *far)
{
    size_t best = 0;

    for (size_t j = 1; j < KV_BLOCK; j++)
        if (far[j] > far[best])
            best = j;
    return best;
}

/* A key into its zeroed words. */
static void store_key(const float *key, size_t d_head, uint16_t *to)
{
    for (size_t d = 0; d < d_head; d++) {
        const size_t group = d / INDEX_GROUP * INDEX_GROUP;
        const size_t in = d % INDEX_GROUP, half = INDEX_GROUP / 2;

        to[group + in % half * 2 + in / half] = scalar_to_bf16(key[d]);
    }
}

void kv_shorten_bounds(struct attend_shape shape, const void *bounds, void *out)
{
    const float *from = bounds;
    uint16_t *to = out;

    memset(out, 0, kv_short_bounds_bytes(shape));
    for (uint32_t i = 0; i < 2 * shape.n_kv_head; i++) {
        store_key(from, shape.d_head, to);
        from += shape.d_head;
        to += 2 * index_key_words(shape);
    }
}

/* scratch: [d_head, KV_BLOCK] keys, then [d_head] a point. */
static void seal_keys(const struct kv_seal_args *a, size_t head, float *scratch,
                      uint16_t *index)
{
    const size_t d_head = a->shape.d_head, n = 2 * index_key_words(a->shape);
    float *k = scratch, *point = k + d_head * KV_BLOCK;
    float far[KV_BLOCK], least[KV_BLOCK];

    for (size_t d = 0; d < d_head; d++) {
        float sum = 0.0f;

        read_keys(a, head, d, k + d * KV_BLOCK);
        for (size_t j = 0; j < KV_BLOCK; j++)
            sum += k[d * KV_BLOCK + j];
        point[d] = sum * (1.0f / KV_BLOCK);
    }
    distances(k, point, d_head, far);
    memset(index, 0, INDEX_CHOSEN * n * sizeof(*index));
    for (uint32_t i = 0; i < INDEX_CHOSEN; i++) {
        const size_t chosen = farthest(i ? least : far);

        for (size_t d = 0; d < d_head; d++)
            point[d] = k[d * KV_BLOCK + chosen];
        store_key(point, d_head, index + i * n);
        distances(k, point, d_head, far);
        for (size_t j = 0; j < KV_BLOCK; j++)
            least[j] = i == 0 || far[j] < least[j] ? far[j] : least[j];
    }
}

static void bound(const float *k, float *low, float *high)
{
    *low = *high = k[0];
    for (size_t j = 1; j < KV_BLOCK; j++) {
        *low = k[j] < *low ? k[j] : *low;
        *high = k[j] > *high ? k[j] : *high;
    }
}

static void seal_bounds(const struct kv_seal_args *a, size_t head, float *index)
{
    const size_t d_head = a->shape.d_head,
                 n_pair = a->table ? a->table->n_rot / 2 : 0;
    float x[KV_BLOCK], y[KV_BLOCK], *high = index + d_head;

    for (size_t i = 0; i < n_pair; i++) {
        const size_t at = (a->position / KV_BLOCK * n_pair + i) * KV_BLOCK;
        const float *cosine = a->table->cos + at, *sine = a->table->sin + at;

        read_keys(a, head, i, x);
        read_keys(a, head, i + n_pair, y);
        for (size_t j = 0; j < KV_BLOCK; j++) {
            const float was = x[j];

            x[j] = fmaf(was, cosine[j], -(y[j] * sine[j]));
            y[j] = fmaf(y[j], cosine[j], was * sine[j]);
        }
        bound(x, &index[i], &high[i]);
        bound(y, &index[i + n_pair], &high[i + n_pair]);
    }
    for (size_t d = 2 * n_pair; d < d_head; d++) {
        read_keys(a, head, d, x);
        bound(x, &index[d], &high[d]);
    }
}

static void seal_task(void *arg, uint32_t head, void *scratch)
{
    const struct kv_seal_args *a = arg;
    void *index = (char *)a->index + head * index_head_bytes(a->shape, a->kind);

    if (a->kind == INDEX_KEYS)
        seal_keys(a, head, scratch, index);
    else
        seal_bounds(a, head, index);
}

void index_seal(struct pool *pool, const struct kv_seal_args *a)
{
    (void)pool; /* less than waking a thread */
    assert(a->kind == INDEX_KEYS || a->kind == INDEX_BOUNDS);
    pool_run(NULL, a->shape.n_kv_head, seal_task, (void *)a);
}
