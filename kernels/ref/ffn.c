#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>

/* One row of x, and where what lies between the products goes. */
static void act_row(const struct ffn_args *a, const float *x, float *act,
                    float *up)
{
    const uint32_t n_ff = a->gate->n_out;

    ref_linear(NULL, &(struct linear_args){act, n_ff, x, 0, 1, a->gate, NULL});
    ref_linear(NULL, &(struct linear_args){up, n_ff, x, 0, 1, a->up, NULL});
    for (uint32_t i = 0; i < n_ff; i++)
        act[i] = scalar_silu(act[i]) * up[i];
}

struct job {
    const struct ffn_args *args;
    bool is_add;
};

static void run(void *arg, uint32_t row, void *scratch)
{
    const struct job *job = arg;
    const struct ffn_args *a = job->args;
    float *act = scratch, *up = act + a->gate->n_out;
    const struct linear_args down = {
        .y = a->y + row * a->y_stride, .x = act, .n_row = 1, .w = a->down};

    act_row(a, a->x + row * a->x_stride, act, up);
    if (job->is_add)
        ref_linear_add(NULL, &down);
    else
        ref_linear(NULL, &down);
}

static void run_rows(const struct ffn_args *args, bool is_add)
{
    struct job job = {args, is_add};

    assert(args->up->n_out == args->gate->n_out &&
           args->down->n_in == args->gate->n_out);
    assert(2 * args->gate->n_out * sizeof(float) <= POOL_SCRATCH_BYTES);
    pool_run(NULL, args->n_row, run, &job);
}

void ref_ffn(struct pool *pool, const struct ffn_args *a)
{
    (void)pool;
    run_rows(a, false);
}

void ref_ffn_add(struct pool *pool, const struct ffn_args *a)
{
    (void)pool;
    run_rows(a, true);
}
