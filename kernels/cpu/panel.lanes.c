#include "kernels/cpu/panel.h"

#include <string.h>

/*
 * For AVX-512 alone: AVX2 has panel_avx2.c. Register tiles, as in tile.lanes.c:
 * up to 24 sums, for few rows at least 8 chains, which hide the latency of an
 * fma (4 cycles, 2 a cycle). TILE has two sums an output, and so half the rows.
 */
#define WIDTH_MAX 8u
#define HEIGHT_MAX 12u

/* Bytes ahead of the ones in use that are fetched, per panel. Into the second
 * level alone: panels that lie a power of two apart share the few places that
 * the first level has for them. Measured on one Zen 4 core with one row of
 * 1024 inputs: 27 GB/s, against 17 when fetched into the first level. On Zen 5
 * twice 1 KiB is a fifth faster for 4 to 12 rows, and the same for one. */
#define AHEAD_BYTES 2048u
#define AHEAD_STEPS (AHEAD_BYTES / (LANES * 2u)) /* of BF16 */

/* The part of a tile that one register tile covers, and how far it has come. */
struct cell {
    const struct product_tile *t;
    float *c;
    const float *a;
    const unsigned char *b;
    uint32_t n_col; /* outputs that exist */
    struct product_onto onto;
};

typedef v16 sums[HEIGHT_MAX][WIDTH_MAX];

/* Two steps: those of each lane's pair, in this order. */
struct cursor {
    const float *a[4];
    size_t a_stride;
    const unsigned char *b;
    size_t b_stride;
    ptrdiff_t ahead; /* bytes from b to what is fetched */
};

/* Row r of a, from a base every third row: x86 addresses base + 2 * stride. */
#define ROW(at, r) ((at)->a[(r) / 3] + (r) % 3 * (at)->a_stride)

LANES_INLINE uint32_t pair_bytes(enum linear_type type)
{
    return type == LINEAR_W8 ? 2 * LANES : 4 * LANES;
}

LANES_INLINE v16 load_pair(const unsigned char *b, enum linear_type type,
                           v16 *odd)
{
    if (type == LINEAR_W8) {
        *odd = v16_load_i8((const int8_t *)b + LANES);
        return v16_load_i8((const int8_t *)b);
    }
    return v16_load_bf16((const uint32_t *)(const void *)b, odd);
}

LANES_INLINE void fetch(const struct cursor *at, uint32_t width)
{
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        _mm_prefetch((const char *)at->b + p * at->b_stride + at->ahead,
                     _MM_HINT_T1);
}

/* Behind the end of a panel comes the next one, which this cell has, too; what
 * will be needed is that of the next cell. */
LANES_INLINE void look_ahead(struct cursor *at, uint32_t width, bool is_end)
{
    at->ahead = AHEAD_BYTES;
    if (is_end)
        at->ahead += (ptrdiff_t)((width - 1) * at->b_stride);
}

/* One step of a tall tile: the weights stay in registers, x passes by. */
LANES_INLINE void step_by_row(const struct cursor *at, uint32_t k,
                              uint32_t height, uint32_t width, const v16 *w,
                              sums sum)
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < height; r++) {
        v16 x = v16_set1(ROW(at, r)[k]);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++)
            sum[r][p] = v16_fma(x, w[p], sum[r][p]);
    }
}

/* What a cell is: constants where it is inlined, so that no choice is left to
 * the loops and sums stay in registers. */
struct shape {
    enum linear_type type;
    enum arithmetic order;
    uint32_t height, width; /* rows, panels */
};

LANES_INLINE void pair_by_row(const struct cursor *at, struct shape shape,
                              sums even, sums odd)
{
    const uint32_t height = shape.height, width = shape.width;
    v16 low[WIDTH_MAX], high[WIDTH_MAX];

#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        low[p] = load_pair(at->b + p * at->b_stride, shape.type, &high[p]);
    if (shape.order == ARITHMETIC_PAIR) {
        step_by_row(at, 1, height, width, high, odd);
        step_by_row(at, 0, height, width, low, even);
    } else {
        step_by_row(at, 0, height, width, low, even);
        step_by_row(at, 1, height, width, high, odd);
    }
}

/* Two steps of a wide tile: x stays in registers, the weights pass by. */
LANES_INLINE void pair_by_vector(const struct cursor *at, struct shape shape,
                                 sums even, sums odd)
{
    const uint32_t height = shape.height, width = shape.width;
    v16 x[2], next[2];

#pragma GCC unroll 2
    for (uint32_t r = 0; r < height; r++) {
        x[r] = v16_set1(ROW(at, r)[0]);
        next[r] = v16_set1(ROW(at, r)[1]);
    }
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++) {
        v16 high, low = load_pair(at->b + p * at->b_stride, shape.type, &high);
#pragma GCC unroll 2
        for (uint32_t r = 0; r < height; r++) {
            if (shape.order == ARITHMETIC_PAIR) {
                odd[r][p] = v16_fma(next[r], high, odd[r][p]);
                even[r][p] = v16_fma(x[r], low, even[r][p]);
            } else {
                even[r][p] = v16_fma(x[r], low, even[r][p]);
                odd[r][p] = v16_fma(next[r], high, odd[r][p]);
            }
        }
    }
}

