#include "kernels/pool.h"

#include "kernels/flush.h"
#include "kernels/room.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Longer than the gaps between operators and between steps, and than the
 * journal's thread has a CPU for; shorter than what an idle machine notices. */
#define SPIN_NS 100000
#define SPINS_PER_LOOK 32 /* a look at the clock costs about 25 ns */
/* A thread without work that has spun this long lets another program's thread,
 * or the journal's, have its CPU. */
#define YIELD_AFTER_NS 5000

/* A job's number and how many tasks it has, as one word. */
#define JOB(epoch, n) ((uint64_t)(n) << 32 | (epoch))
#define JOB_EPOCH(job) ((uint32_t)(job))
#define JOB_N(job) ((uint32_t)((job) >> 32))

struct worker {
    /* Of the tasks id, id + n_thread, ... of job JOB_EPOCH() the first
     * JOB_N() are taken. */
    _Alignas(64) _Atomic uint64_t taken;
    struct pool *pool;
    uint32_t id;
    void *scratch;
    pthread_t thread;
};

/*
 * A job is published by a new `job` and is over when `n_left` is zero. Who has
 * done its own tasks takes those that others have not begun, so that nobody
 * waits for a thread that has no CPU, only for one that lost it within a task.
 *
 * A thread takes a task by a compare-and-swap on the owner's `taken`, which
 * names the job. So a thread that comes late to a job that is over takes
 * nothing of the next one by mistake, and a task that was taken keeps its job,
 * hence `work` and `arg`, from being over.
 *
 * The lower half of `job` and `n_left` are futexes; `n_asleep` and
 * `is_caller_asleep` say whether a wake-up call is needed. Each is written
 * before its word is read by the kernel and read after the word was changed,
 * all in one total order, so that no wake-up is lost.
 */
struct pool {
    _Alignas(64) _Atomic uint64_t job;
    pool_work *work; /* read only by who took a task of the job */
    void *arg;
    _Atomic uint32_t n_asleep;
    uint32_t n_thread;
    struct worker *worker; /* [n_thread]; worker 0 is the caller; owned */
    void *shared;          /* POOL_SHARED_BYTES; owned */
    struct device *device; /* or NULL */
    _Atomic bool is_stopping;
    _Alignas(64) _Atomic uint32_t n_left; /* tasks not done */
    _Atomic uint32_t is_caller_asleep;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static void futex_wait(const void *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(const void *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* -------------------------------------------------------------------- tasks */

/* Take one of the owner's tasks; false if none is left. */
static bool take(struct worker *owner, uint64_t job, uint32_t *out_task)
{
    const uint32_t n_thread = owner->pool->n_thread;
    uint64_t taken = atomic_load_explicit(&owner->taken, memory_order_acquire);

    for (;;) {
        const uint64_t task = owner->id + (uint64_t)JOB_N(taken) * n_thread;

        if (JOB_EPOCH(taken) != JOB_EPOCH(job) || task >= JOB_N(job))
            return false;
        if (atomic_compare_exchange_weak_explicit(
                &owner->taken, &taken, taken + JOB(0, 1), memory_order_acq_rel,
                memory_order_acquire)) {
            *out_task = (uint32_t)task;
            return true;
        }
    }
}

static _Thread_local void (*undo_at_rest)(void);

void pool_at_rest(void (*undo)(void))
{
    undo_at_rest = undo;
}

static void rest(void)
{
    if (undo_at_rest)
        undo_at_rest();
    undo_at_rest = NULL;
}

/* Own tasks first: their data are in this CPU's cache. How many were done. */
static uint32_t run_tasks(struct pool *pool, const struct worker *self,
                          uint64_t job)
{
    uint32_t n_done = 0, task;

    for (uint32_t i = 0; i < pool->n_thread; i++) {
        struct worker *owner = &pool->worker[(self->id + i) % pool->n_thread];

        while (take(owner, job, &task)) {
            pool->work(pool->arg, task, self->scratch);
            n_done++;
        }
    }
    rest();
    return n_done;
}

/* ------------------------------------------------------------------ workers */

/* The next job, or the same one when there was none for a while. */
static uint64_t spin_for_job(struct pool *pool, uint32_t seen)
{
    int64_t start = 0, passed = 0;
    uint64_t job = 0;

    while (passed < SPIN_NS) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            job = atomic_load_explicit(&pool->job, memory_order_acquire);
            if (JOB_EPOCH(job) != seen)
                return job;
            relax();
        }
        int64_t now = now_ns();
        start = start ? start : now;
        passed = now - start;
        if (passed > YIELD_AFTER_NS)
            sched_yield();
    }
    return job;
}

static uint64_t await_job(struct pool *pool, uint32_t seen)
{
    uint64_t job = spin_for_job(pool, seen);

    if (JOB_EPOCH(job) != seen)
        return job;
    atomic_fetch_add(&pool->n_asleep, 1);
    while (JOB_EPOCH(job = atomic_load(&pool->job)) == seen)
        futex_wait(&pool->job, seen);
    atomic_fetch_sub(&pool->n_asleep, 1);
    return job;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct pool *pool = worker->pool;
    uint64_t job = 0;

    (void)flush_begin(); /* for its whole life */
    for (;;) {
        job = await_job(pool, JOB_EPOCH(job));
        if (atomic_load(&pool->is_stopping))
            return NULL;
        const uint32_t n_done = run_tasks(pool, worker, job);
        if (n_done && atomic_fetch_sub(&pool->n_left, n_done) == n_done &&
            atomic_load(&pool->is_caller_asleep))
            futex_wake(&pool->n_left);
    }
}

/* ------------------------------------------------------------------- caller */

static void await_workers(struct pool *pool)
{
    int64_t start = 0, passed = 0;
    uint32_t n;

    while (passed < SPIN_NS) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (!atomic_load_explicit(&pool->n_left, memory_order_acquire))
                return;
            relax();
        }
        int64_t now = now_ns();
        start = start ? start : now;
        passed = now - start;
    }
    atomic_store(&pool->is_caller_asleep, 1);
    while ((n = atomic_load(&pool->n_left)))
        futex_wait(&pool->n_left, n);
    atomic_store(&pool->is_caller_asleep, 0);
}

