/*
 * Layers of experts: route and combine, with the bits of the CPU's fp32
 * arithmetic, so that equal rows go to equal experts.
 *
 * Rows are put in order of experts, and among an expert's in their own: for a
 * decode step in one block, else by a block for each expert, which counts who
 * chose it, then hands out its places.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define LANES 16u /* of a sum, as scalar_sum() */
#define GROUP_THREADS 256u
#define STEP_THREADS 1024u /* of the block that routes a step, ... */
#define STEP_EACH 2u       /* rows of a warp */
#define STEP_ROWS 64u      /* which has so many rows at most */
#define THREADS 256u
#define CHOSEN_AHEAD 8u /* results of a row that are asked for at once */

/* --------------------------------------------------------------------- route
 */

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

/* w = the shares of the softmax over the logits. */
static __device__ void soften(const float *logit, float *w, uint32_t n,
                              uint32_t lane)
{
    float most = -__int_as_float(0x7f800000);

    for (uint32_t i = lane; i < n; i += 32) {
        w[i] = logit[i];
        most = w[i] > most ? w[i] : most;
    }
    for (int step = 16; step; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, most, step);

        most = other > most ? other : most;
    }
    for (uint32_t i = lane; i < n; i += 32)
        w[i] = scalar_exp(w[i] - most);
    __syncwarp();
    const float all = sum_lanes(w, n, lane);
    __syncwarp();
    for (uint32_t i = lane; i < n; i += 32)
        w[i] = w[i] / all;
}

/* What an expert is worth when the best are picked, in the order of whole
 * numbers: nothing comes after no number but who is taken. */
#define TAKEN 0u
static __device__ uint32_t worth(float w)
{
    return isnan(w) ? 1u : __float_as_uint(w) + 2u;
}

/* Take the best of those left, the lower index of equals. Lane i has experts i,
 * i + 32, ..., and bits of those it has taken. */
static __device__ void take_best(const float *w, uint32_t n, uint32_t lane,
                                 uint32_t *taken)
{
    uint32_t best = TAKEN, at = UINT32_MAX;

    for (uint32_t i = lane, bit = 1; i < n; i += 32, bit <<= 1) {
        const uint32_t here = *taken & bit ? TAKEN : worth(w[i]);

        if (here > best) {
            best = here;
            at = i;
        }
    }
    const uint32_t most = __reduce_max_sync(0xffffffffu, best);
    const uint32_t e =
        __reduce_min_sync(0xffffffffu, best == most ? at : UINT32_MAX);
    if (e % 32 == lane)
        *taken |= 1u << e / 32;
}

/* The chosen experts of a row, ascending, with their weights, which stay at the
 * beginning of w. */
static __device__ void list_taken(const struct route_args &a, uint32_t row,
                                  float *w, uint32_t lane, uint32_t taken)
{
    const size_t first = (size_t)row * a.to.n_chosen;
    uint32_t before = 0;
    float sum = 0.0f;

    for (uint32_t e = lane; e / 32 * 32 < a.to.n_expert; e += 32) {
        const bool is_mine = taken >> e / 32 & 1;
        const uint32_t who = __ballot_sync(0xffffffffu, is_mine);
        const uint32_t at = before + __popc(who & ((1u << lane) - 1));
        const float weight = is_mine ? w[e] : 0.0f;

        before += __popc(who);
        __syncwarp();
        if (is_mine) {
            a.to.expert[first + at] = e;
            w[at] = weight;
        }
        __syncwarp();
    }
    for (uint32_t c = 0; c < a.to.n_chosen; c++)
        sum += w[c];
    for (uint32_t c = lane; c < a.to.n_chosen; c += 32)
        a.to.weight[first + c] = a.is_renormalised ? w[c] / sum : w[c];
}

/* One warp: a row's experts. w: room for n_expert; returns lane's bits of the
 * taken. */
static __device__ uint32_t choose_row(const struct route_args &a, uint32_t row,
                                      float *w, uint32_t lane)
{
    uint32_t taken = 0;

    static_assert(EXPERT_MAX <= 32 * 32, "a bit for each of a lane's experts");
    soften(a.logit + row * a.logit_stride, w, a.to.n_expert, lane);
    for (uint32_t c = 0; c < a.to.n_chosen; c++)
        take_best(w, a.to.n_expert, lane, &taken);
    list_taken(a, row, w, lane, taken);
    return taken;
}

static __global__ void choose(const __grid_constant__ struct route_args a)
{
    __shared__ float w[EXPERT_MAX];

    launch_begin();
    (void)choose_row(a, blockIdx.x, w, threadIdx.x);
}

