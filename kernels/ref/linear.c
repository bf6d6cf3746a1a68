#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

/* Weight of input i for output o, out of the packed panels. */
static float weight(const struct linear *w, size_t o, size_t i)
{
    size_t panel = o / LINEAR_PANEL, lane = o % LINEAR_PANEL, n_in = w->n_in;

    if (w->type == LINEAR_F32)
        return (
            (const float *)w->panel)[(panel * n_in + i) * LINEAR_PANEL + lane];
    size_t pair = panel * ((n_in + 1) / 2) + i / 2;
    return scalar_from_bf16(
        ((const uint16_t *)w->panel)[(pair * LINEAR_PANEL + lane) * 2 + i % 2]);
}

static float dot(const float *x, const struct linear *w, size_t o)
{
    float y = 0.0f;

    for (size_t i = 0; i < w->n_in; i++)
        y = fmaf(x[i], weight(w, o, i), y);
    return y;
}

void ref_linear(struct pool *pool, const struct linear_args *a)
{
    (void)pool;
    for (size_t r = 0; r < a->n_row; r++)
        for (size_t o = 0; o < a->w->n_out; o++)
            a->y[r * a->y_stride + o] = dot(a->x + r * a->x_stride, a->w, o);
}

void ref_linear_add(struct pool *pool, const struct linear_args *a)
{
    (void)pool;
    for (size_t r = 0; r < a->n_row; r++)
        for (size_t o = 0; o < a->w->n_out; o++)
            a->y[r * a->y_stride + o] += dot(a->x + r * a->x_stride, a->w, o);
}
