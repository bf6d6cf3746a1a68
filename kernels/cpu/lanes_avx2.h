#ifndef KERNELS_CPU_LANES_AVX2_H
#define KERNELS_CPU_LANES_AVX2_H
/* The 16-float vector of lanes.h as two registers of AVX2. */
#include <immintrin.h>
#include <stdint.h>

typedef struct {
    __m256 a, b; /* lanes 0-7, lanes 8-15 */
} v16;

#define LANES_NAME(name) name##_avx2
#define LANES_TITLE "avx2"
#define LANES_ROWS 6u /* rows of the tallest register tile: 6 x 1 sums */

static inline v16 v16_both(__m256 a, __m256 b)
{
    v16 v = {a, b};
    return v;
}

/* All ones in the first n of 8 lanes; half is 0 for lanes 0-7, 8 for 8-15. */
static inline __m256i v16_mask(uint32_t n, uint32_t half)
{
    static const int32_t ONES[48] = {
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    };
    return _mm256_loadu_si256((const __m256i *)(ONES + 16 - n + half));
}

static inline v16 v16_zero(void)
{
    return v16_both(_mm256_setzero_ps(), _mm256_setzero_ps());
}

static inline v16 v16_set1(float x)
{
    __m256 v = _mm256_set1_ps(x);
    return v16_both(v, v);
}

static inline v16 v16_load(const float *x)
{
    return v16_both(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
}

static inline void v16_store(float *x, v16 v)
{
    _mm256_storeu_ps(x, v.a);
    _mm256_storeu_ps(x + 8, v.b);
}

/* The first n <= 16 lanes; the others are not touched in memory and zero. */
static inline v16 v16_load_n(const float *x, uint32_t n)
{
    return v16_both(_mm256_maskload_ps(x, v16_mask(n, 0)),
                    _mm256_maskload_ps(x + 8, v16_mask(n, 8)));
}

static inline void v16_store_n(float *x, v16 v, uint32_t n)
{
    _mm256_maskstore_ps(x, v16_mask(n, 0), v.a);
    _mm256_maskstore_ps(x + 8, v16_mask(n, 8), v.b);
}

/* a in the first n lanes, b in the others; n may be above 16. */
static inline v16 v16_first(v16 a, v16 b, uint32_t n)
{
    if (n >= 16)
        return a;
    __m256 low = _mm256_castsi256_ps(v16_mask(n, 0));
    __m256 high = _mm256_castsi256_ps(v16_mask(n, 8));
    return v16_both(_mm256_blendv_ps(b.a, a.a, low),
                    _mm256_blendv_ps(b.b, a.b, high));
}

static inline v16 v16_add(v16 a, v16 b)
{
    return v16_both(_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b));
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return v16_both(_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b));
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return v16_both(_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b));
}

static inline v16 v16_div(v16 a, v16 b)
{
    return v16_both(_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b));
}

static inline v16 v16_max(v16 a, v16 b)
{
    return v16_both(_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b));
}

/* a * b + c, rounded once. */
static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return v16_both(_mm256_fmadd_ps(a.a, b.a, c.a),
                    _mm256_fmadd_ps(a.b, b.b, c.b));
}

/* -(a * b) + c, rounded once. */
static inline v16 v16_fnma(v16 a, v16 b, v16 c)
{
    return v16_both(_mm256_fnmadd_ps(a.a, b.a, c.a),
                    _mm256_fnmadd_ps(a.b, b.b, c.b));
}

/* a * b - c, rounded once. */
static inline v16 v16_fms(v16 a, v16 b, v16 c)
{
    return v16_both(_mm256_fmsub_ps(a.a, b.a, c.a),
                    _mm256_fmsub_ps(a.b, b.b, c.b));
}

static inline v16 v16_negate(v16 x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return v16_both(_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign));
}

/* Lane by lane: a < b ? yes : no. */
static inline v16 v16_where_less(v16 a, v16 b, v16 yes, v16 no)
{
    __m256 low = _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ);
    __m256 high = _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ);
    return v16_both(_mm256_blendv_ps(no.a, yes.a, low),
                    _mm256_blendv_ps(no.b, yes.b, high));
}

static inline __m256 v8_scale(__m256 x, __m256 n)
{
    __m256i bias = _mm256_set1_epi32(127), whole = _mm256_cvtps_epi32(n);
    __m256i half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half);
    half = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    rest = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    x = _mm256_mul_ps(x, _mm256_castsi256_ps(half));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(rest));
}

/* x * 2^n for whole n, exact where the result is a normal float. */
static inline v16 v16_scale(v16 x, v16 n)
{
    return v16_both(v8_scale(x.a, n.a), v8_scale(x.b, n.b));
}

static inline __m256 v8_split(__m256 x, __m256 *n)
{
    __m256i root = _mm256_set1_epi32(0x3f3504f3);
    __m256i cut = _mm256_sub_epi32(_mm256_castps_si256(x), root);
    __m256i low = _mm256_and_si256(cut, _mm256_set1_epi32(0x007fffff));
    *n = _mm256_cvtepi32_ps(_mm256_srai_epi32(cut, 23));
    return _mm256_castsi256_ps(_mm256_add_epi32(low, root));
}