/* n / 2 pairs of steps. even and odd are the same sums but in TILE. */
LANES_INLINE void run_pairs(struct cursor *at, uint32_t n, struct shape shape,
                            sums even, sums odd)
{
    for (uint32_t k = 0; k + 1 < n; k += 2) {
        /* Of a panel of W8 a cache line holds two pairs. */
        if (shape.type != LINEAR_W8 || k % 4 == 0)
            fetch(at, shape.width);
        if (shape.height <= 2)
            pair_by_vector(at, shape, even, odd);
        else
            pair_by_row(at, shape, even, odd);
        for (uint32_t i = 0; i < 4; i++)
            at->a[i] += 2;
        at->b += pair_bytes(shape.type);
    }
}

LANES_INLINE void clear(uint32_t height, uint32_t width, sums sum)
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++)
            sum[r][p] = v16_zero();
}

/* n steps from where the cursor stands, summed up onto `sum`. */
LANES_INLINE void run_steps(struct cursor *at, uint32_t n, struct shape shape,
                            sums sum)
{
    const uint32_t height = shape.height, width = shape.width;
    v16 low[WIDTH_MAX], high;

    if (shape.order != ARITHMETIC_TILE) {
        run_pairs(at, n, shape, sum, sum);
        if (n % 2) { /* of FP32 alone, and the last of all */
#pragma GCC unroll 8
            for (uint32_t p = 0; p < width; p++)
                low[p] = load_pair(at->b + p * at->b_stride, shape.type, &high);
            step_by_row(at, 0, height, width, low, sum);
        }
        return;
    }
    for (uint32_t k = 0; k < n; k += LINEAR_STEP) {
        sums even, odd;

        clear(height, width, even);
        clear(height, width, odd);
        if (shape.type != LINEAR_W8)
            look_ahead(at, width, n - k <= AHEAD_STEPS);
        run_pairs(at, LINEAR_STEP, shape, even, odd);
#pragma GCC unroll 12
        for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 8
            for (uint32_t p = 0; p < width; p++)
                sum[r][p] = v16_add(sum[r][p], v16_add(even[r][p], odd[r][p]));
    }
}

/* The groups of W8: each summed up from zero, then scaled onto `sum`. */
LANES_INLINE void run_groups(struct cursor *at, uint32_t n, struct shape shape,
                             sums sum)
{
    const uint32_t height = shape.height, width = shape.width;

    for (uint32_t k = 0; k < n; k += LINEAR_GROUP) {
        const uint32_t left = n - k;
        const unsigned char *scale = at->b;
        sums group;

        clear(height, width, group);
        look_ahead(at, width, left <= LINEAR_GROUP);
        at->b += sizeof(float[LINEAR_PANEL]);
        fetch(at, width); /* what the scales moved forward */
        run_steps(at, left < LINEAR_GROUP ? left : LINEAR_GROUP, shape, group);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            v16 s = v16_load(
                (const float *)(const void *)(scale + p * at->b_stride));
#pragma GCC unroll 12
            for (uint32_t r = 0; r < height; r++)
                sum[r][p] = v16_fma(group[r][p], s, sum[r][p]);
        }
    }
}

LANES_INLINE void put(const struct cell *cell, uint32_t height, uint32_t width,
                      sums sum)
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < height; r++)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            float *c = cell->c + r * cell->t->c_stride + p * LANES;
            const uint32_t left = cell->n_col - p * LANES;
            v16 y = sum[r][p];

            if (cell->t->is_add)
                y = v16_add(v16_load_part(c, 0, left), y);
            if (cell->onto.from)
                y = panel_onto(product_onto_at(cell->onto, r, p * LANES), left,
                               y);
            v16_store_part(c, y, 0, left);
        }
}

LANES_INLINE void run_cell(const struct cell *cell, struct shape shape)
{
    const struct product_tile *t = cell->t;
    const uint32_t height = shape.height, width = shape.width;
    const uint32_t n = shape.order == ARITHMETIC_FP32 ? t->n_in : t->n_step;
    struct cursor at = {.a_stride = t->a_stride,
                        .b = cell->b,
                        .b_stride = t->b_stride,
                        .ahead = AHEAD_BYTES};
    sums sum;

    for (uint32_t i = 0; i < 4; i++)
        at.a[i] = cell->a + 3 * i * t->a_stride;
    clear(height, width, sum);
    if (shape.type == LINEAR_W8)
        run_groups(&at, n, shape, sum);
    else
        run_steps(&at, n, shape, sum);
    put(cell, height, width, sum);
}

/* -------------------------------------------------------------- dispatch */

/* The heights that exist for a width, where an output needs ONE sum, or TWO. */
struct heights {
    uint32_t of_width[WIDTH_MAX + 1];
};
static const struct heights ONE = {{[8] = 2, [4] = 5, [2] = 12, [1] = 4}};
static const struct heights TWO = {{[8] = 1, [4] = 3, [2] = 6, [1] = 4}};

