#ifndef TESTS_GPU_GPU_TEST_CUH
#define TESTS_GPU_GPU_TEST_CUH
/* What the programs of tests/gpu share: device memory, random numbers, bf16. */
#include <cuda_runtime.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void test_cuda(cudaError_t error)
{
    if (error != cudaSuccess) {
        printf("FAILED: %s\n", cudaGetErrorString(error));
        exit(1);
    }
}

/* Device memory, a copy of `from` or all ones, which floats read as NaN. */
static inline void *test_device(const void *from, size_t bytes)
{
    void *to;

    test_cuda(cudaMalloc(&to, bytes));
    if (from)
        test_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
    else
        test_cuda(cudaMemset(to, 0xff, bytes));
    return to;
}

static inline void test_write(void *to, const void *from, size_t bytes)
{
    test_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
    test_cuda(cudaDeviceSynchronize());
}

static inline void test_read(void *to, const void *from, size_t bytes)
{
    test_cuda(cudaDeviceSynchronize());
    test_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static inline uint32_t test_random(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15u;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static inline uint32_t test_below(uint32_t n)
{
    return (uint32_t)((uint64_t)test_random() * n >> 32);
}

/* Nearly: the sum of four uniform numbers, of variance 1. */
static inline float test_normal(void)
{
    const uint32_t r = test_random();
    const int sum =
        (int)((r & 255) + (r >> 8 & 255) + (r >> 16 & 255) + (r >> 24)) - 510;

    return (float)sum * (1.7320508f / 256);
}

static inline float test_float(uint16_t bf16)
{
    const uint32_t bits = (uint32_t)bf16 << 16;
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* To the nearest, ties to even; of finite normal numbers. */
static inline uint16_t test_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#endif
