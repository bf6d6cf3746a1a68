#include "kernels/linear_f8.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

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
    float w[LINEAR_GROUP], scale; /* of one output; W8, F8: w is not scaled */
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

static void read_f8(const struct linear *w, size_t o, struct piece *piece)
{
    const struct linear_f8_shape shape = {w->n_in, w->n_out};
    const size_t stride = linear_n_step(w);
    const uint8_t *all = w->panel, *q = all + o * stride + piece->first;
    const float *scale =
        (const float *)(const void *)(all + linear_f8_scales_at(shape));

    for (size_t k = 0; k < piece->n; k++)
        piece->w[k] = linear_f8_float(q[linear_f8_place(k)]);
    piece->scale = scale[o / LINEAR_F8_BLOCK * (stride / LINEAR_F8_BLOCK) +
                         piece->first / LINEAR_F8_BLOCK];
}

static const void *panel_of(const struct block *b)
{
    return (const unsigned char *)b->w->panel +
           b->panel * linear_panel_bytes(b->w);
}

static void read_weights(const struct block *b, size_t lane,
                         struct piece *piece)
{
    const void *panel = panel_of(b);
    const struct linear_group *group =
        (const struct linear_group *)panel + piece->first / LINEAR_GROUP;
    const uint16_t *pair = panel;
    const float *plain = panel;

    for (size_t k = 0; k < piece->n; k++) {
        const size_t i = piece->first + k;
        const size_t word = i / 2 * LINEAR_PANEL + lane;

        if (b->w->type == LINEAR_F32)
            piece->w[k] = plain[i * LINEAR_PANEL + lane];
        else if (b->w->type == LINEAR_BF16)
            piece->w[k] = scalar_from_bf16(pair[word * 2 + k % 2]);
        else
            piece->w[k] = group->q[k][lane];
    }
    piece->scale = b->w->type == LINEAR_W8 ? group->scale[lane] : 1.0f;
}

REF_FUSED float ref_products(const float *x, const float *w, size_t n,
                             enum arithmetic order, float acc)
{
    if (order == ARITHMETIC_FP32) {
        for (size_t k = 0; k < n; k++)
            acc = fmaf(x[k], w[k], acc);
    } else if (order == ARITHMETIC_PAIR) {
        for (size_t k = 0; k < n; k += 2) {
            acc = fmaf(x[k + 1], w[k + 1], acc);
            acc = fmaf(x[k], w[k], acc);
        }
    } else {
        for (size_t i = 0; i < n; i += LINEAR_STEP) {
            float even = 0.0f, odd = 0.0f;

            for (size_t k = i; k < i + LINEAR_STEP; k += 2) {
                even = fmaf(x[k], w[k], even);
                odd = fmaf(x[k + 1], w[k + 1], odd);
            }
            acc = acc + (even + odd);
        }
    }
    return acc;
}

static void add_piece(struct block *b, size_t lane, struct piece *p)
{
    const enum linear_type type = b->w->type;
    const enum arithmetic order = b->w->arithmetic;

    if (type == LINEAR_F8)
        read_f8(b->w, b->panel * LINEAR_PANEL + lane, p);
    else
        read_weights(b, lane, p);
    for (size_t r = 0; r < b->n_row; r++) {
        float *sum = &b->sum[r][lane];

        if (type == LINEAR_W8 || type == LINEAR_F8)
            *sum = fmaf(ref_products(p->x[r], p->w, p->n, order, 0.0f),
                        p->scale, *sum);
        else
            *sum = ref_products(p->x[r], p->w, p->n, order, *sum);
    }
}

static void multiply(struct block *b)
{
    const size_t n =
        b->w->arithmetic == ARITHMETIC_FP32 ? b->w->n_in : linear_n_step(b->w);
    struct piece p;

    for (p.first = 0; p.first < n; p.first += LINEAR_GROUP) {
        p.n = n - p.first < LINEAR_GROUP ? n - p.first : LINEAR_GROUP;
        read_inputs(b, &p);
        for (size_t lane = 0; lane < b->n_out; lane++)
            add_piece(b, lane, &p);
    }
}

/* The same of W8A8. */
static void multiply_quads(struct block *b)
{
    const struct linear_quads *quads = panel_of(b);
    int8_t q[LINEAR_GROUP];

    for (size_t i = 0; i < b->w->n_in; i += LINEAR_GROUP, quads++)
        for (size_t r = 0; r < b->n_row; r++) {
            const size_t left = b->w->n_in - i;
            const float scale =
                linear_quantise(b->x + r * b->x_stride + i,
                                left < LINEAR_GROUP ? left : LINEAR_GROUP, q);

            for (size_t o = 0; o < b->n_out; o++) {
                int32_t d = 0;

                for (size_t k = 0; k < LINEAR_GROUP; k++)
                    d += q[k] * quads->q[k / 4][o][k % 4];
                b->sum[r][o] =
                    fmaf((float)d, scale * quads->scale[o], b->sum[r][o]);
            }
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
