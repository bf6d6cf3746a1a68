/*
 * Products of W8A8 by AVX2, which every set has: |w| times x with the sign of w
 * is two products of bytes in 16 bits, 2 * 127 * 127 at most, and those of two
 * in 32.
 */
#include "kernels/cpu/quads.h"

#include <string.h>

#define HALF (LANES / 2)

/* 8 outputs of a group. */
LANES_INLINE __m256i dot(const int8_t *x, const int8_t *w)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();

    for (uint32_t k = 0; k < LINEAR_GROUP; k += 4) {
        int32_t four;

        memcpy(&four, x + k, sizeof(four));
        const __m256i q =
            _mm256_loadu_si256((const void *)(w + k * LINEAR_PANEL));
        const __m256i by = _mm256_sign_epi8(_mm256_set1_epi32(four), q);

        sum = _mm256_add_epi32(
            sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(q), by),
                                   one));
    }
    return sum;
}

static void run(const struct product_tile *t, uint32_t row, uint32_t panel)
{
    const int8_t *x = (const int8_t *)t->a + row * t->a_stride;
    const struct quads_scale *scale = quads_scales(x, t->n_step);
    const void *at = (const char *)t->b + panel * t->b_stride;
    const struct linear_quads *quads = at;
    const uint32_t left = t->n_col - panel * LANES;
    float *c = t->c + row * t->c_stride + panel * LANES, sum[LANES] = {0};
    v16 y;

    for (uint32_t k = 0; k < t->n_step; k += LINEAR_GROUP, quads++, scale++)
        for (uint32_t h = 0; h < LANES; h += HALF) {
            const __m256 by = _mm256_mul_ps(_mm256_set1_ps(scale->scale),
                                            _mm256_loadu_ps(quads->scale + h));
            const __m256 d = _mm256_cvtepi32_ps(dot(x + k, (*quads->q)[h]));

            _mm256_storeu_ps(sum + h,
                             _mm256_fmadd_ps(d, by, _mm256_loadu_ps(sum + h)));
        }
    y = v16_load(sum);
    if (t->is_add)
        y = v16_add(v16_load_part(c, 0, left), y);
    v16_store_part(c, y, 0, left);
}

void LANES_NAME(quads_work)(const struct product_tile *tile)
{
    for (uint32_t panel = 0; panel * LANES < tile->n_col; panel++)
        for (uint32_t row = 0; row < tile->n_row; row++)
            run(tile, row, panel);
}

struct product_shape LANES_NAME(quads_shape)(uint32_t n_row, uint32_t n_step)
{
    (void)n_row;
    (void)n_step;
    return (struct product_shape){48, 1};
}
