#ifndef TESTS_UNIT_SCHEDULER_FIXTURE_H
#define TESTS_UNIT_SCHEDULER_FIXTURE_H
/*
 * A node without a network: stores in memory that outlive it, the two disk
 * threads, the engine driven step by step on the test's own thread, and a
 * client that keeps what each reply said. Works in Criterion and in plain
 * programs, so a broken expectation aborts.
 */
#include "scheduler/engine.h"
#include "scheduler/sampler.h"
#include "state/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPLY_MAX 1024u
#define STEP_LIMIT 200000u /* of one node_until(): then something hangs */
#define ARENA_BYTES (8u << 20)
#define JOURNAL_PLACES 4u

#define need(claim)                                                            \
    do {                                                                       \
        if (!(claim)) {                                                        \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__,    \
                    #claim, status_reason());                                  \
            abort();                                                           \
        }                                                                      \
    } while (0)
#define must(call) need((call) == STATUS_OK)

struct reply { /* what a client has heard */
    uint32_t n_event, n_accepted, n_progress, n_tokens_event;
    bool is_over;
    uint32_t rank; /* among those that are over, from 1 */
    enum event_kind last;
    struct event *end; /* the last event; owned */
    uint64_t accepted_position, seed;
    uint32_t n_ahead;
    uint64_t first_position; /* of the tokens below */
    uint32_t *token;
    uint32_t n_token, token_capacity;
    char *text;
    size_t text_bytes;
    uint64_t progress_done, progress_total, progress_cached;
    double logprob_sum;
    uint32_t n_logprob;
};

struct node {
    /* outlive a restart */
    struct model *model;
    struct tokenizer *tokenizer;
    struct store *journal_store, *bulk_store;
    struct clock_simulated clock;
    _Atomic uint64_t tick_us; /* of node_tick() */
    struct metrics *metrics;
    struct engine_options options; /* limits; the rest is filled in */
    /* one life */
    struct journal *journal;
    struct snapshots *snapshots;
    struct journal_thread *journal_thread;
    struct store_thread *store_thread;
    struct ring *inbox, *done, *reports, *outbox;
    struct engine *engine;
    uint32_t journal_places;
    uint32_t n_over; /* replies */
    bool has_pager;  /* sessions that do not see all have pages */
    struct pager *pager;
    /* the client */
    const char *tenant; /* of calls that do not say; NULL: nobody's */
    struct reply reply[REPLY_MAX];
    uint64_t last_reply;
};

static inline void node_start(struct node *node)
{
    struct engine_options o = node->options;
    uint32_t places =
        node->journal_places ? node->journal_places : JOURNAL_PLACES;

    must(journal_open(node->journal_store, model_fingerprint(node->model),
                      &node->journal));
    must(snapshots_open(node->bulk_store, node->model, &node->snapshots));
    must(ring_create(1024, sizeof(struct command *), &node->inbox));
    must(ring_create(ENGINE_JOB_MAX, sizeof(struct store_job *), &node->done));
    must(ring_create(256, sizeof(struct journal_report), &node->reports));
    must(ring_create(1u << 16, sizeof(void *), &node->outbox));
    struct journal_thread_options jo = {.journal = node->journal,
                                        .outbox = node->outbox,
                                        .reports = node->reports,
                                        .engine = node->inbox,
                                        .drop = engine_drop_message};
    must(journal_thread_start(&jo, places, &node->journal_thread));
    struct store_thread_options so = {.journal = node->journal,
                                      .snapshots = node->snapshots,
                                      .done = node->done,
                                      .engine = node->inbox};
    must(store_thread_start(&so, ENGINE_JOB_MAX, &node->store_thread));
    o.model = node->model;
    o.tokenizer = node->tokenizer;
    o.clock = &node->clock.base;
    o.metrics = node->metrics;
    o.node_name = "test";
    o.journal = node->journal;
    o.journal_thread = node->journal_thread;
    o.store_thread = node->store_thread;
    o.snapshots = node->snapshots;
    o.inbox = node->inbox;
    o.done = node->done;
    o.reports = node->reports;
    if (node->has_pager)
        must(pager_start(&(struct pager_options){.store = node->bulk_store,
                                                 .model = node->model,
                                                 .engine = node->inbox,
                                                 .n_thread = 2},
                         &node->pager));
    o.pager = node->pager;
    must(engine_create(&o, &node->engine));
}

