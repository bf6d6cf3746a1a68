#include "kernels/index.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define N_LANE 16u
#define SCORE_TASK 256u /* blocks of one task */

/* Floats of one KV head. */
static size_t head_floats(struct attend_shape shape, enum index_kind kind)
{
    switch (kind) {
    case INDEX_MEAN:
        return shape.d_head;
    case INDEX_BOUNDS:
        return (size_t)2 * shape.d_head;
    case INDEX_NONE:
    case N_INDEX:
        break;
    }
    return 0;
}

size_t kv_index_bytes(struct attend_shape shape, enum index_kind kind)
{
    return shape.n_kv_head * head_floats(shape, kind) * sizeof(float);
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

/* The keys with the largest scores, ascending. */
static void choose_keys(const float *score, uint32_t *out)
{
    bool is_chosen[KV_BLOCK] = {false};
    uint32_t n = 0;

    for (uint32_t i = 0; i < INDEX_CHOSEN; i++) {
        uint32_t best = KV_BLOCK;

        for (uint32_t j = 0; j < KV_BLOCK; j++)
            if (!is_chosen[j] && (best == KV_BLOCK || score[j] > score[best]))
                best = j;
        is_chosen[best] = true;
    }
    for (uint32_t j = 0; j < KV_BLOCK; j++)
        if (is_chosen[j])
            out[n++] = j;
}

static void seal_mean(const struct kv_seal_args *a, size_t head, float *index)
{
    const size_t d_head = a->shape.d_head;
    const float *q = a->q + head * d_head;
    float k[KV_BLOCK], score[KV_BLOCK] = {0.0f};
    uint32_t chosen[INDEX_CHOSEN];

    for (size_t d = 0; d < d_head; d++) {
        read_keys(a, head, d, k);
        for (size_t j = 0; j < KV_BLOCK; j++)
            score[j] += q[d] * k[j];
    }
    choose_keys(score, chosen);
    for (size_t d = 0; d < d_head; d++) {
        float sum = 0.0f;

        read_keys(a, head, d, k);
        for (uint32_t i = 0; i < INDEX_CHOSEN; i++)
            sum += k[chosen[i]];
        index[d] = sum * (1.0f / (float)INDEX_CHOSEN);
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
    const size_t d_head = a->shape.d_head, n_pair = a->table->n_rot / 2;
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
    float *index = a->index + head * head_floats(a->shape, a->kind);

    (void)scratch;
    if (a->kind == INDEX_MEAN)
        seal_mean(a, head, index);
    else
        seal_bounds(a, head, index);
}

void index_seal(struct pool *pool, const struct kv_seal_args *a)
{
    (void)pool; /* less than waking a thread */
    assert(a->kind == INDEX_MEAN || a->kind == INDEX_BOUNDS);
    pool_run(NULL, a->shape.n_kv_head, seal_task, (void *)a);
}

static float fold(float *lane)
{
    for (uint32_t apart = N_LANE / 2; apart; apart /= 2)
        for (uint32_t i = 0; i < apart; i++)
            lane[i] += lane[i + apart];
    return lane[0];
}

static float score_mean(const struct kv_score_args *a, const float *mean)
{
    const size_t n = (size_t)a->shape.n_kv_head * a->shape.d_head;
    float lane[N_LANE] = {0.0f};
    size_t i = 0;

    for (; i + N_LANE <= n; i += N_LANE)
        for (uint32_t l = 0; l < N_LANE; l++)
            lane[l] += a->q[i + l] * mean[i + l];
    for (uint32_t l = 0; i + l < n; l++)
        lane[l] += a->q[i + l] * mean[i + l];
    return fold(lane);
}

static float score_bounds(const struct kv_score_args *a, const float *index)
{
    const struct attend_shape shape = a->shape;
    const size_t d_head = shape.d_head;
    const uint32_t n_query = shape.n_head / shape.n_kv_head;
    float lane[N_LANE] = {0.0f};

    for (uint32_t h = 0; h < shape.n_head; h++) {
        const float *q = a->q + h * d_head;
        const float *low = index + (size_t)(h / n_query) * 2 * d_head;
        const float *high = low + d_head;

        for (size_t i = 0; i < d_head; i += N_LANE)
            for (size_t l = 0; l < N_LANE && i + l < d_head; l++) {
                const float x = q[i + l] * low[i + l];
                const float y = q[i + l] * high[i + l];

                lane[l] += x > y ? x : y;
            }
    }
    return fold(lane);
}

static void score_task(void *arg, uint32_t task, void *scratch)
{
    const struct kv_score_args *a = arg;
    const uint64_t first = a->first + (uint64_t)task * SCORE_TASK;
    const uint64_t last =
        first + SCORE_TASK < a->end ? first + SCORE_TASK : a->end;

    (void)scratch;
    for (uint64_t b = first; b < last; b++)
        a->score[b - a->first] = a->kind == INDEX_MEAN
                                     ? score_mean(a, a->index[b])
                                     : score_bounds(a, a->index[b]);
}

void index_score(struct pool *pool, const struct kv_score_args *a)
{
    const uint64_t n = a->end - a->first;

    assert(a->kind == INDEX_MEAN || a->kind == INDEX_BOUNDS);
    pool_run(n <= SCORE_TASK ? NULL : pool,
             (uint32_t)((n + SCORE_TASK - 1) / SCORE_TASK), score_task,
             (void *)a);
}
