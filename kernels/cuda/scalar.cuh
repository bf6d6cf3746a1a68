#ifndef KERNELS_CUDA_SCALAR_CUH
#define KERNELS_CUDA_SCALAR_CUH
/* kernels/scalar.h on the device, the same steps; no flush of subnormals. */
#include <stdint.h>

/* e^x over 2^n, n the whole number nearest to x / ln 2. */
static __device__ __forceinline__ float scalar_exp_rest(float x, float n)
{
    float r = __fmaf_rn(-n, 0x1.63p-1f, x);

    r = __fmaf_rn(-n, -0x1.bd0106p-13f, r);
    float p = __fmaf_rn(0x1.6d195ep-10f, r, 0x1.1213c4p-7f);
    p = __fmaf_rn(p, r, 0x1.555516p-5f);
    p = __fmaf_rn(p, r, 0x1.5554d8p-3f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    return __fmaf_rn(p, r, 1.0f);
}

static __device__ __forceinline__ float scalar_exp(float x)
{
    const float n = __fmaf_rn(x, 0x1.715476p+0f, 0x1.8p+23f) - 0x1.8p+23f;
    float p = scalar_exp_rest(x, n);

    const int half = (int)n / 2, rest = (int)n - half;
    p *= __int_as_float((half + 127) << 23);
    p *= __int_as_float((rest + 127) << 23);
    p = x < -87.33f ? 0.0f : p;
    return x > 88.72f ? __int_as_float(0x7f800000) : p;
}

static __device__ __forceinline__ float scalar_sigmoid(float x)
{
    return 1.0f / (1.0f + scalar_exp(-x));
}

static __device__ __forceinline__ float scalar_silu(float x)
{
    return x * scalar_sigmoid(x);
}

static __device__ __forceinline__ float scalar_log(float x)
{
    const uint32_t shifted = __float_as_uint(x) - 0x3f3504f3u;
    const float n = (float)((int)shifted >> 23);
    const float f =
        __uint_as_float((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = __fmaf_rn(7.0376836292e-2f, f, -1.1514610310e-1f);

    p = __fmaf_rn(p, f, 1.1676998740e-1f);
    p = __fmaf_rn(p, f, -1.2420140846e-1f);
    p = __fmaf_rn(p, f, 1.4249322787e-1f);
    p = __fmaf_rn(p, f, -1.6668057665e-1f);
    p = __fmaf_rn(p, f, 2.0000714765e-1f);
    p = __fmaf_rn(p, f, -2.4999993993e-1f);
    p = __fmaf_rn(p, f, 3.3333331174e-1f);
    const float z = f * f;
    p = (p * f) * z;
    p = __fmaf_rn(n, -2.12194440e-4f, p);
    p = __fmaf_rn(-0.5f, z, p);
    return __fmaf_rn(n, 0.693359375f, f + p);
}

static __device__ __forceinline__ float scalar_softplus(float x)
{
    const float e = scalar_exp(x), u = 1.0f + e;
    const float y = scalar_log(u) + (e - (u - 1.0f)) / u;

    return x > 20.0f ? x : y;
}

/* Two floats as bf16 in one word, as scalar_to_bf16(): subnormals are zeros. */
static __device__ __forceinline__ uint32_t round_pair(float low, float high)
{
    uint32_t pair;

    asm("{\n"
        ".reg .f32 low, high;\n"
        "mul.rn.ftz.f32 low, %1, 0f3f800000;\n"
        "mul.rn.ftz.f32 high, %2, 0f3f800000;\n"
        "cvt.rn.bf16x2.f32 %0, high, low;\n"
        "}"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
}

#endif
