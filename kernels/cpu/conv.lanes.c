#include "kernels/cpu/ops.h"

#include <assert.h>

#define TASK_CHANNELS 64u

/* Raw input at row t of the span; t < 0 is in the tail. */
static const float *input(const struct conv_args *a,
                          const struct conv_span *span, int64_t t)
{
    if (t < 0)
        return span->tail + (size_t)(t + a->width - 1) * a->n_channel;
    return a->x + (span->first_row + (size_t)t) * a->x_stride;
}

static void conv_row(const struct conv_args *a, const struct conv_span *span,
                     int64_t t, uint32_t first, uint32_t end)
{
    float *y = a->y + (span->first_row + (size_t)t) * a->y_stride;
    const float *x[CONV_WIDTH_MAX];

    for (uint32_t i = 0; i < a->width; i++)
        x[i] = input(a, span, t - a->width + 1 + i);
    for (uint32_t c = first; c < end; c += LANES) {
        v16 sum = v16_zero();
        for (uint32_t i = 0; i < a->width; i++) {
            const float *w = a->weight + (size_t)i * a->n_channel;
            sum = v16_fma(v16_load_part(w, c, end), v16_load_part(x[i], c, end),
                          sum);
        }
        v16_store_part(y, v16_silu(sum), c, end);
    }
}

/* Task: some channels of one span, all rows. */
static void conv_task(void *arg, uint32_t task, void *scratch)
{
    const struct conv_args *a = arg;
    uint32_t n_part = (a->n_channel + TASK_CHANNELS - 1) / TASK_CHANNELS;
    const struct conv_span *span = &a->span[task / n_part];
    uint32_t first = task % n_part * TASK_CHANNELS;
    uint32_t end = first + TASK_CHANNELS;

    (void)scratch;
    if (end > a->n_channel)
        end = a->n_channel;
    for (int64_t t = 0; t < span->n_row; t++)
        conv_row(a, span, t, first, end);
    /* Oldest first: each is read before its place is written. */
    for (uint32_t i = 0; i + 1 < a->width; i++) {
        float *tail = span->tail + (size_t)i * a->n_channel;
        const float *x =
            input(a, span, (int64_t)span->n_row - a->width + 1 + i);
        for (uint32_t c = first; c < end; c += LANES)
            v16_store_part(tail, v16_load_part(x, c, end), c, end);
    }
}

void LANES_NAME(conv)(struct pool *pool, const struct conv_args *args)
{
    uint32_t n_part = (args->n_channel + TASK_CHANNELS - 1) / TASK_CHANNELS;
    uint64_t n_row = 0;

    assert(args->width >= 1 && args->width <= CONV_WIDTH_MAX);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    pool = pool_for_floats(pool, n_row * args->n_channel);
    pool_run(pool, args->n_span * n_part, conv_task, (void *)args);
}
