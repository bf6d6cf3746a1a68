#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Partial softmax of one block, or of all blocks so far. */
struct partial {
    float max, sum;
    float out[HEAD_DIM_MAX];
};

/* What one row sees of one block. */
struct seen {
    const void *k, *v; /* of its KV head */
    struct key_place place;
    uint32_t n_key;
};

/* As it enters a product. */
static float operand(const struct attend_args *a, float x)
{
    return a->shape.arithmetic == ARITHMETIC_FP32
               ? x
               : scalar_from_bf16(scalar_to_bf16(x));
}

/* Dimension d of token j among a head's tiles of int8. */
static float tile_at(const struct attend_args *a, const struct kv_tile *tile,
                     size_t d, size_t j)
{
    tile += d / KV_TILE_DIMS;
    return operand(a, (float)tile->q[j][d % KV_TILE_DIMS] * tile->scale[j]);
}

/* k of token j of a block, dimension d, as it lies there. */
static float key_at(const struct attend_args *a, const void *k, size_t d,
                    size_t j)
{
    if (a->shape.kv == KV_INT8)
        return tile_at(a, k, d, j);
    if (a->shape.arithmetic == ARITHMETIC_FP32)
        return ((const float *)k)[d * KV_BLOCK + j];
    return scalar_from_bf16(
        ((const uint16_t *)k)[(d / 2 * KV_BLOCK + j) * 2 + d % 2]);
}

static float value_at(const struct attend_args *a, const void *v, size_t j,
                      size_t e)
{
    size_t d_head = a->shape.d_head;

    if (a->shape.kv == KV_INT8)
        return tile_at(a, v, e, j);
    if (a->shape.arithmetic == ARITHMETIC_FP32)
        return ((const float *)v)[j * d_head + e];
    return scalar_from_bf16(
        ((const uint16_t *)v)[(j / 2 * d_head + e) * 2 + j % 2]);
}

/* The same key rotated by the position that it is taken to have. */
static float rotated(const struct attend_args *a, const struct seen *seen,
                     size_t d, size_t j)
{
    size_t n_pair = a->table->n_rot / 2;

    if (d >= 2 * n_pair)
        return key_at(a, seen->k, d, j);
    size_t i = d < n_pair ? d : d - n_pair;
    uint64_t p = seen->place.position + (seen->place.is_flat ? 0 : j);
    size_t at = (p / KV_BLOCK * n_pair + i) * KV_BLOCK + p % KV_BLOCK;
    float cosine = a->table->cos[at], sine = a->table->sin[at];
    float x = key_at(a, seen->k, i, j);
    float y = key_at(a, seen->k, i + n_pair, j);
    return operand(a, d < n_pair ? fmaf(x, cosine, -(y * sine))
                                 : fmaf(y, cosine, x * sine));
}

/* The product of n steps. In PAIR and TILE there is room for zeros behind, up
 * to a whole LINEAR_STEP, and -0 is made +0. */
static float product(enum arithmetic order, float *x, float *w, size_t n)
{
    if (order == ARITHMETIC_FP32)
        return ref_products(x, w, n, order, 0.0f);
    for (; n % LINEAR_STEP; n++)
        x[n] = w[n] = 0.0f;
    return ref_products(x, w, n, order, 0.0f) + 0.0f;
}

