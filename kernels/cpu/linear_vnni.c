/*
 * Products of W8A8 with AVX512-VNNI: one VPDPBUSD is 16 outputs by four inner
 * steps, of unsigned bytes by signed ones. So weights become unsigned where
 * they are read, q + 128 by one flip of bits, and a group's sums begin at -128
 * times the sum of its x, which the row has: they are exact at the end.
 *
 * Few rows take one panel at a time, as memory gives most to one stream from
 * front to back. The sums of a group are whole numbers, so one row has several
 * chains of them, whatever the latency of the instruction. More rows take two
 * panels, and each broadcast of x is used twice.
 *
 * Weights are asked for some KiB ahead, as in linear_bf16.c, and for the same
 * reasons.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quads.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define PANEL LINEAR_PANEL
#define HEIGHT_MAX 12u
#define WIDTH_MAX 2u
#define CHAIN_MAX 4u
#define UNIT_ROWS 48u
#define UNIT_PANELS 4u
#define QUADS (LINEAR_GROUP / 4u) /* of a group */
#define QUAD_BYTES (PANEL * 4u)
#define TURN 4u        /* quads without a jump: a multiple of n_chain */
#define ALONE_MAX 2u   /* rows that take one panel at a time */
#define AHEAD_ALONE 8u /* groups ahead, of one panel and of two */
#define AHEAD_BOTH 1u

typedef __m512i counts[CHAIN_MAX][HEIGHT_MAX][WIDTH_MAX];
typedef float sums[HEIGHT_MAX][WIDTH_MAX][PANEL];

/* Where a register tile stands. */
struct cell {
    const int8_t *x;
    size_t x_stride;
    const unsigned char *b;
    size_t b_stride;
    uint32_t n_step;
    float *y;
    size_t y_stride;
    uint32_t n_last; /* lanes of the last panel */
    bool is_add;
};

/* What a cell is: constants where it is inlined. */
struct form {
    uint32_t height, width, n_chain;
};

/* Row r of x, from a base every third row: x86 addresses base + 2 * stride. */
#define ROW(base, r, stride) ((base)[(r) / 3] + (r) % 3 * (stride))

INLINE void fetch(const unsigned char *at, uint32_t width)
{
    if (width == 1)
        _mm_prefetch(at, _MM_HINT_T1);
    else
        _mm_prefetch(at, _MM_HINT_T0);
}

INLINE __m512i broadcast(const int8_t *x)
{
    int32_t four;

    memcpy(&four, x, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* The sum stays in its register: gcc would move it to others and back. */
INLINE void dot(__m512i *sum, __m512i w, __m512i x)
{
    *sum = _mm512_dpbusd_epi32(*sum, w, x);
    __asm__("" : "+v"(*sum));
}

/* The group of the cell's panels at b, by inputs from x on. */
INLINE void count_group(const struct cell *cell, const int8_t *x,
                        const unsigned char *b, size_t ahead, struct form form,
                        counts d)
{
    const __m512i flip = _mm512_set1_epi8(INT8_MIN);
    const int8_t *row[HEIGHT_MAX / 3];

    for (uint32_t i = 0; i < HEIGHT_MAX / 3; i++)
        row[i] = x + 3 * i * cell->x_stride;
    for (uint32_t k = 0; k < QUADS; k += TURN) {
#pragma GCC unroll 4
        for (uint32_t j = 0; j < TURN; j++) {
            __m512i w[WIDTH_MAX];

#pragma GCC unroll 2
            for (uint32_t p = 0; p < form.width; p++) {
                const unsigned char *at =
                    b + p * cell->b_stride + j * QUAD_BYTES;

                fetch(at + ahead, form.width);
                w[p] = _mm512_xor_si512(_mm512_load_si512(at), flip);
            }
#pragma GCC unroll 12
            for (uint32_t r = 0; r < form.height; r++) {
                const __m512i by =
                    broadcast(ROW(row, r, cell->x_stride) + 4 * j);
                const uint32_t c = j % form.n_chain;

#pragma GCC unroll 2
                for (uint32_t p = 0; p < form.width; p++)
                    dot(&d[c][r][p], w[p], by);
            }
        }
        for (uint32_t i = 0; i < HEIGHT_MAX / 3; i++)
            row[i] += 4 * TURN;
        b += TURN * QUAD_BYTES;
    }
}

/* Where sums of a group begin. */
INLINE void begin(const struct cell *cell, size_t group, struct form form,
                  counts d)
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < form.height; r++) {
        const struct quads_scale *x =
            quads_scales(cell->x + r * cell->x_stride, cell->n_step);
        const __m512i first = _mm512_set1_epi32(-128 * x[group].sum);

#pragma GCC unroll 2
        for (uint32_t p = 0; p < form.width; p++) {
            d[0][r][p] = first;
#pragma GCC unroll 4
            for (uint32_t c = 1; c < form.n_chain; c++)
                d[c][r][p] = _mm512_setzero_si512();
        }
    }
}