/* Of the block's values: the sum of those before this thread. */
static __device__ uint32_t sum_before(uint32_t n)
{
    __shared__ uint32_t of_warp[STEP_THREADS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = n, before = 0;

    for (uint32_t by = 1; by < 32; by *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, sum, by);

        sum += lane >= by ? other : 0;
    }
    if (lane == 31)
        of_warp[warp] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++)
        before += of_warp[w];
    return before + sum - n;
}

/* A warp hands out a row's places: behind those of the rows before it. */
static __device__ void place_row(const struct routing &to, uint32_t row,
                                 const unsigned long long *rows,
                                 const uint32_t *first, uint32_t taken)
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t before = row * to.n_chosen;

    for (uint32_t e = lane; e / 32 * 32 < to.n_expert; e += 32) {
        const bool is_mine = taken >> e / 32 & 1;
        const uint32_t who = __ballot_sync(0xffffffffu, is_mine);

        if (is_mine) {
            const uint32_t at = before + __popc(who & ((1u << lane) - 1));
            const uint32_t place =
                first[e] + __popcll(rows[e] & ((1ull << row) - 1));

            to.place[at] = place;
            to.row[place] = row;
        }
        before += __popc(who);
    }
}

/* The rows of a decode step: all in one block. Which rows an expert has are the
 * bits of a word, so that its places are counted, not searched for. */
static __global__ void __launch_bounds__(STEP_THREADS)
    route_step(const __grid_constant__ struct route_args a)
{
    extern __shared__ unsigned long long step_room[];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t n = a.to.n_expert, n_warp = blockDim.x / 32;
    unsigned long long *rows = step_room;
    uint32_t *first = (uint32_t *)(rows + n);
    float *w = (float *)(first + n) + (size_t)warp * n;
    uint32_t taken[STEP_EACH] = {};

    for (uint32_t e = threadIdx.x; e < n; e += blockDim.x)
        rows[e] = 0;
    launch_begin();
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < STEP_EACH; i++) {
        const uint32_t row = warp + i * n_warp;

        if (row >= a.to.n_row)
            break;
        taken[i] = choose_row(a, row, w, lane);
        for (uint32_t e = lane, j = 0; e < n; e += 32, j++)
            if (taken[i] >> j & 1)
                atomicOr(&rows[e], 1ull << row);
        __syncwarp();
    }
    __syncthreads();
    const uint32_t e = threadIdx.x, mine = e < n ? __popcll(rows[e]) : 0;
    const uint32_t at = sum_before(mine);

    if (e < n) {
        first[e] = a.to.first[e] = at;
        if (e + 1 == n)
            a.to.first[n] = at + mine;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < STEP_EACH; i++)
        if (warp + i * n_warp < a.to.n_row)
            place_row(a.to, warp + i * n_warp, rows, first, taken[i]);
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
    if (gpu_is_replaying(gpu) || !to->n_row)
        return;
    if (to->n_row <= STEP_ROWS) {
        const uint32_t by_row = div_up(to->n_row, STEP_EACH) * 32;
        const uint32_t by_expert = div_up(to->n_expert, 32) * 32;
        const uint32_t n_thread = by_row > by_expert ? by_row : by_expert;

        launch_allow(route_step, EXPERT_MAX * (12 + STEP_THREADS / 8));
        launch_early_with(gpu_stream(gpu), route_step, 1, n_thread,
                          to->n_expert * (12 + n_thread / 8), *args);
        return;
    }
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
    float sum = 0.0f, shared = 0.0f, gate = 0.0f;

    if (i >= a.dim)
        return;
    if (a.shared) {
        gate = a.shared_gate[row * a.gate_stride];
        shared = a.shared[row * a.shared_stride + i];
    }
    const float y = a.y[row * a.y_stride + i];
    for (uint32_t k0 = 0; k0 < c.by.n_chosen; k0 += CHOSEN_AHEAD) {
        float x[CHOSEN_AHEAD], weight[CHOSEN_AHEAD];

#pragma unroll
        for (uint32_t k = 0; k < CHOSEN_AHEAD; k++) {
            const size_t at = first + min(k0 + k, c.by.n_chosen - 1);

            weight[k] = c.by.weight[at];
            x[k] = a.x[c.by.place[at] * a.x_stride + i];
        }
#pragma unroll
        for (uint32_t k = 0; k < CHOSEN_AHEAD; k++)
            if (k0 + k < c.by.n_chosen)
                sum = __fmaf_rn(weight[k], x[k], sum);
    }
    if (a.shared)
        sum = __fmaf_rn(scalar_sigmoid(gate), shared, sum);
    a.y[row * a.y_stride + i] = y + sum;
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
