#ifndef KERNELS_CUDA_LINEAR_SILU_CUH
#define KERNELS_CUDA_LINEAR_SILU_CUH
/*
 * scalar_silu() of a plain x, the same bits without a branch, so that many of
 * them run side by side: e^-x is no subnormal and at most 2^126. Then 2^n is
 * one normal float, and the reciprocal is what the compiler makes of 1 / d
 * where it needs no other cases; tests/gpu/check_linear.cu compares all plain
 * floats.
 */
#include "kernels/cuda/scalar.cuh"

static __device__ __forceinline__ bool silu_is_plain(float x)
{
    return x > -87.0f;
}

static __device__ __forceinline__ float silu_plain(float x)
{
    const float shifted = __fmaf_rn(-x, 0x1.715476p+0f, 0x1.8p+23f);
    float p = scalar_exp_rest(-x, shifted - 0x1.8p+23f), reciprocal;

    /* n stands in the low bits of `shifted`. */
    p *= __int_as_float((__float_as_int(shifted) << 23) + (127 << 23));
    const float d = 1.0f + (x > 87.33f ? 0.0f : p);
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(d));
    return x *
           __fmaf_rn(reciprocal, -__fmaf_rn(d, reciprocal, -1.0f), reciprocal);
}
#endif