/* One row against the tokens of one block that it sees. */
static void attend_block(const struct attend_args *a, const float *q,
                         const struct seen *seen, struct partial *out)
{
    size_t d_head = a->shape.d_head, n_key = seen->n_key;
    float p[KV_BLOCK], x[HEAD_DIM_MAX], w[HEAD_DIM_MAX];

    assert(n_key > 0);
    out->max = -INFINITY;
    for (size_t d = 0; d < d_head; d++)
        x[d] = operand(a, q[d] * a->scale);
    for (size_t j = 0; j < n_key; j++) {
        for (size_t d = 0; d < d_head; d++)
            w[d] = rotated(a, seen, d, j);
        p[j] = product(a->shape.arithmetic, x, w, d_head);
        out->max = p[j] > out->max ? p[j] : out->max;
    }
    for (size_t j = 0; j < n_key; j++)
        p[j] = scalar_exp(p[j] - out->max);
    out->sum = scalar_sum(p, seen->n_key);
    for (size_t j = 0; j < n_key; j++)
        x[j] = operand(a, p[j]);
    for (size_t e = 0; e < d_head; e++) {
        for (size_t j = 0; j < n_key; j++)
            w[j] = value_at(a, seen->v, j, e);
        out->out[e] = product(a->shape.arithmetic, x, w, n_key);
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

/* A row of args: where its result lies, and what is kept between calls. */
struct row {
    const struct attend_span *span;
    uint64_t position;
    size_t index, head; /* row of the matrices, query head */
};

/* The result of a row and head, O scaled. */
static void end_row(const struct attend_args *a, const struct row *row,
                    float *out)
{
    size_t d_head = a->shape.d_head, at = row->head * d_head;
    size_t width = a->shape.n_head * d_head;

    for (size_t e = 0; e < d_head && a->gate; e++)
        out[e] *= scalar_sigmoid(a->gate[row->index * a->gate_stride + at + e]);
    for (size_t e = 0; e < d_head && a->out_rounded; e++)
        a->out_rounded[row->index * width + at + e] = scalar_to_bf16(out[e]);
}

/* M of the row's head; n_head floats behind lies L. */
static float *stat_of(const struct attend_args *a, const struct row *row)
{
    return a->stat + row->index * a->stat_stride + row->head;
}

/* Blocks [first, end) of a row, from what the call before left of it. */
REF_FUSED static void attend_row(const struct attend_args *a,
                                 const struct row *row, uint64_t end)
{
    size_t d_head = a->shape.d_head, n_head = a->shape.n_head;
    size_t kv_head = row->head / (n_head / a->shape.n_kv_head);
    const float *q = a->q + row->index * a->q_stride + row->head * d_head;
    float *out = a->out + row->index * a->out_stride + row->head * d_head;
    uint64_t n_block = row->position / KV_BLOCK + 1;
    struct partial all = {0}, one;

    if (a->first_block) {
        const float *stat = stat_of(a, row);
        all.max = stat[0];
        all.sum = stat[n_head];
        memcpy(all.out, out, d_head * sizeof(float));
    }
    for (uint64_t b = a->first_block; b < n_block && b < end; b++) {
        const unsigned char *block = row->span->block[b];
        uint64_t left = row->position + 1 - b * KV_BLOCK;
        struct seen seen = {.k = block + kv_keys_at(a->shape, kv_head),
                            .v = block + kv_values_at(a->shape, kv_head),
                            .place = key_place_of(row->span, b),
                            .n_key =
                                left < KV_BLOCK ? (uint32_t)left : KV_BLOCK};
        attend_block(a, q, &seen, b ? &one : &all);
        if (b)
            merge(&all, &one, d_head);
    }
    if (end < n_block) {
        float *stat = stat_of(a, row);
        stat[0] = all.max;
        stat[n_head] = all.sum;
    }
    float scale = end < n_block ? 1.0f : 1.0f / all.sum;
    for (size_t e = 0; e < d_head; e++)
        out[e] = all.out[e] * scale;
    if (end >= n_block)
        end_row(a, row, out);
}

void ref_attend(struct pool *pool, const struct attend_args *a)
{
    struct attend_shape shape = a->shape;
    uint64_t end = a->end_block ? a->end_block : UINT64_MAX;

    (void)pool;
    assert(shape.d_head <= HEAD_DIM_MAX && a->table->n_rot <= shape.d_head);
    assert(shape.n_head % shape.n_kv_head == 0);
    for (uint32_t i = 0; i < a->n_span; i++) {
        const struct attend_span *span = &a->span[i];
        assert(span->position + span->n_row <= a->table->n_position);
        for (size_t r = 0; r < span->n_row; r++) {
            struct row row = {.span = span,
                              .position = span->position + r,
                              .index = span->first_row + r};
            if (row.position / KV_BLOCK < a->first_block)
                continue; /* an earlier call has finished it */
            for (; row.head < shape.n_head; row.head++)
                attend_row(a, &row, end);
        }
    }
}
