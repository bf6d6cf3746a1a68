/*
 * Products of W8A8 by AVX2, which every set has: |w| times x with the sign of w
 * is two products of bytes in 16 bits, 2 * 127 * 127 at most, and those of two
 * in 32: of 32 products four instructions, beside which |w| and what reads x
 * count little where rows are several. A group of a panel meets all rows of the
 * unit before the next one is read.
 */
#include "kernels/cpu/quads.h"

#include <string.h>

#define HALF (LANES / 2)
#define HEIGHT_MAX 4u
/* Rows that pass by a panel before the next is taken. */
#define ROWS_MAX 48u
#define UNIT_PANELS 8u /* of one row */
/* What lies so far behind a weight is asked for: the panels follow each other,
 * as the groups of a panel do. */
#define AHEAD_BYTES (2 * sizeof(struct linear_quads))

/* A group of a panel that meets some rows. */
struct cell {
    const int8_t *x;
    size_t x_stride;
    const struct quads_scale *scale; /* of the first row */
    const unsigned char *b;          /* struct linear_quads */
    float *sum;                      /* [height] rows of LANES */
    size_t ahead;
};

typedef __m256i dots[HEIGHT_MAX][2];

#define EACH_ROW _Pragma("GCC unroll 4") for (uint32_t r = 0; r < height; r++)
#define EACH_HALF _Pragma("GCC unroll 2") for (uint32_t h = 0; h < 2; h++)

/* _mm256_add_epi32() in place: gcc likes to put sums elsewhere, until it has no
 * register left and keeps some in memory. */
LANES_INLINE __m256i onto(__m256i x, __m256i sum)
{
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x));
    return sum;
}

/* Four inputs of the rows by those of 16 outputs. */
LANES_INLINE void step(const int8_t *x, size_t x_stride, const int8_t *w,
                       uint32_t height, dots sum)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i q[2], size[2];

    EACH_HALF
    {
        q[h] = _mm256_loadu_si256((const void *)(w + h * HALF * 4));
        size[h] = _mm256_abs_epi8(q[h]);
    }
    EACH_ROW
    {
        int32_t four;

        memcpy(&four, x + r * x_stride, sizeof(four));
        const __m256i by = _mm256_set1_epi32(four);

        EACH_HALF
        {
            const __m256i pair =
                _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(by, q[h]));

            sum[r][h] = onto(_mm256_madd_epi16(pair, one), sum[r][h]);
        }
    }
}

LANES_INLINE void clear(dots sum, uint32_t height)
{
    EACH_ROW EACH_HALF sum[r][h] = _mm256_setzero_si256();
}

LANES_INLINE const struct quads_scale *scale_of(const struct cell *cell,
                                                uint32_t row)
{
    return (const void *)((const char *)cell->scale + row * cell->x_stride);
}

LANES_INLINE void run_cell(const struct cell *cell, uint32_t height)
{
    const int8_t *w = (const int8_t *)cell->b + sizeof(float[LINEAR_PANEL]);
    const int8_t *x = cell->x;
    const float *scale = (const float *)(const void *)cell->b;
    dots sum;

    clear(sum, height);
    _mm_prefetch((const char *)cell->b + cell->ahead, _MM_HINT_T0);
#pragma GCC unroll 2
    for (uint32_t k = 0; k < LINEAR_GROUP; k += 4) {
        _mm_prefetch((const char *)w + cell->ahead, _MM_HINT_T0);
        step(x, cell->x_stride, w, height, sum);
        x += 4;
        w += 4 * LINEAR_PANEL;
    }
    EACH_HALF
    {
        const __m256 of_w = _mm256_loadu_ps(scale + h * HALF);

        EACH_ROW
        {
            float *to = cell->sum + r * LANES + h * HALF;
            const __m256 by =
                _mm256_mul_ps(_mm256_set1_ps(scale_of(cell, r)->scale), of_w);

            _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]),
                                                 by, _mm256_loadu_ps(to)));
        }
    }
}

static void run_height(const struct cell *cell, uint32_t height)
{
    switch (height) {
    case 1:
        run_cell(cell, 1);
        return;
    case 2:
        run_cell(cell, 2);
        return;
    case 3:
        run_cell(cell, 3);
        return;
    default:
        run_cell(cell, 4);
        return;
    }
}

