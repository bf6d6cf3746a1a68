#include "node/stopwatch.h"

#include <string.h>
#include <time.h>

static const struct backend *real; /* what the table below calls */
static struct backend timed;
static struct stopwatch sum;
static bool is_running;

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define TIMED(name, part)                                                      \
    static void time_##name(struct pool *pool, const struct name##_args *args) \
    {                                                                          \
        const double start = is_running ? now() : 0;                           \
                                                                               \
        real->name(pool, args);                                                \
        if (is_running)                                                        \
            sum.seconds[part] += now() - start;                                \
    }

TIMED(gated_norm, STOPWATCH_REST)
TIMED(swiglu, STOPWATCH_REST)
TIMED(embed, STOPWATCH_REST)
TIMED(rope, STOPWATCH_ATTENTION)
TIMED(kv_append, STOPWATCH_ATTENTION)
TIMED(attend, STOPWATCH_ATTENTION)
TIMED(conv, STOPWATCH_DELTA)
TIMED(delta_gate, STOPWATCH_DELTA)
TIMED(delta, STOPWATCH_DELTA)
TIMED(route, STOPWATCH_REST)
TIMED(combine, STOPWATCH_REST)

static void time_rms_norm(struct pool *pool, const struct norm_args *args)
{
    const double start = is_running ? now() : 0;

    real->rms_norm(pool, args);
    if (is_running)
        sum.seconds[STOPWATCH_REST] += now() - start;
}

static void count_product(double start, double n_row, const struct linear *w)
{
    sum.seconds[STOPWATCH_PRODUCTS] += now() - start;
    sum.product_flops += 2.0 * n_row * w->n_in * w->n_out;
}

static void time_linear(struct pool *pool, const struct linear_args *args)
{
    const double start = is_running ? now() : 0;

    real->linear(pool, args);
    if (is_running)
        count_product(start, args->n_row, args->w);
}

static void time_linear_add(struct pool *pool, const struct linear_args *args)
{
    const double start = is_running ? now() : 0;

    real->linear_add(pool, args);
    if (is_running)
        count_product(start, args->n_row, args->w);
}

static void time_expert(struct pool *pool, const struct expert_args *args)
{
    const double start = is_running ? now() : 0;

    real->expert(pool, args);
    if (is_running)
        count_product(start, args->first[args->n_expert], args->w);
}

static void count_ffn(double start, const struct ffn_args *args)
{
    count_product(start, args->n_row, args->gate);
    sum.product_flops += 2.0 * args->n_row *
                         ((double)args->up->n_in * args->up->n_out +
                          (double)args->down->n_in * args->down->n_out);
}

static void time_ffn(struct pool *pool, const struct ffn_args *args)
{
    const double start = is_running ? now() : 0;

    real->ffn(pool, args);
    if (is_running)
        count_ffn(start, args);
}

static void time_ffn_add(struct pool *pool, const struct ffn_args *args)
{
    const double start = is_running ? now() : 0;

    real->ffn_add(pool, args);
    if (is_running)
        count_ffn(start, args);
}

const struct backend *stopwatch_backend(const struct backend *backend)
{
    real = backend;
    timed = *backend; /* what has no shim is called directly */
    timed.linear = time_linear;
    timed.linear_add = time_linear_add;
    timed.ffn = time_ffn;
    timed.ffn_add = time_ffn_add;
    timed.rms_norm = time_rms_norm;
    timed.gated_norm = time_gated_norm;
    timed.swiglu = time_swiglu;
    timed.embed = time_embed;
    timed.rope = time_rope;
    timed.kv_append = time_kv_append;
    timed.attend = time_attend;
    timed.conv = time_conv;
    timed.delta_gate = time_delta_gate;
    timed.delta = time_delta;
    timed.route = time_route;
    timed.expert = time_expert;
    timed.combine = time_combine;
    return &timed;
}

void stopwatch_start(void)
{
    memset(&sum, 0, sizeof(sum));
    is_running = true;
}

struct stopwatch stopwatch_stop(void)
{
    is_running = false;
    return sum;
}
