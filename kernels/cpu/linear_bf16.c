/*
 * Products of PAIR with AVX-512-BF16, whose dot product of pairs is that
 * arithmetic (kernels/linear.h): one VDPBF16PS is 16 outputs by two inner
 * steps. It flushes by itself; the modes that product.h sets are for the
 * scales of W8 and for what is added to y.
 *
 * Register tiles of up to 12 rows by 2 panels or 24 by 1, 6 by 4 of what is
 * near: 24 sums, the weights and a broadcast of 32 registers. W8 weights become
 * bf16 pairs in registers, exactly: whole numbers below 128 have few bf16,
 * which permutations of bytes look up, 64 at a time.
 *
 * Weights are asked for some KiB ahead, because what a tile of several rows
 * does with a weight lets the core look no further ahead than the latency of
 * memory, and its own prefetchers stop at every page. Few rows of bf16 do
 * without: the core runs ahead by itself, and asking costs a tenth of the
 * bandwidth on Zen 5, a quarter on Zen 4.
 *
 * Memory gives most to one stream from front to back. So where the weights come
 * from there, and one panel has enough chains in flight for the instruction's
 * latency, a tile is one panel: 8 to 12 rows of bf16, or a row or two of W8,
 * whose groups are chains of their own.
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
/* Bytes ahead in each panel: of bf16 the best of 2, 2.5, 3 ... 8 KiB on Zen 5,
 * one KiB less or more costs 3 %; and groups ahead of W8: up to 3 rows lose a
 * tenth by two, more rows as much by one. */
#define AHEAD_BF16(height, width)                                              \
    ((width) == 4                   ? 3072u                                    \
     : IS_ALONE_BF16(height, width) ? 12288u                                   \
     : (height) <= 8                ? 4096u                                    \
     : (width) == 2                 ? 5120u                                    \
                                    : 8192u)
#define AHEAD_W8(height) ((height) <= 3 ? 1u : 2u)
#define AHEAD_HEIGHT_BF16 5u

/* Inputs of products whose weights no cache holds, as a model so wide has too
 * many of them. From a cache one panel alone is slower. */
#define STREAM_STEPS 1024u
/* Rows that then take one panel at a time. */
#define ALONE_BF16_MIN 8u
#define ALONE_BF16_MAX 12u
#define ALONE_W8_MAX 2u
#define IS_ALONE_BF16(height, width)                                           \
    ((width) == 1 && (height) >= ALONE_BF16_MIN && (height) <= ALONE_BF16_MAX)
/* Of W8: groups side by side, the bytes ahead of them, and how many pairs of
 * one come before those of the next. */
#define SIDE_GROUPS 2u
#define AHEAD_GROUPS (6u * sizeof(struct linear_group))
#define TURN_PAIRS 8u

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
    struct product_onto onto; /* of near cells */
};

/*
 * The bf16 of a whole number below 128, in two bytes: one table for each, and
 * the byte itself is the index. The exponent is that of its highest bit.
 */
#define EXPONENT(m)                                                            \
    ((m) < 2    ? 127u                                                         \
     : (m) < 4  ? 128u                                                         \
     : (m) < 8  ? 129u                                                         \
     : (m) < 16 ? 130u                                                         \
     : (m) < 32 ? 131u                                                         \
     : (m) < 64 ? 132u                                                         \
                : 133u)
#define BITS(m) ((EXPONENT(m) << 7) | ((m) << (134u - EXPONENT(m)) & 0x7fu))
#define LOW(m) (uint8_t)((m) ? BITS(m) : 0u)
#define HIGH(m) (uint8_t)((m) ? BITS(m) >> 8 : 0u)
#define EIGHT(of, m)                                                           \
    of(m), of((m) + 1u), of((m) + 2u), of((m) + 3u), of((m) + 4u),             \
        of((m) + 5u), of((m) + 6u), of((m) + 7u)
#define HALF(of, m)                                                            \
    EIGHT(of, m), EIGHT(of, (m) + 8u), EIGHT(of, (m) + 16u),                   \
        EIGHT(of, (m) + 24u), EIGHT(of, (m) + 32u), EIGHT(of, (m) + 40u),      \
        EIGHT(of, (m) + 48u), EIGHT(of, (m) + 56u)
/* Bytes of a pair: low and high (from 64 on) of one step, then of the next. */
#define WORD(i) (i), (i) + 64u, (i) + 16u, (i) + 80u
#define FOUR(i) WORD(i), WORD((i) + 1u), WORD((i) + 2u), WORD((i) + 3u)
#define WORDS(i) FOUR(i), FOUR((i) + 4u), FOUR((i) + 8u), FOUR((i) + 12u)

