/*
 * Points of the bare model: no scheduler, no sampler but argmax, no journal.
 * Tokens are anything, since no kernel's time depends on values; so a long past
 * need not be computed either: keys and values of any kind fill the memory.
 */
#include "kernels/device.h"
#include "kernels/scalar.h"
#include "node/bench.h"
#include "node/solo.h"
#include "state/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Steps of a decode run, at most: whole chunks of the recurrent layers, in
 * whose second half a step costs more than in the first. */
#define N_DECODE GRID
#define N_DECODE_MIN 2u
#define N_READ 2u        /* pairs of readings beside a run */
#define N_PEAK 3u        /* measurements of the peak beside a run */
#define CHUNK_MIN 128u   /* rows of a frontier's chunk on a slow machine */
#define MEMORY_SHARE 0.8 /* of what is available that sessions may fill */
#define PATTERN 4096u    /* words, repeated over a block */

struct steps {
    struct bench *bench;
    struct workspace *workspace;
    struct memory *memory[BENCH_BATCH_MAX];
    uint32_t n_memory;
    uint32_t said[BENCH_BATCH_MAX]; /* each session's last token */
    uint32_t *token;                /* [chunk] of a prompt */
};

static void close_memories(struct steps *steps)
{
    for (uint32_t i = 0; i < steps->n_memory; i++)
        memory_destroy(steps->memory[i]);
    steps->n_memory = 0;
}

static void close_steps(struct steps *steps)
{
    close_memories(steps);
    workspace_destroy(steps->workspace);
    free(steps->token);
}

static enum status open_steps(struct bench *bench, uint32_t n_row,
                              uint32_t n_session, struct steps *out)
{
    out->bench = bench;
    out->token = malloc(n_row * sizeof(*out->token));
    if (!out->token)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %u tokens",
                           n_row);
    for (uint32_t i = 0; i < n_row; i++)
        out->token[i] =
            (i * 2654435761u >> 7) % model_config(bench->model)->n_vocab;
    return workspace_create(bench->model, n_row, n_session, n_session,
                            &out->workspace);
}

/*
 * Numbers in -0.5 .. 0.5: an empty block would be no work for the caches. Each
 * word is a float and also two bf16.
 */
static void fill_blocks(const struct model *model, struct memory *memory,
                        uint64_t n_token)
{
    uint32_t pattern[PATTERN];

    for (uint32_t i = 0; i < PATTERN; i++)
        pattern[i] =
            scalar_to_bf16((float)(i * 2654435761u >> 8) * 0x1p-24f - 0.5f) *
            0x10001u;
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const size_t n = model_plan(model, i)->block_bytes;

        for (uint64_t b = 0; n && b * KV_BLOCK < n_token; b++)
            for (size_t at = 0; at < n; at += sizeof(pattern))
                device_write(model_device(model),
                             (char *)memory_block(memory, i, b) + at, pattern,
                             n - at < sizeof(pattern) ? n - at
                                                      : sizeof(pattern));
    }
}

/* n new sessions that have consumed `position` tokens. */
static enum status open_memories(struct steps *steps, uint32_t n,
                                 uint64_t position)
{
    const struct model *model = steps->bench->model;

    close_memories(steps);
    for (uint32_t i = 0; i < n; i++) {
        enum status st = memory_create(model, &steps->memory[i]);

        if (st)
            return st;
        steps->n_memory++;
        st = memory_reserve(steps->memory[i], position);
        if (st)
            return st;
        fill_blocks(model, steps->memory[i], position);
        memory_advance(steps->memory[i], position);
        steps->said[i] = i;
    }
    return STATUS_OK;
}

/* How many of `wanted` sessions of this length fit in the machine. */
static uint32_t sessions_that_fit(const struct model *model, uint64_t n_token,
                                  uint32_t wanted)
{
    const double room =
        MEMORY_SHARE * (double)device_available(model_device(model));
    const double n = room / (double)memory_bytes_for(model, NULL, n_token);

    return n < wanted ? (uint32_t)n : wanted;
}

static bool is_over(const struct bench *bench, uint64_t start_us)
{
    return bench_now_us() - start_us > bench->options->seconds * 1000000;
}

/* ---------------------------------------------------------------- prefill */

