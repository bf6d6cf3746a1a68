/*
 * The pool under real threads: jobs that follow each other at once, after a
 * pause long enough for the workers to fall asleep, with fewer tasks than
 * threads, and pools that are destroyed while their workers still spin. Each
 * task writes plain memory that the caller reads after pool_run(), so that a
 * missing barrier is a race that TSan reports and a wrong sum without it.
 */
#include "kernels/backend.h"
#include "kernels/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_JOB = 2000, N_TASK_MAX = 37, N_ROUND = 20 };

struct job {
    uint64_t input;
    uint64_t result[N_TASK_MAX];
};

static void square(void *arg, uint32_t task, void *scratch)
{
    struct job *job = arg;
    uint64_t *mine = scratch;

    *mine = job->input + task;
    job->result[task] = *mine * *mine;
}

static void check_job(struct pool *pool, uint64_t input, uint32_t n_task)
{
    struct job job = {.input = input};

    pool_run(pool, n_task, square, &job);
    for (uint64_t t = 0; t < n_task; t++) {
        if (job.result[t] != (input + t) * (input + t)) {
            fprintf(stderr, "job %lu task %lu gave %lu\n", input, t,
                    job.result[t]);
            exit(1);
        }
    }
}

static double cpu_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void pause_ms(long ms)
{
    struct timespec ts = {.tv_nsec = ms * 1000000};

    nanosleep(&ts, NULL);
}

/* The point of sleeping at all: an idle pool takes no processor time. */
static void check_idle(struct pool *pool)
{
    check_job(pool, 1, 3);
    pause_ms(20);
    double before = cpu_seconds();
    pause_ms(200);
    double used = cpu_seconds() - before;
    if (used > 0.02) {
        fprintf(stderr, "an idle pool used %.0f ms of 200\n", used * 1e3);
        exit(1);
    }
    check_job(pool, 2, 3);
}

/* A kernel with real sharing: rows of one product over several threads. */
static void check_linear(struct pool *pool)
{
    enum { N_IN = 64, N_OUT = 256, N_ROW = 16 };
    static float weight[N_OUT * N_IN], x[N_ROW * N_IN], y[N_ROW * N_OUT];
    static float alone[N_ROW * N_OUT];
    const struct backend *backend;
    struct linear w;

    for (size_t i = 0; i < N_OUT * N_IN; i++)
        weight[i] = (float)(i % 13) - 6.0f;
    for (size_t i = 0; i < N_ROW * N_IN; i++)
        x[i] = (float)(i % 7) - 3.0f;
    if (backend_find("auto", &backend) ||
        linear_init(N_IN, N_OUT, LINEAR_F32, ARITHMETIC_FP32, &w))
        exit(1);
    linear_pack_f32(&w, 0, N_OUT, weight);
    struct linear_args args = {alone, N_OUT, x, N_IN, N_ROW, &w, NULL};
    backend->linear(NULL, &args);
    args.y = y;
    backend->linear(pool, &args);
    linear_release(&w);
    if (memcmp(y, alone, sizeof(y)) != 0) {
        fprintf(stderr, "a product differs with threads\n");
        exit(1);
    }
}

int main(void)
{
    struct pool *pool = NULL;

    for (uint32_t n_thread = 1; n_thread <= 4; n_thread++) {
        if (pool_create(n_thread, &pool))
            return 1;
        for (uint64_t i = 0; i < N_JOB; i++)
            check_job(pool, i, (uint32_t)(i % N_TASK_MAX));
        for (uint64_t i = 0; i < N_ROUND; i++) {
            pause_ms(1);
            check_job(pool, i, N_TASK_MAX);
        }
        check_linear(pool);
        check_idle(pool);
        pool_destroy(pool);
    }
    for (uint32_t i = 0; i < N_ROUND; i++) {
        if (pool_create(3, &pool))
            return 1;
        if (i % 2)
            check_job(pool, i, 5);
        pool_destroy(pool);
    }
    return 0;
}