static const _Alignas(64) struct {
    uint8_t low[2][64], high[2][64], first[64], second[64];
} WIDEN = {.low = {{HALF(LOW, 0u)}, {HALF(LOW, 64u)}},
           .high = {{HALF(HIGH, 0u)}, {HALF(HIGH, 64u)}},
           .first = {WORDS(0u)},
           .second = {WORDS(32u)}};

/* Four inner steps of W8, each of 16 lanes, as two times 16 bf16 pairs. */
INLINE void pairs_of_q(const unsigned char *at, __m512i pair[2])
{
    const __m512i q = _mm512_loadu_si512(at);
    const __m512i m = _mm512_abs_epi8(q);
    const __m512i sign = _mm512_set1_epi8(INT8_MIN);
    const __m512i low = _mm512_permutex2var_epi8(
        _mm512_load_si512(WIDEN.low[0]), m, _mm512_load_si512(WIDEN.low[1]));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(WIDEN.high[0]), m,
                                            _mm512_load_si512(WIDEN.high[1]));

    high = _mm512_ternarylogic_epi32(high, q, sign, 0xf8); /* | (q & sign) */
    pair[0] =
        _mm512_permutex2var_epi8(low, _mm512_load_si512(WIDEN.first), high);
    pair[1] =
        _mm512_permutex2var_epi8(low, _mm512_load_si512(WIDEN.second), high);
}

/* Row r of x, from a base every third row: x86 addresses base + 2 * stride. */
#define ROW(base, r, stride) ((base)[(r) / 3] + (r) % 3 * (stride))

/* n pairs of steps from pair `first`, whose weights of the cell's first panel
 * are at b. */
struct pairs {
    const unsigned char *b;
    uint32_t first, n;
    size_t ahead; /* bytes from a weight to one that is asked for */
};

/* What is asked for in a cell of bf16: from pair `turn` on, that of the next
 * cell, `more` bytes farther. */
struct ahead {
    size_t bytes, more;
    uint32_t turn;
};

/* Rows of x for a cell, as ROW() wants them. */
struct rows {
    const uint32_t *at[HEIGHT_MAX / 3];
    size_t stride;
};

INLINE struct rows rows_of(const struct cell *cell, uint32_t first)
{
    struct rows rows = {.stride = cell->x_stride};

    for (uint32_t i = 0; i < HEIGHT_MAX / 3; i++)
        rows.at[i] = cell->x + 3 * i * cell->x_stride + first;
    return rows;
}

INLINE void fetch(const struct cell *cell, const unsigned char *at,
                  uint32_t width)
{
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

/* Two inner steps: a pair of x by those of 16 outputs. */
INLINE __m512 dot(__m512 sum, uint32_t x, __m512i w)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)x),
                            (__m512bh)w);
}

/* sum += pair k. height and width are constants where this is inlined. */
INLINE void add_pair(const struct rows *x, uint32_t k, const __m512i *w,
                     uint32_t height, uint32_t width, sums sum)
{
#pragma GCC unroll 24
    for (uint32_t r = 0; r < height; r++) {
        const __m512i pair =
            _mm512_set1_epi32((int)ROW(x->at, r, x->stride)[k]);

#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++)
            sum[r][p] =
                _mm512_dpbf16_ps(sum[r][p], (__m512bh)pair, (__m512bh)w[p]);
    }
}

/* sum += all pairs of bf16. One loop, whose end is guessed wrong once a cell:
 * two of them cost cells of 256 inputs a fiftieth. No bytes ahead: nothing is
 * asked for. */
INLINE void add_bf16(const struct cell *cell, struct ahead ahead,
                     uint32_t height, uint32_t width, sums sum)
{
    const struct rows x = rows_of(cell, 0);
    const unsigned char *b = cell->b, *next = b + ahead.bytes;

    for (uint32_t k = 0; k < cell->n_pair; k++, b += PAIR_BYTES) {
        __m512i w[WIDTH_MAX];

        if (ahead.bytes) {
            next += ahead.more & -(size_t)(k == ahead.turn);
            fetch(cell, next, width);
            next += PAIR_BYTES;
        }
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++)
            w[p] = _mm512_load_si512(b + p * cell->b_stride);
        add_pair(&x, k, w, height, width, sum);
    }
}

