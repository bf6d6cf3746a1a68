#ifndef KERNELS_CPU_LANES_AVX512_H
#define KERNELS_CPU_LANES_AVX512_H
/* The 16-float vector of lanes.h as one register of AVX-512. */
#include <immintrin.h>
#include <stdint.h>

typedef __m512 v16;

#if defined(LANES_BF16)
#define LANES_NAME(name) name##_avx512_bf16
#else
#define LANES_NAME(name) name##_avx512
#endif
#define LANES_TITLE "avx512"
#define LANES_ROWS 12u /* rows of the tallest register tile: 12 x 2 sums */

static inline __mmask16 v16_mask(uint32_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

static inline v16 v16_zero(void)
{
    return _mm512_setzero_ps();
}

static inline v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline v16 v16_load(const float *x)
{
    return _mm512_loadu_ps(x);
}

static inline void v16_store(float *x, v16 v)
{
    _mm512_storeu_ps(x, v);
}

/* The first n <= 16 lanes; the others are not touched in memory and zero. */
static inline v16 v16_load_n(const float *x, uint32_t n)
{
    return _mm512_maskz_loadu_ps(v16_mask(n), x);
}

static inline void v16_store_n(float *x, v16 v, uint32_t n)
{
    _mm512_mask_storeu_ps(x, v16_mask(n), v);
}

/* a in the first n lanes, b in the others; n may be above 16. */
static inline v16 v16_first(v16 a, v16 b, uint32_t n)
{
    return n >= 16 ? a : _mm512_mask_blend_ps(v16_mask(n), b, a);
}

static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

static inline v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

static inline v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

/* a * b + c, rounded once. */
static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* -(a * b) + c, rounded once. */
static inline v16 v16_fnma(v16 a, v16 b, v16 c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

/* a * b - c, rounded once. */
static inline v16 v16_fms(v16 a, v16 b, v16 c)
{
    return _mm512_fmsub_ps(a, b, c);
}

static inline v16 v16_negate(v16 x)
{
    __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign));
}

/* Lane by lane: a < b ? yes : no. */
static inline v16 v16_where_less(v16 a, v16 b, v16 yes, v16 no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}

/* x * 2^n for whole n, exact where the result is a normal float. */
static inline v16 v16_scale(v16 x, v16 n)
{
    return _mm512_scalef_ps(x, n);
}

/* x = m * 2^n with m in [sqrt(1/2), sqrt(2)), as scalar_log() cuts it. */
static inline v16 v16_split(v16 x, v16 *n)
{
    __m512i root = _mm512_set1_epi32(0x3f3504f3);
    __m512i cut = _mm512_sub_epi32(_mm512_castps_si512(x), root);
    __m512i low = _mm512_and_si512(cut, _mm512_set1_epi32(0x007fffff));
    *n = _mm512_cvtepi32_ps(_mm512_srai_epi32(cut, 23));
    return _mm512_castsi512_ps(_mm512_add_epi32(low, root));
}

/* The fold of scalar_sum(): i += i + 8, i + 4, i + 2, i + 1. */
static inline float v16_fold(v16 v)
{
    __m256 a =
        _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b =
        _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float v16_largest(v16 v)
{
    return _mm512_reduce_max_ps(v);
}

/* Lanes of a and b that stand n apart meet: 8, then 4, then 2, then 1. Both
 * results hold what op() takes; the places are those of v16_fold_rows(). */
#define V16_MEET_8(op, a, b)                                                   \
    op(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee))
#define V16_MEET_4(op, a, b)                                                   \
    op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd))
#define V16_MEET_2(op, a, b)                                                   \
    op(_mm512_castpd_ps(                                                       \
           _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))),      \
       _mm512_castpd_ps(                                                       \
           _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))))
#define V16_MEET_1(op, a, b)                                                   \
    op(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd))

/* Sixteen rows at once: their lanes fold in the order of v16_fold(), and row r
 * ends in lane r. x holds 16 rows, of which n count; few go one by one. */
