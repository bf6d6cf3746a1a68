/*
 * How much of the attention of the last rows falls on each block: see struct
 * kv_mass_args in kernels/backend.h.
 *
 * Scores are chains of fp32 fmas over the dims, so no tensor core makes them; a
 * CTA has a block's keys and up to eight heads of one KV head, of each 16 rows,
 * and a warp the products of two heads with all 64 keys, 8 x 8 a thread. Scores
 * of all rows and keys would be 128 MiB for 131,072 tokens and 16 heads, so
 * they are made twice instead: for M and L of the rows, and for what falls on
 * each block.
 *
 * Bound: 2 x 16 x n_head x n_key x d fmas.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rotated.cuh"
#include "kernels/cuda/scalar.cuh"
#include "kernels/cuda/view_mass.cuh"

#include <assert.h>

#define ROWS 16u     /* of a head; those that are none are zero */
#define DIMS 32u     /* that are staged at a time */
#define WARPS_MAX 4u /* two heads each */
#define THREADS 128u /* of the small kernels */

struct mass {
    void *const *block;
    const float *cosine, *sine;
    uint32_t n_pair, n_head, n_kv_head, d_head, d_padded;
    uint32_t head_bytes; /* of a KV head's keys */
    float scale;
    uint32_t step, n_sum;
    uint64_t position; /* of the first row */
    uint32_t n_row;
    uint64_t n_block; /* up to the last row's */
    uint64_t first, end;
    const float *sums;
    float *query; /* [n_head][d_padded][ROWS] rotated sums */
    float *max;   /* [n_head][ROWS] M */
    float *share; /* 1 / L */
    float *part;  /* [n_head][ROWS][blocks] of each block: its largest score,
                     later what falls on it */
    float *sum;   /* sums above that */
    float *score;
};

/* ---------------------------------------------------------------- queries */

static __global__ void __launch_bounds__(THREADS)
    rotate_sums(const __grid_constant__ struct mass a)
{
    launch_begin();
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x, row = at % ROWS;
    const uint32_t e = at / ROWS % a.d_padded, head = at / ROWS / a.d_padded;
    const uint64_t position = a.position + row;
    float x = 0.0f;

    if (head >= a.n_head)
        return;
    if (row < a.n_row && e < a.d_head) {
        const struct rotation r =
            rotation_of(a.cosine, a.sine, a.n_pair, position / KV_BLOCK);
        const float *sum =
            a.sums + (position / a.step % a.n_sum * a.n_head + head) * a.d_head;

        x = sum[e];
        if (e < 2 * a.n_pair)
            x = rotated(r, e, position % KV_BLOCK, x, sum[other_of(r, e)]);
    }
    a.query[at] = x;
}

/* ----------------------------------------------------------------- scores */

struct tile {
    float key[DIMS][KV_BLOCK];
    float query[2 * WARPS_MAX][DIMS][ROWS]; /* of the CTA's heads */
};

/* Dims e .. e + DIMS - 1. */
static __device__ __forceinline__ void
stage(const struct mass &a, uint64_t block, uint32_t kv, uint32_t first_head,
      uint32_t end_head, uint32_t e, struct tile *to)
{
    const struct rotation r = rotation_of(a.cosine, a.sine, a.n_pair, block);
    const unsigned char *keys =
        (const unsigned char *)a.block[block] + (size_t)kv * a.head_bytes;
    const uint32_t j = threadIdx.x % KV_BLOCK;
    const uint32_t n_query = blockDim.x / 16 * DIMS * ROWS / 4;

    for (uint32_t u = threadIdx.x / KV_BLOCK; u < DIMS / 8;
         u += blockDim.x / KV_BLOCK) {
        float x[8];

        rotated_unit(r, keys, j, e + 8 * u, x);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            to->key[8 * u + i][j] = x[i];
    }
    for (uint32_t i = threadIdx.x; i < n_query; i += blockDim.x) {
        const uint32_t head = first_head + i / (DIMS * ROWS / 4);
        const float *from = a.query + ((size_t)head * a.d_padded + e) * ROWS;
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f};

        if (head < end_head)
            x = ((const float4 *)from)[i % (DIMS * ROWS / 4)];
        ((float4 *)to->query)[i] = x;
    }
}

/* Lane 8 i + k has rows 4 i .. 4 i + 3 of the warp's heads with keys 4 k ..
 * 4 k + 3 and those 32 further. */
static __device__ __forceinline__ void multiply(const struct tile &t,
                                                float s[8][8])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t i = lane / 8 * 4, k = lane % 8 * 4;

#pragma unroll 4
    for (uint32_t e = 0; e < DIMS; e++) {
        float q[8], key[8];

        *(float4 *)q = *(const float4 *)&t.query[2 * warp][e][i];
        *(float4 *)(q + 4) = *(const float4 *)&t.query[2 * warp + 1][e][i];
        *(float4 *)key = *(const float4 *)&t.key[e][k];
        *(float4 *)(key + 4) = *(const float4 *)&t.key[e][k + 32];
#pragma unroll
        for (uint32_t x = 0; x < 8; x++)
#pragma unroll
            for (uint32_t y = 0; y < 8; y++)
                s[x][y] = __fmaf_rn(q[x], key[y], s[x][y]);
    }
}

