#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>

/* scalar_sum() of exp(x - max), without room for them all. */
static float sum_above(const float *x, uint32_t n, float max)
{
    float lane[16] = {0.0f};

    for (uint32_t i = 0; i < n; i++)
        lane[i % 16] += scalar_exp(x[i] - max);
    return scalar_sum(lane, 16);
}

void ref_surprise(struct pool *pool, const struct surprise_args *a)
{
    (void)pool;
    for (uint32_t r = 0; r < a->n_row; r++) {
        const float *x = a->logit + r * a->logit_stride;
        float max = x[0];

        assert(a->token[r] < a->n);
        for (uint32_t i = 1; i < a->n; i++)
            max = x[i] > max ? x[i] : max;
        a->surprise[r] =
            scalar_log(sum_above(x, a->n, max)) + (max - x[a->token[r]]);
    }
}
