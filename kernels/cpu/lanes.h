#ifndef KERNELS_CPU_LANES_H
#define KERNELS_CPU_LANES_H
/*
 * A vector of 16 floats: one AVX-512 register, or two of AVX2. Every
 * operation is exact or rounded once by IEEE 754, lane by lane, so that code
 * written over it gives the same bits whichever it is compiled for. The
 * functions of kernels/scalar.h are repeated here step for step.
 *
 * Each *.lanes.c file is compiled once per instruction set, with LANES_AVX2
 * or LANES_AVX512 defined, some a third time with LANES_AVX512 and LANES_BF16;
 * LANES_NAME(f) keeps the symbols apart.
 */
#include <immintrin.h>
#include <stdint.h>

#define LANES 16u
#define LANES_INLINE static inline __attribute__((always_inline))

#if defined(LANES_AVX512)
#include "kernels/cpu/lanes_avx512.h"
#else
#include "kernels/cpu/lanes_avx2.h"
#endif

/* v16_exp() of lanes that are not above 88.72. */
LANES_INLINE v16 v16_exp_small(v16 x)
{
    v16 magic = v16_set1(0x1.8p+23f), one = v16_set1(1.0f);
    v16 n = v16_fma(x, v16_set1(0x1.715476p+0f), magic);
    n = v16_sub(n, magic);
    v16 r = v16_fnma(n, v16_set1(0x1.63p-1f), x);
    r = v16_fnma(n, v16_set1(-0x1.bd0106p-13f), r);
    v16 p = v16_fma(v16_set1(0x1.6d195ep-10f), r, v16_set1(0x1.1213c4p-7f));
    p = v16_fma(p, r, v16_set1(0x1.555516p-5f));
    p = v16_fma(p, r, v16_set1(0x1.5554d8p-3f));
    p = v16_fma(p, r, v16_set1(0.5f));
    p = v16_fma(p, r, one);
    p = v16_scale(v16_fma(p, r, one), n);
    return v16_where_less(x, v16_set1(-87.33f), v16_zero(), p);
}

/* Lane i is e^x[i], as scalar_exp(). */
LANES_INLINE v16 v16_exp(v16 x)
{
    v16 inf = v16_set1(__builtin_inff());
    return v16_where_less(v16_set1(88.72f), x, inf, v16_exp_small(x));
}

LANES_INLINE v16 v16_sigmoid(v16 x)
{
    v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_negate(x))));
}

LANES_INLINE v16 v16_silu(v16 x)
{
    return v16_mul(x, v16_sigmoid(x));
}

LANES_INLINE v16 v16_log(v16 x)
{
    v16 n, z, p, f = v16_split(x, &n);
    f = v16_sub(f, v16_set1(1.0f));
    p = v16_fma(v16_set1(7.0376836292e-2f), f, v16_set1(-1.1514610310e-1f));
    p = v16_fma(p, f, v16_set1(1.1676998740e-1f));
    p = v16_fma(p, f, v16_set1(-1.2420140846e-1f));
    p = v16_fma(p, f, v16_set1(1.4249322787e-1f));
    p = v16_fma(p, f, v16_set1(-1.6668057665e-1f));
    p = v16_fma(p, f, v16_set1(2.0000714765e-1f));
    p = v16_fma(p, f, v16_set1(-2.4999993993e-1f));
    p = v16_fma(p, f, v16_set1(3.3333331174e-1f));
    z = v16_mul(f, f);
    p = v16_mul(v16_mul(p, f), z);
    p = v16_fma(n, v16_set1(-2.12194440e-4f), p);
    p = v16_fma(v16_set1(-0.5f), z, p);
    return v16_fma(n, v16_set1(0.693359375f), v16_add(f, p));
}

LANES_INLINE v16 v16_softplus(v16 x)
{
    v16 e = v16_exp(x), one = v16_set1(1.0f), u = v16_add(one, e);
    v16 lost = v16_sub(e, v16_sub(u, one));
    v16 y = v16_add(v16_log(u), v16_div(lost, u));
    return v16_where_less(v16_set1(20.0f), x, x, y);
}

/* Vector k of x[0 .. n): the whole, or what is left with zeros behind. */
LANES_INLINE v16 v16_load_part(const float *x, uint32_t at, uint32_t n)
{
    return n - at >= LANES ? v16_load(x + at) : v16_load_n(x + at, n - at);
}

LANES_INLINE void v16_store_part(float *x, v16 v, uint32_t at, uint32_t n)
{
    if (n - at >= LANES)
        v16_store(x + at, v);
    else
        v16_store_n(x + at, v, n - at);
}

/* scalar_sum_squares(). Zeros behind the end leave their lanes as they are. */
LANES_INLINE float v16_sum_squares(const float *x, uint32_t n)
{
    v16 sum = v16_zero();

    for (uint32_t i = 0; i < n; i += LANES) {
        v16 v = v16_load_part(x, i, n);
        sum = v16_fma(v, v, sum);
    }
    return v16_fold(sum);
}
#endif
