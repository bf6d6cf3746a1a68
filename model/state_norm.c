#include "model/state_norm.h"

#include "kernels/state_cap.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define N_MAX 8u /* so that they need not wait for each other */

static float largest(const float *s, size_t n)
{
    float each[N_MAX] = {0}, max = 0;
    size_t i = 0;

    for (; i + N_MAX <= n; i += N_MAX)
        for (uint32_t k = 0; k < N_MAX; k++) {
            const float size = fabsf(s[i + k]);

            each[k] = size > each[k] ? size : each[k];
        }
    for (; i < n; i++)
        max = fmaxf(max, fabsf(s[i]));
    for (uint32_t k = 0; k < N_MAX; k++)
        max = fmaxf(max, each[k]);
    return max;
}

/* Sum of squares, and the largest magnitude; both infinite when a number is no
 * finite one. */
static double measure(const float *s, size_t n, float *out_max)
{
    const double total = state_sum_squares(s, n);
    const float max = largest(s, n);

    if (!isfinite(total)) { /* a NaN is larger than nothing */
        *out_max = INFINITY;
        return INFINITY;
    }
    *out_max = max;
    return total;
}

struct state_norm state_norm_of(const struct mixer_plan *plan,
                                const void *state)
{
    const struct mixer_field *field = &plan->field[0];
    struct state_norm norm = {.head_rms = -1};
    const float *s = state;
    size_t n_each;
    double total = 0;

    if (plan->state_bytes == 0 || plan->n_field == 0 ||
        strcmp(field->name, "s") != 0)
        return (struct state_norm){0};
    assert(field->offset == 0 && field->type == FIELD_F32);
    norm.n_head = field->dim[0];
    n_each = (size_t)field->dim[1] * field->dim[2];
    for (uint32_t h = 0; h < norm.n_head; h++) {
        float max;
        const double sum = measure(s + h * n_each, n_each, &max);
        const float rms = (float)sqrt(sum / (double)n_each);

        total += sum;
        norm.max = fmaxf(norm.max, max);
        if (rms > norm.head_rms) {
            norm.head_rms = rms;
            norm.head = h;
        }
    }
    norm.rms = (float)sqrt(total / ((double)n_each * norm.n_head));
    return norm;
}
