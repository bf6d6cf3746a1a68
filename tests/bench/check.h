#ifndef TESTS_BENCH_CHECK_H
#define TESTS_BENCH_CHECK_H
/*
 * What the programs here share: one backend, or all that this machine can run,
 * held to ref by a check that needs no Criterion.
 */
#include "kernels/backend.h"

#include <stdio.h>
#include <string.h>

#define N_POOL 4u /* of 1, 2 and 3 threads; the first is none */

static inline int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, status_reason());
    return 1;
}

/* How many of its cases differ from ref. */
typedef size_t check_all(const struct backend *backend,
                         const struct backend *ref, struct pool *const *pool,
                         size_t n_pool);

/* only: a backend's name, or NULL for all; returns the exit status. */
static inline int check(const char *only, check_all *all, const char *what)
{
    const struct backend *ref = NULL;
    struct pool *pool[N_POOL] = {NULL};
    size_t n_bad = 0;

    if (backend_find("ref", &ref))
        return fail("ref");
    for (uint32_t i = 1; i < N_POOL; i++)
        if (pool_create(i, &pool[i]))
            return fail("pool");
    for (const struct backend *const *b = backend_all(); *b; b++) {
        size_t n;

        if (only && strcmp((*b)->name, only) != 0)
            continue;
        if (!(*b)->is_supported()) {
            printf("this machine lacks %s: not checked\n", (*b)->name);
            continue;
        }
        n = *b == ref ? 0 : all(*b, ref, pool, N_POOL);
        printf("%s: %zu %s differ from ref\n", (*b)->name, n, what);
        n_bad += n;
    }
    for (uint32_t i = 1; i < N_POOL; i++)
        pool_destroy(pool[i]);
    return n_bad != 0;
}
#endif