/* The clock moves by up to tick_us whenever it is asked. */
static inline uint64_t node_ticking(const struct clock *clock)
{
    struct node *node =
        (struct node *)((uintptr_t)clock - offsetof(struct node, clock));
    uint64_t now_us = node->clock.us, tick_us = node->tick_us;

    if (tick_us)
        clock_simulated_advance(&node->clock,
                                (now_us * 2654435761u >> 7) % tick_us + 1);
    return node->clock.us;
}

/* From now on slices of prompts end early, at places that differ. */
static inline void node_tick(struct node *node, uint64_t tick_us)
{
    node->tick_us = tick_us;
    node->clock.base.now_us = node_ticking;
}

#define GOLDEN_DIR "tests/golden/qwen3_5_text"

/* That model as the options say, in place of the one there is; before
 * node_start(). */
static inline void node_load(struct node *node,
                             const struct model_options *options)
{
    model_destroy(node->model);
    must(model_load(GOLDEN_DIR, options, &node->model));
}

/* Model of the golden tests (512 tokens, random) unless dir says another. */
static inline struct node *node_create(const char *dir)
{
    struct node *node = calloc(1, sizeof(*node));
    struct model_options mo = {.n_context = dir ? 16384 : 0};

    need(node != NULL);
    must(backend_find("auto", &mo.backend));
    must(model_load(dir ? dir : GOLDEN_DIR, &mo, &node->model));
    if (dir)
        must(tokenizer_load(dir, &node->tokenizer));
    must(store_open_memory(&node->journal_store));
    must(store_open_memory(&node->bulk_store));
    clock_simulated_init(&node->clock);
    clock_simulated_advance(&node->clock, 1000000);
    node->options.max_running = 32;
    node->options.max_queue = 64;
    node->options.max_sessions = 1000;
    node->options.session_bytes = (size_t)1 << 30;
    node->options.first_token_us = 1000000;
    node->options.default_max_tokens = 16;
    node->options.prefix_bytes = (size_t)64 << 20;
    node->options.durability = DURABILITY_LOCAL;
    return node;
}

static inline void reply_release(struct reply *reply)
{
    event_destroy(reply->end);
    free(reply->token);
    free(reply->text);
    memset(reply, 0, sizeof(*reply));
}

static inline void reply_tokens(struct reply *reply, const struct event *event)
{
    uint32_t n = event->tokens.n_token;

    reply->n_tokens_event++;
    if (reply->n_token == 0)
        reply->first_position = event->tokens.position;
    need(event->tokens.position == reply->first_position + reply->n_token);
    reply->token =
        realloc(reply->token, (reply->n_token + n + 1) * sizeof(*reply->token));
    need(reply->token != NULL);
    memcpy(reply->token + reply->n_token, event->tokens.token,
           n * sizeof(*reply->token));
    reply->n_token += n;
    reply->text =
        realloc(reply->text, reply->text_bytes + event->tokens.text_bytes + 1);
    need(reply->text != NULL);
    memcpy(reply->text + reply->text_bytes, event->tokens.text,
           event->tokens.text_bytes);
    reply->text_bytes += event->tokens.text_bytes;
    reply->text[reply->text_bytes] = '\0';
    for (uint32_t i = 0; i < event->tokens.n_logprobs; i++)
        reply->logprob_sum += (double)event->tokens.logprobs[i].chosen.logprob;
    reply->n_logprob += event->tokens.n_logprobs;
}

