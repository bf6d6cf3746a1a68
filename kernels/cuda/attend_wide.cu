/*
 * Blocks of int8: see attend_wide.cuh.
 *
 * append: a warp a tile's token, two dims a lane. widen: a CTA a tile of a
 * block, 8 dims of a token a thread at a time; memory is the bound, 4,352 bytes
 * read and 8,192 written a tile.
 */
#include "kernels/cuda/attend_tile8.cuh"
#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>
#include <float.h>

#define N_THREAD 256u
#define N_WARP (N_THREAD / 32)
#define SPAN_MAX 64u /* of a launch */
#define TABLE_ALIGN 256u
#define UNITS (KV_TILE_DIMS / 8) /* of 16 bytes as bf16 */

static_assert(sizeof(struct kv_tile) == TILE8_BYTES, "of the same size");

/* A span whose blocks are to be widened, and where to. */
struct wide_span {
    struct attend_span span;
    unsigned char *page;
    void **table;
};

/* Tiles of a head, and of a block: keys of all heads, then values. */
static uint32_t head_tiles(const struct attend_shape *shape)
{
    return attend_padded(shape->d_head) / KV_TILE_DIMS;
}

static uint32_t block_tiles(const struct attend_shape *shape)
{
    return 2 * shape->n_kv_head * head_tiles(shape);
}

/* ------------------------------------------------------------------ append */