/* sum += those pairs of W8, of which a line holds two pairs. */
INLINE void add_w8(const struct cell *cell, struct pairs pairs, uint32_t height,
                   uint32_t width, sums sum)
{
    const struct rows x = rows_of(cell, pairs.first);
    const unsigned char *b = pairs.b;

    for (uint32_t k = 0; k < pairs.n; k += 2, b += PAIR_BYTES) {
        __m512i w[2][WIDTH_MAX];

        fetch(cell, b + pairs.ahead, width);
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++) {
            __m512i two[2];

            pairs_of_q(b + p * cell->b_stride, two);
            w[0][p] = two[0];
            w[1][p] = two[1];
        }
        add_pair(&x, k, w[0], height, width, sum);
        add_pair(&x, k + 1, w[1], height, width, sum);
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

/* The sums of a near cell that go onto something. */
INLINE void finish_onto(const struct cell *cell, uint32_t height,
                        uint32_t width, sums sum)
{
#pragma GCC unroll 24
    for (uint32_t r = 0; r < height; r++) {
        const struct product_onto by = product_onto_at(cell->onto, r, 0);
        const __m512 keep = _mm512_set1_ps(*by.keep);

#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++) {
            const uint32_t n = p + 1 < width ? PANEL : cell->n_last;
            const __mmask16 mask = (__mmask16)((1u << n) - 1u);
            const __m512 y = _mm512_add_ps(sum[r][p], _mm512_setzero_ps());

            _mm512_mask_storeu_ps(
                cell->y + r * cell->y_stride + p * PANEL, mask,
                _mm512_fmadd_ps(
                    keep, _mm512_maskz_loadu_ps(mask, by.from + p * PANEL), y));
        }
    }
}

INLINE void cell_bf16(const struct cell *cell, uint32_t height, uint32_t width)
{
    const uint32_t n_ahead = AHEAD_BF16(height, width) / PAIR_BYTES;
    const uint32_t n_last = cell->n_pair < n_ahead ? cell->n_pair : n_ahead;
    struct ahead ahead = {0};
    sums sum;

    if (height >= AHEAD_HEIGHT_BF16)
        ahead = (struct ahead){.bytes = AHEAD_BF16(height, width),
                               .more = ahead_of_end(cell, 0, width),
                               .turn = cell->n_pair - n_last};
    clear(height, width, sum);
    add_bf16(cell, ahead, height, width, sum);
    finish(cell, height, width, sum);
}

INLINE void cell_near(const struct cell *cell, uint32_t height, uint32_t width)
{
    sums sum;

    clear(height, width, sum);
    add_bf16(cell, (struct ahead){0}, height, width, sum);
    if (cell->onto.from)
        finish_onto(cell, height, width, sum);
    else
        finish(cell, height, width, sum);
}

/* acc += n groups of one panel from pair `first` on; what is asked for goes in
 * the order of memory whatever the order of the sums. */
INLINE void add_groups(const struct cell *cell, uint32_t first,
                       const unsigned char *b, uint32_t height, uint32_t n,
                       sums acc)
{
    const struct rows x = rows_of(cell, first);
    const unsigned char *ahead = b + AHEAD_GROUPS;
    sums sum;

    clear(height, n, sum);
    for (uint32_t g = 0; g < n; g++, ahead += PAIR_BYTES)
        _mm_prefetch(ahead, _MM_HINT_T0);
    for (uint32_t turn = 0; turn < GROUP_PAIRS; turn += TURN_PAIRS)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n; g++)
#pragma GCC unroll 4
            for (uint32_t k = turn; k < turn + TURN_PAIRS; k += 2) {
                const uint32_t at = g * GROUP_PAIRS + k;
                __m512i two[2];

                _mm_prefetch(ahead, _MM_HINT_T0);
                ahead += PAIR_BYTES;
                pairs_of_q(b + g * sizeof(struct linear_group) +
                               offsetof(struct linear_group, q) +
                               k * PAIR_BYTES / 2,
                           two);
#pragma GCC unroll 2
                for (uint32_t r = 0; r < height; r++) {
                    const uint32_t *pair = ROW(x.at, r, x.stride) + at;

                    sum[r][g] = dot(sum[r][g], pair[0], two[0]);
                    sum[r][g] = dot(sum[r][g], pair[1], two[1]);
                }
            }
    for (uint32_t g = 0; g < n; g++, b += sizeof(struct linear_group))
#pragma GCC unroll 2
        for (uint32_t r = 0; r < height; r++)
            acc[r][0] =
                _mm512_fmadd_ps(sum[r][g], _mm512_load_ps(b), acc[r][0]);
}

