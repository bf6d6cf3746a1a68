#ifndef KERNELS_CPU_PAIRS_H
#define KERNELS_CPU_PAIRS_H
/*
 * Vectors to and from bf16: as rows, and as words of two steps side by side,
 * the first in the low half. Rounding is scalar_to_bf16(), by its instruction
 * where a file is compiled for it (LANES_BF16).
 */
#include "kernels/cpu/lanes.h"

#if defined(LANES_AVX512)
/* Lane i is bf16 x[i] in the low half of a word. */
LANES_INLINE __m512i pairs_low(v16 x)
{
#if defined(LANES_BF16)
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
#else
    return _mm512_srli_epi32(_mm512_castps_si512(v16_round_bf16(x)), 16);
#endif
}

LANES_INLINE void pairs_store(uint32_t *to, v16 low, v16 high)
{
    __m512i word =
        _mm512_or_si512(pairs_low(low), _mm512_slli_epi32(pairs_low(high), 16));
    _mm512_storeu_si512(to, word);
}

/* Of numbers that are bf16 already. */
LANES_INLINE void pairs_store_rounded(uint32_t *to, v16 low, v16 high)
{
    __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(low), 16);
    _mm512_storeu_si512(to, _mm512_or_si512(bits, _mm512_castps_si512(high)));
}

/* A row of 16. */
LANES_INLINE void pairs_store_row(uint16_t *to, v16 x)
{
#if defined(LANES_BF16)
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
#else
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(pairs_low(x)));
#endif
}

LANES_INLINE v16 pairs_round(v16 x)
{
#if defined(LANES_BF16)
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs_low(x), 16));
#else
    return v16_round_bf16(x);
#endif
}
#else
LANES_INLINE __m256i pairs_low(__m256 x)
{
    return _mm256_srli_epi32(_mm256_castps_si256(v8_round_bf16(x)), 16);
}

LANES_INLINE void pairs_store(uint32_t *to, v16 low, v16 high)
{
    __m256i a = _mm256_castps_si256(v8_round_bf16(high.a));
    __m256i b = _mm256_castps_si256(v8_round_bf16(high.b));
    _mm256_storeu_si256((__m256i *)to, _mm256_or_si256(a, pairs_low(low.a)));
    _mm256_storeu_si256((__m256i *)(to + 8),
                        _mm256_or_si256(b, pairs_low(low.b)));
}

/* Of numbers that are bf16 already. */
LANES_INLINE void pairs_store_rounded(uint32_t *to, v16 low, v16 high)
{
    __m256i a = _mm256_srli_epi32(_mm256_castps_si256(low.a), 16);
    __m256i b = _mm256_srli_epi32(_mm256_castps_si256(low.b), 16);
    _mm256_storeu_si256((__m256i *)to,
                        _mm256_or_si256(a, _mm256_castps_si256(high.a)));
    _mm256_storeu_si256((__m256i *)(to + 8),
                        _mm256_or_si256(b, _mm256_castps_si256(high.b)));
}

/* A row of 16. */
LANES_INLINE void pairs_store_row(uint16_t *to, v16 x)
{
    __m256i both = _mm256_packus_epi32(pairs_low(x.a), pairs_low(x.b));
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(both, 0xd8));
}

LANES_INLINE v16 pairs_round(v16 x)
{
    return v16_round_bf16(x);
}
#endif

/* Four rows of four words become four columns, `stride` words apart. */
LANES_INLINE void pairs_turn(uint32_t *to, size_t stride, const uint32_t *from,
                             size_t from_stride)
{
    __m128i a = _mm_loadu_si128((const __m128i *)from);
    __m128i b = _mm_loadu_si128((const __m128i *)(from + from_stride));
    __m128i c = _mm_loadu_si128((const __m128i *)(from + 2 * from_stride));
    __m128i d = _mm_loadu_si128((const __m128i *)(from + 3 * from_stride));
    __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    __m128i ab2 = _mm_unpackhi_epi32(a, b), cd2 = _mm_unpackhi_epi32(c, d);

    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128((__m128i *)(to + stride), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128((__m128i *)(to + 2 * stride),
                     _mm_unpacklo_epi64(ab2, cd2));
    _mm_storeu_si128((__m128i *)(to + 3 * stride),
                     _mm_unpackhi_epi64(ab2, cd2));
}
#endif