#define CASE(h, w)                                                             \
    case (w)*16 + (h):                                                         \
        run_cell(cell, (struct shape){type, order, h, w});                     \
        return;
#define CASES_TWO                                                              \
    CASE(1, 8)                                                                 \
    CASE(1, 4)                                                                 \
    CASE(2, 4)                                                                 \
    CASE(3, 4)                                                                 \
    CASE(1, 2)                                                                 \
    CASE(2, 2)                                                                 \
    CASE(3, 2)                                                                 \
    CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1)
#define CASES_ONE                                                              \
    CASES_TWO CASE(2, 8) CASE(4, 4) CASE(5, 4) CASE(7, 2) CASE(8, 2)           \
        CASE(9, 2) CASE(10, 2) CASE(11, 2) CASE(12, 2)

#define DISPATCH(name, fixed_type, fixed_order, cases)                         \
    static void name(const struct cell *cell, uint32_t height, uint32_t width) \
    {                                                                          \
        const enum linear_type type = fixed_type;                              \
        const enum arithmetic order = fixed_order;                             \
        switch (width * 16 + height) {                                         \
            cases                                                              \
        }                                                                      \
    }
DISPATCH(fp32_bf16, LINEAR_BF16, ARITHMETIC_FP32, CASES_ONE)
DISPATCH(pair_bf16, LINEAR_BF16, ARITHMETIC_PAIR, CASES_ONE)
DISPATCH(tile_bf16, LINEAR_BF16, ARITHMETIC_TILE, CASES_TWO)
DISPATCH(fp32_w8, LINEAR_W8, ARITHMETIC_FP32, CASES_ONE)
DISPATCH(pair_w8, LINEAR_W8, ARITHMETIC_PAIR, CASES_ONE)
DISPATCH(tile_w8, LINEAR_W8, ARITHMETIC_TILE, CASES_TWO)

typedef void cell_work(const struct cell *cell, uint32_t height,
                       uint32_t width);

/* The widest tile that still takes so many rows at once, or the tallest. */
static uint32_t width_for(const struct heights *heights, uint32_t n_row)
{
    uint32_t width = WIDTH_MAX;

    while (width > 2 && heights->of_width[width] < n_row)
        width /= 2;
    if (heights->of_width[width] < heights->of_width[1] &&
        heights->of_width[width] < n_row)
        width = 1;
    return width;
}

/* All rows against `width` panels that start at column `first`. */
static void run_columns(const struct product_tile *t, cell_work *work,
                        uint32_t first, uint32_t width, uint32_t highest)
{
    const uint32_t n_tile = (t->n_row + highest - 1) / highest;
    const uint32_t height = t->n_row / n_tile, n_higher = t->n_row % n_tile;
    struct cell cell = {
        .t = t,
        .c = t->c + first,
        .a = t->a,
        .b = (const unsigned char *)t->b + first / LANES * t->b_stride,
        .n_col = t->n_col - first,
        .onto = product_onto_at(t->onto, 0, first),
    };

    for (uint32_t i = 0; i < n_tile; i++) {
        const uint32_t h = height + (i < n_higher);

        work(&cell, h, width);
        cell.a += h * t->a_stride;
        cell.c += h * t->c_stride;
        cell.onto = product_onto_at(cell.onto, h, 0);
    }
}

static void run(const struct product_tile *t, const struct heights *heights,
                cell_work *work)
{
    const uint32_t n_panel = (t->n_col + LANES - 1) / LANES;
    uint32_t width = width_for(heights, t->n_row);

    for (uint32_t i = 0; i < n_panel; i += width) {
        while (width > n_panel - i)
            width /= 2;
        run_columns(t, work, i * LANES, width, heights->of_width[width]);
    }
}

void LANES_NAME(panel_fp32_bf16)(const struct product_tile *tile)
{
    run(tile, &ONE, fp32_bf16);
}

void LANES_NAME(panel_pair_bf16)(const struct product_tile *tile)
{
    run(tile, &ONE, pair_bf16);
}

void LANES_NAME(panel_tile_bf16)(const struct product_tile *tile)
{
    run(tile, &TWO, tile_bf16);
}

void LANES_NAME(panel_fp32_w8)(const struct product_tile *tile)
{
    run(tile, &ONE, fp32_w8);
}

void LANES_NAME(panel_pair_w8)(const struct product_tile *tile)
{
    run(tile, &ONE, pair_w8);
}

void LANES_NAME(panel_tile_w8)(const struct product_tile *tile)
{
    run(tile, &TWO, tile_w8);
}

/* Rows that pass by a group of panels before the next group is taken: 48 rows
 * of 256 floats are 48 KiB, which the second-level cache holds beside it. */
#define BLOCK_ROWS 48u

struct product_shape LANES_NAME(panel_shape)(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){BLOCK_ROWS, width_for(&ONE, n_row)};
}

struct product_shape LANES_NAME(panel_shape_tile)(uint32_t n_row,
                                                  uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){BLOCK_ROWS, width_for(&TWO, n_row)};
}