INLINE void panel_w8(const struct cell *cell, uint32_t height)
{
    const unsigned char *b = cell->b;
    uint32_t k = 0, n = SIDE_GROUPS;
    sums acc;

    clear(height, 1, acc);
    for (; k + n * GROUP_PAIRS <= cell->n_pair; k += n * GROUP_PAIRS) {
        add_groups(cell, k, b, height, SIDE_GROUPS, acc);
        b += n * sizeof(struct linear_group);
    }
    if (k < cell->n_pair)
        add_groups(cell, k, b, height, 1, acc);
    finish(cell, height, 1, acc);
}

INLINE void cell_w8(const struct cell *cell, uint32_t height, uint32_t width)
{
    if (width == 1 && height <= ALONE_W8_MAX) {
        panel_w8(cell, height);
        return;
    }
    const uint32_t n_ahead = AHEAD_W8(height);
    const unsigned char *b = cell->b;
    sums sum, acc;

    clear(height, width, acc);
    for (uint32_t k = 0; k < cell->n_pair; k += GROUP_PAIRS) {
        struct pairs pairs = {b + offsetof(struct linear_group, q), k,
                              GROUP_PAIRS,
                              n_ahead * sizeof(struct linear_group)};

        if (k + n_ahead * GROUP_PAIRS >= cell->n_pair)
            pairs.ahead = ahead_of_end(cell, pairs.ahead, width);
        fetch(cell, b + pairs.ahead, width); /* scales */
        clear(height, width, sum);
        add_w8(cell, pairs, height, width, sum);
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
    if (height <= 5)
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
DISPATCH(run_near, cell_near)

typedef void cell_work(const struct cell *cell, uint32_t height,
                       uint32_t width);

/* All rows in n_tile tiles against `width` panels from `panel` on. */
INLINE void run_columns(const struct product_tile *t, cell_work *work,
                        uint32_t panel, uint32_t width, uint32_t n_tile)
{
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
        .onto = product_onto_at(t->onto, 0, (size_t)panel * PANEL),
    };

    for (uint32_t i = 0; i < n_tile; i++) {
        const uint32_t h = height + (i < n_higher);

        work(&cell, h, width);
        cell.x += h * cell.x_stride;
        cell.y += h * cell.y_stride;
        cell.onto = product_onto_at(cell.onto, h, 0);
    }
}

/* Panels outside, rows inside: some panels stay in the cache. From min_alone to
 * max_alone rows go one panel at a time if that comes from memory. */
INLINE void run(const struct product_tile *t, cell_work *work,
                uint32_t min_alone, uint32_t max_alone)
{
    const uint32_t n_tile = n_tile_of(t->n_row);
    const uint32_t n_panel = (t->n_col + PANEL - 1) / PANEL;
    const bool is_alone = t->n_step >= STREAM_STEPS && t->n_row >= min_alone &&
                          t->n_row <= max_alone;
    uint32_t width = is_alone ? 1 : width_of((t->n_row + n_tile - 1) / n_tile);

    for (uint32_t panel = 0; panel < n_panel; panel += width) {
        while (width > n_panel - panel)
            width /= 2;
        run_columns(t, work, panel, width, n_tile);
    }
}

/* Panels and rows that the nearest caches have: nothing to ask for, and tiles
 * of most sums for what they load, four panels wide where there are as many. */
static void run_all_near(const struct product_tile *t)
{
    const uint32_t n_panel = (t->n_col + PANEL - 1) / PANEL;
    uint32_t width = WIDTH_MAX;

    for (uint32_t panel = 0; panel < n_panel; panel += width) {
        while (width > n_panel - panel)
            width /= 2;

        const uint32_t most = HEIGHT_MAX / width;
        run_columns(t, run_near, panel, width, (t->n_row + most - 1) / most);
    }
}

static void pair_bf16(const struct product_tile *tile)
{
    if (tile->is_near)
        run_all_near(tile);
    else
        run(tile, run_bf16, ALONE_BF16_MIN, ALONE_BF16_MAX);
}

static void pair_w8(const struct product_tile *tile)
{
    run(tile, run_w8, 1, ALONE_W8_MAX);
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
    .of = {[ARITHMETIC_PAIR] = {[LINEAR_BF16] = {pair_bf16, take_bf16,
                                                 swiglu_halves_avx512_bf16, 2,
                                                 shape},
                                [LINEAR_W8] = {pair_w8, take_bf16,
                                               swiglu_halves_avx512_bf16, 2,
                                               shape}}},
    .base = &product_kernels_avx512_vnni,
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
