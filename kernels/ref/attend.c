#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Rows that read a block together: each of its tokens is rotated once. */
#define ROWS 32u

/* Partial softmax of one block, or of all blocks so far. */
struct partial {
    float max, sum;
    float out[HEAD_DIM_MAX];
};

/* A block of a KV head, and as products read it: zeros behind the first n. */
struct tokens {
    const void *k_of, *v_of;
    struct key_place place;
    size_t n;
    float k[HEAD_DIM_MAX][KV_BLOCK]; /* rotated */
    float v[KV_BLOCK][HEAD_DIM_MAX];
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
static float rotated(const struct attend_args *a, const struct tokens *seen,
                     size_t d, size_t j)
{
    size_t n_pair = a->table->n_rot / 2;

    if (d >= 2 * n_pair)
        return key_at(a, seen->k_of, d, j);
    size_t i = d < n_pair ? d : d - n_pair;
    uint64_t p = seen->place.position + (seen->place.is_flat ? 0 : j);
    size_t at = (p / KV_BLOCK * n_pair + i) * KV_BLOCK + p % KV_BLOCK;
    float cosine = a->table->cos[at], sine = a->table->sin[at];
    float x = key_at(a, seen->k_of, i, j);
    float y = key_at(a, seen->k_of, i + n_pair, j);
    return operand(a, d < n_pair ? fmaf(x, cosine, -(y * sine))
                                 : fmaf(y, cosine, x * sine));
}

static size_t whole(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

static void clear_tokens(const struct attend_args *a, struct tokens *t)
{
    size_t width = whole(a->shape.d_head, LINEAR_STEP);

    t->n = 0;
    memset(t->k, 0, width * sizeof(t->k[0]));
    for (size_t j = 0; j < KV_BLOCK; j++)
        memset(t->v[j], 0, width * sizeof(float));
}

static void read_tokens(const struct attend_args *a, size_t n, struct tokens *t)
{
    for (; t->n < n; t->n++)
        for (size_t d = 0; d < a->shape.d_head; d++) {
            t->k[d][t->n] = rotated(a, t, d, t->n);
            t->v[t->n][d] = value_at(a, t->v_of, t->n, d);
        }
}

/* n_out products of n steps. In PAIR and TILE there are zeros behind, up to a
 * whole LINEAR_STEP, and -0 is made +0. */
static void products(enum arithmetic order, const float *x,
                     struct ref_steps steps, size_t n_out, float *out)
{
    if (order != ARITHMETIC_FP32)
        steps.n = whole(steps.n, LINEAR_STEP);
    memset(out, 0, whole(n_out, LINEAR_PANEL) * sizeof(float));
    for (size_t o = 0; o < n_out; o += LINEAR_PANEL, steps.w += LINEAR_PANEL)
        ref_products(x, &steps, order, out + o);
    for (size_t o = 0; o < n_out && order != ARITHMETIC_FP32; o++)
        out[o] += 0.0f;
}

/* One row against all tokens that were read of a block. */
static void attend_block(const struct attend_args *a, const float *q,
                         const struct tokens *t, struct partial *out)
{
    enum arithmetic order = a->shape.arithmetic;
    size_t d_head = a->shape.d_head;
    float p[KV_BLOCK], x[HEAD_DIM_MAX] = {0.0f};

    assert(t->n > 0);
    out->max = -INFINITY;
    for (size_t d = 0; d < d_head; d++)
        x[d] = operand(a, q[d] * a->scale);
    products(order, x, (struct ref_steps){t->k[0], KV_BLOCK, d_head}, t->n, p);
    for (size_t j = 0; j < t->n; j++)
        out->max = p[j] > out->max ? p[j] : out->max;
    for (size_t j = 0; j < t->n; j++)
        p[j] = scalar_exp(p[j] - out->max);
    out->sum = scalar_sum(p, (uint32_t)t->n);
    for (size_t j = 0; j < KV_BLOCK; j++)
        x[j] = j < t->n ? operand(a, p[j]) : 0.0f;
    products(order, x, (struct ref_steps){t->v[0], HEAD_DIM_MAX, t->n}, d_head,
             out->out);
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

/* A query head of a row of args. */
struct row {
    const float *q;
    float *out, *stat; /* kept between calls: M; n_head floats behind lies L */
    const float *gate; /* or NULL */
    uint16_t *rounded; /* or NULL */
    uint64_t position;
    struct partial all;
};

/* Those of a KV head and a span that read a block together. */
struct rows {
    const struct attend_span *span;
    size_t kv_head, n;
    struct row row[ROWS];
};

static void add_row(const struct attend_args *a, struct rows *rows, size_t r,
                    size_t head)
{
    struct row *row = &rows->row[rows->n++];
    size_t index = rows->span->first_row + r; /* of the matrices */

    row->q = a->q + index * a->q_stride + head * a->shape.d_head;
    row->out = a->out + index * a->out_stride + head * a->shape.d_head;
    row->stat = a->stat ? a->stat + index * a->stat_stride + head : NULL;
    row->gate = a->gate
                    ? a->gate + index * a->gate_stride + head * a->shape.d_head
                    : NULL;
    row->rounded = a->out_rounded
                       ? a->out_rounded +
                             (index * a->shape.n_head + head) * a->shape.d_head
                       : NULL;
    row->position = rows->span->position + r;
    row->all = (struct partial){0};
    if (a->first_block) { /* from what the call before left of it */
        assert(row->stat);
        row->all.max = row->stat[0];
        row->all.sum = row->stat[a->shape.n_head];
        memcpy(row->all.out, row->out, a->shape.d_head * sizeof(float));
    }
}

/* Positions ascend, so that what a row does not see yet is still zero. */
REF_FUSED static void attend_rows_block(const struct attend_args *a,
                                        struct rows *rows, uint64_t b)
{
    const unsigned char *block = rows->span->block[b];
    struct tokens t;
    struct partial one;

    t.k_of = block + kv_keys_at(a->shape, rows->kv_head);
    t.v_of = block + kv_values_at(a->shape, rows->kv_head);
    t.place = key_place_of(rows->span, b);
    clear_tokens(a, &t);
    for (struct row *row = rows->row; row < rows->row + rows->n; row++) {
        if (row->position < b * KV_BLOCK)
            continue;
        uint64_t left = row->position + 1 - b * KV_BLOCK;
        read_tokens(a, left < KV_BLOCK ? left : KV_BLOCK, &t);
        attend_block(a, row->q, &t, b ? &one : &row->all);
        if (b)
            merge(&row->all, &one, a->shape.d_head);
    }
}

/* What becomes of a result, O scaled, which lies in out. */
static void end_row(const struct row *row, size_t d_head)
{
    for (size_t e = 0; e < d_head && row->gate; e++)
        row->out[e] *= scalar_sigmoid(row->gate[e]);
    for (size_t e = 0; e < d_head && row->rounded; e++)
        row->rounded[e] = scalar_to_bf16(row->out[e]);
}

static void attend_rows(const struct attend_args *a, struct rows *rows)
{
    uint64_t end = a->end_block ? a->end_block : UINT64_MAX;
    uint64_t n_block = rows->row[rows->n - 1].position / KV_BLOCK + 1;

    for (uint64_t b = a->first_block; b < n_block && b < end; b++)
        attend_rows_block(a, rows, b);
    for (size_t i = 0; i < rows->n; i++) {
        const struct row *row = &rows->row[i];
        bool is_done = row->position / KV_BLOCK < end;
        float scale = is_done ? 1.0f / row->all.sum : 1.0f;

        if (!is_done) {
            assert(row->stat);
            row->stat[0] = row->all.max;
            row->stat[a->shape.n_head] = row->all.sum;
        }
        for (size_t e = 0; e < a->shape.d_head; e++)
            row->out[e] = row->all.out[e] * scale;
        if (is_done)
            end_row(row, a->shape.d_head);
    }
    rows->n = 0;
}

static void attend_span(const struct attend_args *a,
                        const struct attend_span *span, size_t kv_head)
{
    size_t n_query = a->shape.n_head / a->shape.n_kv_head;
    struct rows rows;

    rows.span = span;
    rows.kv_head = kv_head;
    rows.n = 0;
    for (size_t r = 0; r < span->n_row; r++) {
        if ((span->position + r) / KV_BLOCK < a->first_block)
            continue; /* an earlier call has finished it */
        for (size_t h = 0; h < n_query; h++) {
            add_row(a, &rows, r, kv_head * n_query + h);
            if (rows.n == ROWS)
                attend_rows(a, &rows);
        }
    }
    if (rows.n)
        attend_rows(a, &rows);
}

void ref_attend(struct pool *pool, const struct attend_args *a)
{
    struct attend_shape shape = a->shape;

    (void)pool;
    assert(shape.d_head <= HEAD_DIM_MAX && a->table->n_rot <= shape.d_head);
    assert(shape.n_head % shape.n_kv_head == 0);
    for (uint32_t i = 0; i < a->n_span; i++) {
        const struct attend_span *span = &a->span[i];
        assert(span->position + span->n_row <= a->table->n_position);
        for (size_t h = 0; h < shape.n_kv_head; h++)
            attend_span(a, span, h);
    }
}