/* acc += d of the group at b, scaled. */
INLINE void scale(const struct cell *cell, size_t group, const unsigned char *b,
                  struct form form, counts d, sums *acc)
{
    __m512 of_w[WIDTH_MAX];

#pragma GCC unroll 2
    for (uint32_t p = 0; p < form.width; p++)
        of_w[p] = _mm512_load_ps(b + p * cell->b_stride);
#pragma GCC unroll 12
    for (uint32_t r = 0; r < form.height; r++) {
        const struct quads_scale *x =
            quads_scales(cell->x + r * cell->x_stride, cell->n_step);
        const __m512 of_x = _mm512_set1_ps(x[group].scale);

#pragma GCC unroll 2
        for (uint32_t p = 0; p < form.width; p++) {
#pragma GCC unroll 4
            for (uint32_t c = 1; c < form.n_chain; c++)
                d[0][r][p] = _mm512_add_epi32(d[0][r][p], d[c][r][p]);
            _mm512_store_ps((*acc)[r][p],
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(d[0][r][p]),
                                            _mm512_mul_ps(of_x, of_w[p]),
                                            _mm512_load_ps((*acc)[r][p])));
        }
    }
}

INLINE void finish(const struct cell *cell, struct form form, const sums *acc)
{
#pragma GCC unroll 12
    for (uint32_t r = 0; r < form.height; r++)
#pragma GCC unroll 2
        for (uint32_t p = 0; p < form.width; p++) {
            const uint32_t n = p + 1 < form.width ? PANEL : cell->n_last;
            const __mmask16 mask = (__mmask16)((1u << n) - 1u);
            float *y = cell->y + r * cell->y_stride + p * PANEL;
            __m512 v = _mm512_load_ps((*acc)[r][p]);

            if (cell->is_add)
                v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
            _mm512_mask_storeu_ps(y, mask, v);
        }
}

/* Behind the end of a panel comes the next one, which this cell has, too; what
 * will be needed is that of the next cell. */
INLINE void run_cell(const struct cell *cell, struct form form)
{
    const uint32_t n_ahead = form.width == 1 ? AHEAD_ALONE : AHEAD_BOTH;
    const uint32_t n_group = cell->n_step / LINEAR_GROUP;
    const unsigned char *b = cell->b;
    _Alignas(64) sums room;
    sums *acc = &room;

    /* Where sums of 24 registers are, there is no room for those of groups: the
     * compiler must not try. */
    __asm__ volatile("" : "+r"(acc) : : "memory");
#pragma GCC unroll 12
    for (uint32_t r = 0; r < form.height; r++)
#pragma GCC unroll 2
        for (uint32_t p = 0; p < form.width; p++)
            _mm512_store_ps((*acc)[r][p], _mm512_setzero_ps());
    for (uint32_t g = 0; g < n_group; g++, b += sizeof(struct linear_quads)) {
        size_t ahead = n_ahead * sizeof(struct linear_quads);
        counts d;

        if (g + n_ahead >= n_group)
            ahead += (form.width - 1) * cell->b_stride;
#pragma GCC unroll 2
        for (uint32_t p = 0; p < form.width; p++) /* scales */
            fetch(b + p * cell->b_stride + ahead, form.width);
        begin(cell, g, form, d);
        count_group(cell, cell->x + g * LINEAR_GROUP,
                    b + offsetof(struct linear_quads, q), ahead, form, d);
        scale(cell, g, b, form, d, acc);
    }
    finish(cell, form, acc);
}

