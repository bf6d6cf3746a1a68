#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

#include <assert.h>

LANES_INLINE float largest(const float *x, uint32_t n)
{
    const v16 none = v16_set1(-__builtin_inff());
    v16 most = none;

    for (uint32_t i = 0; i < n; i += LANES) {
        v16 v = v16_load_part(x, i, n);

        if (n - i < LANES)
            v = v16_first(v, none, n - i);
        most = v16_max(v, most);
    }
    return v16_largest(most);
}

LANES_INLINE float sum_above(const float *x, uint32_t n, float max)
{
    const v16 shift = v16_set1(max);
    v16 sum = v16_zero();

    for (uint32_t i = 0; i < n; i += LANES) {
        v16 v = v16_exp(v16_sub(v16_load_part(x, i, n), shift));

        if (n - i < LANES)
            v = v16_first(v, v16_zero(), n - i);
        sum = v16_add(sum, v);
    }
    return v16_fold(sum);
}

static void row_task(void *arg, uint32_t row, void *scratch)
{
    const struct surprise_args *a = arg;
    const float *x = a->logit + row * a->logit_stride;
    const float max = largest(x, a->n);
    float log[LANES];

    (void)scratch;
    assert(a->token[row] < a->n);
    v16_store(log, v16_log(v16_set1(sum_above(x, a->n, max))));
    a->surprise[row] = log[0] + (max - x[a->token[row]]);
}

void LANES_NAME(surprise)(struct pool *pool, const struct surprise_args *args)
{
    pool_run(pool_for_floats(pool, (uint64_t)args->n_row * args->n),
             args->n_row, row_task, (void *)args);
}