/* Some rows by a panel. */
static void put(const struct product_tile *t, uint32_t row, uint32_t n_row,
                uint32_t panel, const float *sum)
{
    const uint32_t column = panel * LANES;

    for (uint32_t r = 0; r < n_row; r++) {
        float *c = t->c + (row + r) * t->c_stride + column;
        v16 y = v16_load(sum + r * LANES);

        if (t->is_add)
            y = v16_add(v16_load_part(c, 0, t->n_col - column), y);
        v16_store_part(c, y, 0, t->n_col - column);
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
        dots d[2];

        for (uint32_t p = 0; p < 2; p++) {
            clear(d[p], 1);
            w[p] = (const int8_t *)b[p] + sizeof(float[LINEAR_PANEL]);
        }
#pragma GCC unroll 2
        for (uint32_t i = 0; i < LINEAR_GROUP; i += 4) {
            for (uint32_t p = 0; p < 2; p++) {
                const int8_t *at = w[p] + i * LINEAR_PANEL;

                _mm_prefetch((const char *)at + AHEAD_BYTES, _MM_HINT_T0);
                step(x + k + i, 0, at, 1, d[p]);
            }
        }
        for (uint32_t p = 0; p < 2; p++) {
            const float *of_w = (const float *)(const void *)b[p];

            EACH_HALF sum[p][h] = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(d[p][0][h]),
                _mm256_mul_ps(of_x, _mm256_loadu_ps(of_w + h * HALF)),
                sum[p][h]);
            b[p] += sizeof(struct linear_quads);
        }
    }
    for (uint32_t p = 0; p < 2; p++) {
        EACH_HALF _mm256_storeu_ps(out + h * HALF, sum[p][h]);
        put(t, 0, 1, panel[p], out);
    }
}

static void run_panel(const struct product_tile *t, uint32_t row,
                      uint32_t n_row, uint32_t panel)
{
    const uint32_t n_tile = (n_row + HEIGHT_MAX - 1) / HEIGHT_MAX;
    const uint32_t height = n_row / n_tile, n_higher = n_row % n_tile;
    float sum[ROWS_MAX * LANES] __attribute__((aligned(64)));
    const int8_t *x = (const int8_t *)t->a + row * t->a_stride;
    struct cell cell = {
        .x_stride = t->a_stride,
        .b = (const unsigned char *)t->b + panel * t->b_stride,
    };

    memset(sum, 0, n_row * LANES * sizeof(*sum));
    for (uint32_t k = 0; k < t->n_step; k += LINEAR_GROUP) {
        cell.x = x + k;
        cell.scale = quads_scales(x, t->n_step) + k / LINEAR_GROUP;
        cell.sum = sum;
        cell.ahead = AHEAD_BYTES;
        for (uint32_t i = 0; i < n_tile; i++) {
            const uint32_t h = height + (i < n_higher);

            run_height(&cell, h);
            cell.x += h * cell.x_stride;
            cell.scale = scale_of(&cell, h);
            cell.sum += h * LANES;
            cell.ahead = 0;
        }
        cell.b += sizeof(struct linear_quads);
    }
    put(t, row, n_row, panel, sum);
}

void LANES_NAME(quads_work)(const struct product_tile *t)
{
    const uint32_t half = (t->n_col + LANES - 1) / LANES / 2;

    if (t->n_row == 1) {
        for (uint32_t panel = 0; panel < half; panel++)
            run_two(t, (const uint32_t[]){panel, half + panel});
        for (uint32_t panel = 2 * half; panel * LANES < t->n_col; panel++)
            run_panel(t, 0, 1, panel);
        return;
    }
    for (uint32_t row = 0; row < t->n_row; row += ROWS_MAX) {
        const uint32_t left = t->n_row - row;

        for (uint32_t panel = 0; panel * LANES < t->n_col; panel++)
            run_panel(t, row, left < ROWS_MAX ? left : ROWS_MAX, panel);
    }
}

struct product_shape LANES_NAME(quads_shape)(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){ROWS_MAX, n_row == 1 ? UNIT_PANELS : 1};
}
