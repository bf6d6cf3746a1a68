#include "kernels/scalar.h"

#include <math.h>

#define LANES 16u

/*
 * Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, in the low
 * bits. The polynomial is (e^r - 1 - r) / r^2 interpolated to 8e-9 on
 * |r| <= ln2 / 2; ln2 is cut after 9 bits so that n * its first part is exact.
 */
float scalar_exp(float x)
{
    if (isnan(x))
        return x;
    if (x < -87.33f)
        return 0.0f;
    if (x > 88.72f)
        return INFINITY;
    float n = fmaf(x, 0x1.715476p+0f, 0x1.8p+23f) - 0x1.8p+23f;
    float r = fmaf(-n, 0x1.63p-1f, x);
    r = fmaf(-n, -0x1.bd0106p-13f, r);
    float p = fmaf(0x1.6d195ep-10f, r, 0x1.1213c4p-7f);
    p = fmaf(p, r, 0x1.555516p-5f);
    p = fmaf(p, r, 0x1.5554d8p-3f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* n reaches 128, which no float exponent holds: scale in two steps. */
    int32_t half = (int32_t)n / 2, rest = (int32_t)n - half;
    p *= scalar_from_bits((uint32_t)(half + 127) << 23);
    return p * scalar_from_bits((uint32_t)(rest + 127) << 23);
}

float scalar_sigmoid(float x)
{
    return 1.0f / (1.0f + scalar_exp(-x));
}

float scalar_silu(float x)
{
    return x * scalar_sigmoid(x);
}

/*
 * log(1 + e) loses the low bits of a small e; what 1 + e rounded away is known
 * exactly and put back to first order.
 */
float scalar_softplus(float x)
{
    if (x > 20.0f)
        return x;
    float e = scalar_exp(x);
    float u = 1.0f + e;
    return scalar_log(u) + (e - (u - 1.0f)) / u;
}

/* Polynomial and split of ln2 from Moshier's Cephes, logf.c. */
float scalar_log(float x)
{
    /* m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 are the bits of sqrt(1/2). */
    uint32_t shifted = scalar_to_bits(x) - 0x3f3504f3u;
    float n = (float)((int32_t)shifted >> 23);
    float f = scalar_from_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = fmaf(7.0376836292e-2f, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    float z = f * f;
    p = (p * f) * z;
    p = fmaf(n, -2.12194440e-4f, p);
    p = fmaf(-0.5f, z, p);
    return fmaf(n, 0.693359375f, f + p);
}

float scalar_from_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 1023u;

    if (exponent == 31) /* infinity or NaN */
        return scalar_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, exact */
        float x = (float)fraction * 0x1p-24f;
        return scalar_from_bits(scalar_to_bits(x) | sign);
    }
    return scalar_from_bits(sign | (exponent + 112u) << 23 | fraction << 13);
}

static float fold(float lane[LANES])
{
    for (unsigned step = LANES / 2; step; step /= 2)
        for (unsigned i = 0; i < step; i++)
            lane[i] += lane[i + step];
    return lane[0];
}

float scalar_sum(const float *x, uint32_t n)
{
    float lane[LANES] = {0};

    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] += x[i];
    return fold(lane);
}

float scalar_sum_squares(const float *x, uint32_t n)
{
    float lane[LANES] = {0};

    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] = fmaf(x[i], x[i], lane[i % LANES]);
    return fold(lane);
}
