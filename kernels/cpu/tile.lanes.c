#include "kernels/cpu/tile.h"

/*
 * Register tiles. With AVX-512 up to 12 rows of 2 vectors: 24 sums, 2 vectors
 * of b, 1 broadcast and 1 mask of 32 registers. Few rows
 * take more vectors instead, because 8 chains in flight hide the latency of
 * an fma (4 cycles, 2 a cycle). AVX2 has 16 registers, two to a vector: 6 rows
 * of 1 vector are 12 sums, 2 registers of b and 1 broadcast, and 2 rows of 3 or
 * 3 of 2 as many. 8 chains alone leave no cycle to spare, and lose a tenth.
 */
enum mode { SET, ONTO, ADD, MERGE };

/* The part of a tile that one register tile covers. */
struct cell {
    float *c;
    const float *a;
    const uint32_t *b;
    uint32_t n_last; /* lanes of the last vector */
    const float *keep, *take;
};

LANES_INLINE v16 sum_start(const float *c, uint32_t n_last, enum mode mode,
                           bool is_part)
{
    if (mode != ONTO)
        return v16_zero();
    return is_part ? v16_load_n(c, n_last) : v16_load(c);
}

LANES_INLINE void sum_finish(float *c, uint32_t n_last, enum mode mode,
                             bool is_part, v16 sum)
{
    if (mode == ADD)
        sum = v16_add(is_part ? v16_load_n(c, n_last) : v16_load(c), sum);
    if (is_part)
        v16_store_n(c, sum, n_last);
    else
        v16_store(c, sum);
}

/* c = fma(c, keep, sum * take), in place of the sums. */
LANES_INLINE void merge_sums(const struct tile *t, const struct cell *cell,
                             uint32_t height, uint32_t width, bool is_part,
                             v16 sum[LANES_ROWS][8])
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < height; r++) {
        v16 keep = v16_set1(cell->keep[r]), take = v16_set1(cell->take[r]);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            const float *c = cell->c + r * t->c_stride + p * LANES;
            v16 old = is_part ? v16_load_n(c, cell->n_last) : v16_load(c);
            sum[r][p] = v16_fma(old, keep, v16_mul(sum[r][p], take));
        }
    }
}

/* Row r of a, from a base every third row: x86 addresses base + 2 * stride. */
#define ROW(base, r, stride) ((base)[(r) / 3] + (r) % 3 * (stride))

/* height and width are constants where this is inlined, so that sums stay in
 * registers; is_part: width is 1 and the vector may be cut. */
LANES_INLINE void cell_f32(const struct tile *t, const struct cell *cell,
                           enum mode mode, uint32_t height, uint32_t width,
                           bool is_part)
{
    v16 sum[LANES_ROWS][8];
    const float *b = (const float *)cell->b, *a[4];
    size_t stride = t->a_stride;

    for (uint32_t i = 0; i < 4; i++)
        a[i] = cell->a + 3 * i * stride;
#pragma GCC unroll 12
    for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++)
            sum[r][p] = sum_start(cell->c + r * t->c_stride + p * LANES,
                                  cell->n_last, mode, is_part);
    for (uint32_t k = 0; k < t->n_k; k++, b += t->b_stride) {
        v16 w[8];
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++)
            w[p] = is_part ? v16_load_n(b, cell->n_last)
                           : v16_load(b + p * t->b_group);
#pragma GCC unroll 12
        for (uint32_t r = 0; r < height; r++) {
            v16 x = v16_set1(ROW(a, r, stride)[k]);
#pragma GCC unroll 8
            for (uint32_t p = 0; p < width; p++)
                sum[r][p] = v16_fma(x, w[p], sum[r][p]);
        }
    }
    if (mode == MERGE)
        merge_sums(t, cell, height, width, is_part, sum);
#pragma GCC unroll 12
    for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++)
            sum_finish(cell->c + r * t->c_stride + p * LANES, cell->n_last,
                       mode, is_part, sum[r][p]);
}

/* Which heights exist in which width: see tile_width(). */
#define CASE(kind, h, w, part)                                                 \
    case h:                                                                    \
        kind(t, cell, mode, h, w, part);                                       \
        return;
#define CASES_2(kind, w, part) CASE(kind, 1, w, part) CASE(kind, 2, w, part)
#define CASES_4(kind, w, part)                                                 \
    CASES_2(kind, w, part)                                                     \
    CASE(kind, 3, w, part) CASE(kind, 4, w, part)
#define CASES_5(kind, w, part) CASES_4(kind, w, part) CASE(kind, 5, w, part)
#define CASES_12(kind, w, part)                                                \
    CASES_5(kind, w, part)                                                     \
    CASE(kind, 6, w, part)                                                     \
    CASE(kind, 7, w, part)                                                     \
    CASE(kind, 8, w, part)                                                     \
    CASE(kind, 9, w, part)                                                     \
    CASE(kind, 10, w, part) CASE(kind, 11, w, part) CASE(kind, 12, w, part)

