#include "state/threads.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GROUP_MAX 64u /* commits of one write */
/* Looks in a row after which the engine is said to stay on its CPU. A commit is
 * waited for and must not be sent about; a job takes a millisecond anyway. */
#define JOURNAL_LOOKS 32u
#define STORE_LOOKS 2u
#define NO_CPU (-1)          /* nothing was pushed yet */
#define BACKOFF_US_MIN 50u   /* first wait for a full ring */
#define BACKOFF_US_MAX 2000u /* longest one */

/* Between a thread and the engine's. */
struct distance {
    _Atomic int engine_cpu; /* whence something was last pushed */
    /* the thread's own */
    int seen_cpu, avoided_cpu;
    uint32_t n_same; /* looks in a row that saw that CPU */
};

static const struct distance no_distance = {NO_CPU, NO_CPU, NO_CPU, 0};

struct journal_thread {
    struct journal_thread_options options;
    struct ring *ring; /* of struct commit * */
    pthread_t id;
    _Atomic bool is_stopping;
    _Atomic uint32_t n_waiting; /* pushed, not yet durable or lost */
    struct distance distance;
    /* the thread's own */
    uint64_t synced_us;  /* when the last write with a sync began */
    uint64_t epoch;      /* failed writes so far */
    struct cause lost;   /* of the last one */
    bool is_outbox_dead; /* its consumer is gone: wait no more */
    struct log_limit limit;
};

struct store_thread {
    struct store_thread_options options;
    struct ring *ring; /* of struct store_job * */
    pthread_t id;
    _Atomic bool is_stopping;
    struct distance distance;
};

void commit_destroy(struct commit *commit)
{
    if (!commit)
        return;
    journal_batch_destroy(commit->batch);
    free(commit->message);
    free(commit);
}

static void sleep_us(uint64_t us)
{
    (void)nanosleep(&(struct timespec){.tv_sec = (long)(us / 1000000),
                                       .tv_nsec = (long)(us % 1000000) * 1000},
                    NULL);
}

static uint64_t now_us(void)
{
    return clock_real()->now_us(clock_real());
}

/*
 * The engine hands out the kernels' work, so its CPU is left alone where it
 * stays on one. On a machine with other work to do it does not, and then any
 * CPU that is free soon is the best.
 */
static void leave_engine_alone(struct distance *distance, uint32_t n_look)
{
    const int cpu = atomic_load(&distance->engine_cpu);
    int avoid;

    distance->n_same = cpu == distance->seen_cpu ? distance->n_same + 1 : 0;
    distance->seen_cpu = cpu;
    avoid = distance->n_same >= n_look ? cpu : NO_CPU;
    if (avoid == distance->avoided_cpu)
        return;
    thread_avoid_cpu(avoid);
    distance->avoided_cpu = avoid;
}

/*
 * Wait for a place in a full ring. Once we are stopping its consumer may be
 * gone, so then the wait ends after limit_us.
 */
static bool push_patiently(struct ring *ring, const void *item,
                           const _Atomic bool *is_stopping, uint64_t limit_us)
{
    uint64_t pause_us = BACKOFF_US_MIN, waited_us = 0;

    while (!ring_push(ring, item)) {
        if (atomic_load(is_stopping)) {
            if (waited_us >= limit_us)
                return false;
            waited_us += pause_us;
        }
        sleep_us(pause_us);
        pause_us =
            pause_us * 2 < BACKOFF_US_MAX ? pause_us * 2 : BACKOFF_US_MAX;
    }
    return true;
}

static void drop_messages(struct journal_thread *thread, struct commit *commit,
                          uint32_t first, const struct cause *cause)
{
    for (uint32_t i = first; i < commit->n_message; i++)
        thread->options.drop(commit->message[i], cause, thread->options.outbox);
}

/* Forward what is durable now. */
static void send_messages(struct journal_thread *thread, struct commit *commit)
{
    for (uint32_t i = 0; i < commit->n_message; i++) {
        uint64_t limit_us =
            thread->is_outbox_dead ? 0 : OUTBOX_WAIT_MS * 1000ull;

        if (push_patiently(thread->options.outbox, &commit->message[i],
                           &thread->is_stopping, limit_us))
            continue;
        thread->is_outbox_dead = true;
        (void)status_fail(STATUS_UNAVAILABLE,
                          "nobody took a reply for %u ms while the node stops",
                          OUTBOX_WAIT_MS);
        drop_messages(thread, commit, i, status_cause());
        return;
    }
}

