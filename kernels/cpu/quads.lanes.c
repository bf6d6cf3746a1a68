/*
 * Products of W8A8 by AVX2, which every set has. Bytes by bytes need one side
 * without signs: for one row |w|, and x takes the sign of w. For several rows
 * |x|, and w is flipped (xor) where x is below 0: -q is ~q + 1, and what the
 * ones add up to stands behind the row. Products of two bytes fit 16 bits (2 *
 * 127 * 128 at most), those of two pairs 32: four instructions for 32 products,
 * beside which little else is left, as a row's four bytes meet eight vectors of
 * weights that are operands in memory. A group of some panels meets all rows of
 * the unit before the next one is read.
 */
#include "kernels/cpu/quads.h"

#include <string.h>

#define HALF (LANES / 2)
#define WIDTH_MAX 4u /* panels side by side */
#define HALF_LINES 17u
/* Rows that pass by a panel before the next is taken. */
#define ROWS_MAX 32u
#define UNIT_PANELS 8u /* of one row */
/* What lies so far behind a weight is asked for: the panels follow each other,
 * as the groups of a panel do. */
#define AHEAD_BYTES (2 * sizeof(struct linear_quads))

typedef __m256i dots[WIDTH_MAX][2];

#define EACH_HALF _Pragma("GCC unroll 2") for (uint32_t h = 0; h < 2; h++)
#define EACH_PANEL                                                             \
    _Pragma("GCC unroll 4") for (uint32_t p = 0; p < width; p++) EACH_HALF

/* A group of a row that meets those of some panels. */
struct cell {
    const int8_t *x;
    const struct quads_scale *scale;
    const unsigned char *b; /* struct linear_quads */
    size_t b_stride;
    float *sum;               /* [width][LANES] */
    const unsigned char *ask; /* half a group, for later */
};

/* _mm256_add_epi32() in place: gcc likes to put sums elsewhere, until it has no
 * register left and keeps some in memory. */
LANES_INLINE __m256i onto(__m256i x, __m256i sum)
{
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x));
    return sum;
}

LANES_INLINE __m256i four_of(const int8_t *x)
{
    int32_t four;

    memcpy(&four, x, sizeof(four));
    return _mm256_set1_epi32(four);
}

/* d of a group begins at what flipping bits leaves out of signs. */
LANES_INLINE void run_cell(const struct cell *cell, uint32_t width)
{
    const __m256i one = _mm256_set1_epi16(1), none = _mm256_setzero_si256();
    const int8_t *w = (const int8_t *)cell->b + sizeof(float[LINEAR_PANEL]);
    const size_t stride = cell->b_stride;
    dots d;

    EACH_PANEL d[p][h] = _mm256_set1_epi32(cell->scale->below);
    _mm_prefetch((const char *)cell->ask, _MM_HINT_T0);
#pragma GCC unroll 2
    for (uint32_t k = 0; k < LINEAR_GROUP; k += 4, w += 4 * LINEAR_PANEL) {
        const __m256i x = four_of(cell->x + k);
        const __m256i size = _mm256_abs_epi8(x);
        const __m256i is_below = _mm256_cmpgt_epi8(none, x);

        if (k % 8 == 0)
            _mm_prefetch((const char *)cell->ask + 64 + k * 8, _MM_HINT_T0);
        EACH_PANEL
        {
            const __m256i q = _mm256_loadu_si256(
                (const void *)(w + p * stride + h * HALF * 4));
            const __m256i pair =
                _mm256_maddubs_epi16(size, _mm256_xor_si256(is_below, q));

            d[p][h] = onto(_mm256_madd_epi16(pair, one), d[p][h]);
        }
    }
    const __m256 of_x = _mm256_set1_ps(cell->scale->scale);

    EACH_PANEL
    {
        const float *of_w = (const float *)(const void *)(cell->b + p * stride);
        float *to = cell->sum + p * LANES + h * HALF;

        _mm256_storeu_ps(
            to, _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(d[p][h]),
                    _mm256_mul_ps(of_x, _mm256_loadu_ps(of_w + h * HALF)),
                    _mm256_loadu_ps(to)));
    }
}

/* Not inlined: gcc would lift more out of the loops around than there are
 * registers. */
__attribute__((noinline)) static void run_width(const struct cell *cell,
                                                uint32_t width)
{
    if (width == WIDTH_MAX)
        run_cell(cell, WIDTH_MAX);
    else if (width == 2)
        run_cell(cell, 2);
    else
        run_cell(cell, 1);
}

/* Half i of a group of some panels. */
static const unsigned char *half_at(const unsigned char *b, size_t b_stride,
                                    uint32_t i)
{
    return b + i / 2 * b_stride +
           i % 2 * sizeof(struct linear_quads) / 2 / 64 * 64;
}

static void fetch_half(const unsigned char *at)
{
    for (uint32_t i = 0; i < HALF_LINES; i++)
        _mm_prefetch((const char *)at + i * 64, _MM_HINT_T0);
}

/* Sums of a row by some panels. */
LANES_INLINE void put(const struct product_tile *t, uint32_t row,
                      uint32_t panel, uint32_t width, const float *sum)
{
    for (uint32_t p = 0; p < width; p++) {
        const uint32_t column = (panel + p) * LANES;
        float *c = t->c + row * t->c_stride + column;
        v16 y = v16_load(sum + p * LANES);

        if (t->is_add)
            y = v16_add(v16_load_part(c, 0, t->n_col - column), y);
        v16_store_part(c, y, 0, t->n_col - column);
    }
}

