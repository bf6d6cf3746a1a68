#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>

/* Partial softmax of one block, or of all blocks so far. */
struct partial {
    float max, sum;
    float out[HEAD_DIM_MAX];
};

/* k of token j of a block, dimension d, rotated by its position. */
static float rotated(const struct attend_args *a, const float *k,
                     uint64_t block, size_t d, size_t j)
{
    size_t n_pair = a->table->n_rot / 2;

    if (d >= 2 * n_pair)
        return k[d * KV_BLOCK + j];
    size_t i = d < n_pair ? d : d - n_pair;
    size_t at = (block * n_pair + i) * KV_BLOCK + j;
    float cosine = a->table->cos[at], sine = a->table->sin[at];
    float x = k[i * KV_BLOCK + j], y = k[(i + n_pair) * KV_BLOCK + j];
    return d < n_pair ? fmaf(x, cosine, -(y * sine))
                      : fmaf(y, cosine, x * sine);
}

/* What one row sees of one block. */
struct seen {
    const float *k, *v; /* of its KV head */
    uint64_t block;     /* index */
    uint32_t n_key;
};

/* One row against the tokens of one block that it sees. */
static void attend_block(const struct attend_args *a, const float *q,
                         const struct seen *seen, struct partial *out)
{
    size_t d_head = a->shape.d_head, n_key = seen->n_key;
    float p[KV_BLOCK];

    out->max = -INFINITY;
    for (size_t j = 0; j < n_key; j++) {
        p[j] = 0.0f;
        for (size_t d = 0; d < d_head; d++)
            p[j] = fmaf(q[d] * a->scale, rotated(a, seen->k, seen->block, d, j),
                        p[j]);
        out->max = p[j] > out->max ? p[j] : out->max;
    }
    for (size_t j = 0; j < n_key; j++)
        p[j] = scalar_exp(p[j] - out->max);
    out->sum = scalar_sum(p, seen->n_key);
    for (size_t e = 0; e < d_head; e++) {
        out->out[e] = 0.0f;
        for (size_t j = 0; j < n_key; j++)
            out->out[e] = fmaf(p[j], seen->v[j * d_head + e], out->out[e]);
    }
}

static void merge(struct partial *all, const struct partial *block,
                  size_t d_head)
{
    float max = all->max > block->max ? all->max : block->max;
    float a = scalar_exp(all->max - max), c = scalar_exp(block->max - max);

    all->max = max;
    all->sum = fmaf(all->sum, a, block->sum * c);
    for (size_t e = 0; e < d_head; e++)
        all->out[e] = fmaf(all->out[e], a, block->out[e] * c);
}

static void attend_row(const struct attend_args *a, float *out, const float *q,
                       const struct attend_span *span, uint64_t position,
                       size_t kv_head)
{
    size_t d_head = a->shape.d_head, n_kv = a->shape.n_kv_head;
    struct partial all, one;

    for (uint64_t b = 0; b <= position / KV_BLOCK; b++) {
        const float *k = span->block[b] + kv_head * d_head * KV_BLOCK;
        uint64_t left = position + 1 - b * KV_BLOCK;
        struct seen seen = {.k = k,
                            .v = k + n_kv * d_head * KV_BLOCK,
                            .block = b,
                            .n_key =
                                left < KV_BLOCK ? (uint32_t)left : KV_BLOCK};
        attend_block(a, q, &seen, b ? &one : &all);
        if (b)
            merge(&all, &one, d_head);
    }
    float scale = 1.0f / all.sum;
    for (size_t e = 0; e < d_head; e++)
        out[e] = all.out[e] * scale;
}

void ref_attend(struct pool *pool, const struct attend_args *a)
{
    struct attend_shape shape = a->shape;
    size_t per_kv = shape.n_head / shape.n_kv_head;

    (void)pool;
    assert(shape.d_head <= HEAD_DIM_MAX && a->table->n_rot <= shape.d_head);
    assert(shape.n_head % shape.n_kv_head == 0);
    for (uint32_t i = 0; i < a->n_span; i++) {
        const struct attend_span *span = &a->span[i];
        assert(span->position + span->n_row <= a->table->n_position);
        for (size_t r = 0; r < span->n_row; r++)
            for (size_t h = 0; h < shape.n_head; h++) {
                size_t row = span->first_row + r, at = h * shape.d_head;
                attend_row(a, a->out + row * a->out_stride + at,
                           a->q + row * a->q_stride + at, span,
                           span->position + r, h / per_kv);
            }
    }
}