/* Feed n tokens to session 0 in chunks; the last one's logits are wanted. */
static enum status feed(struct steps *steps, uint64_t n)
{
    const struct bench *bench = steps->bench;
    struct memory *memory = steps->memory[0];
    uint32_t n_row;

    for (uint64_t i = 0; i < n; i += n_row) {
        const uint64_t position = memory_position(memory);
        enum status st;

        n_row = n - i < bench->options->chunk ? (uint32_t)(n - i)
                                              : (uint32_t)bench->options->chunk;
        st = memory_reserve(memory, position + n_row);
        if (st)
            return st;
        if (!model_forward(
                bench->model, bench->pool, steps->workspace,
                &(struct batch){
                    .token = steps->token,
                    .n_row = n_row,
                    .span = &(struct span){.n_row = n_row,
                                           .position = position,
                                           .layer = memory_layers(memory)},
                    .n_span = 1,
                    .logit_row = &(uint32_t){n_row - 1},
                    .n_logit = i + n_row == n}))
            return status_cause()->code;
        memory_advance(memory, n_row);
    }
    return STATUS_OK;
}

static int compare_points(const void *a, const void *b)
{
    const struct point *x = a, *y = b;
    const double s = x->rate / x->bound, t = y->rate / y->bound;

    return (s > t) - (s < t);
}

/* One run: where its time went, and the seconds it took. */
static enum status prefill_run(struct steps *steps, uint64_t position,
                               uint64_t n, double *out_seconds,
                               struct stopwatch *watch)
{
    const enum status st = open_memories(steps, 1, position);
    const uint64_t start_us = bench_now_us();
    enum status fed;

    if (st)
        return st;
    stopwatch_start();
    fed = feed(steps, n);
    *watch = stopwatch_stop();
    *out_seconds = 1e-6 * (double)(bench_now_us() - start_us + 1);
    return fed;
}

/*
 * Tokens [position, position + n) of a prompt, as often as time allows. Others
 * may use the same cores: each run stands beside peaks taken right before and
 * right behind it, of which the higher one counts. The run with the median
 * share is printed; its seconds go to *out.
 */
static enum status prefill(struct steps *steps, struct point point,
                           uint64_t position, uint64_t n, double *out)
{
    struct bench *bench = steps->bench;
    const struct work work = bench_prefill_work(bench->model, position, n);
    const uint64_t start_us = bench_now_us();
    const double quiet = bench->peak;
    struct point run[BENCH_RUN_MAX];
    uint32_t n_run = 0;
    double bound, before;
    enum status st = bench_bound(bench, &work, &bound, &point.bound_kind);

    before = peak_flops(bench->pool, bench->kind, N_PEAK);
    while (!st && n_run < bench->options->runs &&
           !(n_run && is_over(bench, start_us))) {
        double seconds, after;
        struct stopwatch watch;

        st = prefill_run(steps, position, n, &seconds, &watch);
        if (st)
            break;
        after = peak_flops(bench->pool, bench->kind, N_PEAK);
        bench->peak = after > before ? after : before;
        before = after;
        point.rate = (double)n / seconds;
        point.bound = (double)n / bench_seconds(bench, &work, bench->bandwidth,
                                                &point.bound_kind);
        point_add_parts(&point, bench, &watch, seconds, 0);
        run[n_run++] = point;
    }
    bench->peak = quiet;
    if (st)
        return st;
    qsort(run, n_run, sizeof(*run), compare_points);
    bench_print(bench, &run[n_run / 2]);
    *out = (double)n / run[n_run / 2].rate;
    return STATUS_OK;
}

/* A chunk that even a slow machine finishes a few times in the limit. */
static enum status frontier_rows(struct bench *bench, uint64_t context,
                                 uint64_t *out)
{
    const double limit = (double)bench->options->seconds;
    uint64_t n = bench->options->chunk;
    enum status st = STATUS_OK;

    for (; n > CHUNK_MIN && !st; n /= 2) {
        const struct work work =
            bench_prefill_work(bench->model, context - n, n);
        const char *kind;
        double seconds;

        st = bench_bound(bench, &work, &seconds, &kind);
        if (seconds < limit / 10)
            break;
    }
    *out = n;
    return st;
}

static enum status prefill_at(struct steps *steps, uint64_t context)
{
    const struct bench *bench = steps->bench;
    struct point frontier = point_of("frontier", context, 1);
    struct point whole = point_of("prefill", context, 1);
    double seconds = 0;
    uint64_t n = context;
    enum status st = STATUS_OK;