static __device__ __forceinline__ float of_lane_behind(float x, uint32_t n)
{
    return __shfl_down_sync(0xffffffff, x, n, 8);
}

/* Of a row's 64 weights, keys as multiply() has them, in the order of
 * scalar_sum(): in the first of the row's lanes. */
static __device__ __forceinline__ float sum_of(const float p[8])
{
    float lane[4];

#pragma unroll
    for (uint32_t c = 0; c < 4; c++) {
        lane[c] = p[c] + of_lane_behind(p[c], 4); /* elements 4 k + c, + 16 */
        lane[c] += p[4 + c];
        lane[c] += of_lane_behind(p[4 + c], 4);
        lane[c] += of_lane_behind(lane[c], 2);
        lane[c] += of_lane_behind(lane[c], 1);
    }
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

/* The largest of a row's scores. */
static __device__ __forceinline__ float most_of(const float s[8],
                                                const bool *is_seen)
{
    float most = __int_as_float(0xff800000);

#pragma unroll
    for (uint32_t y = 0; y < 8; y++)
        most = is_seen[y] ? fmaxf(most, s[y]) : most;
#pragma unroll
    for (uint32_t n = 1; n < 8; n *= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, n));
    return most;
}

/* Keys of the block that are not behind the row. */
static __device__ __forceinline__ uint32_t n_seen(const struct mass &a,
                                                  uint32_t row, uint64_t block)
{
    const uint64_t n = a.position + row + 1, before = block * KV_BLOCK;
    const uint64_t n_key = n > before ? n - before : 0;

    if (row >= a.n_row)
        return 0;
    return n_key < KV_BLOCK ? (uint32_t)n_key : KV_BLOCK;
}

/*
 * blockIdx.x: the block, from a.first on if what falls on it is wanted, which
 * takes M and L; else all, for their maxima and sums.
 */
template <bool IS_WEIGHING>
static __global__ void __launch_bounds__(32 * WARPS_MAX, 4)
    scores(const __grid_constant__ struct mass a)
{
    launch_begin();
    __shared__ struct tile tile;
    const uint32_t group = a.n_head / a.n_kv_head;
    const uint32_t n_part = gridDim.y / a.n_kv_head;
    const uint32_t kv = blockIdx.y / n_part;
    const uint32_t first_head =
        kv * group + blockIdx.y % n_part * (blockDim.x / 16);
    const uint64_t block = blockIdx.x + (IS_WEIGHING ? a.first : 0);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float s[8][8] = {};

    for (uint32_t e = 0; e < a.d_padded; e += DIMS) {
        __syncthreads();
        stage(a, block, kv, first_head, (kv + 1) * group, e, &tile);
        __syncthreads();
        multiply(tile, s);
    }
#pragma unroll
    for (uint32_t x = 0; x < 8; x++) {
        const uint32_t head = first_head + 2 * warp + x / 4;
        const uint32_t row = lane / 8 * 4 + x % 4;
        const bool is_head = head < (kv + 1) * group;
        const uint32_t n_key = n_seen(a, row, block);
        const uint32_t stat = head * ROWS + row;
        bool is_seen[8];
        float p[8];

#pragma unroll
        for (uint32_t y = 0; y < 8; y++) {
            is_seen[y] = lane % 8 * 4 + y % 4 + y / 4 * 32 < n_key;
            s[x][y] *= a.scale;
        }
        const float max = !IS_WEIGHING ? most_of(s[x], is_seen)
                          : is_head    ? a.max[stat]
                                       : 0.0f;
#pragma unroll
        for (uint32_t y = 0; y < 8; y++)
            p[y] = is_seen[y] ? scalar_exp(s[x][y] - max) : 0.0f;
        const float sum = sum_of(p);
        if (lane % 8 || !is_head)
            continue;
        const size_t at = (size_t)stat * gridDim.x + blockIdx.x;
        a.part[at] = IS_WEIGHING ? sum * a.share[stat] : max;
        if (!IS_WEIGHING)
            a.sum[at] = sum;
    }
}

/* ------------------------------------------------------------------- sums */

/*
 * A row's blocks merged in order, a warp for a row of a head. Where M stands
 * is known ahead, so only the chain of L goes block by block.
 */