/* Four inputs of a row by those of 16 outputs. */
LANES_INLINE void step(const int8_t *x, const int8_t *w, __m256i d[2])
{
    const __m256i by = four_of(x), one = _mm256_set1_epi16(1);

    EACH_HALF
    {
        const __m256i q = _mm256_loadu_si256((const void *)(w + h * HALF * 4));
        const __m256i pair =
            _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(by, q));

        d[h] = onto(_mm256_madd_epi16(pair, one), d[h]);
    }
}

/* One row by two panels: two runs of memory that lie apart are read faster than
 * one is. */
static void run_two(const struct product_tile *t, const uint32_t panel[2])
{
    const int8_t *x = t->a;
    const struct quads_scale *scale = quads_scales(x, t->n_step);
    const unsigned char *b[2];
    __m256 sum[2][2];
    float out[LANES];

    for (uint32_t p = 0; p < 2; p++) {
        b[p] = (const unsigned char *)t->b + panel[p] * t->b_stride;
        sum[p][0] = sum[p][1] = _mm256_setzero_ps();
    }
    for (uint32_t k = 0; k < t->n_step; k += LINEAR_GROUP, scale++) {
        const __m256 of_x = _mm256_set1_ps(scale->scale);
        const int8_t *w[2];
        dots d;

        for (uint32_t p = 0; p < 2; p++) {
            EACH_HALF d[p][h] = _mm256_setzero_si256();
            w[p] = (const int8_t *)b[p] + sizeof(float[LINEAR_PANEL]);
        }
#pragma GCC unroll 2
        for (uint32_t i = 0; i < LINEAR_GROUP; i += 4) {
            for (uint32_t p = 0; p < 2; p++) {
                const int8_t *at = w[p] + i * LINEAR_PANEL;

                _mm_prefetch((const char *)at + AHEAD_BYTES, _MM_HINT_T0);
                step(x + k + i, at, d[p]);
            }
        }
        for (uint32_t p = 0; p < 2; p++) {
            const float *of_w = (const float *)(const void *)b[p];

            EACH_HALF sum[p][h] = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(d[p][h]),
                _mm256_mul_ps(of_x, _mm256_loadu_ps(of_w + h * HALF)),
                sum[p][h]);
            b[p] += sizeof(struct linear_quads);
        }
    }
    for (uint32_t p = 0; p < 2; p++) {
        EACH_HALF _mm256_storeu_ps(out + h * HALF, sum[p][h]);
        put(t, 0, panel[p], 1, out);
    }
}

/* Some rows by `width` panels; each row asks for its part of what comes. */
static void run_panels(const struct product_tile *t, uint32_t row,
                       uint32_t n_row, uint32_t panel, uint32_t width)
{
    float sum[ROWS_MAX * WIDTH_MAX * LANES] __attribute__((aligned(64)));
    const unsigned char *const b =
        (const unsigned char *)t->b + panel * t->b_stride;
    struct cell cell = {.b = b, .b_stride = t->b_stride};

    memset(sum, 0, n_row * width * LANES * sizeof(*sum));
    for (uint32_t k = 0; k < t->n_step; k += LINEAR_GROUP) {
        const unsigned char *next =
            width == 1 ? cell.b + 2 * sizeof(struct linear_quads)
            : k + LINEAR_GROUP < t->n_step
                ? cell.b + sizeof(struct linear_quads)
                : b + width * t->b_stride;
        const int8_t *x = (const int8_t *)t->a + row * t->a_stride;

        cell.sum = sum;
        for (uint32_t r = 0; r < n_row; r++) {
            for (uint32_t i = n_row + r; i < 2 * width; i += n_row)
                fetch_half(half_at(next, t->b_stride, i));
            cell.ask = r < 2 * width ? half_at(next, t->b_stride, r) : cell.b;
            cell.x = x + k;
            cell.scale = quads_scales(x, t->n_step) + k / LINEAR_GROUP;
            run_width(&cell, width);
            cell.sum += width * LANES;
            x += t->a_stride;
        }
        cell.b += sizeof(struct linear_quads);
    }
    for (uint32_t r = 0; r < n_row; r++)
        put(t, row + r, panel, width, sum + r * width * LANES);
}

/* Very few rows are bound by memory, which one stream suits best. */
static void run_rows(const struct product_tile *t, uint32_t row, uint32_t n_row)
{
    const uint32_t n_panel = (t->n_col + LANES - 1) / LANES;
    uint32_t panel = 0, width = n_row < WIDTH_MAX ? 1 : WIDTH_MAX;

    for (; panel < n_panel; panel += width) {
        while (width > n_panel - panel)
            width /= 2;
        run_panels(t, row, n_row, panel, width);
    }
}

void LANES_NAME(quads_work)(const struct product_tile *t)
{
    const uint32_t half = (t->n_col + LANES - 1) / LANES / 2;

    if (t->n_row == 1) {
        for (uint32_t panel = 0; panel < half; panel++)
            run_two(t, (const uint32_t[]){panel, half + panel});
        for (uint32_t panel = 2 * half; panel * LANES < t->n_col; panel++)
            run_panels(t, 0, 1, panel, 1);
        return;
    }
    for (uint32_t row = 0; row < t->n_row; row += ROWS_MAX) {
        const uint32_t left = t->n_row - row;

        run_rows(t, row, left < ROWS_MAX ? left : ROWS_MAX);
    }
}

struct product_shape LANES_NAME(quads_shape)(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){ROWS_MAX,
                                  n_row == 1 ? UNIT_PANELS : WIDTH_MAX};
}
