#include "kernels/state_cap.h"

#include "kernels/pool.h"

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>

#define N_SUM 8u /* so that additions need not wait for each other */

double state_sum_squares(const float *s, size_t n)
{
    double sum[N_SUM] = {0}, total = 0;
    size_t i = 0;

    for (; i + N_SUM <= n; i += N_SUM) /* as vectors */
        for (uint32_t k = 0; k < N_SUM; k++)
            sum[k] += (double)s[i + k] * (double)s[i + k];
    for (uint32_t k = 0; i < n; i++, k++)
        sum[k] += (double)s[i] * (double)s[i];
    for (uint32_t k = 0; k < N_SUM; k++)
        total += sum[k];
    return total;
}

/* A task is a head of a span. */
struct job {
    const struct state_cap_args *args;
    _Atomic uint64_t n_scaled;
};

static void cap_head(void *arg, uint32_t task, void *scratch)
{
    struct job *job = arg;
    const struct delta_shape shape = job->args->shape;
    const struct delta_state *state =
        &job->args->span[task / shape.n_v_head].state;
    const uint32_t head = task % shape.n_v_head;
    const size_t n = (size_t)shape.d_k * shape.d_v;
    float *s = state->s + head * n;
    const double cap = (double)job->args->cap;
    const double rms = sqrt(state_sum_squares(s, n) / (double)n);
    float scale;

    (void)scratch;
    if (!isfinite(rms) || rms <= cap)
        return;
    scale = (float)(cap / rms);
    for (size_t i = 0; i < n; i++)
        s[i] *= scale;
    if (state->made_of)
        state->made_of[head] = 0;
    atomic_fetch_add_explicit(&job->n_scaled, 1, memory_order_relaxed);
}

void state_cap(struct pool *pool, const struct state_cap_args *args)
{
    struct job job = {.args = args};

    pool_run(pool, args->n_span * args->shape.n_v_head, cap_head, &job);
    *args->n_scaled +=
        atomic_load_explicit(&job.n_scaled, memory_order_relaxed);
}
