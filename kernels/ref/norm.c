#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

/* y = x / rms(x) * weight for one group; y may be x. */
static void norm_group(float *y, const float *x, const struct norm_args *a)
{
    float sum = scalar_sum_squares(x, a->dim);
    float scale = 1.0f / sqrtf(sum / (float)a->dim + a->eps);

    for (size_t i = 0; i < a->dim; i++)
        y[i] = (x[i] * scale) * a->weight[i];
}

void ref_rms_norm(struct pool *pool, const struct norm_args *a)
{
    (void)pool;
    for (size_t r = 0; r < a->n_row; r++)
        for (size_t g = 0; g < a->n_group; g++)
            norm_group(a->y + r * a->y_stride + g * a->dim,
                       a->x + r * a->x_stride + g * a->dim, a);
}

void ref_gated_norm(struct pool *pool, const struct gated_norm_args *a)
{
    const struct norm_args *norm = &a->norm;
    size_t dim = (size_t)norm->n_group * norm->dim;

    ref_rms_norm(pool, norm);
    for (size_t r = 0; r < norm->n_row; r++)
        for (size_t i = 0; i < dim; i++)
            norm->y[r * norm->y_stride + i] *=
                scalar_silu(a->z[r * a->z_stride + i]);
}
