#ifndef KERNELS_CUDA_ROTATED_CUH
#define KERNELS_CUDA_ROTATED_CUH
/*
 * Keys as memory policies hold queries against them: widened, rotated as floats
 * by their true positions with the table's own angles, and not rounded again.
 * (Attention's keys are others: attend.cuh.)
 */
#include "kernels/cuda/attend.cuh"

/* Of a block: the table's entries for its tokens, [n_pair][KV_BLOCK] each. */
struct rotation {
    const float *cosine, *sine;
    uint32_t n_pair;
};

static __device__ __forceinline__ struct rotation
rotation_of(const float *cosine, const float *sine, uint32_t n_pair,
            uint64_t block)
{
    const size_t at = block * n_pair * KV_BLOCK;

    return {cosine + at, sine + at, n_pair};
}

/* Dim e of a query or a key at place j of its block, `other` being the dim that
 * it makes a pair with. */
static __device__ __forceinline__ float
rotated(const struct rotation &r, uint32_t e, uint32_t j, float x, float other)
{
    const uint32_t i = e < r.n_pair ? e : e - r.n_pair;
    const float c = __ldg(r.cosine + i * KV_BLOCK + j);
    const float s = __ldg(r.sine + i * KV_BLOCK + j);
    const float product = other * s;

    return __fmaf_rn(x, c, e < r.n_pair ? -product : product);
}

/* Where the other dim of a pair is. */
static __device__ __forceinline__ uint32_t other_of(const struct rotation &r,
                                                    uint32_t e)
{
    return e < r.n_pair ? e + r.n_pair : e - r.n_pair;
}

static __device__ __forceinline__ void widen_unit(const unsigned char *from,
                                                  float x[8])
{
    const uint4 unit = *(const uint4 *)from;
    const uint32_t word[4] = {unit.x, unit.y, unit.z, unit.w};

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        x[2 * i] = bf16_low(word[i]);
        x[2 * i + 1] = bf16_high(word[i]);
    }
}

/* Dims e .. e + 7 of key j among the tiles of a KV head; e is a multiple of 8,
 * and what lies behind the last dim is zero. */
static __device__ __forceinline__ void rotated_unit(const struct rotation &r,
                                                    const unsigned char *head,
                                                    uint32_t j, uint32_t e,
                                                    float x[8])
{
    float other[8];

    widen_unit(head + tile_at(j, e, KV_BLOCK), x);
    if (e >= 2 * r.n_pair)
        return;
    if (r.n_pair % 8 == 0) {
        widen_unit(head + tile_at(j, other_of(r, e), KV_BLOCK), other);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            x[i] = rotated(r, e + i, j, x[i], other[i]);
        return;
    }
    for (uint32_t i = 0; i < 8 && e + i < 2 * r.n_pair; i++) {
        const uint32_t at = tile_at(j, other_of(r, e + i), KV_BLOCK);

        x[i] = rotated(r, e + i, j, x[i],
                       bf16_low(*(const uint16_t *)(head + at)));
    }
}
#endif
