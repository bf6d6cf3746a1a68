/*
 * The whole of state's threading under TSan: an engine pushes commits and
 * store jobs, the journal and store threads work on one memory store each, and
 * a fourth thread takes the messages. Every so often a write fails as planned.
 * Judged by: messages come out in order, each exactly once or dropped; what
 * was sent is in the journal; a lost step's tokens are not.
 */
#include "base/log.h"
#include "state/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { N_STEP = 3000, N_SESSION = 4, LIMIT_S = 120, FAIL_EVERY = 301 };

static _Atomic uint64_t n_dropped;

static void drop(void *message, const struct cause *cause, struct ring *outbox)
{
    (void)message;
    (void)outbox;
    if (cause->code == STATUS_UNAVAILABLE)
        atomic_fetch_add(&n_dropped, 1);
}

static void check(bool is_true, const char *what)
{
    if (is_true)
        return;
    (void)fprintf(stderr, "race_threads: %s: %s\n", what, status_reason());
    exit(1);
}

struct receiver {
    struct ring *outbox;
    uint64_t n, last;
    bool is_ordered;
};

/* Until the message SIZE_MAX. */
static void *receive(void *argument)
{
    struct receiver *receiver = argument;

    for (;;) {
        void *message;
        uint64_t number;

        if (!ring_pop(receiver->outbox, &message)) {
            ring_wait(receiver->outbox, -1);
            continue;
        }
        number = (uint64_t)(uintptr_t)message;
        if (number == SIZE_MAX)
            return NULL;
        receiver->is_ordered &= number > receiver->last;
        receiver->last = number;
        receiver->n++;
    }
}

struct engine {
    struct journal *journal;
    struct ring *outbox, *reports, *done, *wake;
    struct journal_thread *writer;
    struct store_thread *store;
    struct uid uid[N_SESSION];
    struct digest chain[N_SESSION];
    uint32_t n[N_SESSION];
    uint64_t step, epoch;
    uint32_t n_lost_report, n_job_out, n_job;
};

static void take_reports(struct engine *engine)
{
    struct journal_report report;
    struct store_job *job;

    while (ring_pop(engine->reports, &report)) {
        engine->n_lost_report += report.cause.code != STATUS_OK;
        engine->epoch = report.epoch;
    }
    while (ring_pop(engine->done, &job)) {
        check(job->status == STATUS_OK, "store job");
        ids_release(&job->tokens);
        free(job);
        engine->n_job_out--;
    }
}

static struct commit *commit_of(struct engine *engine)
{
    struct commit *commit = calloc(1, sizeof(*commit));

    check(commit != NULL, "memory");
    commit->batch = journal_batch_create(engine->journal);
    commit->message = calloc(1, sizeof(void *));
    check(commit->batch && commit->message, "memory");
    for (uint32_t i = 0; i < N_SESSION; i++) {
        uint32_t token = (uint32_t)engine->step;

        engine->chain[i] = digest_tokens(engine->chain[i], &token, 1);
        journal_put_tokens(commit->batch, engine->uid[i], engine->n[i]++,
                           &token, 1, engine->chain[i]);
    }
    commit->needs_sync = engine->step % 2;
    commit->step = engine->step;
    commit->epoch = engine->epoch;
    commit->n_message = 1;
    commit->message[0] = (void *)(uintptr_t)engine->step;
    return commit;
}

static void push_job(struct engine *engine)
{
    struct store_job *job = calloc(1, sizeof(*job));

    check(job != NULL, "memory");
    job->kind = STORE_TOKENS;
    job->uid = engine->uid[engine->step % N_SESSION];
    if (store_thread_push(engine->store, job)) {
        engine->n_job_out++;
        engine->n_job++;
    } else {
        free(job);
    }
}