#define V16_ROWS(name, op, one)                                                \
    static inline void name(v16 *x, uint32_t n, float *out)                    \
    {                                                                          \
        v16 four[4];                                                           \
        if (n <= 4) {                                                          \
            for (uint32_t r = 0; r < n; r++)                                   \
                out[r] = one(x[r]);                                            \
            return;                                                            \
        }                                                                      \
        for (uint32_t r = n; r < 16; r++)                                      \
            x[r] = _mm512_setzero_ps();                                        \
        for (uint32_t i = 0; i < 4; i++) {                                     \
            v16 low = V16_MEET_8(op, x[i], x[i + 4]);                          \
            v16 high = V16_MEET_8(op, x[i + 8], x[i + 12]);                    \
            four[i] = V16_MEET_4(op, low, high);                               \
        }                                                                      \
        v16 even = V16_MEET_2(op, four[0], four[1]);                           \
        v16 odd = V16_MEET_2(op, four[2], four[3]);                            \
        v16_store_n(out, V16_MEET_1(op, even, odd), n);                        \
    }
V16_ROWS(v16_fold_rows, _mm512_add_ps, v16_fold)
V16_ROWS(v16_largest_rows, _mm512_max_ps, v16_largest)

/* (float)(g - x[i]), subtracted in double. */
static inline v16 v16_difference(double g, const double *x)
{
    __m512d from = _mm512_set1_pd(g);
    __m256 low = _mm512_cvtpd_ps(_mm512_sub_pd(from, _mm512_loadu_pd(x)));
    __m256 high = _mm512_cvtpd_ps(_mm512_sub_pd(from, _mm512_loadu_pd(x + 8)));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

/* 16 words of two bf16 each; a vector of words is no numbers. */
static inline v16 v16_set1_word(const uint32_t *x)
{
    return _mm512_castsi512_ps(_mm512_set1_epi32((int32_t)*x));
}

/* Their low halves as floats, and their high halves. */
static inline v16 v16_low(v16 words)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_castps_si512(words), 16));
}

static inline v16 v16_high(v16 words)
{
    __m512i top = _mm512_set1_epi32((int32_t)0xffff0000u);
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(words), top));
}

static inline v16 v16_load_bf16(const uint32_t *x, v16 *high)
{
    v16 words = _mm512_loadu_ps(x);
    *high = v16_high(words);
    return v16_low(words);
}

/* scalar_from_bf16(scalar_to_bf16(x)) */
static inline v16 v16_round_bf16(v16 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __m512i odd =
        _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    __mmask16 is_nan =
        _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(0x7f800000));
    __mmask16 is_small =
        _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(0x00800000));

    near = _mm512_add_epi32(near, odd);
    near =
        _mm512_mask_or_epi32(near, is_nan, bits, _mm512_set1_epi32(0x00400000));
    near = _mm512_and_si512(near, _mm512_set1_epi32((int32_t)0xffff0000u));
    /* Of what is too small the sign alone stays. */
    near = _mm512_mask_and_epi32(near, is_small, bits,
                                 _mm512_set1_epi32(INT32_MIN));
    return _mm512_castsi512_ps(near);
}

#if defined(LANES_BF16)
/* As scalar_to_bf16(): words with low and high in their halves; 16 in a row;
 * acc = fma(low halves, fma(high halves, acc)). */
static inline v16 v16_words(v16 low, v16 high)
{
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11,
                                         26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(zip, both));
}

static inline void v16_store_bf16(uint16_t *to, v16 x)
{
    _mm256_storeu_si256((__m256i *)(void *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

static inline v16 v16_dot(v16 a, v16 b, v16 acc)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
#else
static inline v16 v16_words(v16 low, v16 high)
{
    __m512i low_bits = _mm512_castps_si512(v16_round_bf16(low));
    __m512i high_bits = _mm512_castps_si512(v16_round_bf16(high));
    return _mm512_castsi512_ps(
        _mm512_or_si512(high_bits, _mm512_srli_epi32(low_bits, 16)));
}

static inline void v16_store_bf16(uint16_t *to, v16 x)
{
    __m512i bits = _mm512_castps_si512(v16_round_bf16(x));
    _mm256_storeu_si256((__m256i *)(void *)to,
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

static inline v16 v16_dot(v16 a, v16 b, v16 acc)
{
    acc = v16_fma(v16_high(a), v16_high(b), acc);
    return v16_fma(v16_low(a), v16_low(b), acc);
}
#endif

/* 16 whole numbers within int8_t as bytes. */
static inline void v16_store_i8(int8_t *to, v16 x)
{
    _mm_storeu_si128((__m128i *)(void *)to,
                     _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

/* 16 signed bytes as floats. */
static inline v16 v16_load_i8(const int8_t *x)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
#endif
