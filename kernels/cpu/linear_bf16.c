/*
 * Products of PAIR with AVX-512-BF16, whose dot product of pairs is that
 * arithmetic (kernels/linear.h): one VDPBF16PS is 16 outputs by two inner
 * steps. It flushes by itself; the modes that product.h sets are for the
 * scales of W8 and for what is added to y.
 *
 * Register tiles of up to 12 rows by 2 panels or 24 by 1: 24 sums, the weights
 * and a broadcast of 32 registers. W8 weights become bf16 pairs in registers,
 * exactly, for 3 % of a tall tile's time.
 *
 * Weights are asked for some KiB ahead, because what a tile of several rows
 * does with a weight lets the core look no further ahead than the latency of
 * memory, and its own prefetchers stop at every page. Few rows of bf16 do
 * without: the core runs ahead by itself, and asking costs a tenth of the
 * bandwidth on Zen 5, a quarter on Zen 4.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define PANEL 16u
#define HEIGHT_MAX 24u
#define HEIGHT_MANY 12u /* at most, where there are several tiles of rows */
#define WIDTH_MAX 4u
#define UNIT_ROWS 48u
#define GROUP_PAIRS (LINEAR_GROUP / 2u)
#define PAIR_BYTES (2 * PANEL * sizeof(uint16_t)) /* of a panel's bf16 */
/* Bytes ahead in each panel: of bf16, by width, and of W8 (two groups). The
 * best of 2, 2.5, 3 ... 16 KiB on Zen 5; one step less or more costs 5 %. */
#define AHEAD_BF16(width) ((width) == 4 ? 3072u : (width) == 2 ? 5120u : 8192u)
#define AHEAD_W8 (2 * sizeof(struct linear_group))
#define AHEAD_HEIGHT_BF16 5u

typedef __m512 sums[HEIGHT_MAX][WIDTH_MAX];

/* Where a register tile stands. */
struct cell {
    const uint32_t *x; /* pairs of bf16 */
    size_t x_stride;   /* in pairs */
    const unsigned char *b;
    size_t b_stride; /* bytes from panel to panel */
    uint32_t n_pair;
    float *y;
    size_t y_stride;
    uint32_t n_last; /* lanes of the last panel */
    bool is_add;
};

/* Two inner steps of W8, one of 16 lanes behind the other, as bf16 pairs. A
 * whole number below 128 fills the upper half of its float, the lower is 0. */
INLINE __m512i pairs_of_q(const unsigned char *q)
{
    const __m128i *at = (const __m128i *)(const void *)q;
    __m512i even = _mm512_cvtepi8_epi32(_mm_loadu_si128(at));
    __m512i odd = _mm512_cvtepi8_epi32(_mm_loadu_si128(at + 1));

    even = _mm512_castps_si512(_mm512_cvtepi32_ps(even));
    odd = _mm512_castps_si512(_mm512_cvtepi32_ps(odd));
    return _mm512_or_si512(odd, _mm512_srli_epi32(even, 16));
}

/* Row r of x, from a base every third row: x86 addresses base + 2 * stride. */
#define ROW(base, r, stride) ((base)[(r) / 3] + (r) % 3 * (stride))

/* n pairs of steps from pair `first`, whose weights of the cell's first panel
 * are at b. */
struct pairs {
    const unsigned char *b;
    uint32_t first, n;
    size_t ahead; /* bytes from a weight to one that is asked for */
    bool is_w8;
};

/* Ask for what the weights of pair k have ahead; W8 has two in a line. */
INLINE void fetch(const struct cell *cell, const struct pairs *pairs,
                  uint32_t k, uint32_t width)
{
    const unsigned char *at =
        pairs->b + pairs->ahead + k * PAIR_BYTES / (pairs->is_w8 ? 2 : 1);

    if (pairs->is_w8 && k % 2)
        return;
#pragma GCC unroll 4
    for (uint32_t p = 0; p < width; p++)
        _mm_prefetch(at + p * cell->b_stride, _MM_HINT_T0);
}

/* Behind the end of a panel comes the next one, which this cell has too; what
 * will be needed is that of the next cell. */
INLINE size_t ahead_of_end(const struct cell *cell, size_t ahead,
                           uint32_t width)
{
    return ahead + (width - 1) * cell->b_stride;
}

