#ifndef KERNELS_CUDA_FRAGMENT_CUH
#define KERNELS_CUDA_FRAGMENT_CUH
/*
 * mma.sync.m16n8k16 of bf16 with float sums, one warp, and what feeds it (PTX
 * ISA, "Matrix fragments for mma.m16n8k16"). With g = lane / 4, t = lane % 4:
 *     A  a0 (g, 2t..) a1 (g+8, 2t..) a2 (g, 2t+8..) a3 (g+8, 2t+8..)
 *     B  b0 (2t.., g) b1 (2t+8.., g)          as (inner index, column)
 *     C  c0 c1 (g, 2t..) c2 c3 (g+8, 2t..)
 * where 2t.. stands for 2t and 2t+1, two bf16 in one word. So the sums of two
 * neighbouring tiles, rounded, are an A operand of the same lane: fragment_of()
 * needs no exchange. And the sums of M = i, N = j, two tiles wide, are the two
 * B operands for inner index j and columns i.
 *
 * Tiles in shared memory have rows of 8 or 16 vectors of 8 bf16, vector v of
 * row r at v ^ (r % 8), so that eight rows of one vector meet no bank twice.
 */
#include <cuda_bf16.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_of(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* c += a b */
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4],
                                           uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices; lanes 8m .. 8m+7 point at the rows of matrix m. */
static __device__ __forceinline__ void load_matrices(uint32_t out[4],
                                                     uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

static __device__ __forceinline__ void load_transposed(uint32_t out[4],
                                                       uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

/* Two floats rounded, low in the low half. */
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
