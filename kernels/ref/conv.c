#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Raw input of channel c at row t of the span; t < 0 is in the tail. */
static float input(const struct conv_args *a, const struct conv_span *span,
                   int64_t t, size_t c)
{
    if (t < 0)
        return span->tail[(size_t)(t + a->width - 1) * a->n_channel + c];
    return a->x[(span->first_row + (size_t)t) * a->x_stride + c];
}

static void conv_span(const struct conv_args *a, const struct conv_span *span)
{
    int64_t n_row = span->n_row, width = a->width;

    for (size_t c = 0; c < a->n_channel; c++) {
        for (int64_t t = 0; t < n_row; t++) {
            float sum = 0.0f;
            for (int64_t i = 0; i < width; i++)
                sum = fmaf(a->weight[(size_t)i * a->n_channel + c],
                           input(a, span, t - width + 1 + i, c), sum);
            a->y[(span->first_row + (size_t)t) * a->y_stride + c] =
                scalar_silu(sum);
        }
        /* Oldest first: each is read before its place is written. */
        for (int64_t i = 0; i < width - 1; i++)
            span->tail[(size_t)i * a->n_channel + c] =
                input(a, span, n_row - width + 1 + i, c);
    }
}

void ref_conv(struct pool *pool, const struct conv_args *a)
{
    (void)pool;
    assert(a->width >= 1 && a->width <= CONV_WIDTH_MAX && !a->unit);
    for (uint32_t i = 0; i < a->n_span; i++)
        conv_span(a, &a->span[i]);
}
