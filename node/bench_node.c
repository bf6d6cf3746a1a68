#include "node/bench_node.h"

#include "base/arena.h"
#include "base/thread.h"
#include "node/node.h"
#include "scheduler/sampler.h"

#include <assert.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCRATCH_OPEN_MAX 16 /* descriptors while the directory is removed */
#define SESSION_MAX BENCH_NODE_SESSION_MAX

struct bench_node {
    struct node *node;
    char directory[PATH_MAX];
    uint64_t n_run; /* sessions get new names each run */
};

static uint64_t now_us(void)
{
    return clock_real()->now_us(clock_real());
}

static int remove_one(const char *path, const struct stat *info, int kind,
                      struct FTW *at)
{
    (void)info;
    (void)kind;
    (void)at;
    return remove(path);
}

enum status bench_node_start(const struct bench_node_options *options,
                             struct bench_node **out)
{
    struct bench_node *bench = calloc(1, sizeof(*bench));
    struct node_options node = {
        .model = options->model,
        .synthetic = options->synthetic,
        .choice = options->choice,
        .n_thread = options->n_thread,
        .max_running = SESSION_MAX,
        .max_queue = SESSION_MAX,
        .first_token_ms = 1000,
        .max_sessions = 1000000,
        .default_max_tokens = 256,
        .durability = "local",
        .name = "bench",
    };
    enum status st;

    if (!bench)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a bench");
    (void)snprintf(bench->directory, sizeof(bench->directory),
                   "%s/godwit-bench-XXXXXX",
                   options->data[0] ? options->data : "/tmp");
    if (!mkdtemp(bench->directory)) {
        st = status_fail(STATUS_PERMISSION_DENIED,
                         "scratch directory %s cannot be made",
                         bench->directory);
        free(bench);
        return st;
    }
    node.data = bench->directory;
    st = node_start(&node, &bench->node);
    if (st) {
        bench_node_stop(bench);
        return st;
    }
    *out = bench;
    return STATUS_OK;
}

static void discard_events(struct ring *outbox)
{
    struct event *event;

    while (ring_pop(outbox, &event))
        event_destroy(event);
}

const struct model *bench_node_model(const struct bench_node *bench)
{
    return node_model(bench->node);
}

void bench_node_stop(struct bench_node *bench)
{
    if (!bench)
        return;
    if (bench->node) {
        node_drain(bench->node, 1000);
        discard_events(node_outbox(bench->node));
    }
    node_destroy(bench->node);
    (void)nftw(bench->directory, remove_one, SCRATCH_OPEN_MAX,
               FTW_DEPTH | FTW_PHYS);
    free(bench);
}

/* No two prompts share a beginning, or the node would compute it only once. */
static uint32_t some_token(uint64_t prompt, uint64_t i)
{
    const uint64_t x =
        (prompt * 0x9e3779b97f4a7c15ull + i + 1) * 0xbf58476d1ce4e5b9ull;

    return (uint32_t)(x >> 33);
}

/* One turn of each session, all at once. */
struct turns {
    uint32_t n_session;
    uint64_t n_input;
    uint32_t n_output;
};

/* Replies are numbered from 1, so that 0 stays "nobody". */
static enum status push_turn(struct bench_node *bench, uint32_t i,
                             const struct turns *turns)
{
    const uint32_t n_vocab = model_config(node_model(bench->node))->n_vocab;
    struct arena *arena;
    struct command *command;
    uint32_t *token;
    enum status st =
        arena_create(turns->n_input * sizeof(*token) + 65536, &arena);

    if (st)
        return st;
    command = arena_take(arena, sizeof(*command));
    token = arena_take(arena, turns->n_input * sizeof(*token));
    if (!command || !token) {
        arena_destroy(arena);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    for (uint64_t t = 0; t < turns->n_input; t++)
        token[t] = some_token(bench->n_run * SESSION_MAX + i, t) % n_vocab;
    command->kind = COMMAND_GENERATE;
    command->arena = arena;
    command->reply = i + 1;
    command->generate.token = token;
    command->generate.n_token = turns->n_input;
    command->generate.creates = true;
    command->generate.has_seed = true;
    sampling_init(&command->generate.sampling);
    command->generate.sampling.temperature = 0;
    command->generate.sampling.max_tokens = turns->n_output;
    command->generate.sampling.ignore_eos = true;
    (void)snprintf(command->generate.session, sizeof(command->generate.session),
                   "bench-%lu-%u", bench->n_run, i);
    if (!ring_push(node_inbox(bench->node), &command)) {
        arena_destroy(arena);
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "inbox is full");
    }
    return STATUS_OK;
}