/* The largest of a warp's; NaN where one is not finite. */
static __device__ float warp_largest(float a, float b)
{
    float most = fmaxf(fabsf(a), fabsf(b));

    if (!(fabsf(a) <= FLT_MAX && fabsf(b) <= FLT_MAX))
        most = INFINITY;
#pragma unroll
    for (int d = 16; d; d /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    return most <= FLT_MAX ? most : NAN;
}

static __device__ int8_t quantised(float x, float inverse)
{
    return (int8_t)__float2int_rn(fminf(fmaxf(x * inverse, -127.0f), 127.0f));
}

/* As kernels/move.c does it, to other places. */
static __device__ void put_token(unsigned char *tile, bool is_key, uint32_t j,
                                 float x, float y)
{
    const uint32_t lane = threadIdx.x % 32;
    const float largest = warp_largest(x, y), scale = largest / 127.0f;
    const bool is_some = scale >= FLT_MIN;
    const float inverse = is_some ? 1.0f / scale : 0.0f;
    const uint32_t d = 2 * lane;
    char2 q = {0, 0};

    if (is_some) {
        q.x = quantised(x, inverse);
        q.y = quantised(y, inverse);
    }
    *(int8_t *)(tile + (is_key ? key8_at(j, d) : value8_at(j, d))) = q.x;
    *(int8_t *)(tile + (is_key ? key8_at(j, d + 1) : value8_at(j, d + 1))) =
        q.y;
    if (lane == 0)
        *(float *)(tile + (is_key ? key8_scale_at(j) : value8_scale_at(j))) =
            largest != largest ? NAN
            : is_some          ? scale
                               : 0.0f;
}

/*
 * One tile of one block: blockIdx.y is its number. A block entered at its first
 * token is filled with zeros behind the rows, so that what is multiplied by a
 * weight of zero later is always finite.
 */
static __global__ void __launch_bounds__(N_THREAD)
    append_kernel(const __grid_constant__ struct kv_append_args a,
                  const struct attend_span *spans, uint32_t n_tile)
{
    launch_begin();
    const struct attend_span &span = spans[blockIdx.z];
    const uint64_t b = span.position / KV_BLOCK + blockIdx.x;
    const uint64_t end = span.position + span.n_row;
    const uint32_t n_kv = a.shape.n_kv_head, head = blockIdx.y / n_tile;
    const bool is_key = head < n_kv;
    const size_t stride = is_key ? a.k_stride : a.v_stride;
    const float *from =
        (is_key ? a.k : a.v) + (size_t)(head % n_kv) * a.shape.d_head;
    const uint32_t d =
        blockIdx.y % n_tile * KV_TILE_DIMS + threadIdx.x % 32 * 2;

    if (b * KV_BLOCK >= end)
        return;
    unsigned char *tile =
        (unsigned char *)span.block[b] + blockIdx.y * TILE8_BYTES;

    for (uint32_t j = threadIdx.x / 32; j < KV_BLOCK; j += N_WARP) {
        const uint64_t t = b * KV_BLOCK + j;
        const bool is_new = t >= span.position && t < end;
        const float *row =
            from + (span.first_row + (t - span.position)) * stride;

        if (!is_new && (t < end || b * KV_BLOCK < span.position))
            continue;
        put_token(tile, is_key, j, is_new && d < a.shape.d_head ? row[d] : 0.0f,
                  is_new && d + 1 < a.shape.d_head ? row[d + 1] : 0.0f);
    }
}

void append_int8(struct gpu *gpu, const struct kv_append_args *args,
                 const struct attend_span *span, uint32_t n_span,
                 uint32_t n_block)
{
    launch_early(gpu, append_kernel,
                 dim3(n_block, block_tiles(&args->shape), n_span), N_THREAD,
                 *args, span, head_tiles(&args->shape));
}

/* ------------------------------------------------------------------- widen */

/* Eight dims of token j. */
static __device__ uint2 value_bytes(const unsigned char *tile, uint32_t j,
                                    uint32_t d)
{
    uint32_t word[2] = {0, 0};

#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        word[i / 4] |= (uint32_t)tile[value8_at(j, d + i)] << i % 4 * 8;
    return {word[0], word[1]};
}

static __global__ void __launch_bounds__(N_THREAD)
    widen_kernel(const struct wide_span *spans)
{
    launch_begin();
    const struct wide_span &s = spans[blockIdx.z];
    const uint64_t b = blockIdx.x;
    const bool is_key = blockIdx.y < gridDim.y / 2;

    if (b * KV_BLOCK >= s.span.position + s.span.n_row)
        return;
    const unsigned char *tile =
        (const unsigned char *)s.span.block[b] + blockIdx.y * TILE8_BYTES;
    unsigned char *page = s.page + b * gridDim.y * TILE_BYTES;
    unsigned char *to = page + (size_t)blockIdx.y * TILE_BYTES;

    if (blockIdx.y == 0 && threadIdx.x == 0)
        s.table[b] = page;
    for (uint32_t i = threadIdx.x; i < KV_BLOCK * UNITS; i += N_THREAD) {
        const uint32_t j = i / UNITS, d = i % UNITS * 8;
        const uint2 q = is_key ? *(const uint2 *)(tile + key8_at(j, d))
                               : value_bytes(tile, j, d);
        const float scale =
            *(const float *)(tile +
                             (is_key ? key8_scale_at(j) : value8_scale_at(j)));

        *(uint4 *)(to + tile_at(j, d, 64)) = widened_unit(q, scale);
    }
}

uint64_t wide_n_block(const struct gpu *gpu, uint64_t n_key)
{
    return gpu_is_recording(gpu) || gpu_is_replaying(gpu)
               ? gpu_block_bound(gpu)
               : (n_key + KV_BLOCK - 1) / KV_BLOCK;
}

static size_t table_bytes(uint64_t n_block)
{
    return (n_block * sizeof(void *) + TABLE_ALIGN - 1) / TABLE_ALIGN *
           TABLE_ALIGN;
}

static size_t span_bytes(const struct attend_shape *shape, uint64_t n_block)
{
    return n_block * block_tiles(shape) * TILE_BYTES + table_bytes(n_block);
}

size_t wide_bytes(const struct attend_shape *shape, uint32_t n_span,
                  uint64_t n_block)
{
    return shape->kv == KV_INT8 ? n_span * span_bytes(shape, n_block) : 0;
}

void attend_widen(struct gpu *gpu, const struct attend_shape *shape,
                  struct attend_span *span, uint32_t n_span, uint64_t n_block,
                  unsigned char *scratch)
{
    struct wide_span list[SPAN_MAX];

    if (shape->kv != KV_INT8)
        return;
    assert(n_span <= SPAN_MAX);
    for (uint32_t i = 0; i < n_span; i++) {
        list[i].span = span[i];
        list[i].page = scratch + i * span_bytes(shape, n_block);
        list[i].table = (void **)(list[i].page + span_bytes(shape, n_block) -
                                  table_bytes(n_block));
        span[i].block = list[i].table;
    }
    const struct wide_span *staged =
        (const struct wide_span *)gpu_stage(gpu, list, n_span * sizeof(*list));
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, widen_kernel,
                     dim3((uint32_t)n_block, block_tiles(shape), n_span),
                     N_THREAD, staged);
}