/* sum += those pairs. height and width are constants where this is inlined. */
INLINE void add_pairs(const struct cell *cell, struct pairs pairs,
                      uint32_t height, uint32_t width, sums sum)
{
    const bool is_ahead = pairs.is_w8 || height >= AHEAD_HEIGHT_BF16;
    const unsigned char *b = pairs.b;
    const size_t stride = cell->x_stride, b_stride = cell->b_stride;
    const uint32_t *x[HEIGHT_MAX / 3];

    for (uint32_t i = 0; i < HEIGHT_MAX / 3; i++)
        x[i] = cell->x + 3 * i * stride + pairs.first;
    for (uint32_t k = 0; k < pairs.n; k++) {
        __m512i w[WIDTH_MAX];

        if (is_ahead)
            fetch(cell, &pairs, k, width);
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++)
            w[p] = pairs.is_w8
                       ? pairs_of_q(b + p * b_stride + k * PAIR_BYTES / 2)
                       : _mm512_load_si512(b + p * b_stride + k * PAIR_BYTES);
#pragma GCC unroll 24
        for (uint32_t r = 0; r < height; r++) {
            const __m512i pair = _mm512_set1_epi32((int)ROW(x, r, stride)[k]);

#pragma GCC unroll 4
            for (uint32_t p = 0; p < width; p++)
                sum[r][p] =
                    _mm512_dpbf16_ps(sum[r][p], (__m512bh)pair, (__m512bh)w[p]);
        }
    }
}

INLINE void clear(uint32_t height, uint32_t width, sums sum)
{
#pragma GCC unroll 24
    for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++)
            sum[r][p] = _mm512_setzero_ps();
}

INLINE void finish(const struct cell *cell, uint32_t height, uint32_t width,
                   sums sum)
{
#pragma GCC unroll 24
    for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++) {
            const uint32_t n = p + 1 < width ? PANEL : cell->n_last;
            const __mmask16 mask = (__mmask16)((1u << n) - 1u);
            float *y = cell->y + r * cell->y_stride + p * PANEL;

            if (cell->is_add)
                sum[r][p] =
                    _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum[r][p]);
            _mm512_mask_storeu_ps(y, mask, sum[r][p]);
        }
}

INLINE void cell_bf16(const struct cell *cell, uint32_t height, uint32_t width)
{
    const uint32_t n_ahead = AHEAD_BF16(width) / PAIR_BYTES;
    const uint32_t n_last = cell->n_pair < n_ahead ? cell->n_pair : n_ahead;
    struct pairs pairs = {
        .b = cell->b, .n = cell->n_pair - n_last, .ahead = AHEAD_BF16(width)};
    sums sum;

    clear(height, width, sum);
    for (uint32_t i = 0; i < 2; i++) {
        add_pairs(cell, pairs, height, width, sum);
        pairs.b += pairs.n * PAIR_BYTES;
        pairs.first = pairs.n;
        pairs.n = n_last;
        pairs.ahead = ahead_of_end(cell, pairs.ahead, width);
    }
    finish(cell, height, width, sum);
}

INLINE void cell_w8(const struct cell *cell, uint32_t height, uint32_t width)
{
    const unsigned char *b = cell->b;
    sums sum, acc;

    clear(height, width, acc);
    for (uint32_t k = 0; k < cell->n_pair; k += GROUP_PAIRS) {
        struct pairs pairs = {b + offsetof(struct linear_group, q), k,
                              GROUP_PAIRS, AHEAD_W8, true};

        if (k + 2 * GROUP_PAIRS >= cell->n_pair)
            pairs.ahead = ahead_of_end(cell, AHEAD_W8, width);

        clear(height, width, sum);
        add_pairs(cell, pairs, height, width, sum);
#pragma GCC unroll 24
        for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 4
            for (uint32_t p = 0; p < width; p++)
                acc[r][p] = _mm512_fmadd_ps(
                    sum[r][p], _mm512_load_ps(b + p * cell->b_stride),
                    acc[r][p]);
        b += sizeof(struct linear_group);
    }
    finish(cell, height, width, acc);
}

/* Few rows take more panels: chains in flight hide the latency. */
static uint32_t width_of(uint32_t height)
{
    if (height <= 6)
        return 4;
    return height <= 12 ? 2 : 1;
}

/* One tile if that is possible: weights are then read once. */
static uint32_t n_tile_of(uint32_t n_row)
{
    return n_row <= HEIGHT_MAX ? 1 : (n_row + HEIGHT_MANY - 1) / HEIGHT_MANY;
}

#define CASE(kind, h, w)                                                       \
    case h:                                                                    \
        kind(cell, h, w);                                                      \
        break;
#define CASES_6(kind, w)                                                       \
    CASE(kind, 1, w)                                                           \
    CASE(kind, 2, w)                                                           \
    CASE(kind, 3, w) CASE(kind, 4, w) CASE(kind, 5, w) CASE(kind, 6, w)
#define CASES_12(kind, w)                                                      \
    CASES_6(kind, w)                                                           \
    CASE(kind, 7, w)                                                           \
    CASE(kind, 8, w)                                                           \
    CASE(kind, 9, w)                                                           \
    CASE(kind, 10, w) CASE(kind, 11, w) CASE(kind, 12, w)
