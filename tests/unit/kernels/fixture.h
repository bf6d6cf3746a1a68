#ifndef TESTS_UNIT_KERNELS_FIXTURE_H
#define TESTS_UNIT_KERNELS_FIXTURE_H
/*
 * What every kernel test needs: noise that is the same on every run, buffers
 * that end at a guard page, comparison of bits, and the backends that this
 * machine can run.
 */
#include "kernels/backend.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Uniform in [-1, 1). */
static inline float noise(uint64_t seed, uint64_t i)
{
    return (float)(mix(seed * 0x1000003u + i) >> 40) * 0x1p-23f - 1.0f;
}

/*
 * Room for n floats whose last byte lies before a page that nobody may touch,
 * so that one stray lane ends the test in every build. The first page keeps
 * the size for drop().
 */
#define PAGE ((size_t)4096)

static inline float *room(size_t n)
{
    size_t bytes = n * sizeof(float), body = (bytes + PAGE - 1) / PAGE * PAGE;
    unsigned char *base = mmap(NULL, body + 2 * PAGE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(base != MAP_FAILED);
    memcpy(base, &body, sizeof(body));
    must(mprotect(base + PAGE + body, PAGE, PROT_NONE));
    return (float *)(void *)(base + PAGE + body - bytes);
}

static inline void drop(float *x)
{
    unsigned char *base = (unsigned char *)((uintptr_t)x / PAGE * PAGE) - PAGE;
    size_t body = 0;

    /* x lies in the first page behind the size, or at its end if empty. */
    memcpy(&body, base, sizeof(body));
    must(munmap(base, body + 2 * PAGE));
}

static inline float *filled(size_t n, uint64_t seed)
{
    float *x = room(n);
    for (size_t i = 0; i < n; i++)
        x[i] = noise(seed, i);
    return x;
}

static inline float *constant(size_t n, float value)
{
    float *x = room(n);
    for (size_t i = 0; i < n; i++)
        x[i] = value;
    return x;
}

static inline float *copied(const float *from, size_t n)
{
    return memcpy(room(n), from, n * sizeof(float));
}

/* The same bits, and no NaN among them. */
static inline void assert_same(const float *got, const float *want, size_t n,
                               const char *what)
{
    if (memcmp(got, want, n * sizeof(float)) == 0) {
        for (size_t i = 0; i < n; i++)
            if (isnan(got[i]))
                cr_fatal("%s: element %zu is NaN", what, i);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof(float)) != 0)
            cr_fatal("%s: element %zu of %zu is %a, not %a", what, i, n,
                     (double)got[i], (double)want[i]);
}

static inline bool is_zero(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0.0f)
            return false;
    return true;
}

/* |got - want| <= bound * scale with scale the largest |want|, at least 1. */
static inline void assert_near(const float *got, const double *want, size_t n,
                               double bound, const char *what)
{
    double scale = 1.0;

    for (size_t i = 0; i < n; i++)
        scale = fmax(scale, fabs(want[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= bound * scale))
            cr_fatal("%s: element %zu of %zu is %.9g, oracle says %.9g", what,
                     i, n, (double)got[i], want[i]);
}

static inline const struct backend *backend_ref_found(void)
{
    const struct backend *ref = NULL;
    must(backend_find("ref", &ref));
    return ref;
}

/* Pools of 1, 2 and 3 threads; index 0 is no pool at all. */
#define N_POOL 4u

static inline void pools_create(struct pool *pools[N_POOL])
{
    pools[0] = NULL;
    for (uint32_t i = 1; i < N_POOL; i++)
        must(pool_create(i, &pools[i]));
}

static inline void pools_destroy(struct pool *pools[N_POOL])
{
    for (uint32_t i = 0; i < N_POOL; i++)
        pool_destroy(pools[i]);
}

/*
 * Run `body` for each backend this machine supports with each pool: the names
 * `backend` and `pool` are in scope.
 */
#define EACH_BACKEND(backend)                                                  \
    for (const struct backend *const *each_ = backend_all(), *backend;         \
         (backend = *each_) != NULL; each_++)                                  \
        if (backend->is_supported())
#endif