/* x = m * 2^n with m in [sqrt(1/2), sqrt(2)), as scalar_log() cuts it. */
static inline v16 v16_split(v16 x, v16 *n)
{
    return v16_both(v8_split(x.a, &n->a), v8_split(x.b, &n->b));
}

/* The fold of scalar_sum(): i += i + 8, i + 4, i + 2, i + 1. */
static inline float v16_fold(v16 v)
{
    __m256 a = _mm256_add_ps(v.a, v.b);
    __m128 b =
        _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float v16_largest(v16 v)
{
    __m256 a = _mm256_max_ps(v.a, v.b);
    __m128 b =
        _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

static inline __m256 v8_difference(__m256d g, const double *x)
{
    __m128 low = _mm256_cvtpd_ps(_mm256_sub_pd(g, _mm256_loadu_pd(x)));
    __m128 high = _mm256_cvtpd_ps(_mm256_sub_pd(g, _mm256_loadu_pd(x + 4)));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}

/* v16_fold() and v16_largest() of n rows. */
static inline void v16_fold_rows(const v16 *x, uint32_t n, float *out)
{
    for (uint32_t r = 0; r < n; r++)
        out[r] = v16_fold(x[r]);
}

static inline void v16_largest_rows(const v16 *x, uint32_t n, float *out)
{
    for (uint32_t r = 0; r < n; r++)
        out[r] = v16_largest(x[r]);
}

/* (float)(g - x[i]), subtracted in double. */
static inline v16 v16_difference(double g, const double *x)
{
    __m256d from = _mm256_set1_pd(g);
    return v16_both(v8_difference(from, x), v8_difference(from, x + 8));
}

/* 16 words of two bf16 each; a vector of words is no numbers. */
static inline v16 v16_set1_word(const uint32_t *x)
{
    __m256 v = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)*x));
    return v16_both(v, v);
}

static inline __m256 v8_low(__m256 words)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_castps_si256(words), 16));
}

static inline __m256 v8_high(__m256 words)
{
    __m256i top = _mm256_set1_epi32((int32_t)0xffff0000u);
    return _mm256_and_ps(words, _mm256_castsi256_ps(top));
}

/* Their low halves as floats, and their high halves. */
static inline v16 v16_low(v16 words)
{
    return v16_both(v8_low(words.a), v8_low(words.b));
}

static inline v16 v16_high(v16 words)
{
    return v16_both(v8_high(words.a), v8_high(words.b));
}

static inline v16 v16_load_bf16(const uint32_t *x, v16 *high)
{
    v16 words = v16_load((const float *)(const void *)x);
    *high = v16_high(words);
    return v16_low(words);
}

static inline __m256 v8_round_bf16(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i top = _mm256_set1_epi32((int32_t)0xffff0000u);
    __m256i size = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    __m256i odd =
        _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    __m256i is_nan = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f800000));
    __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), size);

    near = _mm256_add_epi32(near, odd);
    near = _mm256_and_si256(_mm256_blendv_epi8(near, quiet, is_nan), top);
    /* Of what is too small the sign alone stays. */
    size = _mm256_and_si256(is_small, _mm256_set1_epi32(0x7fffffff));
    return _mm256_castsi256_ps(
        _mm256_andnot_si256(size, _mm256_blendv_epi8(near, bits, is_small)));
}

/* scalar_from_bf16(scalar_to_bf16(x)) */
static inline v16 v16_round_bf16(v16 x)
{
    return v16_both(v8_round_bf16(x.a), v8_round_bf16(x.b));
}

/* As scalar_to_bf16(): words with low and high in their halves; 16 in a row;
 * acc = fma(low halves, fma(high halves, acc)). */
static inline __m256 v8_words(__m256 low, __m256 high)
{
    __m256i bits = _mm256_castps_si256(v8_round_bf16(low));
    return _mm256_or_ps(v8_round_bf16(high),
                        _mm256_castsi256_ps(_mm256_srli_epi32(bits, 16)));
}

static inline v16 v16_words(v16 low, v16 high)
{
    return v16_both(v8_words(low.a, high.a), v8_words(low.b, high.b));
}

static inline void v16_store_bf16(uint16_t *to, v16 x)
{
    __m256i a = _mm256_castps_si256(v8_round_bf16(x.a));
    __m256i b = _mm256_castps_si256(v8_round_bf16(x.b));
    __m256i all =
        _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    _mm256_storeu_si256((__m256i *)(void *)to,
                        _mm256_permute4x64_epi64(all, 0xd8));
}

static inline v16 v16_dot(v16 a, v16 b, v16 acc)
{
    acc = v16_fma(v16_high(a), v16_high(b), acc);
    return v16_fma(v16_low(a), v16_low(b), acc);
}

/* 16 whole numbers within int8_t as bytes. */
static inline void v16_store_i8(int8_t *to, v16 x)
{
    __m256i words =
        _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)(void *)to,
                     _mm_packs_epi16(_mm256_castsi256_si128(words),
                                     _mm256_extracti128_si256(words, 1)));
}

/* 16 signed bytes as floats. */
static inline v16 v16_load_i8(const int8_t *x)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    __m256i a = _mm256_cvtepi8_epi32(bytes);
    __m256i b = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
    return v16_both(_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b));
}
#endif
