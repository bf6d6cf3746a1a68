#ifndef KERNELS_CUDA_LINEAR_F8_WORD_CUH
#define KERNELS_CUDA_LINEAR_F8_WORD_CUH
/*
 * A word of four e4m3 as kernels/linear_f8.h lays them, widened to bf16, which
 * holds each of them exactly: two words, the inputs 2t and 2t + 1 of a lane,
 * and those 8 further on.
 */
#include <stdint.h>

#define F8_BLOCK 128u

/* Exponent and mantissa are put where a bf16 has them; a product with 2^120,
 * exact for subnormals as well, sets the two biases apart. */
static __device__ __forceinline__ uint32_t f8_pair(uint32_t size, uint32_t sign)
{
    const uint32_t bits = (size & 0x07f007f0) | (sign & 0x80008000);
    uint32_t pair;

#if __CUDA_ARCH__ >= 900
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(bits), "r"(0x7b807b80));
#else /* which has fma alone: minus zero added keeps every sign */
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(bits), "r"(0x7b807b80), "r"(0x80008000));
#endif
    return pair;
}

/* Of the odd bytes. */
static __device__ __forceinline__ uint32_t f8_first(uint32_t word)
{
    return f8_pair(word >> 4, word);
}

/* Of the even ones. */
static __device__ __forceinline__ uint32_t f8_last(uint32_t word)
{
    return f8_pair(word << 4, word << 8);
}
#endif
