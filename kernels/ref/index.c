#include "kernels/index.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>

#define N_LANE 16u

/* Dimension d of a key in bf16. */
static float dimension(const uint16_t *k, size_t d)
{
    const size_t in = d % INDEX_GROUP, half = INDEX_GROUP / 2;

    return scalar_from_bf16(k[d - in + in % half * 2 + in / half]);
}

/* What a head's query scores on one key of the index. */
static float score_key(const float *q, const uint16_t *k, size_t d_head)
{
    float product[HEAD_DIM_MAX + INDEX_GROUP] = {0.0f}, lane[N_LANE] = {0.0f};

    for (size_t d = 0; d < d_head; d++)
        product[d] = q[d] * dimension(k, d);
    for (size_t d = 0; d < d_head; d++)
        lane[d % N_LANE] += product[d];
    return scalar_sum(lane, N_LANE);
}

static float score_bounds(const float *q, const float *low, size_t d_head)
{
    const float *high = low + d_head;
    float lane[N_LANE] = {0.0f};

    for (size_t d = 0; d < d_head; d++) {
        const float x = q[d] * low[d], y = q[d] * high[d];

        lane[d % N_LANE] += x > y ? x : y;
    }
    return scalar_sum(lane, N_LANE);
}

static float score_short(const struct kv_score_args *a, const float *q,
                         const uint16_t *low)
{
    const size_t d_head = a->shape.d_head;
    float bounds[2 * HEAD_DIM_MAX];

    for (size_t d = 0; d < d_head; d++) {
        bounds[d] = dimension(low, d);
        bounds[d_head + d] = dimension(low + 2 * index_key_words(a->shape), d);
    }
    return score_bounds(q, bounds, d_head);
}

static float score_head(const struct kv_score_args *a, const float *q,
                        const void *index)
{
    const size_t n = 2 * index_key_words(a->shape);
    float best;

    if (a->is_short)
        return score_short(a, q, index);
    if (a->kind == INDEX_BOUNDS)
        return score_bounds(q, index, a->shape.d_head);
    best = score_key(q, index, a->shape.d_head);
    for (uint32_t i = 1; i < INDEX_CHOSEN; i++) {
        const float x =
            score_key(q, (const uint16_t *)index + i * n, a->shape.d_head);

        best = x > best ? x : best;
    }
    return best;
}

void ref_kv_score(struct pool *pool, const struct kv_score_args *a)
{
    const struct attend_shape shape = a->shape;
    const uint32_t n_query = shape.n_head / shape.n_kv_head;

    (void)pool;
    assert(a->kind == INDEX_KEYS || a->kind == INDEX_BOUNDS);
    for (uint64_t b = a->first; b < a->end; b++) {
        float sum = 0.0f;

        for (size_t h = 0; h < shape.n_head; h++)
            sum += score_head(a, a->q + h * shape.d_head,
                              (const char *)a->index[b] +
                                  h / n_query * index_scored_bytes(a));
        a->score[b - a->first] = sum;
    }
}