/* What is known of the turns from the events so far. */
struct tally {
    uint64_t start_us, end_us;
    uint64_t n_all;    /* tokens of all sessions */
    uint64_t first_us; /* when the last session had its first token */
    uint64_t n_before; /* tokens sent up to then */
    uint32_t n_done;
    double *ttft_us;  /* [n_session], where they are wanted */
    double *token_us; /* likewise, between two tokens of a session */
    size_t n_first, n_next;
    uint64_t last_us[SESSION_MAX]; /* 0: nothing was sent yet */
    enum status status;
};

static void count_tokens(struct tally *tally, uint32_t i, uint64_t n)
{
    const uint64_t us = now_us();

    tally->n_all += n;
    if (!tally->last_us[i]) {
        if (tally->ttft_us)
            tally->ttft_us[tally->n_first++] = (double)(us - tally->start_us);
        tally->first_us = us;
        tally->n_before = tally->n_all;
        n--;
    }
    /* Tokens of one event come together: one gap, then none. */
    for (uint64_t t = 0; t < n && tally->token_us; t++)
        tally->token_us[tally->n_next++] =
            t || !tally->last_us[i] ? 0 : (double)(us - tally->last_us[i]);
    tally->last_us[i] = us;
}

static void count(struct tally *tally, const struct event *event)
{
    if (event->kind == EVENT_TOKENS && event->tokens.n_token)
        count_tokens(tally, (uint32_t)event->reply - 1, event->tokens.n_token);
    if (event->kind == EVENT_ERROR && !tally->status)
        tally->status = status_adopt(&event->cause);
    if (event->is_last)
        tally->n_done++;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

void bench_node_result_release(struct bench_node_result *result)
{
    free(result->ttft_us);
    free(result->token_us);
    memset(result, 0, sizeof(*result));
}

static void wait_for_all(struct bench_node *bench, struct tally *tally,
                         uint32_t n_session)
{
    struct ring *outbox = node_outbox(bench->node);

    while (tally->n_done < n_session) {
        struct event *event;

        while (ring_pop(outbox, &event)) {
            count(tally, event);
            event_destroy(event);
        }
        if (tally->n_done < n_session)
            ring_wait(outbox, -1);
    }
}

static enum status run_turns(struct bench_node *bench,
                             const struct turns *turns, struct tally *tally,
                             struct thread_times *times)
{
    struct thread_times begin, end;
    uint32_t n_pushed = 0;

    thread_times_read(&begin);
    tally->start_us = now_us();
    for (; n_pushed < turns->n_session && !tally->status; n_pushed++)
        tally->status = push_turn(bench, n_pushed, turns);
    wait_for_all(bench, tally, tally->status ? 0 : n_pushed);
    tally->end_us = now_us();
    thread_times_read(&end);
    thread_times_add(times, &begin, &end);
    return tally->status;
}

/* Tokens per second of sessions that all have a prompt behind them. */
static enum status run_decode(struct bench_node *bench, uint32_t n_session,
                              uint32_t n_output,
                              struct bench_node_result *result)
{
    struct tally tally = {.token_us = result->token_us};
    enum status st =
        run_turns(bench, &(struct turns){n_session, 1, n_output + 1}, &tally,
                  &result->decode_times);

    if (st)
        return st;
    result->n_token = tally.n_next;
    result->decode = 1e6 * (double)(tally.n_all - tally.n_before) /
                     (double)(tally.end_us - tally.first_us + 1);
    return STATUS_OK;
}

enum status bench_node_run(struct bench_node *bench, uint32_t n_session,
                           uint64_t n_prompt, uint32_t n_output,
                           struct bench_node_result *out)
{
    struct bench_node_result result = {
        .ttft_us = calloc(n_session, sizeof(double)),
        .token_us = calloc((size_t)n_session * n_output, sizeof(double))};
    struct tally tally = {.ttft_us = result.ttft_us};
    enum status st;

    assert(n_session <= SESSION_MAX);
    thread_is_brief(); /* as the thread that takes replies in a server */
    if (!result.ttft_us || !result.token_us) {
        bench_node_result_release(&result);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u sessions", n_session);
    }
    bench->n_run++;
    st = run_turns(bench, &(struct turns){n_session, n_prompt, 1}, &tally,
                   &result.prefill_times);
    if (!st)
        st = run_decode(bench, n_session, n_output, &result);
    if (st) {
        bench_node_result_release(&result);
        return st;
    }
    result.n_session = tally.n_first;
    result.prefill = 1e6 * (double)(n_session * n_prompt) /
                     (double)(tally.first_us - tally.start_us + 1);
    qsort(result.ttft_us, result.n_session, sizeof(double), compare_doubles);
    qsort(result.token_us, result.n_token, sizeof(double), compare_doubles);
    *out = result;
    return STATUS_OK;
}