static uint64_t publish(struct pool *pool, uint32_t n_task)
{
    const uint64_t before =
        atomic_load_explicit(&pool->job, memory_order_relaxed);
    const uint64_t job = JOB(JOB_EPOCH(before) + 1, n_task);

    atomic_store_explicit(&pool->n_left, n_task, memory_order_relaxed);
    for (uint32_t i = 0; i < pool->n_thread && i < n_task; i++)
        atomic_store_explicit(&pool->worker[i].taken, JOB(JOB_EPOCH(job), 0),
                              memory_order_release);
    atomic_store(&pool->job, job);
    if (atomic_load(&pool->n_asleep))
        futex_wake(&pool->job);
    return job;
}

/* Stop and free a pool of which workers 1 .. n_started - 1 run. */
static void pool_stop(struct pool *pool, uint32_t n_started)
{
    atomic_store(&pool->is_stopping, true);
    (void)publish(pool, 0);
    for (uint32_t i = 1; i < n_started; i++)
        pthread_join(pool->worker[i].thread, NULL);
    for (uint32_t i = 0; i < pool->n_thread; i++)
        free(pool->worker[i].scratch);
    free(pool->worker);
    free(pool->shared);
    free(pool);
}

enum status pool_create(uint32_t n_thread, struct pool **out)
{
    if (n_thread == 0 || n_thread > POOL_THREAD_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%u kernel threads, allowed are 1 to %u", n_thread,
                           POOL_THREAD_MAX);
    struct pool *pool = aligned_alloc(64, sizeof(*pool));
    if (!pool)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a pool");
    *pool = (struct pool){.n_thread = n_thread};
    pool->worker = aligned_alloc(64, n_thread * sizeof(*pool->worker));
    pool->shared = room_take(POOL_SHARED_BYTES);
    if (!pool->worker || !pool->shared) {
        free(pool->worker);
        free(pool->shared);
        free(pool);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u kernel threads", n_thread);
    }
    memset(pool->worker, 0, n_thread * sizeof(*pool->worker));
    for (uint32_t i = 0; i < n_thread; i++) {
        struct worker *worker = &pool->worker[i];
        worker->pool = pool;
        worker->id = i;
        worker->scratch = room_take(POOL_SCRATCH_BYTES);
        int error = worker->scratch ? 0 : ENOMEM;
        if (!error && i)
            error = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (error) {
            pool_stop(pool, i);
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "kernel thread %u of %u did not start, errno %d",
                               i, n_thread, error);
        }
    }
    *out = pool;
    return STATUS_OK;
}

void pool_destroy(struct pool *pool)
{
    if (pool)
        pool_stop(pool, pool->n_thread);
}

uint32_t pool_n_thread(const struct pool *pool)
{
    return pool ? pool->n_thread : 1;
}

enum status pool_create_device(struct device *device, struct pool **out)
{
    const enum status st = pool_create(1, out);

    if (!st)
        (*out)->device = device;
    return st;
}

struct device *pool_device(const struct pool *pool)
{
    return pool->device;
}

static pthread_key_t own_scratch;

static void make_key(void)
{
    int error = pthread_key_create(&own_scratch, free);
    assert(!error);
    (void)error;
}

/* Scratch of a caller that has no pool, its shared area behind it; freed when
 * its thread ends. */
static void *caller_scratch(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    void *scratch;

    pthread_once(&once, make_key);
    scratch = pthread_getspecific(own_scratch);
    if (!scratch) {
        scratch = room_take(POOL_SCRATCH_BYTES + POOL_SHARED_BYTES);
        assert(scratch);
        pthread_setspecific(own_scratch, scratch);
    }
    return scratch;
}

static void run_alone(struct pool *pool, uint32_t n_task, pool_work *work,
                      void *arg)
{
    void *scratch = pool ? pool->worker[0].scratch : caller_scratch();

    for (uint32_t i = 0; i < n_task; i++)
        work(arg, i, scratch);
    rest();
}

static void run_shared(struct pool *pool, uint32_t n_task, pool_work *work,
                       void *arg)
{
    uint64_t job;
    uint32_t n_done;

    pool->work = work;
    pool->arg = arg;
    job = publish(pool, n_task);
    n_done = run_tasks(pool, &pool->worker[0], job);
    if (atomic_fetch_sub(&pool->n_left, n_done) != n_done)
        await_workers(pool);
}

void pool_run(struct pool *pool, uint32_t n_task, pool_work *work, void *arg)
{
    const uint32_t before = flush_begin();

    if (!pool || pool->n_thread == 1 || n_task <= 1)
        run_alone(pool, n_task, work, arg);
    else
        run_shared(pool, n_task, work, arg);
    flush_end(before);
}

void *pool_shared(struct pool *pool)
{
    return pool ? pool->shared : (char *)caller_scratch() + POOL_SCRATCH_BYTES;
}
