/*
 * Layers of experts: the router's product, route and combine, with the bits of
 * the CPU's fp32 arithmetic, so that equal rows go to equal experts. The router
 * is small and its chain is long; a thread has one output of one row, and 16
 * rows share each weight that a block reads.
 *
 * Rows are put in order of experts without atomics: a block for each expert
 * counts who chose it, then hands out its places in order of rows.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define ROWS 16u  /* of a block of the router's product */
#define DEPTH 64u /* inputs that it holds at a time */
#define PANEL LINEAR_PANEL
#define LANES 16u /* of a sum, as scalar_sum() */
#define GROUP_THREADS 256u
#define THREADS 256u

/* ------------------------------------------------------------------- product
 */

struct plain {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    const void *panel;
    size_t n_step; /* inputs as a panel pads them */
    uint32_t n_row, n_in, n_out, is_f32;
};

static __device__ float weight_at(const struct plain &a, size_t panel, size_t k,
                                  size_t lane)
{
    const size_t at = panel * a.n_step * PANEL;

    if (a.is_f32)
        return ((const float *)a.panel)[at + k * PANEL + lane];
    return __uint_as_float(
        (uint32_t)((const uint16_t *)
                       a.panel)[at + (k / 2 * PANEL + lane) * 2 + k % 2]
        << 16);
}

/* The fp32 chain: kernels/linear.h. */
static __global__ void plain(const __grid_constant__ struct plain a)
{
    launch_begin();
    __shared__ float x[ROWS][DEPTH], w[DEPTH][PANEL];
    const uint32_t lane = threadIdx.x % PANEL, r = threadIdx.x / PANEL;
    const uint32_t row = blockIdx.y * ROWS + r;
    const uint32_t out = blockIdx.x * PANEL + lane;
    float sum = 0.0f;

    for (uint32_t k0 = 0; k0 < a.n_in; k0 += DEPTH) {
        const uint32_t n = a.n_in - k0 < DEPTH ? a.n_in - k0 : DEPTH;

        for (uint32_t k = lane; k < n; k += PANEL)
            x[r][k] = row < a.n_row ? a.x[row * a.x_stride + k0 + k] : 0.0f;
        for (uint32_t k = r; k < n; k += ROWS)
            w[k][lane] = weight_at(a, blockIdx.x, k0 + k, lane);
        __syncthreads();
#pragma unroll 16 /* loads ahead of the chain */
        for (uint32_t k = 0; k < n; k++)
            sum = __fmaf_rn(x[r][k], w[k][lane], sum);
        __syncthreads();
    }
    if (row < a.n_row && out < a.n_out)
        a.y[row * a.y_stride + out] = sum;
}

void cuda_linear_plain(struct gpu *gpu, const struct linear_args *args)
{
    const struct linear *w = args->w;
    const bool is_f32 = w->type == LINEAR_F32;
    struct plain a;

    assert(is_f32 || w->type == LINEAR_BF16);
    a.y = args->y;
    a.y_stride = args->y_stride;
    a.x = args->x;
    a.x_stride = args->x_stride;
    a.panel = w->panel;
    a.n_step = is_f32 ? w->n_in
                      : (w->n_in + LINEAR_STEP - 1) / LINEAR_STEP * LINEAR_STEP;
    a.n_row = args->n_row;
    a.n_in = w->n_in;
    a.n_out = w->n_out;
    a.is_f32 = is_f32;
    if (!gpu_is_replaying(gpu))
        launch_early(
            gpu, plain,
            dim3((a.n_out + PANEL - 1) / PANEL, (a.n_row + ROWS - 1) / ROWS),
            PANEL * ROWS, a);
}

/* --------------------------------------------------------------------- route
 */

/* What an expert is worth when the best are picked: nothing comes after no
 * number. */
static __device__ float worth(float w)
{
    return isnan(w) ? -1.0f : w;
}

