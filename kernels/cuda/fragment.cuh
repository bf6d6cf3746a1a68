#ifndef KERNELS_CUDA_FRAGMENT_CUH
#define KERNELS_CUDA_FRAGMENT_CUH
/*
 * Operands of mma.cuh, where they come from. The sums of two neighbouring
 * tiles, rounded, are an A operand of the same lane: fragment_of() needs no
 * exchange. And the sums of M = i, N = j, two tiles wide, are the two B
 * operands for inner index j and columns i.
 *
 * Tiles in shared memory have rows of 8 or 16 vectors of 8 bf16, vector v of
 * row r at v ^ (r % 8), so that eight rows of one vector meet no bank twice.
 */
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/mma.cuh"

#include <stdint.h>

/* A operand for inner indices 16s .. 16s+15 from sums of tiles 2s and 2s+1. */
static __device__ __forceinline__ void
fragment_of(uint32_t a[4], const float low[4], const float high[4])
{
    a[0] = bf16_pair(low[0], low[1]);
    a[1] = bf16_pair(low[2], low[3]);
    a[2] = bf16_pair(high[0], high[1]);
    a[3] = bf16_pair(high[2], high[3]);
}

/* Bytes to vector v of row r of a tile whose rows have `stride` bf16. */
static __device__ __forceinline__ uint32_t tile_at(uint32_t r, uint32_t v,
                                                   uint32_t stride)
{
    return (r * (stride / 8) + (v ^ (r & 7u))) * 16;
}

/*
 * Where this lane points for the matrices of a tile that starts at `tile`, a
 * multiple of 256. left: an A operand, of rows 0 .. 15 and inner vectors 0, 1.
 * right: two B operands whose columns are those rows. deep: two B operands
 * whose inner index is the row, of columns 0 .. 15 (by load_transposed()).
 * tile_step() goes to other vectors, 2s and 2s + 1; others rows are 16 times
 * the bytes of a row away.
 */
static __device__ __forceinline__ uint32_t left_of(uint32_t tile,
                                                   uint32_t stride)
{
    const uint32_t lane = threadIdx.x % 32;

    return tile + tile_at(lane % 16, lane / 16, stride);
}

static __device__ __forceinline__ uint32_t right_of(uint32_t tile,
                                                    uint32_t stride)
{
    const uint32_t lane = threadIdx.x % 32;

    return tile + tile_at(lane / 16 * 8 + lane % 8, lane / 8 % 2, stride);
}

static __device__ __forceinline__ uint32_t deep_of(uint32_t tile,
                                                   uint32_t stride)
{
    return left_of(tile, stride);
}

static __device__ __forceinline__ uint32_t tile_step(uint32_t at, uint32_t s)
{
    return at ^ 32 * s;
}
#endif
