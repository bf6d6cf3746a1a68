/*
 * A pool must run every task exactly once, each with its thread's scratch, and
 * wait for no thread that has not begun one.
 */
#include "kernels/pool.h"

#include "tests/unit/kernels/fixture.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { N_TASK_MAX = 300 };

struct record {
    _Atomic uint32_t n_run[N_TASK_MAX];
    void *scratch[N_TASK_MAX];
};

static void note(void *arg, uint32_t task, void *scratch)
{
    struct record *record = arg;

    atomic_fetch_add(&record->n_run[task], 1);
    record->scratch[task] = scratch;
    /* The first and the last byte are ours to write. */
    memset(scratch, (int)task, 64);
    ((unsigned char *)scratch)[POOL_SCRATCH_BYTES - 1] = (unsigned char)task;
}

Test(pool, every_task_runs_once_whatever_the_numbers)
{
    static const uint32_t THREADS[] = {1, 2, 3, 8};
    static const uint32_t TASKS[] = {0, 1, 2, 3, 7, 8, 9, 300};

    for (size_t i = 0; i < COUNT(THREADS); i++) {
        struct pool *pool = NULL;
        must(pool_create(THREADS[i], &pool));
        cr_assert(eq(u32, pool_n_thread(pool), THREADS[i]));
        for (size_t n = 0; n < COUNT(TASKS); n++) {
            struct record record = {0};
            pool_run(pool, TASKS[n], note, &record);
            for (uint32_t t = 0; t < N_TASK_MAX; t++)
                cr_assert(eq(u32, record.n_run[t], t < TASKS[n]));
        }
        pool_destroy(pool);
    }
}

struct meeting {
    _Atomic uint32_t n_here;
    bool has_met[2];
    void *scratch[2];
};

static void meet(void *arg, uint32_t task, void *scratch)
{
    struct meeting *meeting = arg;

    meeting->scratch[task] = scratch;
    atomic_fetch_add(&meeting->n_here, 1);
    for (long i = 0; !meeting->has_met[task] && i < 100000000; i++) {
        meeting->has_met[task] = atomic_load(&meeting->n_here) == 2;
        sched_yield();
    }
}

Test(pool, scratch_is_aligned_and_no_two_threads_have_the_same)
{
    struct pool *pool = NULL;

    must(pool_create(2, &pool));
    for (int run = 0; run < 100; run++) {
        struct meeting meeting = {0};

        pool_run(pool, 2, meet, &meeting);
        cr_assert(meeting.has_met[0] && meeting.has_met[1]);
        for (uint32_t t = 0; t < 2; t++)
            cr_assert(eq(sz, (uintptr_t)meeting.scratch[t] % 64, 0));
        cr_assert(ne(ptr, meeting.scratch[0], meeting.scratch[1]));
    }
    pool_destroy(pool);
}

/* Tasks of which one lasts until all others are done. */
struct held_up {
    uint32_t held, n_task;
    _Atomic uint32_t n_done;
    bool has_seen_all;
};

static void hold_up(void *arg, uint32_t task, void *scratch)
{
    struct held_up *job = arg;

    (void)scratch;
    for (long i = 0; task == job->held && i < 100000000; i++) {
        job->has_seen_all = atomic_load(&job->n_done) == job->n_task - 1;
        if (job->has_seen_all)
            break;
        sched_yield();
    }
    atomic_fetch_add(&job->n_done, 1);
}

Test(pool, a_task_that_is_held_up_holds_up_no_other)
{
    static const uint32_t THREADS[] = {2, 3, 8};

    for (size_t i = 0; i < COUNT(THREADS); i++) {
        struct pool *pool = NULL;

        must(pool_create(THREADS[i], &pool));
        for (uint32_t held = 0; held < THREADS[i] + 1; held++) {
            struct held_up job = {.held = held, .n_task = 40};

            pool_run(pool, job.n_task, hold_up, &job);
            cr_assert(job.has_seen_all);
            cr_assert(eq(u32, job.n_done, job.n_task));
        }
        pool_destroy(pool);
    }
}

static void *run_without_pool(void *arg)
{
    pool_run(NULL, 5, note, arg);
    return NULL;
}

static _Thread_local uint32_t n_set; /* by tasks of this thread, not undone */
static _Atomic uint32_t n_undone, n_rest;

static void undo(void)
{
    atomic_fetch_add(&n_undone, n_set);
    atomic_fetch_add(&n_rest, 1);
    n_set = 0;
}

static void set_up(void *arg, uint32_t task, void *scratch)
{
    (void)arg;
    (void)scratch;
    if (task % 2 == 0)
        return;
    n_set++;
    pool_at_rest(undo);
}

Test(pool, what_tasks_set_up_is_undone_once_a_thread_has_no_more_of_them)
{
    for (uint32_t n_thread = 0; n_thread <= 3; n_thread++) {
        struct pool *pool = NULL;

        if (n_thread)
            must(pool_create(n_thread, &pool));
        for (uint32_t i = 0; i < 50; i++) {
            atomic_store(&n_undone, 0);
            atomic_store(&n_rest, 0);
            pool_run(pool, 21, set_up, NULL);
            cr_assert(eq(u32, n_undone, 10));
            cr_assert(ge(u32, n_rest, 1));
            cr_assert(le(u32, n_rest, n_thread ? n_thread : 1));
            pool_run(pool, 1, set_up, NULL); /* nothing is left to undo */
            cr_assert(eq(u32, n_undone, 10));
        }
        pool_destroy(pool);
    }
}

Test(pool, no_pool_runs_on_the_caller_with_a_scratch_of_its_thread)
{
    struct record here = {0}, there = {0};
    pthread_t thread;

    cr_assert(eq(u32, pool_n_thread(NULL), 1));
    run_without_pool(&here);
    cr_assert(
        eq(int, pthread_create(&thread, NULL, run_without_pool, &there), 0));
    pthread_join(thread, NULL);
    for (uint32_t t = 0; t < 5; t++) {
        cr_assert(eq(u32, here.n_run[t], 1));
        cr_assert(eq(u32, there.n_run[t], 1));
        cr_assert(eq(ptr, here.scratch[t], here.scratch[0]));
        cr_assert(ne(ptr, there.scratch[t], here.scratch[0]));
    }
}

Test(pool, refuses_no_threads_and_too_many)
{
    struct pool *pool = NULL;

    cr_assert(eq(int, pool_create(0, &pool), STATUS_INVALID_ARGUMENT));
    cr_assert(eq(int, pool_create(POOL_THREAD_MAX + 1, &pool),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(strstr(status_reason(), "257") != NULL);
    cr_assert(eq(ptr, pool, NULL));
    pool_destroy(NULL);
}
