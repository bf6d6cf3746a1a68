#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>

/* Of a task: each weight is read once for them. */
#define ROWS 32u

struct job {
    const struct ffn_args *args;
    bool is_add;
    uint32_t n_row; /* of a task, so that what they make fits the scratch */
};

static void run(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct ffn_args *a = job->args;
    const uint32_t n_ff = a->gate->n_out, row = task * job->n_row;
    const uint32_t left = a->n_row - row;
    const uint32_t n_row = left < job->n_row ? left : job->n_row;
    float *act = scratch, *up = act + (size_t)n_row * n_ff;
    const float *x = a->x + row * a->x_stride;

    ref_linear(NULL, &(struct linear_args){act, n_ff, x, a->x_stride, n_row,
                                           a->gate, NULL});
    ref_linear(NULL, &(struct linear_args){up, n_ff, x, a->x_stride, n_row,
                                           a->up, NULL});
    for (size_t i = 0; i < (size_t)n_row * n_ff; i++)
        act[i] = scalar_silu(act[i]) * up[i];
    const struct linear_args down = {
        a->y + row * a->y_stride, a->y_stride, act, n_ff, n_row, a->down, NULL};
    if (job->is_add)
        ref_linear_add(NULL, &down);
    else
        ref_linear(NULL, &down);
}

static void run_rows(const struct ffn_args *args, bool is_add)
{
    const size_t row_bytes = 2 * args->gate->n_out * sizeof(float);
    const size_t most = POOL_SCRATCH_BYTES / row_bytes;
    struct job job = {args, is_add, most < ROWS ? (uint32_t)most : ROWS};

    assert(args->up->n_out == args->gate->n_out &&
           args->down->n_in == args->gate->n_out);
    assert(most > 0);
    pool_run(NULL, (args->n_row + job.n_row - 1) / job.n_row, run, &job);
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