/* ---------------------------------------------------------------- dispatch */

/* Chains enough for the latency of 5 cycles, of which each begins two. */
#define CHAINS(h, w) ((h) * (w) <= 2 ? 4u : (h) * (w) <= 6 ? 2u : 1u)
#define CASE(h, w)                                                             \
    case (w)*16 + (h):                                                         \
        run_cell(cell, (struct form){h, w, CHAINS(h, w)});                     \
        break;
#define CASES(w)                                                               \
    CASE(1, w)                                                                 \
    CASE(2, w)                                                                 \
    CASE(3, w)                                                                 \
    CASE(4, w)                                                                 \
    CASE(5, w)                                                                 \
    CASE(6, w)                                                                 \
    CASE(7, w) CASE(8, w) CASE(9, w) CASE(10, w) CASE(11, w) CASE(12, w)

static void dispatch(const struct cell *cell, uint32_t height, uint32_t width)
{
    switch (width * 16 + height) {
        CASES(1)
        CASES(2)
    }
}

/* All rows in n_tile tiles against `width` panels from `panel` on. */
static void run_columns(const struct product_tile *t, uint32_t panel,
                        uint32_t width, uint32_t n_tile)
{
    const uint32_t height = t->n_row / n_tile, n_higher = t->n_row % n_tile;
    const uint32_t left = t->n_col - (panel + width - 1) * PANEL;
    struct cell cell = {
        .x = t->a,
        .x_stride = t->a_stride,
        .b = (const unsigned char *)t->b + panel * t->b_stride,
        .b_stride = t->b_stride,
        .n_step = t->n_step,
        .y = t->c + panel * PANEL,
        .y_stride = t->c_stride,
        .n_last = left < PANEL ? left : PANEL,
        .is_add = t->is_add,
    };

    for (uint32_t i = 0; i < n_tile; i++) {
        const uint32_t h = height + (i < n_higher);

        dispatch(&cell, h, width);
        cell.x += h * cell.x_stride;
        cell.y += h * cell.y_stride;
    }
}

/* Panels outside, rows inside: panels stay in the cache. */
void work_w8a8_vnni(const struct product_tile *t)
{
    const uint32_t n_panel = (t->n_col + PANEL - 1) / PANEL;
    const uint32_t n_tile = (t->n_row + HEIGHT_MAX - 1) / HEIGHT_MAX;
    uint32_t width = t->n_row <= ALONE_MAX ? 1 : WIDTH_MAX;

    for (uint32_t panel = 0; panel < n_panel; panel += width) {
        if (width > n_panel - panel)
            width = 1;
        run_columns(t, panel, width, n_tile);
    }
}

static struct product_shape shape(uint32_t n_row, uint32_t n_step)
{
    (void)n_row;
    (void)n_step;
    return (struct product_shape){UNIT_ROWS, UNIT_PANELS};
}

/* ------------------------------------------------------------- the backend */

const struct product_kernels product_kernels_avx512_vnni = {
    .of = {[ARITHMETIC_FP32] = {[LINEAR_W8A8] = {work_w8a8_vnni,
                                                 quads_take_avx512,
                                                 quads_swiglu_avx512, 1, shape,
                                                 0, 0,
                                                 sizeof(struct quads_scale)}}},
    .base = &product_kernels_avx512,
};

void linear_avx512_vnni(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, false, &product_kernels_avx512_vnni);
}

void linear_add_avx512_vnni(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, true, &product_kernels_avx512_vnni);
}

void expert_avx512_vnni(struct pool *pool, const struct expert_args *args)
{
    product_expert(pool, args, &product_kernels_avx512_vnni);
}

void ffn_avx512_vnni(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, false, &product_kernels_avx512_vnni);
}

void ffn_add_avx512_vnni(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, true, &product_kernels_avx512_vnni);
}
