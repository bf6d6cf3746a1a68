#ifndef KERNELS_CUDA_ATTEND_TILE8_CUH
#define KERNELS_CUDA_ATTEND_TILE8_CUH
/*
 * A tile of int8 on a GPU, 64 tokens of 64 dims and a scale a token, laid out
 * for attend_few, where bf16 tiles would be (attend.cuh).
 *
 * Keys are four parts, one a warp, of 16 tokens: rows of 64 bytes, then their
 * scales. A part is copied to the end of where the warp's 16 rows of bf16 will
 * be, so that the warp widens them in place without asking the others.
 *
 * Values lie in the order of the left side of mma.m16n8k16, dims by tokens (PTX
 * ISA): 32 bytes a lane for a warp's 16 dims and all tokens, which it widens in
 * registers; then the scales.
 */
#include "kernels/cuda/attend.cuh"

#define TILE8_BYTES 4352u /* struct kv_tile */
#define TILE8_PART (TILE8_BYTES / 4)
#define TILE8_PART_AT(w) ((w)*2048u + 2048u - TILE8_PART)

static __device__ __forceinline__ uint32_t key8_at(uint32_t j, uint32_t d)
{
    return j / 16 * TILE8_PART + j % 16 * 64 + d;
}

static __device__ __forceinline__ uint32_t key8_scale_at(uint32_t j)
{
    return j / 16 * TILE8_PART + 1024 + j % 16 * 4;
}

static __device__ __forceinline__ uint32_t value8_at(uint32_t j, uint32_t d)
{
    uint32_t lane = d % 8 * 4 + j % 8 / 2;
    return d / 16 * 1024 + lane * 32 + j / 16 * 8 + j % 16 / 8 * 4 +
           d % 16 / 8 * 2 + j % 2;
}

static __device__ __forceinline__ uint32_t value8_scale_at(uint32_t j)
{
    return 4096 + j * 4;
}

/* Byte i of a word. */
static __device__ __forceinline__ float byte_of(uint32_t word, uint32_t i)
{
    return (float)(int8_t)(word >> 8 * i);
}

/* Bytes 2i and 2i + 1 times a scale each. */
static __device__ __forceinline__ uint32_t widened(uint32_t word, uint32_t i,
                                                   float low, float high)
{
    return bf16_pair(byte_of(word, 2 * i) * low,
                     byte_of(word, 2 * i + 1) * high);
}

/* Eight dims of one token. */
static __device__ __forceinline__ uint4 widened_unit(uint2 q, float scale)
{
    return {widened(q.x, 0, scale, scale), widened(q.x, 1, scale, scale),
            widened(q.y, 0, scale, scale), widened(q.y, 1, scale, scale)};
}

/* This warp's part of a tile in shared memory; two lanes a token. */
static __device__ __forceinline__ void widen_keys(unsigned char *tile)
{
    uint32_t w = threadIdx.x / 32, r = threadIdx.x % 32 / 2,
             e = threadIdx.x % 2 * 32;
    const unsigned char *part = tile + TILE8_PART_AT(w);
    float scale = *(const float *)(part + key8_scale_at(r));
    uint4 q[2];

    q[0] = *(const uint4 *)(part + r * 64 + e);
    q[1] = *(const uint4 *)(part + r * 64 + e + 16);
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t j = 16 * w + r, first = e + 16 * i;
        *(uint4 *)(tile + tile_at(j, first, 64)) =
            widened_unit({q[i].x, q[i].y}, scale);
        *(uint4 *)(tile + tile_at(j, first + 8, 64)) =
            widened_unit({q[i].z, q[i].w}, scale);
    }
    __syncwarp();
}

/* This warp's 16 dims of all tokens, as the left sides of four steps. */
static __device__ __forceinline__ void load_values8(uint32_t (*v)[4],
                                                    const unsigned char *tile)
{
    uint32_t w = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned char *at = tile + w * 1024 + lane * 32;

#pragma unroll
    for (uint32_t s = 0; s < 4; s++) {
        uint32_t j = 16 * s + lane % 4 * 2;
        float2 a = *(const float2 *)(tile + value8_scale_at(j));
        float2 b = *(const float2 *)(tile + value8_scale_at(j + 8));
        uint2 q = *(const uint2 *)(at + s * 8);

        v[s][0] = widened(q.x, 0, a.x, a.y);
        v[s][1] = widened(q.x, 1, a.x, a.y);
        v[s][2] = widened(q.y, 0, b.x, b.y);
        v[s][3] = widened(q.y, 1, b.x, b.y);
    }
}
#endif
