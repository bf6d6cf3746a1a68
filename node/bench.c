#include "node/bench.h"

#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sizes that differ by less are in the same cache: one measurement does. */
#define SAME_SIZE 0.1

struct point point_of(const char *what, uint64_t context, uint32_t n_session)
{
    return (struct point){
        .what = what,
        .context = context,
        .n_session = n_session,
        .share = {BENCH_NONE},
        .of_peak = BENCH_NONE,
        .latency = {BENCH_NONE, BENCH_NONE, BENCH_NONE, BENCH_NONE}};
}

uint64_t bench_now_us(void)
{
    return clock_real()->now_us(clock_real());
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_median(double *value, uint32_t n)
{
    qsort(value, n, sizeof(*value), compare_doubles);
    return n % 2 ? value[n / 2] : 0.5 * (value[n / 2 - 1] + value[n / 2]);
}

double bench_percentile(const double *value, size_t n, double share)
{
    return n ? value[(size_t)((double)(n - 1) * share + 0.5)] : BENCH_NONE;
}

/* ------------------------------------------------------------------- rows */

static void print_header(void)
{
    printf(
        "version\tmachine\tbackend\tnumerics\tthreads\tmodel\twhat\tcontext\t"
        "batch\ttokens_per_s\tbound_tokens_per_s\tbound_kind\tfraction\t"
        "products\tdelta\tattention\trest\tproducts_of_peak\tttft_p50_ms\t"
        "ttft_p99_ms\ttoken_p50_ms\ttoken_p99_ms\n");
}

static void print_optional(double value, const char *format)
{
    (void)putchar('\t');
    if (value < 0)
        (void)putchar('-');
    else
        printf(format, value);
}

void bench_print(struct bench *bench, const struct point *point)
{
    if (!bench->has_header)
        print_header();
    bench->has_header = true;
    printf("%s\t%s\t%s\t%s\t%u\t%s\t%s\t%lu\t%u\t%.2f\t%.2f\t%s\t%.3f",
           GODWIT_VERSION, bench->machine, model_backend(bench->model)->name,
           model_numerics(bench->model), pool_n_thread(bench->pool),
           bench->model_name, point->what, point->context, point->n_session,
           point->rate, point->bound, point->bound_kind,
           point->rate / point->bound);
    for (uint32_t i = 0; i < N_STOPWATCH_PART; i++)
        print_optional(point->share[0] < 0 ? BENCH_NONE : point->share[i],
                       "%.3f");
    print_optional(point->of_peak, "%.3f");
    print_optional(point->latency.ttft_p50_ms, "%.1f");
    print_optional(point->latency.ttft_p99_ms, "%.1f");
    print_optional(point->latency.token_p50_ms, "%.2f");
    print_optional(point->latency.token_p99_ms, "%.2f");
    (void)putchar('\n');
    (void)fflush(stdout);
}

/* ------------------------------------------------------------------ bounds */

void bench_measure_peaks(struct bench *bench)
{
    bench->kind = peak_kind_of(
        model_backend(bench->model)->name, model_arithmetic(bench->model),
        model_weight_format(bench->model) == WEIGHT_W8A8 ? LINEAR_W8A8
                                                         : LINEAR_BF16);
    bench->peak = peak_flops(bench->pool, bench->kind, PEAK_RUNS);
    bench->read_bytes = 0;
    fprintf(stderr, "godwitd bench: %u threads: %s %.1f GFLOP/s\n",
            pool_n_thread(bench->pool), peak_name(bench->kind),
            bench->peak / 1e9);
}

static enum status read_rate(struct bench *bench, double bytes, double *out)
{
    const double before = (double)bench->read_bytes;
    enum status st = STATUS_OK;

    if (before < bytes * (1 - SAME_SIZE) || before > bytes * (1 + SAME_SIZE)) {
        st = peak_read_bytes(bench->pool, (size_t)bytes, &bench->bandwidth);
        bench->read_bytes = st ? 0 : (size_t)bytes;
        if (!st)
            fprintf(stderr, "godwitd bench: reads of %.1f MB at %.1f GB/s\n",
                    bytes / 1e6, bench->bandwidth / 1e9);
    }
    *out = bench->bandwidth;
    return st;
}

double bench_seconds(const struct bench *bench, const struct work *work,
                     double bandwidth, const char **out_kind)
{
    const double flops = work->flops / bench->peak;
    const double bytes = work->bytes / bandwidth;

    *out_kind = bytes > flops ? "memory" : "arithmetic";
    return bytes > flops ? bytes : flops;
}

enum status bench_bound(struct bench *bench, const struct work *work,
                        double *out_seconds, const char **out_kind)
{
    double bandwidth;
    const enum status st = read_rate(bench, work->bytes, &bandwidth);

    if (!st)
        *out_seconds = bench_seconds(bench, work, bandwidth, out_kind);
    return st;
}

/* Two for each weight of a product that one row meets. */
static double row_product_flops(const struct model *model)
{
    const struct config *c = model_config(model);
    const double table =
        c->is_tied ? 0 : (double)c->n_vocab * (double)c->hidden;

    return 2.0 * ((double)model_n_active(model) - table);
}

/* Attention of one row per token of its past: products, too. */
static double past_flops(const struct model *model)
{
    double n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        n += model_plan(model, i)->past_flops;
    return n;
}

/* Weights and recurrences of one row. */
static double row_flops(const struct model *model)
{
    const double weights = row_product_flops(model);
    const double all = model_row_flops(model);

    return all > weights ? all : weights;
}

/*
 * What a step reads of a session, on average: its states, the half of its rings
 * that is in use, its keys and values.
 */
static double session_read_bytes(const struct model *model, double position)
{
    double n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);

        n += (double)plan->state_bytes + (double)plan->copy_bytes +
             (double)plan->block_bytes * position / KV_BLOCK;
        for (uint32_t f = 0; f < plan->n_field; f++) {
            const struct mixer_field *field = &plan->field[f];
            double half = 0.5 * (double)field_element_bytes(field->type);

            for (uint32_t d = 0; d < field->n_dim; d++)
                half *= field->dim[d];
            if (strncmp(field->name, "ring_", 5) == 0)
                n -= half;
            if (plan->copy_bytes && strcmp(field->name, "s") == 0)
                n -= 2 * half; /* its copy is read */
        }
    }
    return n;
}

