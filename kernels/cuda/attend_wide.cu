/*
 * Blocks of int8: see attend_wide.cuh.
 *
 * append: a warp a tile's token, two dims a lane. widen: a CTA a tile of a
 * block, 8 dims of a token a thread at a time. A layer's past is read as int8,
 * written and read again as bf16: 2.4 times the bytes of a past that lies there
 * as bf16. What is gained is room: 4,352 instead of 8,192 bytes a tile, while
 * the scratch memory is that of one layer.
 */
#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>
#include <float.h>

#define N_THREAD 256u
#define N_WARP (N_THREAD / 32)
#define SPAN_MAX 64u /* of a launch */
#define TABLE_ALIGN 256u
#define UNITS (KV_TILE_DIMS / 8) /* of 16 bytes as bf16 */

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

/* As kernels/move.c does it. */
static __device__ void put_token(struct kv_tile *tile, uint32_t j, float x,
                                 float y)
{
    const uint32_t lane = threadIdx.x % 32;
    const float largest = warp_largest(x, y), scale = largest / 127.0f;
    const bool is_some = scale >= FLT_MIN;
    const float inverse = is_some ? 1.0f / scale : 0.0f;
    char2 q = {0, 0};

    if (is_some) {
        q.x = quantised(x, inverse);
        q.y = quantised(y, inverse);
    }
    *(char2 *)&tile->q[j][2 * lane] = q;
    if (lane == 0)
        tile->scale[j] = largest != largest ? NAN : is_some ? scale : 0.0f;
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
    struct kv_tile *tile = (struct kv_tile *)span.block[b] + blockIdx.y;

    for (uint32_t j = threadIdx.x / 32; j < KV_BLOCK; j += N_WARP) {
        const uint64_t t = b * KV_BLOCK + j;
        const bool is_new = t >= span.position && t < end;
        const float *row =
            from + (span.first_row + (t - span.position)) * stride;

        if (!is_new && (t < end || b * KV_BLOCK < span.position))
            continue;
        put_token(tile, j, is_new && d < a.shape.d_head ? row[d] : 0.0f,
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

/* Four of int8 times their scale. */
static __device__ uint2 widened(uint32_t q, float scale)
{
    const float x[4] = {(float)(int8_t)q, (float)(int8_t)(q >> 8),
                        (float)(int8_t)(q >> 16), (float)(int8_t)(q >> 24)};

    return {bf16_pair(x[0] * scale, x[1] * scale),
            bf16_pair(x[2] * scale, x[3] * scale)};
}

static __global__ void __launch_bounds__(N_THREAD)
    widen_kernel(const struct wide_span *spans)
{
    launch_begin();
    const struct wide_span &s = spans[blockIdx.z];
    const uint64_t b = blockIdx.x;

    if (b * KV_BLOCK >= s.span.position + s.span.n_row)
        return;
    const struct kv_tile *tile =
        (const struct kv_tile *)s.span.block[b] + blockIdx.y;
    unsigned char *page = s.page + b * gridDim.y * TILE_BYTES;
    unsigned char *to = page + (size_t)blockIdx.y * TILE_BYTES;

    if (blockIdx.y == 0 && threadIdx.x == 0)
        s.table[b] = page;
    for (uint32_t i = threadIdx.x; i < KV_BLOCK * UNITS; i += N_THREAD) {
        const uint32_t j = i / UNITS, u = i % UNITS;
        const uint2 q = *(const uint2 *)&tile->q[j][8 * u];
        const uint2 low = widened(q.x, tile->scale[j]);
        const uint2 high = widened(q.y, tile->scale[j]);

        *(uint4 *)(to + tile_at(j, 8 * u, 64)) = {low.x, low.y, high.x, high.y};
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