/* The 16-lane sum; every lane of the warp has it. */
static __device__ float sum_lanes(const float *x, uint32_t n, uint32_t lane)
{
    float sum = 0.0f;

    for (uint32_t i = lane; lane < LANES && i < n; i += LANES)
        sum += x[i];
    for (uint32_t step = LANES / 2; step; step /= 2)
        sum += __shfl_down_sync(0xffffffffu, sum, step);
    return __shfl_sync(0xffffffffu, sum, 0);
}

/* p = exp(logit - m) in w; returns their sum. */
static __device__ float soften(const float *logit, float *w, uint32_t n,
                               uint32_t lane)
{
    float most = -__int_as_float(0x7f800000);

    for (uint32_t i = lane; i < n; i += 32)
        most = logit[i] > most ? logit[i] : most;
    for (int step = 16; step; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, most, step);

        most = other > most ? other : most;
    }
    for (uint32_t i = lane; i < n; i += 32)
        w[i] = scalar_exp(logit[i] - most);
    __syncwarp();
    return sum_lanes(w, n, lane);
}

/* The best of those left, the lower index of equals. */
static __device__ uint32_t pick(const float *w, const bool *is_taken,
                                uint32_t n, uint32_t lane)
{
    float best = -2.0f;
    uint32_t at = UINT32_MAX;

    for (uint32_t i = lane; i < n; i += 32)
        if (!is_taken[i] && worth(w[i]) > best) {
            best = worth(w[i]);
            at = i;
        }
    for (int step = 16; step; step /= 2) {
        const float b = __shfl_xor_sync(0xffffffffu, best, step);
        const uint32_t i = __shfl_xor_sync(0xffffffffu, at, step);

        if (b > best || (b == best && i < at)) {
            best = b;
            at = i;
        }
    }
    return at;
}

/* A row's experts, ascending, with their weights: one warp. */
static __global__ void choose(const __grid_constant__ struct route_args a)
{
    launch_begin();
    __shared__ float w[EXPERT_MAX];
    __shared__ bool is_taken[EXPERT_MAX];
    const uint32_t lane = threadIdx.x, n = a.to.n_expert;
    const size_t first = (size_t)blockIdx.x * a.to.n_chosen;
    const float *logit = a.logit + blockIdx.x * a.logit_stride;
    const float all = soften(logit, w, n, lane);
    float sum = 0.0f;
    uint32_t at = 0;

    for (uint32_t i = lane; i < n; i += 32) {
        w[i] = w[i] / all;
        is_taken[i] = false;
    }
    __syncwarp();
    for (uint32_t c = 0; c < a.to.n_chosen; c++) {
        const uint32_t e = pick(w, is_taken, n, lane);

        if (lane == 0)
            is_taken[e] = true;
        __syncwarp();
    }
    if (lane)
        return;
    for (uint32_t e = 0; e < n; e++)
        if (is_taken[e]) {
            a.to.expert[first + at] = e;
            a.to.weight[first + at++] = w[e];
            sum += w[e];
        }
    for (uint32_t c = 0; c < a.to.n_chosen && a.is_renormalised; c++)
        a.to.weight[first + c] /= sum;
}

/* Sum over the block of each thread's number, to all. */
static __device__ uint32_t add_up(uint32_t n, uint32_t *room)
{
    for (int step = 16; step; step /= 2)
        n += __shfl_xor_sync(0xffffffffu, n, step);
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = n;
    __syncthreads();
    n = 0;
    for (uint32_t i = 0; i < GROUP_THREADS / 32; i++)
        n += room[i];
    __syncthreads();
    return n;
}

/* first[e + 1] becomes how many places expert e has. */
static __global__ void count(const __grid_constant__ struct routing to)
{
    launch_begin();
    __shared__ uint32_t room[GROUP_THREADS / 32];
    const uint32_t n = to.n_row * to.n_chosen;
    uint32_t mine = 0;

    for (uint32_t i = threadIdx.x; i < n; i += GROUP_THREADS)
        mine += to.expert[i] == blockIdx.x;
    mine = add_up(mine, room);
    if (threadIdx.x == 0)
        to.first[blockIdx.x + 1] = mine;
}

