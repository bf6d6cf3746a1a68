#include "kernels/cpu/bf16_tile.h"

#include "kernels/cpu/lanes.h"
#include "kernels/linear.h"

#include <stdbool.h>

/*
 * Register tiles as in tile.lanes.c and panel.lanes.c. PAIR has one sum an
 * output, TILE two and a third that waits; without the instruction for bf16
 * each word is taken apart into two vectors. Few rows take more vectors of
 * outputs, because chains in flight hide the latency, and keep their own words
 * in registers while those of b pass by.
 */
#define HEIGHT_MAX LANES_ROWS
#define WIDTH_MAX 8u
#define HEIGHT_BY_VECTOR 3u
#define VECTOR_BYTES (LANES * sizeof(uint32_t))

typedef v16 sums[HEIGHT_MAX][WIDTH_MAX];

/* A constant where it is inlined. is_part: width is 1 and the vector cut. */
struct shape {
    enum arithmetic order; /* PAIR or TILE */
    uint32_t height, width;
    bool is_part;
};

/* The part of a product that one register tile covers, and where it stands. */
struct cell {
    const struct bf16_tile *t;
    const uint32_t *a[4]; /* every third row: see ROW */
    size_t a_stride;
    const uint32_t *b;
    const unsigned char *next; /* to be fetched, or NULL */
    uint32_t n_last;           /* lanes of the last vector */
};

/* Row r of a, from a base every third row: x86 addresses base + 2 * stride. */
#define ROW(cell, r) ((cell)->a[(r) / 3] + (r) % 3 * (cell)->a_stride)

LANES_INLINE v16 load_words(const uint32_t *x, uint32_t n, bool is_part)
{
    const float *bits = (const float *)(const void *)x;

    return is_part ? v16_load_n(bits, n) : v16_load(bits);
}

/* Two steps of one row and vector onto its sums; of PAIR there is only even. */
LANES_INLINE void add_pair(enum arithmetic order, v16 x, v16 w, v16 *even,
                           v16 *odd)
{
    if (order == ARITHMETIC_PAIR) {
        *even = v16_dot(x, w, *even);
    } else {
        *even = v16_fma(v16_low(x), v16_low(w), *even);
        *odd = v16_fma(v16_high(x), v16_high(w), *odd);
    }
}

LANES_INLINE void pair_by_vector(const struct cell *cell, struct shape shape,
                                 sums even, sums odd)
{
    v16 x[HEIGHT_BY_VECTOR];

#pragma GCC unroll 3
    for (uint32_t r = 0; r < shape.height; r++)
        x[r] = v16_set1_word(ROW(cell, r));
#pragma GCC unroll 8
    for (uint32_t p = 0; p < shape.width; p++) {
        v16 w = load_words(cell->b + p * LANES, cell->n_last, shape.is_part);
#pragma GCC unroll 3
        for (uint32_t r = 0; r < shape.height; r++)
            add_pair(shape.order, x[r], w, &even[r][p], &odd[r][p]);
    }
}

LANES_INLINE void pair_by_row(const struct cell *cell, struct shape shape,
                              sums even, sums odd)
{
    v16 w[WIDTH_MAX];

#pragma GCC unroll 8
    for (uint32_t p = 0; p < shape.width; p++)
        w[p] = load_words(cell->b + p * LANES, cell->n_last, shape.is_part);
#pragma GCC unroll 12
    for (uint32_t r = 0; r < shape.height; r++) {
        v16 x = v16_set1_word(ROW(cell, r));
#pragma GCC unroll 8
        for (uint32_t p = 0; p < shape.width; p++)
            add_pair(shape.order, x, w[p], &even[r][p], &odd[r][p]);
    }
}

/* As many bytes as one pair takes from b. */
LANES_INLINE void fetch(struct cell *cell, uint32_t width)
{
    if (!cell->next)
        return;
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        _mm_prefetch((const char *)cell->next + p * VECTOR_BYTES, _MM_HINT_T0);
    cell->next += width * VECTOR_BYTES;
}

/* n pairs from where the cell stands. */
LANES_INLINE void run_pairs(struct cell *cell, uint32_t n, struct shape shape,
                            sums even, sums odd)
{
    for (uint32_t k = 0; k < n; k++) {
        fetch(cell, shape.width);
        if (shape.height <= HEIGHT_BY_VECTOR)
            pair_by_vector(cell, shape, even, odd);
        else
            pair_by_row(cell, shape, even, odd);
        for (uint32_t i = 0; i < 4; i++)
            cell->a[i]++;
        cell->b += cell->t->b_stride;
    }
}

