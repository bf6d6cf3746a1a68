#ifndef KERNELS_CUDA_BF16_CUH
#define KERNELS_CUDA_BF16_CUH
/* Pairs of bf16 in one word, as the tensor cores read them. */
#include <stdint.h>

/* Two floats rounded, low in the low half. Subnormals stay, other than in
 * round_pair() of scalar.cuh. */
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* ~x, as the float that it is: a pair whose low half is zero. */
static __device__ __forceinline__ float bf16_rounded(float x)
{
    return __uint_as_float(bf16_pair(0.0f, x));
}

static __device__ __forceinline__ float bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
#endif
