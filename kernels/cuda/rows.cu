/*
 * Operators on rows that are bound by their memory traffic: embed, rms_norm,
 * rope, swiglu, gate. Each element is read once and written once; a thread
 * takes a few neighbours apart from each other by a block's width, so that a
 * warp's accesses are whole lines.
 *
 * The sum of a norm has one order for a width, whoever computes it. Up to 1,024
 * elements, or where they are no multiple of four: 32 lanes take elements i, i
 * + 32, ... ascending by fma, then lanes are folded by halves. Beyond: 512
 * lanes take four neighbours at a time, each 32 are folded, and these sums are
 * added in order.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define THREADS 256u
#define NARROW_MAX 1024u /* elements that one warp sums */
#define HELD 8u          /* elements that a lane of it holds */
#define WIDE 512u        /* threads of a block that sums more */

/* --------------------------------------------------------------------- norms
 */

static __device__ float fold_warp(float sum)
{
    for (int step = 16; step; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

/* A lane's elements of what comes from element i on, 32 of them apart. */
static __device__ __forceinline__ void load_each(float *to, const float *from,
                                                 uint32_t i, uint32_t dim)
{
#pragma unroll
    for (uint32_t n = 0; n < HELD; n++)
        to[n] = i + 32 * n < dim ? from[i + 32 * n] : 0.0f;
}

/* A warp for each group of each row. What a lane can hold it reads once, its
 * weights before the kernel ahead is done. */
static __global__ void norm_narrow(const __grid_constant__ struct norm_args a)
{
    const size_t at = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const size_t row = at / a.n_group, first = at % a.n_group * a.dim;
    const uint32_t lane = threadIdx.x % 32;
    const float *x = a.x + row * a.x_stride + first;
    float *y = a.y ? a.y + row * a.y_stride + first : NULL;
    uint16_t *rounded = a.y_rounded ? a.y_rounded + at * a.dim : NULL;
    float v[HELD], w[HELD], sum = 0.0f;

    launch_next();
    load_each(w, a.weight, lane, a.dim);
    launch_wait();
    if (row >= a.n_row)
        return;
    for (uint32_t i = lane; i < a.dim; i += 32 * HELD) {
        load_each(v, x, i, a.dim);
#pragma unroll
        for (uint32_t n = 0; n < HELD; n++)
            if (i + 32 * n < a.dim)
                sum = __fmaf_rn(v[n], v[n], sum);
    }
    const float scale = 1.0f / sqrtf(fold_warp(sum) / (float)a.dim + a.eps);
    for (uint32_t i = lane; i < a.dim; i += 32 * HELD) {
        if (a.dim > 32 * HELD) {
            load_each(v, x, i, a.dim);
            load_each(w, a.weight, i, a.dim);
        }
#pragma unroll
        for (uint32_t n = 0; n < HELD; n++) {
            const uint32_t e = i + 32 * n;
            const float to = v[n] * scale * w[n];

            if (y && e < a.dim)
                y[e] = to;
            if (rounded && e < a.dim)
                rounded[e] = (uint16_t)round_pair(to, 0.0f);
        }
    }
}

static __device__ float4 load4(const float *x, bool is_aligned)
{
    return is_aligned ? *(const float4 *)x
                      : make_float4(x[0], x[1], x[2], x[3]);
}

static __device__ void store4(float *y, float4 v, bool is_aligned)
{
    if (is_aligned) {
        *(float4 *)y = v;
        return;
    }
    y[0] = v.x;
    y[1] = v.y;
    y[2] = v.z;
    y[3] = v.w;
}

/* A block for each; its lanes take four neighbours at a time. What the second
 * pass reads, this SM has just read. */
static __global__ void norm_wide(const __grid_constant__ struct norm_args a)
{
    __shared__ float part[WIDE / 32];
    const size_t row = blockIdx.x / a.n_group;
    const size_t first = (size_t)(blockIdx.x % a.n_group) * a.dim;
    const float *x = a.x + row * a.x_stride + first;
    float *y = a.y ? a.y + row * a.y_stride + first : NULL;
    uint16_t *rounded =
        a.y_rounded ? a.y_rounded + (size_t)blockIdx.x * a.dim : NULL;
    const bool is_aligned = ((uintptr_t)x | (uintptr_t)y) % 16 == 0;
    float sum = 0.0f;

    launch_next();
    for (uint32_t i = threadIdx.x * 32; i < a.dim; i += WIDE * 32)
        launch_fetch(a.weight + i);
    launch_wait();

    for (uint32_t i = threadIdx.x * 4; i < a.dim; i += WIDE * 4) {
        const float4 v = load4(x + i, is_aligned);

        sum = __fmaf_rn(v.x, v.x, sum);
        sum = __fmaf_rn(v.y, v.y, sum);
        sum = __fmaf_rn(v.z, v.z, sum);
        sum = __fmaf_rn(v.w, v.w, sum);
    }
    sum = fold_warp(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (uint32_t i = 0; i < WIDE / 32; i++)
        sum += part[i];
    const float scale = 1.0f / sqrtf(sum / (float)a.dim + a.eps);
    for (uint32_t i = threadIdx.x * 4; i < a.dim; i += WIDE * 4) {
        const float4 v = load4(x + i, is_aligned);
        const float4 w = *(const float4 *)(a.weight + i);
        const float4 to = make_float4(v.x * scale * w.x, v.y * scale * w.y,
                                      v.z * scale * w.z, v.w * scale * w.w);

        if (y)
            store4(y + i, to, is_aligned);
        if (rounded)
            *(uint2 *)(rounded + i) =
                make_uint2(round_pair(to.x, to.y), round_pair(to.z, to.w));
    }
}

void cuda_rms_norm(struct gpu *gpu, const struct norm_args *a)
{
    const uint32_t n = a->n_row * a->n_group, each = THREADS / 32;

    if (gpu_is_replaying(gpu))
        return;
    if (a->dim <= NARROW_MAX || a->dim % 4)
        launch_early(gpu, norm_narrow, (n + each - 1) / each, THREADS, *a);
    else
        launch_early(gpu, norm_wide, n, WIDE, *a);
}

/* --------------------------------------------------------------- elementwise
 */

/* Blocks that cover `dim` elements of n_row rows: x elements, y rows. */
static dim3 cover(uint32_t dim, uint32_t n_row)
{
    return dim3((dim + THREADS - 1) / THREADS, n_row < 65535 ? n_row : 65535);
}

static __global__ void swiglu(const __grid_constant__ struct swiglu_args a)
{
    launch_begin();
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i < a.n_ff)
        for (size_t row = blockIdx.y; row < a.n_row; row += gridDim.y) {
            const float *x = a.x + row * a.x_stride;

            a.y[row * a.y_stride + i] = scalar_silu(x[i]) * x[a.n_ff + i];
        }
}

void cuda_swiglu(struct gpu *gpu, const struct swiglu_args *a)
{
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, swiglu, cover(a->n_ff, a->n_row), THREADS, *a);
}

static __global__ void embed(const __grid_constant__ struct embed_args a)
{
    launch_begin();
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= a.dim)
        return;
    for (size_t row = blockIdx.y; row < a.n_row; row += gridDim.y) {
        const size_t at = (size_t)a.token[row] * a.dim + i;

        a.y[row * a.dim + i] =
            a.type == LINEAR_F32
                ? ((const float *)a.table)[at]
                : __uint_as_float((uint32_t)((const uint16_t *)a.table)[at]
                                  << 16);
    }
}