static void report(struct journal_thread *thread, uint64_t step,
                   const struct cause *cause, uint64_t write_us)
{
    struct journal_report report = {
        .step = step, .epoch = thread->epoch, .write_us = write_us};

    if (cause)
        report.cause = *cause;
    (void)push_patiently(thread->options.reports, &report, &thread->is_stopping,
                         0);
    ring_kick(thread->options.engine);
}

static void finish(struct journal_thread *thread, struct commit **commit,
                   uint32_t n, const struct cause *lost, uint64_t write_us)
{
    uint64_t step = commit[n - 1]->step;

    for (uint32_t i = 0; i < n; i++) {
        if (lost)
            drop_messages(thread, commit[i], 0, lost);
        else
            send_messages(thread, commit[i]);
        commit_destroy(commit[i]);
    }
    atomic_fetch_sub(&thread->n_waiting, n);
    report(thread, step, lost, write_us);
}

/* All of one epoch: one write, one sync. */
static void write_group(struct journal_thread *thread, struct commit **commit,
                        uint32_t n)
{
    struct journal_batch *batch[GROUP_MAX];
    uint32_t n_batch = 0;
    bool needs_sync = false;
    uint64_t begin_us = now_us();

    for (uint32_t i = 0; i < n; i++)
        if (commit[i]->batch && !journal_batch_is_empty(commit[i]->batch)) {
            batch[n_batch++] = commit[i]->batch;
            needs_sync |= commit[i]->needs_sync;
        }
    if (n_batch == 0) {
        finish(thread, commit, n, NULL, 0);
        return;
    }
    if (needs_sync)
        thread->synced_us = begin_us;
    if (!journal_commit(thread->options.journal, batch, n_batch, needs_sync)) {
        finish(thread, commit, n, NULL, now_us() - begin_us);
        return;
    }
    thread->lost = *status_cause();
    thread->epoch++;
    log_limited(&thread->limit, LOG_ERROR, "journal", "",
                "journal cannot be written, tokens of %u steps are lost: %s", n,
                thread->lost.text);
    finish(thread, commit, n, &thread->lost, now_us() - begin_us);
}

static void take_group(struct journal_thread *thread, struct commit **commit,
                       uint32_t n)
{
    uint32_t n_stale = 0;

    while (n_stale < n && commit[n_stale]->epoch != thread->epoch)
        n_stale++;
    if (n_stale > 0)
        finish(thread, commit, n_stale, &thread->lost, 0);
    if (n_stale < n)
        write_group(thread, commit + n_stale, n - n_stale);
}

static void wait_for_turn(const struct journal_thread *thread)
{
    const uint64_t next_us = thread->synced_us + thread->options.sync_every_us;
    const uint64_t us = now_us();

    if (us < next_us)
        sleep_us(next_us - us);
}

static void *journal_run(void *argument)
{
    struct journal_thread *thread = argument;

    (void)pthread_setname_np(pthread_self(), "journal");
    thread_is_brief();
    for (;;) {
        struct commit *commit[GROUP_MAX];
        uint32_t n = 0;
        bool is_stopping = atomic_load(&thread->is_stopping);

        /* It wakes for a commit, and not also for a turn without one. */
        if (ring_count(thread->ring) == 0 && !is_stopping)
            ring_wait(thread->ring, -1);
        wait_for_turn(thread);
        while (n < GROUP_MAX && ring_pop(thread->ring, &commit[n]))
            n++;
        leave_engine_alone(&thread->distance, JOURNAL_LOOKS);
        if (n > 0)
            take_group(thread, commit, n);
        else if (is_stopping)
            return NULL;
    }
}

/* Signals are for the main thread. */
static enum status start(pthread_t *id, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    int error;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(id, NULL, run, argument);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "system gives no thread: %s", strerror(error));
    return STATUS_OK;
}