#define CASES_24(kind, w)                                                      \
    CASES_12(kind, w)                                                          \
    CASE(kind, 13, w)                                                          \
    CASE(kind, 14, w)                                                          \
    CASE(kind, 15, w)                                                          \
    CASE(kind, 16, w)                                                          \
    CASE(kind, 17, w)                                                          \
    CASE(kind, 18, w)                                                          \
    CASE(kind, 19, w)                                                          \
    CASE(kind, 20, w)                                                          \
    CASE(kind, 21, w)                                                          \
    CASE(kind, 22, w) CASE(kind, 23, w) CASE(kind, 24, w)

#define DISPATCH(name, kind)                                                   \
    static void name(const struct cell *cell, uint32_t height, uint32_t width) \
    {                                                                          \
        if (width == 4) {                                                      \
            switch (height) {                                                  \
                CASES_6(kind, 4)                                               \
            }                                                                  \
        } else if (width == 2) {                                               \
            switch (height) {                                                  \
                CASES_12(kind, 2)                                              \
            }                                                                  \
        } else {                                                               \
            switch (height) {                                                  \
                CASES_24(kind, 1)                                              \
            }                                                                  \
        }                                                                      \
    }
DISPATCH(run_bf16, cell_bf16)
DISPATCH(run_w8, cell_w8)

typedef void cell_work(const struct cell *cell, uint32_t height,
                       uint32_t width);

/* All rows against `width` panels from `panel` on. */
INLINE void run_columns(const struct product_tile *t, cell_work *work,
                        uint32_t panel, uint32_t width)
{
    const uint32_t n_tile = n_tile_of(t->n_row);
    const uint32_t height = t->n_row / n_tile, n_higher = t->n_row % n_tile;
    const uint32_t left = t->n_col - (panel + width - 1) * PANEL;
    struct cell cell = {
        .x = t->a,
        .x_stride = t->a_stride / 2,
        .b = (const unsigned char *)t->b + panel * t->b_stride,
        .b_stride = t->b_stride,
        .n_pair = t->n_step / 2,
        .y = t->c + panel * PANEL,
        .y_stride = t->c_stride,
        .n_last = left < PANEL ? left : PANEL,
        .is_add = t->is_add,
    };

    for (uint32_t i = 0; i < n_tile; i++) {
        const uint32_t h = height + (i < n_higher);

        work(&cell, h, width);
        cell.x += h * cell.x_stride;
        cell.y += h * cell.y_stride;
    }
}

/* Panels outside, rows inside: some panels stay in the cache. */
INLINE void run(const struct product_tile *t, cell_work *work)
{
    const uint32_t n_tile = n_tile_of(t->n_row);
    const uint32_t n_panel = (t->n_col + PANEL - 1) / PANEL;
    uint32_t width = width_of((t->n_row + n_tile - 1) / n_tile);

    for (uint32_t panel = 0; panel < n_panel; panel += width) {
        while (width > n_panel - panel)
            width /= 2;
        run_columns(t, work, panel, width);
    }
}

static void pair_bf16(const struct product_tile *tile)
{
    run(tile, run_bf16);
}

static void pair_w8(const struct product_tile *tile)
{
    run(tile, run_w8);
}

static struct product_shape shape(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){UNIT_ROWS,
                                  n_row <= HEIGHT_MANY ? width_of(n_row) : 2};
}

void take_bf16(void *to, const float *x, uint32_t n, uint32_t n_step)
{
    uint16_t *out = to;

    for (uint32_t i = 0; i < n_step; i += 16) {
        const uint32_t left = i < n ? n - i : 0;
        const __mmask16 mask =
            left < 16 ? (__mmask16)((1u << left) - 1u) : (__mmask16)0xffff;
        const __m512 part = _mm512_maskz_loadu_ps(mask, x + i);

        _mm256_storeu_si256((void *)(out + i),
                            (__m256i)_mm512_cvtneps_pbh(part));
    }
}

/* ------------------------------------------------------------- the backend */

const struct product_kernels product_kernels_avx512_bf16 = {
    .of = {[ARITHMETIC_PAIR] = {[LINEAR_BF16] = {pair_bf16, take_bf16, 2,
                                                 shape},
                                [LINEAR_W8] = {pair_w8, take_bf16, 2, shape}}},
    .base = &product_kernels_avx512,
};

void linear_avx512_bf16(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, false, &product_kernels_avx512_bf16);
}

void linear_add_avx512_bf16(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, true, &product_kernels_avx512_bf16);
}

void expert_avx512_bf16(struct pool *pool, const struct expert_args *args)
{
    product_expert(pool, args, &product_kernels_avx512_bf16);
}

void ffn_avx512_bf16(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, false, &product_kernels_avx512_bf16);
}

void ffn_add_avx512_bf16(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, true, &product_kernels_avx512_bf16);
}