struct work bench_prefill_work(const struct model *model, uint64_t position,
                               uint64_t n_row)
{
    const double n = (double)n_row, middle = (double)position + 0.5 * n;
    const double logit = model_logit_flops(model);
    const uint32_t all = n_row < UINT32_MAX ? (uint32_t)n_row : UINT32_MAX;

    return (struct work){
        .flops =
            n * (row_flops(model) - logit + past_flops(model) * middle) + logit,
        .bytes = (double)model_step_bytes(model, all) +
                 session_read_bytes(model, middle),
    };
}

struct work bench_decode_work(const struct model *model, uint64_t position,
                              uint32_t n_session)
{
    const double n = n_session;

    return (struct work){
        .flops = n * (row_flops(model) + past_flops(model) * (double)position),
        .bytes = (double)model_step_bytes(model, n_session) +
                 n * session_read_bytes(model, (double)position),
    };
}

void point_add_parts(struct point *point, const struct bench *bench,
                     const struct stopwatch *watch, double seconds,
                     double product_bytes)
{
    const double products = watch->seconds[STOPWATCH_PRODUCTS];
    const double by_flops = watch->product_flops / bench->peak;
    const double by_bytes = product_bytes / bench->bandwidth;
    double all = 0;

    for (uint32_t i = 0; i < N_STOPWATCH_PART; i++) {
        point->share[i] = watch->seconds[i] / seconds;
        all += point->share[i];
    }
    point->share[STOPWATCH_REST] += 1.0 - all; /* between the operators */
    point->of_peak = (by_flops > by_bytes ? by_flops : by_bytes) / products;
}