#if defined(LANES_AVX512)
#define CASES_WIDTH_8 CASES_2
#define CASES_WIDTH_4 CASES_5
#define WIDTH_3(kind)
#define CASES_WIDTH_2 CASES_12
#define CASES_WIDTH_1 CASES_12
#else
#define CASES_WIDTH_8(kind, w, part)
#define CASES_WIDTH_4(kind, w, part) CASE(kind, 1, w, part)
#define WIDTH_3(kind)                                                          \
    case 3:                                                                    \
        switch (height) {                                                      \
            CASES_2(kind, 3, false)                                            \
        }                                                                      \
        break;
#define CASES_WIDTH_2(kind, w, part)                                           \
    CASES_2(kind, w, part) CASE(kind, 3, w, part)
#define CASES_WIDTH_1(kind, w, part)                                           \
    CASES_5(kind, w, part) CASE(kind, 6, w, part)
#endif

/* One function of switches for each kind of b and each mode. */
#define DISPATCH(name, kind, fixed_mode)                                       \
    static void name(const struct tile *t, const struct cell *cell,            \
                     uint32_t height, uint32_t width)                          \
    {                                                                          \
        const enum mode mode = fixed_mode;                                     \
        switch (cell->n_last < LANES ? 0 : width) {                            \
        case 8:                                                                \
            switch (height) {                                                  \
                CASES_WIDTH_8(kind, 8, false)                                  \
            }                                                                  \
            break;                                                             \
        case 4:                                                                \
            switch (height) {                                                  \
                CASES_WIDTH_4(kind, 4, false)                                  \
            }                                                                  \
            break;                                                             \
            WIDTH_3(kind)                                                      \
        case 2:                                                                \
            switch (height) {                                                  \
                CASES_WIDTH_2(kind, 2, false)                                  \
            }                                                                  \
            break;                                                             \
        case 1:                                                                \
            switch (height) {                                                  \
                CASES_WIDTH_1(kind, 1, false)                                  \
            }                                                                  \
            break;                                                             \
        default:                                                               \
            switch (height) {                                                  \
                CASES_WIDTH_1(kind, 1, true)                                   \
            }                                                                  \
        }                                                                      \
    }

DISPATCH(f32_set, cell_f32, SET)
DISPATCH(f32_onto, cell_f32, ONTO)
DISPATCH(f32_add, cell_f32, ADD)
DISPATCH(f32_merge, cell_f32, MERGE)

#if defined(LANES_AVX512)
uint32_t LANES_NAME(tile_width)(uint32_t n_row)
{
    return n_row <= 2 ? 8 : n_row <= 5 ? 4 : 2;
}

/* Of `width` or fewer, for what n_whole vectors are left of. */
LANES_INLINE uint32_t fitting(uint32_t width, uint32_t n_whole)
{
    while (width > 1 && width > n_whole)
        width /= 2;
    return width;
}
#else
uint32_t LANES_NAME(tile_width)(uint32_t n_row)
{
    return n_row <= 1 ? 4 : n_row <= 3 ? 5 - n_row : 1;
}

LANES_INLINE uint32_t fitting(uint32_t width, uint32_t n_whole)
{
    if (width == 3 && n_whole == 4)
        return 2; /* twice, not 3 and 1 */
    return width <= n_whole ? width : n_whole ? n_whole : 1;
}
#endif

typedef void cell_work(const struct tile *t, const struct cell *cell,
                       uint32_t height, uint32_t width);

/* All rows against `width` vectors that start at column `first`. */
LANES_INLINE void run_columns(const struct tile *t, cell_work *work,
                              uint32_t first, uint32_t width)
{
    uint32_t n_tile = (t->n_row + LANES_ROWS - 1) / LANES_ROWS;
    uint32_t height = t->n_row / n_tile, n_higher = t->n_row % n_tile;
    uint32_t left = t->n_col - first;
    struct cell cell = {
        .c = t->c + first,
        .a = t->a,
        .b = (const uint32_t *)t->b + first / LANES * t->b_group,
        .n_last = left < LANES ? left : LANES,
        .keep = t->keep,
        .take = t->take,
    };

    for (uint32_t i = 0; i < n_tile; i++) {
        uint32_t h = height + (i < n_higher);
        work(t, &cell, h, width);
        cell.a += h * t->a_stride;
        cell.c += h * t->c_stride;
        if (t->keep) {
            cell.keep += h;
            cell.take += h;
        }
    }
}

/* Columns outside, rows inside: a group of columns of b stays in the cache. */
LANES_INLINE void run(const struct tile *t, cell_work *work)
{
    uint32_t n_tile = (t->n_row + LANES_ROWS - 1) / LANES_ROWS;
    if (n_tile == 0)
        return;
    uint32_t highest = (t->n_row + n_tile - 1) / n_tile;
    uint32_t width = LANES_NAME(tile_width)(highest), first = 0;

    while (first < t->n_col) {
        width = fitting(width, (t->n_col - first) / LANES);
        run_columns(t, work, first, width);
        first += width * LANES;
    }
}

void LANES_NAME(tile_set)(const struct tile *tile)
{
    run(tile, f32_set);
}

void LANES_NAME(tile_onto)(const struct tile *tile)
{
    run(tile, f32_onto);
}

void LANES_NAME(tile_add)(const struct tile *tile)
{
    run(tile, f32_add);
}

void LANES_NAME(tile_merge)(const struct tile *tile)
{
    run(tile, f32_merge);
}
