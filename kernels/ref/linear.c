#include "kernels/flush.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

/* Weight of input i for output o out of the packed panels, W8 not scaled. */
static float weight(const struct linear *w, size_t o, size_t i)
{
    const size_t lane = o % LINEAR_PANEL;
    const void *panel = (const unsigned char *)w->panel +
                        o / LINEAR_PANEL * linear_panel_bytes(w);

    switch (w->type) {
    case LINEAR_BF16:
        return scalar_from_bf16(((
            const uint16_t *)panel)[(i / 2 * LINEAR_PANEL + lane) * 2 + i % 2]);
    case LINEAR_W8:
        return ((const struct linear_group *)panel)[i / LINEAR_GROUP]
            .q[i % LINEAR_GROUP][lane];
    default:
        return ((const float *)panel)[i * LINEAR_PANEL + lane];
    }
}

static float scale(const struct linear *w, size_t o, size_t i)
{
    const struct linear_group *group =
        (const void *)((const unsigned char *)w->panel +
                       o / LINEAR_PANEL * linear_panel_bytes(w));

    return group[i / LINEAR_GROUP].scale[o % LINEAR_PANEL];
}

static float rounded(const float *x, const struct linear *w, size_t i)
{
    return i < w->n_in ? scalar_from_bf16(scalar_to_bf16(x[i])) : 0.0f;
}

/* The sum of inputs [i, end), from zero, in the order of the arithmetic. */
static float sum(const float *x, const struct linear *w, size_t o, size_t i,
                 size_t end)
{
    float acc = 0.0f;

    if (w->arithmetic == ARITHMETIC_FP32) {
        for (; i < end && i < w->n_in; i++)
            acc = fmaf(x[i], weight(w, o, i), acc);
    } else if (w->arithmetic == ARITHMETIC_PAIR) {
        for (; i < end; i += 2) {
            acc = fmaf(rounded(x, w, i + 1), weight(w, o, i + 1), acc);
            acc = fmaf(rounded(x, w, i), weight(w, o, i), acc);
        }
    } else {
        for (; i < end; i += LINEAR_STEP) {
            float even = 0.0f, odd = 0.0f;

            for (size_t k = i; k < i + LINEAR_STEP; k += 2) {
                even = fmaf(rounded(x, w, k), weight(w, o, k), even);
                odd = fmaf(rounded(x, w, k + 1), weight(w, o, k + 1), odd);
            }
            acc = acc + (even + odd);
        }
    }
    return acc;
}

static float dot(const float *x, const struct linear *w, size_t o)
{
    const size_t n = linear_n_step(w);
    float acc = 0.0f;

    if (w->type != LINEAR_W8)
        return sum(x, w, o, 0, n);
    for (size_t i = 0; i < n; i += LINEAR_GROUP)
        acc = fmaf(sum(x, w, o, i, i + LINEAR_GROUP), scale(w, o, i), acc);
    return acc;
}

/* Apart, so that none of it moves out of the flush modes around the call. */
__attribute__((noinline)) static void rows(const struct linear_args *a,
                                           bool is_add)
{
    for (size_t r = 0; r < a->n_row; r++)
        for (size_t o = 0; o < a->w->n_out; o++) {
            const float y = dot(a->x + r * a->x_stride, a->w, o);
            float *out = &a->y[r * a->y_stride + o];

            *out = is_add ? *out + y : y;
        }
}

static void run(const struct linear_args *a, bool is_add)
{
    uint32_t before;

    if (a->w->arithmetic == ARITHMETIC_FP32) {
        rows(a, is_add);
        return;
    }
    before = flush_begin();
    rows(a, is_add);
    flush_end(before);
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
