#ifndef KERNELS_CPU_LINEAR_AMX_W8_H
#define KERNELS_CPU_LINEAR_AMX_W8_H
/* What linear_amx.c has of W8 alone: up to 16 rows of bf16 by W8, bound by how
 * fast weights come from memory and are widened. */
#include "kernels/cpu/product.h"

#include <immintrin.h>

void few_w8_amx(const struct product_tile *tile);

/*
 * Two steps of a panel as bf16 pairs, exactly: a whole number below 128 fills
 * the upper half of its float, the lower is 0. One shuffle puts the even ones
 * into the lower halves, up to a seventh faster than a shift and an or.
 */
static inline __m512i widen_pair(const int8_t (*q)[LINEAR_PANEL])
{
    const __m512i upper =
        _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302); /* bytes 2 and 3 */
    const __m512i even =
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q[0]));
    const __m512i odd =
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q[1]));

    return _mm512_mask_shuffle_epi8(
        _mm512_castps_si512(_mm512_cvtepi32_ps(odd)), 0x3333333333333333,
        _mm512_castps_si512(_mm512_cvtepi32_ps(even)), upper);
}
#endif
