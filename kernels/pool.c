#include "kernels/pool.h"

#include "kernels/flush.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Longer than the gap between two operators of a step (a few us), shorter
 * than what an idle machine would notice. */
#define SPIN_NS 40000
#define SPINS_PER_LOOK 32 /* a look at the clock costs about 25 ns */
/* After this long the other side may be waiting for this very CPU. */
#define YIELD_AFTER_NS 2000

struct worker {
    struct pool *pool;
    uint32_t id;
    void *scratch;
    pthread_t thread;
};

/*
 * A job is published by adding one to `epoch` and is over when `n_busy` is
 * zero again. Both words are futexes; `n_asleep` and `is_caller_asleep` say
 * whether a wake-up call is needed. Each is written before its word is read
 * by the kernel and read after the word was changed, all in one total order,
 * so that no wake-up is lost.
 */
struct pool {
    _Alignas(64) _Atomic uint32_t epoch;
    _Atomic uint32_t n_asleep;
    uint32_t n_thread, n_task; /* job: plain fields, ordered by epoch and */
    pool_work *work;           /* n_busy, on the line that epoch wakes */
    void *arg;
    struct worker *worker; /* [n_thread]; worker 0 is the caller; owned */
    void *shared;          /* POOL_SHARED_BYTES; owned */
    bool is_stopping;
    _Alignas(64) _Atomic uint32_t n_busy;
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

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Watch `word` for a while; true as soon as it differs from `value`. */
static bool spin_while(_Atomic uint32_t *word, uint32_t value)
{
    int64_t start = 0, passed = 0;

    while (passed < SPIN_NS) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value)
                return true;
            relax();
        }
        int64_t now = now_ns();
        start = start ? start : now;
        passed = now - start;
        if (passed > YIELD_AFTER_NS)
            sched_yield();
    }
    return false;
}

static void await_job(struct pool *pool, uint32_t seen)
{
    if (spin_while(&pool->epoch, seen))
        return;
    atomic_fetch_add(&pool->n_asleep, 1);
    while (atomic_load(&pool->epoch) == seen)
        futex_wait(&pool->epoch, seen);
    atomic_fetch_sub(&pool->n_asleep, 1);
}

static void await_workers(struct pool *pool)
{
    uint32_t n = atomic_load_explicit(&pool->n_busy, memory_order_acquire);

    while (n && spin_while(&pool->n_busy, n))
        n = atomic_load_explicit(&pool->n_busy, memory_order_acquire);
    if (!n)
        return;
    atomic_store(&pool->is_caller_asleep, 1);
    while ((n = atomic_load(&pool->n_busy)))
        futex_wait(&pool->n_busy, n);
    atomic_store(&pool->is_caller_asleep, 0);
}

/* Thread i takes tasks i, i + n, i + 2n, ...: causal tiles grow with their
 * index, so that neighbours cost the same. */
static void run_share(const struct pool *pool, const struct worker *worker)
{
    for (uint64_t i = worker->id; i < pool->n_task; i += pool->n_thread)
        pool->work(pool->arg, (uint32_t)i, worker->scratch);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct pool *pool = worker->pool;
    uint32_t seen = 0;

    (void)flush_begin(); /* for its whole life */
    for (;;) {
        await_job(pool, seen);
        seen++;
        if (pool->is_stopping)
            return NULL;
        run_share(pool, worker);
        if (atomic_fetch_sub(&pool->n_busy, 1) == 1 &&
            atomic_load(&pool->is_caller_asleep))
            futex_wake(&pool->n_busy);
    }
}

static void publish(struct pool *pool)
{
    atomic_store_explicit(&pool->n_busy, pool->n_thread - 1,
                          memory_order_relaxed);
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->n_asleep))
        futex_wake(&pool->epoch);
}

/* Stop and free a pool of which workers 1 .. n_started - 1 run. */
static void pool_stop(struct pool *pool, uint32_t n_started)
{
    pool->is_stopping = true;
    publish(pool);
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
    pool->worker = calloc(n_thread, sizeof(*pool->worker));
    pool->shared = aligned_alloc(64, POOL_SHARED_BYTES);
    if (!pool->worker || !pool->shared) {
        free(pool->worker);
        free(pool->shared);
        free(pool);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u kernel threads", n_thread);
    }
    for (uint32_t i = 0; i < n_thread; i++) {
        struct worker *worker = &pool->worker[i];
        worker->pool = pool;
        worker->id = i;
        worker->scratch = aligned_alloc(64, POOL_SCRATCH_BYTES);
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
        scratch = aligned_alloc(64, POOL_SCRATCH_BYTES + POOL_SHARED_BYTES);
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
}

static void run_shared(struct pool *pool, uint32_t n_task, pool_work *work,
                       void *arg)
{
    pool->work = work;
    pool->arg = arg;
    pool->n_task = n_task;
    publish(pool);
    run_share(pool, &pool->worker[0]);
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
