#ifndef KERNELS_CUDA_DELTA_TILE_CUH
#define KERNELS_CUDA_DELTA_TILE_CUH
/*
 * Keys and queries of a chunk in shared memory: a tile each, in halves of
 * TILE_DIMS dims, each a swizzled tile (fragment.cuh) of GRID rows of 128
 * bytes. That is how the copy engine leaves a box of unit rows by itself, so
 * of a chunk that the call brings whole prepare and recur read those rows. Of
 * the others, a span's first and last at most, prepare arranges the tiles and
 * leaves them in memory for recur. Before Hopper it leaves those of all chunks.
 */
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/delta.cuh"

#define TILE_DIMS 64u
#define HALF_BYTES (GRID * TILE_DIMS * 2)
#define TILE_ALIGN 1024u /* the engine swizzles by addresses */

/* Bytes to vector v of row r of a tile. */
static __device__ __forceinline__ uint32_t tile_vector_at(uint32_t r,
                                                          uint32_t v)
{
    return v / 8 * HALF_BYTES + tile_at(r, v % 8, TILE_DIMS);
}

/* Vectors 2s and 2s + 1, from where a lane points in the first half. */
static __device__ __forceinline__ uint32_t tile_half_step(uint32_t at,
                                                          uint32_t s)
{
    return tile_step(at, s % 4) + s / 4 * HALF_BYTES;
}

/* Rows 16b .. of a tile. */
static __device__ __forceinline__ uint32_t tile_block(uint32_t b)
{
    return b * DELTA_BLOCK * TILE_DIMS * 2;
}

/* Whether prepare leaves no tiles of the chunk. */
static __device__ __forceinline__ bool tile_is_unit(struct delta_chunk at)
{
#if __CUDA_ARCH__ >= 900
    return at.first == 0 && at.end == GRID;
#else
    (void)at;
    return false;
#endif
}

/* Where else it leaves them, of chunk c of a span. */
static __device__ __forceinline__ char *tile_left(const struct delta_many &many,
                                                  uint32_t span, uint32_t c,
                                                  uint32_t k_head)
{
    const struct delta_shape shape = many.args.shape;
    const uint32_t i = c - many.chunk, last = many.n_tile - 1;
    const size_t slot = (size_t)span * many.n_tile + (i < last ? i : last);

    return many.tile +
           (slot * shape.n_k_head + k_head) * 2 * tile_bytes(shape.d_k);
}

/*
 * In the unit rows of a whole chunk the first dim of half i of both tiles. Of
 * 96 dims half of a box is the next head's, and unread.
 */
template <uint32_t D_K>
static __device__ __forceinline__ uint32_t tile_column(struct delta_shape shape,
                                                       uint32_t k_head,
                                                       uint32_t i)
{
    const uint32_t n_half = tile_bytes(D_K) / HALF_BYTES;

    return ((i < n_half ? shape.n_k_head : 0) + k_head) * D_K +
           i % n_half * TILE_DIMS;
}

/* Both tiles of a whole chunk; one thread, which has announced their bytes. */
template <uint32_t D_K>
static __device__ __forceinline__ void
tile_copy(const struct delta_many &many, struct delta_chunk at, uint32_t k_head,
          uint32_t to, uint32_t barrier)
{
#pragma unroll
    for (uint32_t i = 0; i < 2 * tile_bytes(D_K) / HALF_BYTES; i++)
        ptx_tensor_copy_2d(to + i * HALF_BYTES, &many.unit,
                           tile_column<D_K>(many.args.shape, k_head, i),
                           (uint32_t)at.row, barrier);
}

/* The share of one CTA of a cluster of N, to all of them; each has announced
 * the bytes of both tiles. */
template <uint32_t D_K, uint32_t N>
static __device__ __forceinline__ void
tile_share(const struct delta_many &many, struct delta_chunk at,
           uint32_t k_head, uint32_t to, uint32_t barrier)
{
    for (uint32_t i = cluster_rank(); i < 2 * tile_bytes(D_K) / HALF_BYTES;
         i += N)
        ptx_tensor_copy_2d_multicast(
            to + i * HALF_BYTES, &many.unit,
            tile_column<D_K>(many.args.shape, k_head, i), (uint32_t)at.row,
            barrier, (1u << N) - 1);
}

/* Thread `thread` of n_thread's share of whole 16 bytes. */
static __device__ __forceinline__ void copy_share(uint32_t to, const void *from,
                                                  uint32_t bytes,
                                                  uint32_t thread,
                                                  uint32_t n_thread)
{
    for (uint32_t i = thread * 16; i < bytes; i += n_thread * 16)
        ptx_cp_async_16(to + i, (const char *)from + i);
}
#endif
