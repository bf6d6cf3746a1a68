#ifndef TESTS_UNIT_KERNELS_PRODUCT_CHECK_H
#define TESTS_UNIT_KERNELS_PRODUCT_CHECK_H
/*
 * Products of one backend against ref by bits, for every arithmetic and type
 * of weights. Without Criterion, so that the program in tests/bench can make
 * the same checks on a machine that has nothing but a C library.
 */
#include "kernels/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How activations and weights look. */
enum product_values {
    PRODUCT_NOISE,  /* in [-1, 1) */
    PRODUCT_EDGE,   /* down to products, sums and weights below FLT_MIN */
    PRODUCT_BROKEN, /* with infinities and NaN in one row */
    N_PRODUCT_VALUES
};

struct product_case {
    uint32_t n_in, n_out, n_row;
    enum linear_type type;
    enum arithmetic arithmetic;
    enum product_values values;
};

/* Each dimension on both sides of where kernels change their ways: a pair, a
 * depth of 32, a group of 128, eight depths; a panel and several; a register
 * tile, a tile of 16 rows, a unit. */
static const uint32_t PRODUCT_IN[] = {1,   2,   31,  32,  33,  64,  127,
                                      128, 129, 255, 256, 257, 300, 641};
static const uint32_t PRODUCT_OUT[] = {1, 15, 16, 17, 33, 48, 65, 100, 305};
static const uint32_t PRODUCT_ROW[] = {
    1,  2,  3,  4,  5,  6,  7,  8,  12, 13, 15,  16,  17,  25,
    31, 32, 33, 40, 47, 48, 49, 63, 65, 96, 130, 255, 257, 300};

static inline uint64_t product_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline float product_value(uint64_t *state, enum product_values values)
{
    const uint64_t bits = product_random(state);
    const float x = (float)(bits >> 40) * 0x1p-23f - 1.0f;

    if (values != PRODUCT_EDGE)
        return x;
    /* Large ones for subnormal ones; else products about FLT_MIN. */
    return ldexpf(x, bits % 16 == 0   ? 8
                     : bits % 16 == 1 ? -132
                                      : -56 - (int)(bits / 16 % 16));
}

static inline float *product_floats(size_t n, uint64_t seed,
                                    enum product_values values)
{
    float *x = malloc((n + 1) * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = product_value(&seed, values);
    return x;
}

/* Deep ones, whose sums wait in memory, by more panels than wait together;
 * more rows than a unit; results that are written past the caches; weights of
 * several tasks a thread. */
static const struct {
    uint32_t n_in, n_out, n_row;
} PRODUCT_LARGE[] = {{1057, 145, 40},
                     {2200, 33, 33},
                     {33, 65, 530},
                     {5, 2048, 513},
                     {2200, 497, 3}};

/* Rows wider than their content, whose gaps must stay as they are. Those of
 * whole lines stay whole. */
static inline size_t product_stride(uint32_t n_out)
{
    return n_out % 16 ? n_out + 3 : n_out + 16;
}

static inline float *product_room(size_t n)
{
    return aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);
}

static inline void product_both(const struct backend *backend,
                                struct pool *pool, const struct linear *w,
                                const float *x, float *y, uint32_t n_row)
{
    const size_t stride = product_stride(w->n_out);
    const struct linear_args args = {y, stride, x, w->n_in + 1, n_row, w, NULL};

    for (size_t i = 0; i < n_row * stride; i++)
        y[i] = 0.25f;
    backend->linear(pool, &args);
    backend->linear_add(pool, &args);
}

/* The first place that differs, n when none; any NaN equals any other. */
static inline size_t product_difference(const float *a, const float *b,
                                        size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof(*a)) != 0 &&
            !(isnan(a[i]) && isnan(b[i])))
            return i;
    return n;
}

static inline bool product_same(const struct product_case *c, const char *name,
                                const float *got, const float *want,
                                const char *how)
{
    const size_t stride = product_stride(c->n_out), n = c->n_row * stride;
    const size_t at = product_difference(got, want, n);

    if (at == n)
        return true;
    printf("%s, arithmetic %d, type %d, values %d, %u -> %u, %u rows, %s: "
           "row %zu output %zu is %a, not %a\n",
           name, (int)c->arithmetic, (int)c->type, (int)c->values, c->n_in,
           c->n_out, c->n_row, how, at / stride, at % stride, (double)got[at],
           (double)want[at]);
    return false;
}

/* BF16 from bits, whose subnormals stay; W8 and F32 from floats. */
static inline void product_pack(struct linear *w, const float *weight)
{
    const size_t n = (size_t)w->n_in * w->n_out;
    uint16_t *bits;

    if (w->type != LINEAR_BF16) {
        linear_pack_f32(w, 0, w->n_out, weight);
        return;
    }
    bits = malloc(n * sizeof(*bits));
    for (size_t i = 0; i < n; i++)
        memcpy(&bits[i], (const char *)&weight[i] + 2, sizeof(*bits));
    linear_pack_bf16(w, 0, w->n_out, bits);
    free(bits);
}