static __global__ void __launch_bounds__(32)
    merge(const __grid_constant__ struct mass a)
{
    launch_begin();
    const uint32_t lane = threadIdx.x, stat = blockIdx.x;
    const float none = __int_as_float(0xff800000);
    const uint64_t n_seen = (a.position + stat % ROWS) / KV_BLOCK + 1;
    const float *part = a.part + stat * a.n_block;
    const float *sum = a.sum + stat * a.n_block;
    float all_max = none, all_sum = 0.0f;

    if (stat % ROWS >= a.n_row)
        return;
    for (uint64_t b = 0; b < n_seen; b += 32) {
        const bool is_block = b + lane < n_seen;
        const float max = is_block ? part[b + lane] : none;
        float top = fmaxf(max, all_max);

#pragma unroll
        for (uint32_t n = 1; n < 32; n *= 2)
            top = fmaxf(top, __shfl_up_sync(0xffffffff, top, n));
        float before = __shfl_up_sync(0xffffffff, top, 1);
        before = lane ? before : all_max;
        const float by = scalar_exp(before - top);
        const float more =
            is_block ? sum[b + lane] * scalar_exp(max - top) : 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) /* behind the last: by one, and zero */
            all_sum = __fmaf_rn(all_sum, __shfl_sync(0xffffffff, by, i),
                                __shfl_sync(0xffffffff, more, i));
        all_max = __shfl_sync(0xffffffff, top, 31);
    }
    if (lane == 0) {
        a.max[stat] = all_max;
        a.share[stat] = 1.0f / all_sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
    add_up(const __grid_constant__ struct mass a)
{
    launch_begin();
    const uint64_t n = a.end - a.first;
    const uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    float mass = 0.0f;

    if (at >= n)
        return;
    for (uint32_t head = 0; head < a.n_head; head++)
        for (uint32_t row = 0; row < a.n_row; row++)
            mass += a.part[(head * ROWS + row) * n + at];
    a.score[at] = mass;
}

/* ------------------------------------------------------------------- call */

static uint32_t n_row_of(const struct kv_view *view)
{
    const uint64_t end = view->position + view->n_row;

    return end < view->n_sum ? (uint32_t)end : view->n_sum;
}

static uint64_t n_block_of(const struct kv_view *view)
{
    return (view->position + view->n_row - 1) / KV_BLOCK + 1;
}

static uint32_t padded(uint32_t d_head)
{
    return (d_head + DIMS - 1) / DIMS * DIMS;
}

/* Of the pieces of scratch memory, in order. */
static size_t query_floats(const struct attend_shape *shape)
{
    return (size_t)shape->n_head * padded(shape->d_head) * ROWS;
}

static size_t stat_floats(const struct attend_shape *shape)
{
    return (size_t)shape->n_head * ROWS;
}

size_t view_mass_bytes(const struct attend_shape *shape,
                       const struct kv_view *view)
{
    return (query_floats(shape) +
            stat_floats(shape) * (2 + 2 * n_block_of(view))) *
           sizeof(float);
}

static struct mass mass_of(const struct view_mass_call *call)
{
    const struct attend_shape *shape = &call->args->shape;
    const struct rope_table *table = call->args->table;
    const struct kv_view *view = call->view;
    struct mass a = {};

    a.block = view->block;
    a.cosine = table->cos;
    a.sine = table->sin;
    a.n_pair = table->n_rot / 2;
    a.n_head = shape->n_head;
    a.n_kv_head = shape->n_kv_head;
    a.d_head = shape->d_head;
    a.d_padded = padded(shape->d_head);
    a.head_bytes = attend_padded(shape->d_head) / 64 * TILE_BYTES;
    a.scale = call->args->scale;
    a.step = view->step;
    a.n_sum = view->n_sum;
    a.n_row = n_row_of(view);
    a.position = view->position + view->n_row - a.n_row;
    a.n_block = n_block_of(view);
    a.first = view->first;
    a.end = view->end;
    a.sums = call->queries;
    a.query = (float *)call->scratch;
    a.max = a.query + query_floats(shape);
    a.share = a.max + stat_floats(shape);
    a.part = a.share + stat_floats(shape);
    a.sum = a.part + stat_floats(shape) * a.n_block;
    a.score = call->score;
    return a;
}

void view_mass(struct gpu *gpu, const struct view_mass_call *call)
{
    const struct mass a = mass_of(call);
    const uint32_t n_pair = div_up(a.n_head / a.n_kv_head, 2); /* of heads */
    const uint32_t n_warp = n_pair <= 2 ? 2 : WARPS_MAX;
    const uint32_t n_y = div_up(n_pair, n_warp) * a.n_kv_head;
    const uint32_t n_candidate = (uint32_t)(a.end - a.first);

    assert(!gpu_is_recording(gpu) && !gpu_is_replaying(gpu));
    assert(call->args->shape.kv == KV_WIDE && a.d_head <= ATTEND_DIM_MAX);
    assert(a.step == 1 && a.n_sum <= ROWS && a.first < a.end);
    assert(a.end <= a.n_block);
    launch_early(gpu, rotate_sums,
                 div_up((uint64_t)a.n_head * a.d_padded * ROWS, THREADS),
                 THREADS, a);
    launch_early(gpu, scores<false>, dim3((uint32_t)a.n_block, n_y),
                 32 * n_warp, a);
    launch_early(gpu, merge, a.n_head * ROWS, 32, a);
    launch_early(gpu, scores<true>, dim3(n_candidate, n_y), 32 * n_warp, a);
    launch_early(gpu, add_up, div_up(n_candidate, THREADS), THREADS, a);
}