enum status journal_thread_start(const struct journal_thread_options *options,
                                 uint32_t capacity, struct journal_thread **out)
{
    struct journal_thread *thread = calloc(1, sizeof(*thread));
    enum status st;

    if (!thread)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the journal thread");
    thread->options = *options;
    thread->distance = no_distance;
    st = ring_create(capacity, sizeof(struct commit *), &thread->ring);
    if (!st)
        st = start(&thread->id, journal_run, thread);
    if (st) {
        ring_destroy(thread->ring);
        free(thread);
        return st;
    }
    *out = thread;
    return STATUS_OK;
}

bool journal_thread_push(struct journal_thread *thread, struct commit *commit)
{
    assert(commit->n_message <= COMMIT_MESSAGE_MAX);
    atomic_store(&thread->distance.engine_cpu, thread_cpu());
    /* Counted before it is there, so that the count never wraps below 0. */
    atomic_fetch_add(&thread->n_waiting, 1);
    if (ring_push(thread->ring, &commit))
        return true;
    atomic_fetch_sub(&thread->n_waiting, 1);
    return false;
}

uint32_t journal_thread_backlog(const struct journal_thread *thread)
{
    return atomic_load(&thread->n_waiting);
}

void journal_thread_stop(struct journal_thread *thread)
{
    if (!thread)
        return;
    atomic_store(&thread->is_stopping, true);
    ring_kick(thread->ring);
    (void)pthread_join(thread->id, NULL);
    ring_destroy(thread->ring);
    free(thread);
}

static enum status load(struct store_thread *thread, struct store_job *job)
{
    uint64_t limit;
    enum status st = journal_read_tokens(thread->options.journal, &job->path,
                                         &job->tokens, &job->chain);

    if (st || job->kind == STORE_TOKENS)
        return st;
    st = journal_last_turn(thread->options.journal, job->uid, &job->turn);
    job->has_turn = !st;
    if (st && st != STATUS_NOT_FOUND)
        return st;
    if (snapshot_list(thread->options.snapshots, job->uid, job->entry,
                      SNAPSHOT_KEEP_MAX, &job->n_entry))
        job->n_entry = 0; /* snapshot_load() says what is wrong */
    limit = job->tokens.n > job->keep_back ? job->tokens.n - job->keep_back : 0;
    return snapshot_load(thread->options.snapshots, &job->path, &job->tokens,
                         limit, job->memory, &job->restore);
}

/* The engine's index follows what is stored, so it gets the list as it is. */
static void list(struct store_thread *thread, struct store_job *job)
{
    if (snapshot_list(thread->options.snapshots, job->uid, job->entry,
                      SNAPSHOT_KEEP_MAX, &job->n_entry))
        job->n_entry = 0; /* it is stored, but nobody will find it */
    if (snapshot_stored(thread->options.snapshots, job->uid, &job->n_stored))
        job->n_stored = 0;
}

static enum status save(struct store_thread *thread, struct store_job *job)
{
    enum status st = snapshot_save(thread->options.snapshots, job->image);

    job->head_rms = snapshots_head_rms(thread->options.snapshots);
    if (!st)
        list(thread, job);
    return st;
}

static enum status trim(struct store_thread *thread, struct store_job *job)
{
    enum status st =
        snapshot_trim(thread->options.snapshots, job->uid, job->n_needed);

    if (!st)
        list(thread, job);
    return st;
}

static enum status evict(struct store_thread *thread, struct store_job *job)
{
    enum status st =
        snapshot_thin(thread->options.snapshots, job->uid, job->n_keep);

    if (!st)
        list(thread, job);
    return st;
}

static enum status inspect(struct store_thread *thread, struct store_job *job)
{
    struct snapshots *snapshots = thread->options.snapshots;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < job->path.n; i++) {
        struct snapshot_entry entry[SNAPSHOT_KEEP_MAX];
        struct log_stored *stored = &job->stored[i];
        const struct uid log = job->path.piece[i].log;

        st = snapshot_list(snapshots, log, entry, SNAPSHOT_KEEP_MAX,
                           &stored->n_snapshot);
        if (!st)
            st = snapshot_stored(snapshots, log, &stored->bytes);
        if (!st)
            st = snapshot_blocks(snapshots, log, &stored->first_block,
                                 &stored->n_block);
    }
    if (!st)
        list(thread, job);
    if (!st && job->n_entry > 0)
        st = snapshot_norms(snapshots, job->uid, job->entry[0].position,
                            job->norm);
    return st;
}

