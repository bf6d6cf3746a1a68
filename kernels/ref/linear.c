#include "kernels/linear_f8.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>
#include <string.h>

/* Of a block: what is read of a weight, is read for so many. */
#define ROWS 32u

/* Some rows of x and one panel of outputs, whose sums are on their way. */
struct block {
    const struct linear *w;
    size_t panel, n_row, n_out;
    const float *x; /* [n_row] rows */
    size_t x_stride;
    float sum[ROWS][LINEAR_PANEL];
};

/* Up to LINEAR_GROUP consecutive steps, the first a multiple of that. */
struct piece {
    size_t first, n;
    float x[ROWS][LINEAR_GROUP];
    float w[LINEAR_GROUP][LINEAR_PANEL]; /* W8, F8: not scaled */
    float scale[LINEAR_PANEL];
};

/* Rounded as the arithmetic wants them, zeros behind n_in. */
static void read_inputs(const struct block *b, struct piece *piece)
{
    for (size_t r = 0; r < b->n_row; r++)
        for (size_t k = 0; k < piece->n; k++) {
            const size_t i = piece->first + k;
            const float x = i < b->w->n_in ? b->x[r * b->x_stride + i] : 0.0f;

            piece->x[r][k] = b->w->arithmetic == ARITHMETIC_FP32
                                 ? x
                                 : scalar_from_bf16(scalar_to_bf16(x));
        }
}

static void read_f8(const struct block *b, size_t lane, struct piece *piece)
{
    const struct linear *w = b->w;
    const size_t o = b->panel * LINEAR_PANEL + lane;
    const struct linear_f8_shape shape = {w->n_in, w->n_out};
    const size_t stride = linear_n_step(w);
    const uint8_t *all = w->panel, *q = all + o * stride + piece->first;
    const float *scale =
        (const float *)(const void *)(all + linear_f8_scales_at(shape));

    for (size_t k = 0; k < piece->n; k++)
        piece->w[k][lane] = linear_f8_float(q[linear_f8_place(k)]);
    piece->scale[lane] =
        scale[o / LINEAR_F8_BLOCK * (stride / LINEAR_F8_BLOCK) +
              piece->first / LINEAR_F8_BLOCK];
}

static const void *panel_of(const struct block *b)
{
    return (const unsigned char *)b->w->panel +
           b->panel * linear_panel_bytes(b->w);
}

/* One step's weight of each output of the panel. */
static void read_step(const struct block *b, size_t i, float *w)
{
    const void *panel = panel_of(b);
    const struct linear_group *group =
        (const struct linear_group *)panel + i / LINEAR_GROUP;
    const uint16_t *pair =
        (const uint16_t *)panel + i / 2 * LINEAR_PANEL * 2 + i % 2;
    const float *plain = (const float *)panel + i * LINEAR_PANEL;

    for (size_t lane = 0; lane < LINEAR_PANEL; lane++)
        if (b->w->type == LINEAR_F32)
            w[lane] = plain[lane];
        else if (b->w->type == LINEAR_BF16)
            w[lane] = scalar_from_bf16(pair[lane * 2]);
        else
            w[lane] = group->q[i % LINEAR_GROUP][lane];
}

static void read_weights(const struct block *b, struct piece *piece)
{
    const struct linear_group *group =
        (const struct linear_group *)panel_of(b) + piece->first / LINEAR_GROUP;

    if (b->w->type == LINEAR_F8) {
        for (size_t lane = 0; lane < b->n_out; lane++)
            read_f8(b, lane, piece);
        return;
    }
    for (size_t k = 0; k < piece->n; k++)
        read_step(b, piece->first + k, piece->w[k]);
    if (b->w->type == LINEAR_W8)
        memcpy(piece->scale, group->scale, sizeof(piece->scale));
}

REF_FUSED void ref_products(const float *x, const struct ref_steps *steps,
                            enum arithmetic order, float *acc)
{
    const float *w = steps->w;
    const size_t stride = steps->stride;
    float sum[LINEAR_PANEL], part[2][LINEAR_PANEL];

    memcpy(sum, acc, sizeof(sum));
    if (order == ARITHMETIC_FP32) {
        for (size_t k = 0; k < steps->n; k++)
            for (size_t o = 0; o < LINEAR_PANEL; o++)
                sum[o] = fmaf(x[k], w[k * stride + o], sum[o]);
    } else if (order == ARITHMETIC_PAIR) {
        for (size_t k = 0; k < steps->n; k += 2)
            for (size_t o = 0; o < LINEAR_PANEL; o++) {
                sum[o] = fmaf(x[k + 1], w[(k + 1) * stride + o], sum[o]);
                sum[o] = fmaf(x[k], w[k * stride + o], sum[o]);
            }
    } else {
        for (size_t i = 0; i < steps->n; i += LINEAR_STEP) {
            memset(part, 0, sizeof(part));
            for (size_t k = i; k < i + LINEAR_STEP; k++)
                for (size_t o = 0; o < LINEAR_PANEL; o++)
                    part[k % 2][o] =
                        fmaf(x[k], w[k * stride + o], part[k % 2][o]);
            for (size_t o = 0; o < LINEAR_PANEL; o++)
                sum[o] = sum[o] + (part[0][o] + part[1][o]);
        }
    }
    memcpy(acc, sum, sizeof(sum));
}

