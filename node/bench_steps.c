/*
 * Points of the bare model: no scheduler, no sampler but argmax, no journal.
 * Tokens are anything, since no kernel's time depends on values; so a long past
 * need not be computed either: keys and values of any kind fill the memory.
 */
#include "kernels/scalar.h"
#include "node/bench.h"
#include "node/solo.h"
#include "state/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_DECODE 32u /* steps of a decode run, at most */
#define N_DECODE_MIN 2u
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
        const struct layer_memory *layer = &memory_layers(memory)[i];

        for (uint64_t b = 0; n && b * KV_BLOCK < n_token; b++)
            for (size_t at = 0; at < n; at += sizeof(pattern))
                memcpy((char *)layer->block[b] + at, pattern,
                       n - at < sizeof(pattern) ? n - at : sizeof(pattern));
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
    const double room = MEMORY_SHARE * (double)sysconf(_SC_AVPHYS_PAGES) *
                        (double)sysconf(_SC_PAGESIZE);
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
        (void)model_forward(
            bench->model, bench->pool, steps->workspace,
            &(struct batch){.token = steps->token,
                            .n_row = n_row,
                            .span =
                                &(struct span){.n_row = n_row,
                                               .position = position,
                                               .layer = memory_layers(memory)},
                            .n_span = 1,
                            .logit_row = &(uint32_t){n_row - 1},
                            .n_logit = i + n_row == n});
        memory_advance(memory, n_row);
    }
    return STATUS_OK;
}

/*
 * Tokens [position, position + n) of a prompt, as often as time allows; the
 * seconds of the last run go to *out.
 */
static enum status prefill(struct steps *steps, struct point *point,
                           uint64_t position, uint64_t n, double *out)
{
    struct bench *bench = steps->bench;
    const struct work work = bench_prefill_work(bench->model, position, n);
    const uint64_t start_us = bench_now_us();
    double rate[BENCH_RUN_MAX], bound, seconds = 0;
    struct stopwatch watch = {{0}, 0};
    uint32_t n_run = 0;
    enum status st = bench_bound(bench, &work, &bound, &point->bound_kind);

    while (!st && n_run < bench->options->runs) {
        uint64_t run_us;

        if (n_run && is_over(bench, start_us))
            break;
        st = open_memories(steps, 1, position);
        run_us = bench_now_us();
        stopwatch_start();
        if (!st)
            st = feed(steps, n);
        watch = stopwatch_stop();
        seconds = 1e-6 * (double)(bench_now_us() - run_us + 1);
        rate[n_run++] = (double)n / seconds;
    }
    if (st)
        return st;
    point->rate = bench_median(rate, n_run);
    point->bound = (double)n / bound;
    point_add_parts(point, bench, &watch, seconds, 0);
    bench_print(bench, point);
    *out = seconds;
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
            st = prefill(steps, &frontier, context - n, n, &seconds);
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
    return prefill(steps, &whole, 0, context, &seconds);
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

/* Contexts grow while runs go on: the bound is that of the middle. */
static enum status decode_point(struct steps *steps, uint64_t context,
                                uint32_t n)
{
    struct bench *bench = steps->bench;
    struct point point = point_of("decode", context, n);
    const uint64_t runs = bench->options->runs;
    double rate[BENCH_RUN_MAX], seconds = 0, bound, fit;
    struct stopwatch watch;
    struct work work;
    uint32_t n_step;
    enum status st = run_decode(steps, n, 1, &seconds); /* warms up */

    if (!st)
        st = run_decode(steps, n, 1, &seconds);
    fit = (double)bench->options->seconds / ((double)runs + 1) / seconds;
    n_step = fit > N_DECODE
                 ? N_DECODE
                 : (uint32_t)(fit > N_DECODE_MIN ? fit : N_DECODE_MIN);
    for (uint32_t r = 0; r < runs && !st; r++) {
        st = run_decode(steps, n, n_step, &seconds);
        rate[r] = (double)n_step * n / seconds;
    }
    if (st)
        return st;
    work = bench_decode_work(
        bench->model, memory_position(steps->memory[0]) - runs * n_step / 2, n);
    st = bench_bound(bench, &work, &bound, &point.bound_kind);
    stopwatch_start();
    if (!st)
        st = run_decode(steps, n, n_step, &seconds);
    watch = stopwatch_stop();
    if (st)
        return st;
    point.rate = bench_median(rate, (uint32_t)runs);
    point.bound = n / bound;
    point_add_parts(&point, bench, &watch, seconds,
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