static inline void reply_hear(struct reply *reply, struct event *event)
{
    if (reply->is_over) { /* after its last event a number leads nowhere */
        event_destroy(event);
        return;
    }
    reply->n_event++;
    reply->last = event->kind;
    if (event->kind == EVENT_ACCEPTED) {
        reply->n_accepted++;
        reply->accepted_position = event->accepted.position;
        reply->seed = event->accepted.seed;
        reply->n_ahead = event->accepted.n_ahead;
    } else if (event->kind == EVENT_PROGRESS) {
        reply->n_progress++;
        reply->progress_done = event->progress.n_processed;
        reply->progress_total = event->progress.n_total;
        reply->progress_cached = event->progress.n_cached;
    } else if (event->kind == EVENT_TOKENS || event->kind == EVENT_LOG) {
        reply_tokens(reply, event);
    }
    reply->is_over = event->is_last;
    if (event->is_last)
        reply->end = event;
    else
        event_destroy(event);
}

static inline void node_listen(struct node *node)
{
    struct event *event;

    while (ring_pop(node->outbox, &event)) {
        struct reply *reply = &node->reply[event->reply];

        need(event->reply > 0 && event->reply < REPLY_MAX);
        reply_hear(reply, event);
        if (reply->is_over && !reply->rank)
            reply->rank = ++node->n_over;
    }
}

/* One step; sleeps when there is nothing to do but disk work is out. */
static inline bool node_step(struct node *node)
{
    bool has_more = engine_step(node->engine);

    node_listen(node);
    return has_more;
}

/* Steps until the reply is over, or, for reply 0, all commits are durable. */
static inline void node_until(struct node *node, uint64_t reply)
{
    for (uint32_t i = 0; i < STEP_LIMIT; i++) {
        bool has_more;
        if (reply && node->reply[reply].is_over)
            return;
        has_more = node_step(node);
        if (!reply && !has_more &&
            journal_thread_backlog(node->journal_thread) == 0 &&
            ring_count(node->reports) == 0) {
            node_listen(node);
            return;
        }
        if (!has_more)
            ring_wait(node->inbox, 20);
    }
    need(!"within the limit of steps");
}

static inline void node_stop(struct node *node)
{
    if (!node->engine)
        return;
    journal_thread_stop(node->journal_thread);
    store_thread_stop(node->store_thread);
    node_listen(node);
    engine_destroy(node->engine);
    pager_stop(node->pager);
    node->pager = NULL;
    struct command *command;
    while (ring_pop(node->inbox, &command))
        arena_destroy(command->arena);
    struct event *event;
    while (ring_pop(node->outbox, &event))
        event_destroy(event);
    ring_destroy(node->inbox);
    ring_destroy(node->done);
    ring_destroy(node->reports);
    ring_destroy(node->outbox);
    journal_close(node->journal);
    snapshots_close(node->snapshots);
    node->engine = NULL;
}

/* As kill -9 and a power cut do: what is not synced now is gone. */
static inline void node_kill(struct node *node)
{
    store_memory_faults(node->journal_store)->is_read_only = true;
    store_memory_faults(node->bulk_store)->is_read_only = true;
    node_stop(node);
    store_memory_crash(node->journal_store);
    store_memory_crash(node->bulk_store);
    memset(store_memory_faults(node->journal_store), 0,
           sizeof(struct store_faults));
    memset(store_memory_faults(node->bulk_store), 0,
           sizeof(struct store_faults));
}

static inline void node_destroy(struct node *node)
{
    node_stop(node);
    for (uint32_t i = 0; i < REPLY_MAX; i++)
        reply_release(&node->reply[i]);
    store_close(node->journal_store);
    store_close(node->bulk_store);
    model_destroy(node->model);
    tokenizer_destroy(node->tokenizer);
    metrics_destroy(node->metrics);
    free(node);
}

static inline struct command *command_make(enum command_kind kind,
                                           uint64_t reply)
{
    struct arena *arena;
    struct command *command;

    must(arena_create(ARENA_BYTES, &arena));
    command = arena_take(arena, sizeof(*command));
    need(command != NULL);
    command->kind = kind;
    command->reply = reply;
    command->arena = arena;
    return command;
}

static inline uint64_t node_reply(struct node *node)
{
    need(node->last_reply + 1 < REPLY_MAX);
    return ++node->last_reply;
}

static inline void node_send(struct node *node, struct command *command)
{
    if (node->tenant && !command->tenant[0])
        snprintf(command->tenant, TENANT_SIZE, "%s", node->tenant);
    need(ring_push(node->inbox, &command));
}

