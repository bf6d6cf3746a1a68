#include "kernels/linear_f8.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

/* Up to LINEAR_GROUP consecutive steps of one row and one output. */
struct piece {
    size_t n;
    float x[LINEAR_GROUP], w[LINEAR_GROUP]; /* W8, F8: not scaled */
    float scale;
};

static void read_inputs(const float *x, const struct linear *w, size_t i,
                        struct piece *piece)
{
    for (size_t k = 0; k < piece->n; k++) {
        const float from = i + k < w->n_in ? x[i + k] : 0.0f;

        piece->x[k] = w->arithmetic == ARITHMETIC_FP32
                          ? from
                          : scalar_from_bf16(scalar_to_bf16(from));
    }
}

static void read_f8(const struct linear *w, size_t o, size_t i,
                    struct piece *piece)
{
    const struct linear_f8_shape shape = {w->n_in, w->n_out};
    const size_t stride = linear_n_step(w);
    const uint8_t *all = w->panel, *q = all + o * stride + i;
    const float *scale =
        (const float *)(const void *)(all + linear_f8_scales_at(shape));

    for (size_t k = 0; k < piece->n; k++)
        piece->w[k] = linear_f8_float(q[linear_f8_place(k)]);
    piece->scale = scale[o / LINEAR_F8_BLOCK * (stride / LINEAR_F8_BLOCK) +
                         i / LINEAR_F8_BLOCK];
}

/* Weights from input i on, a multiple of LINEAR_GROUP, of output o. */
static void read_weights(const struct linear *w, size_t o, size_t i,
                         struct piece *piece)
{
    const size_t lane = o % LINEAR_PANEL;
    const void *panel = (const unsigned char *)w->panel +
                        o / LINEAR_PANEL * linear_panel_bytes(w);
    const struct linear_group *group =
        (const struct linear_group *)panel + i / LINEAR_GROUP;
    const uint16_t *pair = panel;
    const float *plain = panel;

    for (size_t k = 0; k < piece->n; k++) {
        const size_t word = (i + k) / 2 * LINEAR_PANEL + lane;

        if (w->type == LINEAR_F32)
            piece->w[k] = plain[(i + k) * LINEAR_PANEL + lane];
        else if (w->type == LINEAR_BF16)
            piece->w[k] = scalar_from_bf16(pair[word * 2 + k % 2]);
        else
            piece->w[k] = group->q[k][lane];
    }
    piece->scale = w->type == LINEAR_W8 ? group->scale[lane] : 1.0f;
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

static float dot(const float *x, const struct linear *w, size_t o)
{
    const size_t n =
        w->arithmetic == ARITHMETIC_FP32 ? w->n_in : linear_n_step(w);
    float acc = 0.0f;
    struct piece p = {.n = 0};

    for (size_t i = 0; i < n; i += LINEAR_GROUP) {
        p.n = n - i < LINEAR_GROUP ? n - i : LINEAR_GROUP;
        read_inputs(x, w, i, &p);
        if (w->type == LINEAR_F8)
            read_f8(w, o, i, &p);
        else
            read_weights(w, o, i, &p);
        if (w->type == LINEAR_W8 || w->type == LINEAR_F8)
            acc = fmaf(ref_products(p.x, p.w, p.n, w->arithmetic, 0.0f),
                       p.scale, acc);
        else
            acc = ref_products(p.x, p.w, p.n, w->arithmetic, acc);
    }
    return acc;
}

/* The outputs of one panel of W8A8. */
static void dot_quads(const float *x, const struct linear *w, size_t panel,
                      float acc[LINEAR_PANEL])
{
    const void *at =
        (const unsigned char *)w->panel + panel * linear_panel_bytes(w);
    const struct linear_quads *quads = at;
    int8_t q[LINEAR_GROUP];

    for (size_t o = 0; o < LINEAR_PANEL; o++)
        acc[o] = 0.0f;
    for (size_t i = 0; i < w->n_in; i += LINEAR_GROUP, quads++) {
        const size_t left = w->n_in - i;
        const float scale = linear_quantise(
            x + i, left < LINEAR_GROUP ? left : LINEAR_GROUP, q);

        for (size_t o = 0; o < LINEAR_PANEL; o++) {
            int32_t d = 0;

            for (size_t k = 0; k < LINEAR_GROUP; k++)
                d += q[k] * quads->q[k / 4][o][k % 4];
            acc[o] = fmaf((float)d, scale * quads->scale[o], acc[o]);
        }
    }
}

static void run(const struct linear_args *a, bool is_add)
{
    float panel[LINEAR_PANEL];

    for (size_t r = 0; r < a->n_row; r++)
        for (size_t o = 0; o < a->w->n_out; o++) {
            const float *x = a->x + r * a->x_stride;
            const size_t lane = o % LINEAR_PANEL;
            float *out = &a->y[r * a->y_stride + o];

            if (a->w->type != LINEAR_W8A8)
                panel[lane] = dot(x, a->w, o);
            else if (lane == 0)
                dot_quads(x, a->w, o / LINEAR_PANEL, panel);
            *out = is_add ? *out + panel[lane] : panel[lane];
        }
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