    if (context > bench->options->chunk) {
        st = frontier_rows(steps->bench, context, &n);
        if (!st)
            st = prefill(steps, frontier, context - n, n, &seconds);
        seconds *= (double)context / (double)n;
    }
    if (st)
        return st;
    if (seconds > 2 * (double)bench->options->seconds) {
        fprintf(stderr,
                "godwitd bench: no whole prompt of %lu tokens, it would take "
                "up to %.0f s\n",
                context, seconds);
        return STATUS_OK;
    }
    return prefill(steps, whole, 0, context, &seconds);
}

enum status bench_prefills(struct bench *bench)
{
    struct steps steps = {0};
    enum status st =
        open_steps(bench, (uint32_t)bench->options->chunk, 1, &steps);

    for (uint32_t c = 0; c < bench->n_context && !st; c++) {
        if (bench->context[c] > model_n_context(bench->model) ||
            !sessions_that_fit(bench->model, bench->context[c], 1))
            fprintf(stderr, "godwitd bench: no prompt of %lu tokens fits\n",
                    bench->context[c]);
        else
            st = prefill_at(&steps, bench->context[c]);
    }
    close_steps(&steps);
    return st;
}

/* ----------------------------------------------------------------- decode */

struct choice {
    const float *logit; /* [n][n_vocab] */
    uint32_t n_vocab;
    uint32_t *said;
};

static void choose(void *arg, uint32_t task, void *scratch)
{
    const struct choice *c = arg;

    (void)scratch;
    c->said[task] =
        solo_argmax(c->logit + (size_t)task * c->n_vocab, c->n_vocab);
}

/* One greedy token for each of the first n sessions, all threads choosing as
 * they do for the scheduler. */
static enum status decode(struct steps *steps, uint32_t n)
{
    const struct bench *bench = steps->bench;
    struct choice choice = {.n_vocab = model_config(bench->model)->n_vocab,
                            .said = steps->said};
    struct span span[BENCH_BATCH_MAX];
    uint32_t row[BENCH_BATCH_MAX];

    for (uint32_t i = 0; i < n; i++) {
        struct memory *memory = steps->memory[i];
        const uint64_t position = memory_position(memory);
        const enum status st = memory_reserve(memory, position + 1);

        if (st)
            return st;
        row[i] = i;
        span[i] = (struct span){.first_row = i,
                                .n_row = 1,
                                .position = position,
                                .layer = memory_layers(memory)};
    }
    choice.logit = model_forward(bench->model, bench->pool, steps->workspace,
                                 &(struct batch){.token = steps->said,
                                                 .n_row = n,
                                                 .span = span,
                                                 .n_span = n,
                                                 .logit_row = row,
                                                 .n_logit = n});
    if (!choice.logit)
        return status_cause()->code;
    pool_run(bench->pool, n, choose, &choice);
    for (uint32_t i = 0; i < n; i++)
        memory_advance(steps->memory[i], 1);
    return STATUS_OK;
}

static enum status run_decode(struct steps *steps, uint32_t n_session,
                              uint32_t n_step, double *out_seconds)
{
    const uint64_t start_us = bench_now_us();
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < n_step && !st; i++)
        st = decode(steps, n_session);
    *out_seconds = 1e-6 * (double)(bench_now_us() - start_us + 1);
    return st;
}

struct decode_run {
    double rate, bandwidth;
    double bound; /* tokens per second */
};

static int compare_shares(const void *a, const void *b)
{
    const struct decode_run *x = a, *y = b;
    const double s = x->rate / x->bound, t = y->rate / y->bound;

    return (s > t) - (s < t);
}

/*
 * What memory gives changes from second to second on a machine that is shared:
 * each run stands beside readings made right before and right behind it. The
 * last of the n_run runs is the one that is watched.
 */
static enum status decode_runs(struct steps *steps, uint32_t n, uint32_t n_step,
                               const struct work *work, uint32_t n_run,
                               struct decode_run *run)
{
    struct bench *bench = steps->bench;
    struct peak_reader reader;
    enum status st =
        peak_reader_init(bench->pool, (size_t)work->bytes, &reader);
    const char *kind;
    double before;