void cuda_embed(struct gpu *gpu, const struct embed_args *args)
{
    struct embed_args a = *args;

    assert(a.type == LINEAR_F32 || a.type == LINEAR_BF16);
    a.token = (const uint32_t *)gpu_stage(gpu, args->token,
                                          a.n_row * sizeof(*a.token));
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, embed, cover(a.dim, a.n_row), THREADS, a);
}

/* ---------------------------------------------------------------------- rope
 */

/* By value: the table's struct is the host's. */
struct rope {
    float *x;
    size_t x_stride;
    const uint64_t *position;
    const float *cos, *sin;
    uint32_t n_row, n_pair, n_head, d_head;
};

/* A thread for each pair of a head, neighbours of one head side by side. */
static __global__ void rope(const __grid_constant__ struct rope a)
{
    launch_begin();
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    const uint32_t head = at / a.n_pair, i = at % a.n_pair;

    if (head >= a.n_head)
        return;
    for (size_t row = blockIdx.y; row < a.n_row; row += gridDim.y) {
        const uint64_t p = a.position[row];
        const size_t angle =
            (p / KV_BLOCK * a.n_pair + i) * KV_BLOCK + p % KV_BLOCK;
        float *pair = a.x + row * a.x_stride + (size_t)head * a.d_head + i;
        const float c = a.cos[angle], s = a.sin[angle];
        const float x = pair[0], y = pair[a.n_pair];

        pair[0] = __fmaf_rn(x, c, -(y * s));
        pair[a.n_pair] = __fmaf_rn(y, c, x * s);
    }
}

void cuda_rope(struct gpu *gpu, const struct rope_args *args)
{
    struct rope a;

    a.x = args->x;
    a.x_stride = args->x_stride;
    a.position = (const uint64_t *)gpu_stage(
        gpu, args->position, args->n_row * sizeof(*args->position));
    a.cos = args->table->cos;
    a.sin = args->table->sin;
    a.n_row = args->n_row;
    a.n_pair = args->table->n_rot / 2;
    a.n_head = args->n_head;
    a.d_head = args->d_head;
    if (!gpu_is_replaying(gpu) && a.n_pair)
        launch_early(gpu, rope, cover(a.n_head * a.n_pair, a.n_row), THREADS,
                     a);
}
