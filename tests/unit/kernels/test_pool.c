/*
 * A pool must run every task exactly once, each with a scratch of its own,
 * and the same tasks on the same threads every time.
 */
#include "kernels/pool.h"

#include "tests/unit/kernels/fixture.h"

#include <pthread.h>
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

Test(pool, scratch_is_aligned_and_partition_fixed)
{
    struct record first = {0}, again = {0};
    struct pool *pool = NULL;

    must(pool_create(3, &pool));
    pool_run(pool, 10, note, &first);
    pool_run(pool, 10, note, &again);
    for (uint32_t t = 0; t < 10; t++) {
        cr_assert(eq(sz, (uintptr_t)first.scratch[t] % 64, 0));
        cr_assert(eq(ptr, first.scratch[t], again.scratch[t]));
        cr_assert(eq(ptr, first.scratch[t], first.scratch[t % 3]));
    }
    cr_assert(ne(ptr, first.scratch[0], first.scratch[1]));
    cr_assert(ne(ptr, first.scratch[1], first.scratch[2]));
    pool_destroy(pool);
}

static void *run_without_pool(void *arg)
{
    pool_run(NULL, 5, note, arg);
    return NULL;
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