    if (st)
        return st;
    before = peak_reader_rate(&reader, N_READ);
    for (uint32_t r = 0; r < n_run && !st; r++) {
        double seconds, after;

        if (r + 1 == n_run)
            stopwatch_start();
        st = run_decode(steps, n, n_step, &seconds);
        run[r].rate = (double)n_step * n / seconds;
        after = peak_reader_rate(&reader, N_READ);
        run[r].bandwidth = after > before ? after : before;
        run[r].bound = n / bench_seconds(bench, work, run[r].bandwidth, &kind);
        before = after;
    }
    peak_reader_release(&reader);
    return st;
}

/* Contexts grow while runs go on: the bound is that of the middle. The run
 * with the median share of its bound is printed. */
static enum status decode_point(struct steps *steps, uint64_t context,
                                uint32_t n)
{
    struct bench *bench = steps->bench;
    struct point point = point_of("decode", context, n);
    const uint32_t runs = (uint32_t)bench->options->runs;
    struct decode_run run[BENCH_RUN_MAX + 1], last;
    struct stopwatch watch;
    struct work work;
    double seconds = 0, fit;
    uint32_t n_step;
    enum status st = run_decode(steps, n, 1, &seconds); /* warms up */

    if (!st)
        st = run_decode(steps, n, 1, &seconds);
    if (st)
        return st;
    fit = (double)bench->options->seconds / ((double)runs + 1) / seconds;
    n_step = fit > N_DECODE
                 ? N_DECODE
                 : (uint32_t)(fit > N_DECODE_MIN ? fit : N_DECODE_MIN);
    work = bench_decode_work(
        bench->model,
        memory_position(steps->memory[0]) + (uint64_t)runs * n_step / 2, n);
    st = decode_runs(steps, n, n_step, &work, runs + 1, run);
    watch = stopwatch_stop();
    if (st)
        return st;
    last = run[runs];
    qsort(run, runs, sizeof(*run), compare_shares);
    point.rate = run[runs / 2].rate;
    point.bound = run[runs / 2].bound;
    (void)bench_seconds(bench, &work, run[runs / 2].bandwidth,
                        &point.bound_kind);
    bench->bandwidth = last.bandwidth;
    bench->read_bytes = (size_t)work.bytes;
    fprintf(stderr,
            "godwitd bench: reads of %.1f MB at %.1f GB/s beside the median "
            "run, %.1f beside the watched one\n",
            work.bytes / 1e6, run[runs / 2].bandwidth / 1e9,
            last.bandwidth / 1e9);
    point_add_parts(&point, bench, &watch, (double)n_step * n / last.rate,
                    (double)n_step * (double)model_step_bytes(bench->model, n));
    bench_print(bench, &point);
    return STATUS_OK;
}

static enum status decodes_at(struct steps *steps, uint64_t context)
{
    struct bench *bench = steps->bench;
    uint64_t most = 0;
    uint32_t n_fit;
    enum status st;

    for (uint32_t i = 0; i < bench->n_batch; i++)
        most = bench->batch[i] > most ? bench->batch[i] : most;
    n_fit = sessions_that_fit(bench->model, context, (uint32_t)most);
    st = open_memories(steps, n_fit, context);
    for (uint32_t i = 0; i < bench->n_batch && !st; i++) {
        if (bench->batch[i] <= n_fit)
            st = decode_point(steps, context, (uint32_t)bench->batch[i]);
        else
            fprintf(stderr,
                    "godwitd bench: %lu sessions of %lu tokens do not fit in "
                    "this machine's memory\n",
                    bench->batch[i], context);
    }
    return st;
}

enum status bench_decodes(struct bench *bench)
{
    const uint64_t room = (bench->options->runs + 1) * (N_DECODE + 2) *
                          bench->n_batch; /* that contexts grow by */
    struct steps steps = {0};
    enum status st =
        open_steps(bench, BENCH_BATCH_MAX, BENCH_BATCH_MAX, &steps);

    for (uint32_t c = 0; c < bench->n_context && !st; c++) {
        if (bench->context[c] + room > model_n_context(bench->model))
            fprintf(stderr,
                    "godwitd bench: no decode behind %lu tokens, the model "
                    "ends at %lu\n",
                    bench->context[c], model_n_context(bench->model));
        else
            st = decodes_at(&steps, bench->context[c]);
    }
    close_steps(&steps);
    return st;
}
