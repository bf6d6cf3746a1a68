/*
 * Layers of experts. Choosing and combining pass over rows once; the products
 * have linear's kernels.
 */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"
#include "kernels/routing.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>

/* ------------------------------------------------------------------ route */

static void softmax(const float *logit, uint32_t n, float *w)
{
    v16 none = v16_set1(-INFINITY), most = none, sum = v16_zero(), shift, total;

    for (uint32_t e = 0; e < n; e += LANES)
        most =
            v16_max(most, v16_first(v16_load_part(logit, e, n), none, n - e));
    shift = v16_set1(v16_largest(most));
    for (uint32_t e = 0; e < n; e += LANES) {
        v16 p = v16_exp(v16_sub(v16_load_part(logit, e, n), shift));

        p = v16_first(p, v16_zero(), n - e); /* adds +0 behind the end */
        sum = v16_add(sum, p);
        v16_store_part(w, p, e, n);
    }
    total = v16_set1(v16_fold(sum));
    for (uint32_t e = 0; e < n; e += LANES)
        v16_store_part(w, v16_div(v16_load_part(w, e, n), total), e, n);
}

static void route_row(void *arg, uint32_t row, void *scratch)
{
    const struct route_args *a = arg;

    softmax(a->logit + row * a->logit_stride, a->to.n_expert, scratch);
    routing_choose(a, row, scratch);
}

void LANES_NAME(route)(struct pool *pool, const struct route_args *args)
{
    const struct routing *to = &args->to;

    assert(to->n_expert <= EXPERT_MAX);
    pool = pool_for_floats(pool, 4 * (uint64_t)to->n_row * to->n_expert);
    pool_run(pool, to->n_row, route_row, (void *)args);
    routing_group(to);
}

/* ---------------------------------------------------------------- combine */

/* Floats of a row that are one task: a single row is shared out as well. */
#define COMBINE_FLOATS 512u

static v16 combined(const struct combine_args *a, size_t row, uint32_t d)
{
    const size_t n = a->by->n_chosen;
    v16 s = v16_zero();

    for (size_t i = row * n; i < (row + 1) * n; i++) {
        const float *x = a->x + a->by->place[i] * a->x_stride;

        s = v16_fma(v16_set1(a->by->weight[i]), v16_load_part(x, d, a->dim), s);
    }
    return s;
}

static void combine_task(void *arg, uint32_t task, void *scratch)
{
    const struct combine_args *a = arg;
    const uint32_t n_block = (a->dim + COMBINE_FLOATS - 1) / COMBINE_FLOATS;
    const uint32_t d = task % n_block * COMBINE_FLOATS;
    const uint32_t end =
        a->dim - d > COMBINE_FLOATS ? d + COMBINE_FLOATS : a->dim;
    const size_t row = task / n_block;
    const float *shared = a->shared ? a->shared + row * a->shared_stride : NULL;
    float *y = a->y + row * a->y_stride;
    v16 gate = v16_zero();

    (void)scratch;
    if (shared)
        gate = v16_set1(scalar_sigmoid(a->shared_gate[row * a->gate_stride]));
    for (uint32_t i = d; i < end; i += LANES) {
        v16 s = combined(a, row, i);

        if (shared)
            s = v16_fma(gate, v16_load_part(shared, i, a->dim), s);
        v16_store_part(y, v16_add(v16_load_part(y, i, a->dim), s), i, a->dim);
    }
}

void LANES_NAME(combine)(struct pool *pool, const struct combine_args *args)
{
    const uint32_t n_row = args->by->n_row;
    const uint32_t n_block = (args->dim + COMBINE_FLOATS - 1) / COMBINE_FLOATS;
    const uint64_t n_float =
        (uint64_t)n_row * args->dim * (args->by->n_chosen + 1);

    pool_run(pool_for_floats(pool, n_float), n_row * n_block, combine_task,
             (void *)args);
}

/* ----------------------------------------------------------------- expert */

void LANES_NAME(expert)(struct pool *pool, const struct expert_args *args)
{
    product_expert(pool, args, &LANES_NAME(product_kernels));
}