LANES_INLINE void clear(struct shape shape, sums sum)
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < shape.height; r++)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < shape.width; p++)
            sum[r][p] = v16_zero();
}

/* n pairs in the order of the arithmetic, onto `sum`. */
LANES_INLINE void run_steps(struct cell *cell, uint32_t n, struct shape shape,
                            sums sum)
{
    if (shape.order == ARITHMETIC_PAIR) {
        run_pairs(cell, n, shape, sum, sum);
        return;
    }
    for (uint32_t k = 0; k < n; k += BF16_STEP_PAIRS) {
        sums even, odd;

        clear(shape, even);
        clear(shape, odd);
        run_pairs(cell, n - k < BF16_STEP_PAIRS ? n - k : BF16_STEP_PAIRS,
                  shape, even, odd);
#pragma GCC unroll 12
        for (uint32_t r = 0; r < shape.height; r++)
#pragma GCC unroll 8
            for (uint32_t p = 0; p < shape.width; p++)
                sum[r][p] = v16_add(sum[r][p], v16_add(even[r][p], odd[r][p]));
    }
}

/* Where a row's results lie, and its factors; NULL: none. */
struct target {
    float *c;
    const float *keep, *take;
};

LANES_INLINE void put(const struct cell *cell, struct target to,
                      struct shape shape, sums sum)
{
    const v16 zero = v16_zero();

#pragma GCC unroll 12
    for (uint32_t r = 0; r < shape.height; r++) {
        v16 keep = zero, take = zero;
        if (to.keep) {
            keep = v16_set1(to.keep[r]);
            take = v16_set1(to.take[r]);
        }
#pragma GCC unroll 8
        for (uint32_t p = 0; p < shape.width; p++) {
            float *c = to.c + r * cell->t->c_stride + p * LANES;
            const uint32_t n = shape.is_part ? cell->n_last : LANES;
            v16 y = v16_add(sum[r][p], zero);

            if (to.keep)
                y = v16_fma(v16_load_part(c, 0, n), keep, v16_mul(y, take));
            v16_store_part(c, y, 0, n);
        }
    }
}

LANES_INLINE void run_cell(const struct cell *cell, struct target to,
                           struct shape shape)
{
    const struct bf16_tile *t = cell->t;
    struct cell at = *cell; /* a copy that may lie in registers */
    sums sum;

    clear(shape, sum);
    run_steps(&at, t->n_near, shape, sum);
    at.b = t->far + (cell->b - t->b);
    run_steps(&at, t->n_pair - t->n_near, shape, sum);
    put(&at, to, shape, sum);
}

/* -------------------------------------------------------------- dispatch */

/* The heights that exist for a width, 0 for no such width. */
struct heights {
    uint32_t of_width[WIDTH_MAX + 1];
};
#if defined(LANES_BF16)
static const struct heights PAIR = {{[8] = 3, [4] = 6, [2] = 12, [1] = 12}};
#define CASES_PAIR(CASE)                                                       \
    CASE(1, 8)                                                                 \
    CASE(2, 8)                                                                 \
    CASE(3, 8)                                                                 \
    CASE(1, 4)                                                                 \
    CASE(2, 4)                                                                 \
    CASE(3, 4)                                                                 \
    CASE(4, 4) CASE(5, 4) CASE(6, 4) CASES_12(CASE, 2) CASES_12(CASE, 1)
#elif defined(LANES_AVX512)
static const struct heights PAIR = {{[8] = 2, [4] = 5, [2] = 12, [1] = 12}};
static const struct heights TILE = {{[8] = 1, [4] = 3, [2] = 6, [1] = 6}};
#define CASES_PAIR(CASE)                                                       \
    CASE(1, 8)                                                                 \
    CASE(2, 8)                                                                 \
    CASE(1, 4)                                                                 \
    CASE(2, 4)                                                                 \
    CASE(3, 4) CASE(4, 4) CASE(5, 4) CASES_12(CASE, 2) CASES_12(CASE, 1)
#define CASES_TILE(CASE)                                                       \
    CASE(1, 8)                                                                 \
    CASE(1, 4) CASE(2, 4) CASE(3, 4) CASES_6(CASE, 2) CASES_6(CASE, 1)
#else
static const struct heights PAIR = {{[4] = 1, [2] = 2, [1] = 4}};
static const struct heights TILE = {{[2] = 1, [1] = 2}};
#define CASES_PAIR(CASE)                                                       \
    CASE(1, 4) CASE(1, 2) CASE(2, 2) CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1)