/* A product with each pool and row by row; says what differs from ref. */
static inline bool product_check(const struct backend *backend,
                                 const struct backend *ref,
                                 struct pool *const *pool, size_t n_pool,
                                 const struct product_case *c)
{
    const size_t y_stride = product_stride(c->n_out), x_stride = c->n_in + 1;
    const size_t n = c->n_row * y_stride;
    float *weight =
        product_floats((size_t)c->n_in * c->n_out, c->n_out, c->values);
    float *x = product_floats(c->n_row * x_stride, c->n_row, c->values);
    float *want = product_room(n), *got = product_room(n);
    struct linear w;
    bool is_same = false;

    for (size_t i = 0; i < c->n_in && c->values == PRODUCT_BROKEN; i++)
        x[(c->n_row / 2) * x_stride + i] = i % 3 ? INFINITY : NAN;
    if (linear_init(c->n_in, c->n_out, c->type, c->arithmetic, &w))
        goto out;
    product_pack(&w, weight);
    product_both(ref, NULL, &w, x, want, c->n_row);
    is_same = true;
    for (size_t i = 0; i < n_pool && is_same; i++) {
        product_both(backend, pool[i], &w, x, got, c->n_row);
        is_same = product_same(c, backend->name, got, want, "at once");
    }
    for (uint32_t r = 0; r < c->n_row && is_same; r++)
        product_both(backend, NULL, &w, x + r * x_stride, got + r * y_stride,
                     1);
    is_same = is_same && product_same(c, backend->name, got, want, "by row");
    linear_release(&w);
out:
    free(weight);
    free(x);
    free(want);
    free(got);
    return is_same;
}

#define PRODUCT_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* In every arithmetic, which are one for W8A8; how many failed. */
static inline size_t product_check_case(const struct backend *backend,
                                        const struct backend *ref,
                                        struct pool *const *pool, size_t n_pool,
                                        struct product_case c)
{
    const int n = c.type == LINEAR_W8A8 ? 1 : N_CPU_ARITHMETIC;
    size_t n_bad = 0;

    for (int a = 0; a < n; a++) {
        c.arithmetic = (enum arithmetic)a;
        n_bad += !product_check(backend, ref, pool, n_pool, &c);
    }
    return n_bad;
}

/* Inputs so many that the weights are taken to come from memory, an odd number
 * of groups among them, by the few rows that a step of replies has. */
static inline size_t product_check_wide(const struct backend *backend,
                                        const struct backend *ref,
                                        struct pool *const *pool, size_t n_pool)
{
    static const uint32_t IN[] = {1024, 1100}, ROW[] = {1, 2, 3, 8, 9, 12};
    size_t n_bad = 0, turn = 0;

    for (size_t k = 0; k < PRODUCT_COUNT(IN); k++)
        for (size_t i = 0; i < PRODUCT_COUNT(ROW); i++)
            for (int type = LINEAR_BF16; type <= LINEAR_W8A8; type++, turn++)
                n_bad += product_check_case(
                    backend, ref, pool, n_pool,
                    (struct product_case){
                        .n_in = IN[k],
                        .n_out = turn % 4 ? 81 : 17,
                        .n_row = ROW[i],
                        .type = (enum linear_type)type,
                        .values = turn / 2 % N_PRODUCT_VALUES,
                    });
    return n_bad;
}

/* Every dimension of the tables with some of the others; how many failed. */
static inline size_t product_check_all(const struct backend *backend,
                                       const struct backend *ref,
                                       struct pool *const *pool, size_t n_pool)
{
    size_t n_bad = product_check_wide(backend, ref, pool, n_pool), turn = 0;

    for (size_t i = 0; i < PRODUCT_COUNT(PRODUCT_ROW); i++)
        for (size_t k = 0; k < PRODUCT_COUNT(PRODUCT_IN); k++, turn++) {
            struct product_case c = {
                .n_in = PRODUCT_IN[k],
                .n_out = PRODUCT_OUT[turn % PRODUCT_COUNT(PRODUCT_OUT)],
                .n_row = PRODUCT_ROW[i],
                .type = turn % 2 ? LINEAR_BF16 : LINEAR_W8,
                .values = turn / 2 % N_PRODUCT_VALUES,
            };

            if ((i + k) % 7) /* not all pairs; every dimension is there */
                continue;
            n_bad += product_check_case(backend, ref, pool, n_pool, c);
            c.type = LINEAR_W8A8;
            n_bad += product_check_case(backend, ref, pool, n_pool, c);
        }
    for (size_t i = 0; i < 3 * PRODUCT_COUNT(PRODUCT_LARGE); i++)
        n_bad += product_check_case(
            backend, ref, pool, n_pool,
            (struct product_case){.n_in = PRODUCT_LARGE[i / 3].n_in,
                                  .n_out = PRODUCT_LARGE[i / 3].n_out,
                                  .n_row = PRODUCT_LARGE[i / 3].n_row,
                                  .type = LINEAR_BF16 + i % 3});
    return n_bad;
}
#endif