/* The piece's steps onto the sums of all rows. */
static void add_piece(struct block *b, struct piece *p)
{
    const enum linear_type type = b->w->type;
    const struct ref_steps steps = {p->w[0], LINEAR_PANEL, p->n};

    for (size_t r = 0; r < b->n_row; r++) {
        float *sum = b->sum[r], of_scale[LINEAR_PANEL] = {0.0f};

        if (type != LINEAR_W8 && type != LINEAR_F8) {
            ref_products(p->x[r], &steps, b->w->arithmetic, sum);
            continue;
        }
        ref_products(p->x[r], &steps, b->w->arithmetic, of_scale);
        for (size_t o = 0; o < LINEAR_PANEL; o++)
            sum[o] = fmaf(of_scale[o], p->scale[o], sum[o]);
    }
}

static void multiply(struct block *b)
{
    const size_t n =
        b->w->arithmetic == ARITHMETIC_FP32 ? b->w->n_in : linear_n_step(b->w);
    struct piece p = {0};

    for (p.first = 0; p.first < n; p.first += LINEAR_GROUP) {
        p.n = n - p.first < LINEAR_GROUP ? n - p.first : LINEAR_GROUP;
        read_inputs(b, &p);
        read_weights(b, &p);
        add_piece(b, &p);
    }
}

/* A group of W8A8: whole numbers, so their sum needs no order. */
static void add_quads(struct block *b, const float *scale,
                      int32_t w[LINEAR_GROUP][LINEAR_PANEL], size_t i)
{
    const size_t left = b->w->n_in - i;
    int8_t q[LINEAR_GROUP];

    for (size_t r = 0; r < b->n_row; r++) {
        int32_t d[LINEAR_PANEL] = {0};
        const float of_x =
            linear_quantise(b->x + r * b->x_stride + i,
                            left < LINEAR_GROUP ? left : LINEAR_GROUP, q);

        for (size_t k = 0; k < LINEAR_GROUP; k++)
            for (size_t o = 0; o < LINEAR_PANEL; o++)
                d[o] += q[k] * w[k][o];
        for (size_t o = 0; o < LINEAR_PANEL; o++)
            b->sum[r][o] = fmaf((float)d[o], of_x * scale[o], b->sum[r][o]);
    }
}

/* The same of W8A8. */
REF_FUSED static void multiply_quads(struct block *b)
{
    const struct linear_quads *quads = panel_of(b);
    int32_t w[LINEAR_GROUP][LINEAR_PANEL];

    for (size_t i = 0; i < b->w->n_in; i += LINEAR_GROUP, quads++) {
        for (size_t k = 0; k < LINEAR_GROUP; k++)
            for (size_t o = 0; o < LINEAR_PANEL; o++)
                w[k][o] = (int32_t)quads->q[k / 4][o][k % 4];
        add_quads(b, quads->scale, w, i);
    }
}

static void run_block(const struct linear_args *a, size_t row, size_t panel,
                      bool is_add)
{
    const size_t first = panel * LINEAR_PANEL;
    struct block b = {.w = a->w,
                      .panel = panel,
                      .n_row = a->n_row - row < ROWS ? a->n_row - row : ROWS,
                      .n_out = a->w->n_out - first < LINEAR_PANEL
                                   ? a->w->n_out - first
                                   : LINEAR_PANEL,
                      .x = a->x + row * a->x_stride,
                      .x_stride = a->x_stride};

    if (a->w->type == LINEAR_W8A8)
        multiply_quads(&b);
    else
        multiply(&b);
    for (size_t r = 0; r < b.n_row; r++)
        for (size_t o = 0; o < b.n_out; o++) {
            float *y = &a->y[(row + r) * a->y_stride + first + o];

            *y = is_add ? *y + b.sum[r][o] : b.sum[r][o];
        }
}

static void run(const struct linear_args *a, bool is_add)
{
    for (size_t row = 0; row < a->n_row; row += ROWS)
        for (size_t panel = 0; panel * LINEAR_PANEL < a->w->n_out; panel++)
            run_block(a, row, panel, is_add);
}

void ref_linear(struct pool *pool, const struct linear_args *a)
{
    (void)pool;
    run(a, false);
}

void ref_linear_add(struct pool *pool, const struct linear_args *a)
{
    (void)pool;
    run(a, true);
}