/* The numbers become places: one block. */
static __global__ void begin_places(const __grid_constant__ struct routing to)
{
    launch_begin();
    __shared__ uint32_t n[EXPERT_MAX + 1];

    for (uint32_t e = threadIdx.x; e < to.n_expert; e += blockDim.x)
        n[e + 1] = to.first[e + 1];
    __syncthreads();
    if (threadIdx.x == 0) {
        n[0] = 0;
        for (uint32_t e = 0; e < to.n_expert; e++)
            n[e + 1] += n[e];
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e <= to.n_expert; e += blockDim.x)
        to.first[e] = n[e];
}

/* Hand out the places of an expert, in order of rows. */
static __global__ void hand_out(const __grid_constant__ struct routing to)
{
    launch_begin();
    __shared__ uint32_t room[GROUP_THREADS / 32];
    const uint32_t n = to.n_row * to.n_chosen, warp = threadIdx.x / 32;
    const uint32_t below = (1u << threadIdx.x % 32) - 1;
    uint32_t at = to.first[blockIdx.x];

    for (uint32_t i0 = 0; i0 < n; i0 += GROUP_THREADS) {
        const uint32_t i = i0 + threadIdx.x;
        const bool is_mine = i < n && to.expert[i] == blockIdx.x;
        const uint32_t who = __ballot_sync(0xffffffffu, is_mine);
        uint32_t place = at + __popc(who & below);

        if (threadIdx.x % 32 == 0)
            room[warp] = __popc(who);
        __syncthreads();
        for (uint32_t v = 0; v < GROUP_THREADS / 32; v++) {
            place += v < warp ? room[v] : 0;
            at += room[v];
        }
        if (is_mine) {
            to.place[i] = place;
            to.row[place] = i / to.n_chosen;
        }
        __syncthreads();
    }
}

void cuda_route(struct gpu *gpu, const struct route_args *args)
{
    const struct routing *to = &args->to;

    assert(to->n_expert <= EXPERT_MAX && to->n_chosen <= to->n_expert);
    if (gpu_is_replaying(gpu))
        return;
    launch_early(gpu, choose, to->n_row, 32, *args);
    launch_early(gpu, count, to->n_expert, GROUP_THREADS, *to);
    launch_early(gpu, begin_places, 1, GROUP_THREADS, *to);
    launch_early(gpu, hand_out, to->n_expert, GROUP_THREADS, *to);
}

/* ------------------------------------------------------------------- combine
 */

/* By value: the routing's struct is the host's. */
struct combine {
    struct combine_args args;
    struct routing by;
};

static __global__ void combine(const __grid_constant__ struct combine c)
{
    launch_begin();
    const struct combine_args &a = c.args;
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    const size_t row = blockIdx.y, first = row * c.by.n_chosen;
    float sum = 0.0f;

    if (i >= a.dim)
        return;
    for (uint32_t k = 0; k < c.by.n_chosen; k++)
        sum = __fmaf_rn(c.by.weight[first + k],
                        a.x[c.by.place[first + k] * a.x_stride + i], sum);
    if (a.shared)
        sum = __fmaf_rn(scalar_sigmoid(a.shared_gate[row * a.gate_stride]),
                        a.shared[row * a.shared_stride + i], sum);
    a.y[row * a.y_stride + i] += sum;
}

void cuda_combine(struct gpu *gpu, const struct combine_args *args)
{
    struct combine c;

    c.args = *args;
    c.by = *args->by;
    assert(c.by.n_row <= 65535);
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, combine,
                     dim3((args->dim + THREADS - 1) / THREADS, c.by.n_row),
                     THREADS, c);
}