/* A GENERATE of n_token pseudo-random input ids from `salt`. */
static inline struct command *generate(struct node *node, const char *session,
                                       const char *id, uint32_t n_token,
                                       uint32_t salt)
{
    struct command *command = command_make(COMMAND_GENERATE, node_reply(node));
    struct generate_command *g = &command->generate;
    uint32_t n_vocab = model_config(node->model)->n_vocab;
    uint32_t *token = arena_take(command->arena, n_token * sizeof(*token) + 4);
    uint64_t x = salt * 2654435761u + 12345;

    need(token != NULL);
    for (uint32_t i = 0; i < n_token; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        token[i] = (uint32_t)(x >> 40) % n_vocab;
    }
    snprintf(g->session, sizeof(g->session), "%s", session);
    snprintf(g->request_id, sizeof(g->request_id), "%s", id);
    g->token = token;
    g->n_token = n_token;
    sampling_init(&g->sampling);
    g->sampling.max_tokens = 12;
    g->sampling.seed = 1000 + salt;
    g->has_seed = true;
    g->creates = true;
    return command;
}

static inline struct reply *node_call(struct node *node,
                                      struct command *command)
{
    uint64_t reply = command->reply;

    node_send(node, command);
    node_until(node, reply);
    return &node->reply[reply];
}

/* The command, as this tenant's. */
static inline struct command *of(struct command *command, const char *tenant)
{
    snprintf(command->tenant, TENANT_SIZE, "%s", tenant);
    return command;
}

/* The command, of a session under this policy; NULL: as it is. */
static inline struct command *under(struct command *command, const char *policy)
{
    if (policy) {
        command->generate.has_policy = true;
        must(policy_parse(policy, &command->generate.policy));
    }
    return command;
}

static inline struct command *about(struct node *node, enum command_kind kind,
                                    const char *session)
{
    struct command *command = command_make(kind, node_reply(node));

    snprintf(command->target.session, sizeof(command->target.session), "%s",
             session);
    return command;
}

static inline void node_subject(struct node *node, enum command_kind kind,
                                uint64_t subject)
{
    struct command *command = command_make(kind, 0);

    command->subject = subject;
    node_send(node, command);
}

/* The whole log as READ_TOKENS gives it. */
static inline struct reply *node_read(struct node *node, const char *session)
{
    return node_call(node, about(node, COMMAND_READ_TOKENS, session));
}

static inline bool reply_failed(const struct reply *reply, enum status code,
                                const char *reason)
{
    if (reply->last != EVENT_ERROR)
        return false;
    if (reply->end->cause.code != code ||
        strcmp(reply->end->cause.reason, reason) != 0) {
        fprintf(stderr, "got %s %s: %s\n", status_name(reply->end->cause.code),
                reply->end->cause.reason, reply->end->cause.text);
        return false;
    }
    return true;
}

static inline bool reply_completed(const struct reply *reply,
                                   enum finish_reason finish)
{
    if (reply->last == EVENT_ERROR)
        fprintf(stderr, "error %s\n", reply->end->cause.text);
    return reply->last == EVENT_COMPLETE &&
           reply->end->complete.finish == finish;
}

/* To the end of its tokens; kept by the node. */
static inline struct reply *node_completed(struct node *node,
                                           struct command *command)
{
    struct reply *reply = node_call(node, command);

    need(reply_completed(reply, FINISH_LENGTH));
    return reply;
}

static inline bool same_tokens(const struct reply *a, const struct reply *b)
{
    return a->n_token == b->n_token &&
           memcmp(a->token, b->token, a->n_token * sizeof(*a->token)) == 0;
}

/* Its tokens alone, to compare with when the node is gone; never freed. */
static inline struct reply reply_log(const struct reply *of)
{
    struct reply log = {.n_token = of->n_token};

    log.token = malloc(of->n_token * sizeof(*of->token));
    need(log.token != NULL);
    memcpy(log.token, of->token, of->n_token * sizeof(*of->token));
    return log;
}
#endif