static enum status import(struct store_job *job)
{
    enum status st = importer_push(job->importer, job->bytes, job->n_bytes);

    return !st && job->is_last ? importer_end(job->importer) : st;
}

static enum status do_job(struct store_thread *thread, struct store_job *job)
{
    switch (job->kind) {
    case STORE_SAVE:
        return save(thread, job);
    case STORE_DELETE:
        return trim(thread, job);
    case STORE_INSPECT:
        return inspect(thread, job);
    case STORE_EVICT:
        return evict(thread, job);
    case STORE_SCRUB:
        if (atomic_load(&thread->is_stopping))
            return status_fail(STATUS_CANCELLED, "the node is stopping");
        return scrub_step(job->scrub, &job->is_done);
    case STORE_COMPARE:
        scrub_compare(job->scrub, job->image);
        return STATUS_OK;
    case STORE_HEAL:
        return scrub_heal(job->scrub);
    case STORE_EXPORT:
        return exporter_step(job->exporter);
    case STORE_IMPORT:
        return import(job);
    case STORE_LOAD:
    case STORE_TOKENS:
        if (atomic_load(&thread->is_stopping))
            return status_fail(STATUS_CANCELLED, "the node is stopping");
        return load(thread, job);
    case STORE_FETCH:
        if (atomic_load(&thread->is_stopping))
            return status_fail(STATUS_CANCELLED, "the node is stopping");
        return snapshot_fetch(thread->options.snapshots, job->source,
                              job->n_source, &job->tokens, job->memory,
                              job->refused);
    }
    return status_fail(STATUS_INTERNAL, "store job of unknown kind %d",
                       (int)job->kind);
}

/* Of the calling thread. */
static uint64_t cpu_us(void)
{
    struct timespec ts = {0};

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void *store_run(void *argument)
{
    struct store_thread *thread = argument;

    (void)pthread_setname_np(pthread_self(), "store");
    for (;;) {
        struct store_job *job;
        bool is_stopping = atomic_load(&thread->is_stopping);
        uint64_t begin_us = now_us(), begin_cpu_us = cpu_us();
        bool is_back;

        if (!ring_pop(thread->ring, &job)) {
            if (is_stopping)
                return NULL;
            ring_wait(thread->ring, -1);
            continue;
        }
        leave_engine_alone(&thread->distance, STORE_LOOKS);
        job->status = do_job(thread, job);
        job->cause = job->status ? *status_cause() : (struct cause){STATUS_OK};
        job->elapsed_us = now_us() - begin_us;
        job->cpu_us = cpu_us() - begin_cpu_us;
        is_back =
            push_patiently(thread->options.done, &job, &thread->is_stopping, 0);
        assert(is_back); /* the engine gave `done` fewer places than jobs */
        ring_kick(thread->options.engine);
    }
}

enum status store_thread_start(const struct store_thread_options *options,
                               uint32_t capacity, struct store_thread **out)
{
    struct store_thread *thread = calloc(1, sizeof(*thread));
    enum status st;

    if (!thread)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the store thread");
    thread->options = *options;
    thread->distance = no_distance;
    st = ring_create(capacity, sizeof(struct store_job *), &thread->ring);
    if (!st)
        st = start(&thread->id, store_run, thread);
    if (st) {
        ring_destroy(thread->ring);
        free(thread);
        return st;
    }
    *out = thread;
    return STATUS_OK;
}

bool store_thread_push(struct store_thread *thread, struct store_job *job)
{
    atomic_store(&thread->distance.engine_cpu, thread_cpu());
    return ring_push(thread->ring, &job);
}

void store_thread_stop(struct store_thread *thread)
{
    if (!thread)
        return;
    atomic_store(&thread->is_stopping, true);
    ring_kick(thread->ring);
    (void)pthread_join(thread->id, NULL);
    ring_destroy(thread->ring);
    free(thread);
}
