#include "model/state_cap.h"

#include "kernels/pool.h"
#include "model/state_norm.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>

static_assert(STATE_CAP_GRID % GRID == 0, "rings are empty there");

/* A task is a head of a span. */
struct job {
    const struct delta_span *span;
    struct delta_shape shape;
    float cap;
    _Atomic uint64_t n_scaled;
};

static bool is_on_grid(const struct delta_span *span)
{
    return (span->position + span->n_row) % STATE_CAP_GRID == 0;
}

static void cap_head(void *arg, uint32_t task, void *scratch)
{
    struct job *job = arg;
    const struct delta_span *span = &job->span[task / job->shape.n_v_head];
    const uint32_t head = task % job->shape.n_v_head;
    const size_t n = (size_t)job->shape.d_k * job->shape.d_v;
    float *s = span->state.s + head * n;
    double rms;
    float scale;

    (void)scratch;
    if (!is_on_grid(span))
        return;
    rms = sqrt(state_sum_squares(s, n) / (double)n);
    if (!isfinite(rms) || rms <= (double)job->cap)
        return;
    scale = (float)((double)job->cap / rms);
    for (size_t i = 0; i < n; i++)
        s[i] *= scale;
    if (span->state.made_of)
        span->state.made_of[head] = 0;
    atomic_fetch_add_explicit(&job->n_scaled, 1, memory_order_relaxed);
}

uint64_t state_cap_apply(struct pool *pool, struct delta_shape shape,
                         const struct delta_span *span, uint32_t n_span,
                         float cap)
{
    struct job job = {.span = span, .shape = shape, .cap = cap};
    uint32_t i = 0;

    while (i < n_span && !is_on_grid(&span[i]))
        i++;
    if (i < n_span) /* most steps wake nobody */
        pool_run(pool, n_span * shape.n_v_head, cap_head, &job);
    return atomic_load_explicit(&job.n_scaled, memory_order_relaxed);
}

struct state_cap_part state_cap_part(uint64_t position, uint32_t n_row,
                                     uint32_t n)
{
    const uint64_t to_grid = STATE_CAP_GRID - position % STATE_CAP_GRID;
    const uint64_t first =
        n == 0 ? 0 : to_grid + (uint64_t)(n - 1) * STATE_CAP_GRID;
    const uint64_t end = to_grid + (uint64_t)n * STATE_CAP_GRID;

    return (struct state_cap_part){.first =
                                       first < n_row ? (uint32_t)first : n_row,
                                   .end = end < n_row ? (uint32_t)end : n_row};
}