#define CASES_TILE(CASE) CASE(1, 2) CASE(1, 1) CASE(2, 1)
#endif
#define CASES_6(CASE, w)                                                       \
    CASE(1, w) CASE(2, w) CASE(3, w) CASE(4, w) CASE(5, w) CASE(6, w)
#define CASES_12(CASE, w)                                                      \
    CASES_6(CASE, w)                                                           \
    CASE(7, w) CASE(8, w) CASE(9, w) CASE(10, w) CASE(11, w) CASE(12, w)

/* Of the cut vectors, the heights of one whole. */
#define WHOLE(h, w)                                                            \
    case (w)*16 + (h):                                                         \
        run_cell(cell, to, (struct shape){order, h, w, false});                \
        return;
#define CUT(h, w)                                                              \
    case (w)*16 + (h):                                                         \
        run_cell(cell, to, (struct shape){order, h, w, true});                 \
        return;

#define DISPATCH(name, fixed_order, cases, heights_cut)                        \
    static void name(const struct cell *cell, struct target to,                \
                     uint32_t height, uint32_t width)                          \
    {                                                                          \
        const enum arithmetic order = fixed_order;                             \
        if (cell->n_last < LANES) {                                            \
            switch (16 + height) {                                             \
                heights_cut                                                    \
            }                                                                  \
        }                                                                      \
        switch (width * 16 + height) {                                         \
            cases(WHOLE)                                                       \
        }                                                                      \
    }
#if defined(LANES_AVX512)
#define CUT_PAIR CASES_12(CUT, 1)
#define CUT_TILE CASES_6(CUT, 1)
#else
#define CUT_PAIR CUT(1, 1) CUT(2, 1) CUT(3, 1) CUT(4, 1)
#define CUT_TILE CUT(1, 1) CUT(2, 1)
#endif

typedef void cell_work(const struct cell *cell, struct target to,
                       uint32_t height, uint32_t width);

/* All rows against `width` vectors that start at column `first`. */
static void run_columns(const struct bf16_tile *t, cell_work *work,
                        uint32_t first, uint32_t width, uint32_t highest)
{
    const uint32_t n_tile = (t->n_row + highest - 1) / highest;
    const uint32_t height = t->n_row / n_tile, n_higher = t->n_row % n_tile;
    const uint32_t left = t->n_col - first;
    const uint32_t *a = t->a;
    struct target to = {t->c + first, t->keep, t->take};

    for (uint32_t i = 0; i < n_tile; i++) {
        const uint32_t h = height + (i < n_higher);
        struct cell cell = {.t = t,
                            .a_stride = t->a_stride,
                            .b = t->b + first,
                            .next = bf16_tile_next(t, first),
                            .n_last = left < LANES ? left : LANES};

        for (uint32_t k = 0; k < 4; k++)
            cell.a[k] = a + 3 * k * t->a_stride;
        work(&cell, to, h, width);
        a += h * t->a_stride;
        to.c += h * t->c_stride;
        if (to.keep) {
            to.keep += h;
            to.take += h;
        }
    }
}

/* Columns outside, rows inside: some columns of b stay in the cache. The widest
 * tile that still takes so many rows at once, or the tallest. */
static void run(const struct bf16_tile *t, const struct heights *heights,
                cell_work *work)
{
    uint32_t width = WIDTH_MAX;

    while (width > 1 && heights->of_width[width] < t->n_row &&
           heights->of_width[width] < heights->of_width[1])
        width /= 2;
    for (uint32_t first = 0; first < t->n_col; first += width * LANES) {
        const uint32_t n_whole = (t->n_col - first) / LANES;

        while (width > 1 && width > n_whole)
            width /= 2;
        run_columns(t, work, first, width, heights->of_width[width]);
    }
}

DISPATCH(pair_cell, ARITHMETIC_PAIR, CASES_PAIR, CUT_PAIR)

void LANES_NAME(bf16_tile_pair)(const struct bf16_tile *tile)
{
    run(tile, &PAIR, pair_cell);
}

/* No instruction of AVX512-BF16 helps with TILE. */
#if !defined(LANES_BF16)
DISPATCH(tile_cell, ARITHMETIC_TILE, CASES_TILE, CUT_TILE)

void LANES_NAME(bf16_tile_tile)(const struct bf16_tile *tile)
{
    run(tile, &TILE, tile_cell);
}
#endif
