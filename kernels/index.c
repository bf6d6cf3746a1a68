#include "kernels/index.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define N_LANE 16u
#define SCORE_TASK 256u /* blocks of one task */

static size_t head_bytes(struct attend_shape shape, enum index_kind kind)
{
    switch (kind) {
    case INDEX_KEYS:
        return INDEX_CHOSEN * shape.d_head * sizeof(uint16_t);
    case INDEX_BOUNDS:
        return 2 * shape.d_head * sizeof(float);
    case INDEX_NONE:
    case N_INDEX:
        break;
    }
    return 0;
}

size_t kv_index_bytes(struct attend_shape shape, enum index_kind kind)
{
    return shape.n_kv_head * head_bytes(shape, kind);
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

/* scratch: [d_head, KV_BLOCK] keys, then [d_head] a point. */
static void seal_keys(const struct kv_seal_args *a, size_t head, float *scratch,
                      uint16_t *index)
{
    const size_t d_head = a->shape.d_head;
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
    for (uint32_t i = 0; i < INDEX_CHOSEN; i++) {
        const size_t chosen = farthest(i ? least : far);

        for (size_t d = 0; d < d_head; d++) {
            point[d] = k[d * KV_BLOCK + chosen];
            index[i * d_head + d] = scalar_to_bf16(point[d]);
        }
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
    void *index = (char *)a->index + head * head_bytes(a->shape, a->kind);

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

static float fold(float *lane)
{
    for (uint32_t apart = N_LANE / 2; apart; apart /= 2)
        for (uint32_t i = 0; i < apart; i++)
            lane[i] += lane[i + apart];
    return lane[0];
}

/* q . k for a key in bf16. */
static float product(const float *q, const uint16_t *k, size_t d_head)
{
    float lane[N_LANE] = {0.0f};

    for (size_t d = 0; d < d_head; d += N_LANE)
        for (size_t l = 0; l < N_LANE && d + l < d_head; l++)
            lane[l] += q[d + l] * scalar_from_bf16(k[d + l]);
    return fold(lane);
}

static float score_keys(const float *q, const uint16_t *k, size_t d_head)
{
    float best = product(q, k, d_head);

    for (uint32_t i = 1; i < INDEX_CHOSEN; i++) {
        const float x = product(q, k + i * d_head, d_head);

        best = x > best ? x : best;
    }
    return best;
}

static float score_bounds(const float *q, const float *low, size_t d_head)
{
    const float *high = low + d_head;
    float lane[N_LANE] = {0.0f};

    for (size_t d = 0; d < d_head; d += N_LANE)
        for (size_t l = 0; l < N_LANE && d + l < d_head; l++) {
            const float x = q[d + l] * low[d + l], y = q[d + l] * high[d + l];

            lane[l] += x > y ? x : y;
        }
    return fold(lane);
}

static float score(const struct kv_score_args *a, const void *index)
{
    const struct attend_shape shape = a->shape;
    const uint32_t n_query = shape.n_head / shape.n_kv_head;
    float sum = 0.0f;

    for (uint32_t h = 0; h < shape.n_head; h++) {
        const float *q = a->q + (size_t)h * shape.d_head;
        const void *of_head =
            (const char *)index + h / n_query * head_bytes(shape, a->kind);

        sum += a->kind == INDEX_KEYS ? score_keys(q, of_head, shape.d_head)
                                     : score_bounds(q, of_head, shape.d_head);
    }
    return sum;
}

static void score_task(void *arg, uint32_t task, void *scratch)
{
    const struct kv_score_args *a = arg;
    const uint64_t first = a->first + (uint64_t)task * SCORE_TASK;
    const uint64_t last =
        first + SCORE_TASK < a->end ? first + SCORE_TASK : a->end;

    (void)scratch;
    for (uint64_t b = first; b < last; b++)
        a->score[b - a->first] = score(a, a->index[b]);
}

void index_score(struct pool *pool, const struct kv_score_args *a)
{
    const uint64_t n = a->end - a->first;

    assert(a->kind == INDEX_KEYS || a->kind == INDEX_BOUNDS);
    pool_run(n <= SCORE_TASK ? NULL : pool,
             (uint32_t)((n + SCORE_TASK - 1) / SCORE_TASK), score_task,
             (void *)a);
}