/* Wait until the journal has nothing of ours, then go on from its truth. */
static void settle(struct engine *engine)
{
    while (journal_thread_backlog(engine->writer) > 0 || engine->n_job_out) {
        take_reports(engine);
        sched_yield();
    }
    take_reports(engine);
    for (uint32_t i = 0; i < N_SESSION; i++) {
        struct ids ids = {0};

        check(!journal_read_tokens(
                  engine->journal,
                  &(struct log_path){1, {{engine->uid[i], UINT64_MAX}}}, &ids,
                  &engine->chain[i]),
              "read back");
        engine->n[i] = (uint32_t)ids.n;
        ids_release(&ids);
    }
}

static void run(struct engine *engine, struct store *store)
{
    while (engine->step < N_STEP) {
        uint64_t epoch = engine->epoch;
        struct commit *commit;

        if (engine->step % FAIL_EVERY == FAIL_EVERY - 1) {
            settle(engine); /* nobody uses the store; the next is a write */
            store_memory_faults(store)->fail_at = 1;
        }
        engine->step++;
        commit = commit_of(engine);
        while (!journal_thread_push(engine->writer, commit)) {
            take_reports(engine); /* or the thread waits for us for ever */
            sched_yield();
        }
        /* While a write is to fail, no read may take the fault from it. */
        if (engine->step % FAIL_EVERY > 10 && engine->step % 7 == 0)
            push_job(engine);
        take_reports(engine);
        if (engine->epoch != epoch || engine->step % FAIL_EVERY == 10)
            settle(engine); /* what was made since is lost: go back */
    }
    settle(engine);
}

static void finish(struct engine *engine, struct receiver *receiver,
                   pthread_t thread)
{
    void *last = (void *)(uintptr_t)SIZE_MAX;

    journal_thread_stop(engine->writer);
    store_thread_stop(engine->store);
    take_reports(engine);
    while (!ring_push(engine->outbox, &last))
        sched_yield();
    (void)pthread_join(thread, NULL);
    check(receiver->is_ordered, "messages out of order");
    check(receiver->n + atomic_load(&n_dropped) == N_STEP, "messages lost");
    check(engine->n[0] == receiver->n, "sent is not what is stored");
    check(engine->n_lost_report > 0 && atomic_load(&n_dropped) > 0,
          "no write failed");
    check(engine->n_job > 0, "no job ran");
}

int main(void)
{
    static struct engine engine;
    struct receiver receiver = {.is_ordered = true};
    const struct digest fingerprint = {1, 2};
    struct store *store;
    pthread_t thread;

    (void)alarm(LIMIT_S);
    log_set_level(LOG_ERROR + 1);
    check(!store_open_memory(&store), "store");
    check(!journal_open(store, fingerprint, &engine.journal), "journal");
    check(!ring_create(8, sizeof(void *), &engine.outbox) &&
              !ring_create(4, sizeof(struct journal_report), &engine.reports) &&
              !ring_create(64, sizeof(struct store_job *), &engine.done) &&
              !ring_create(1, 1, &engine.wake),
          "rings");
    for (uint32_t i = 0; i < N_SESSION; i++) {
        engine.uid[i] = (struct uid){1, i};
        engine.chain[i] = fingerprint;
    }
    receiver.outbox = engine.outbox;
    check(!pthread_create(&thread, NULL, receive, &receiver), "thread");
    check(!journal_thread_start(
              &(struct journal_thread_options){.journal = engine.journal,
                                               .outbox = engine.outbox,
                                               .reports = engine.reports,
                                               .engine = engine.wake,
                                               .drop = drop},
              16, &engine.writer),
          "journal thread");
    check(!store_thread_start(
              &(struct store_thread_options){.journal = engine.journal,
                                             .done = engine.done,
                                             .engine = engine.wake},
              8, &engine.store),
          "store thread");
    run(&engine, store);
    finish(&engine, &receiver, thread);
    ring_destroy(engine.outbox);
    ring_destroy(engine.reports);
    ring_destroy(engine.done);
    ring_destroy(engine.wake);
    journal_close(engine.journal);
    store_close(store);
    return 0;
}
