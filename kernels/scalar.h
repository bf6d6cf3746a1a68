#ifndef KERNELS_SCALAR_H
#define KERNELS_SCALAR_H
/*
 * The elementary functions of the one arithmetic, made only of operations that
 * IEEE 754 rounds exactly (+, *, /, sqrt, fma, conversions), so that C, AVX2,
 * AVX-512 and any later machine give the same bits. libm's exp differs between
 * versions and instruction sets; these do not. kernels/cpu/lanes*.h repeats
 * the same steps on vectors and a test holds each lane to these.
 */
#include <stdint.h>
#include <string.h>

/*
 * e^x: x = n ln2 + r (Cody-Waite in two parts), degree-6 polynomial in Horner
 * form by fma, scaled by 2^n. At most 2 ulp off. Below -87.33 it is 0 (no
 * subnormals), above 88.72 +inf; NaN stays NaN.
 */
float scalar_exp(float x);
/* 1 / (1 + e^-x) */
float scalar_sigmoid(float x);
/* x * sigmoid(x) */
float scalar_silu(float x);
/*
 * log(1 + e^x), with u = 1 + e^x rounded: log(u) + (e^x - (u - 1)) / u, so
 * that small results keep their bits; x itself above 20, as
 * torch.nn.functional.softplus.
 */
float scalar_softplus(float x);
/* Natural logarithm of a positive normal float, at most 2 ulp off. */
float scalar_log(float x);

static inline float scalar_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline uint32_t scalar_to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

/* The reference rounds each operand of each product: here, to be inlined. */
static inline float scalar_from_bf16(uint16_t bits)
{
    return scalar_from_bits((uint32_t)bits << 16);
}

/*
 * To the nearest bf16, ties to even, as VCVTNEPS2BF16 does it: what is below
 * the smallest normal float becomes a zero of its sign, what rounds above the
 * largest bf16 an infinity; NaN stays NaN, made quiet.
 */
static inline uint16_t scalar_to_bf16(float x)
{
    const uint32_t bits = scalar_to_bits(x), size = bits & 0x7fffffffu;

    if (size > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    if (size < 0x00800000u)
        return (uint16_t)(bits >> 16 & 0x8000u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float scalar_from_f16(uint16_t bits);

/*
 * The fixed order of every sum over a vector (norms, softmax denominators):
 * 16 lanes, lane i takes elements i, i + 16, ... in ascending order, then
 * lanes are folded i += i + 8, i + 4, i + 2, i + 1.
 */
float scalar_sum(const float *x, uint32_t n);
/* Same order, each step fma(x, x, lane). */
float scalar_sum_squares(const float *x, uint32_t n);
#endif
