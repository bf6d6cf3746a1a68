/*
 * Causal depthwise convolution and SiLU. A thread has four channels of ROWS
 * rows, its window in registers, so that an input is read once but for the
 * width - 1 before the thread's first. A head of queries or keys has 16 or 32
 * lanes of a warp, so its norm is a tree of exchanges and it leaves rounded,
 * four dims a lane. Memory-bound: 4 bytes in for each channel of each row, and
 * 4 out, or 2 of a unit row.
 */
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_silu.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define ROWS 16u
#define AHEAD 8 /* rows on their way */
#define N_THREAD 128u

/* Blocks with heads come first, then those with the channels behind them. */
struct conv_job {
    struct conv_args a;
    uint32_t n_head, head_lanes, n_head_block;
    uint32_t first; /* channel that comes to y[0] */
};

/* A thread's four channels; is_mine: there are such. */
struct conv_lane {
    uint32_t channel;
    bool is_mine, is_head;
};

static __device__ __forceinline__ struct conv_lane
lane_of(const struct conv_job &job)
{
    struct conv_lane it;

    it.is_head = blockIdx.x < job.n_head_block;
    if (it.is_head) {
        const uint32_t thread = blockIdx.x * N_THREAD + threadIdx.x;
        const uint32_t head = thread / job.head_lanes;
        const uint32_t dim = thread % job.head_lanes * 4;

        it.channel = head * job.a.shape.d_k + dim;
        it.is_mine = head < job.n_head && dim < job.a.shape.d_k;
        return it;
    }
    it.channel = job.first +
                 ((blockIdx.x - job.n_head_block) * N_THREAD + threadIdx.x) * 4;
    it.is_mine = it.channel < job.a.n_channel;
    return it;
}

/* Input at row t of the span, before its rows from the tail. */
template <uint32_t WIDTH>
static __device__ __forceinline__ float4 input(const struct conv_args &a,
                                               const struct conv_span &span,
                                               int t, uint32_t channel)
{
    if (t < 0)
        return *(const float4 *)(span.tail +
                                 (size_t)(t + (int)WIDTH - 1) * a.n_channel +
                                 channel);
    return *(const float4 *)(a.x + (span.first_row + (size_t)t) * a.x_stride +
                             channel);
}

static __device__ __forceinline__ float4 zero4(void)
{
    return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

static __device__ __forceinline__ float4 fma4(float4 w, float4 x, float4 sum)
{
    return make_float4(__fmaf_rn(w.x, x.x, sum.x), __fmaf_rn(w.y, x.y, sum.y),
                       __fmaf_rn(w.z, x.z, sum.z), __fmaf_rn(w.w, x.w, sum.w));
}

/* Not inlined: its divisions would stand in each row of a loop. */
static __device__ __noinline__ float4 silu_of_any(float4 x)
{
    return make_float4(scalar_silu(x.x), scalar_silu(x.y), scalar_silu(x.z),
                       scalar_silu(x.w));
}

static __device__ __forceinline__ float4 silu_of(float4 x)
{
    if (silu_is_plain(x.x) && silu_is_plain(x.y) && silu_is_plain(x.z) &&
        silu_is_plain(x.w))
        return make_float4(silu_plain(x.x), silu_plain(x.y), silu_plain(x.z),
                           silu_plain(x.w));
    return silu_of_any(x);
}

static __device__ __forceinline__ float square_sum(float4 x)
{
    return __fmaf_rn(x.w, x.w,
                     __fmaf_rn(x.z, x.z, __fmaf_rn(x.y, x.y, x.x * x.x)));
}

/*
 * Four dims of a unit row from a head that 16 or 32 lanes hold, those behind
 * its dims zeros. Adding zeros first changes no bit of the tree, so 16 lanes
 * leave out its first step.
 */
static __device__ __forceinline__ uint2 unit_of(float4 x, uint32_t n_lane,
                                                float q_scale)
{
    float sum = square_sum(x);

    if (n_lane == 32)
        sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    for (int step = 8; step; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float scale = conv_inverse_root(sum + 1e-6f);
    return make_uint2(bf16_pair(x.x * scale * q_scale, x.y * scale * q_scale),
                      bf16_pair(x.z * scale * q_scale, x.w * scale * q_scale));
}

/* Where a thread's rows go, and the bytes from one to the next. */
struct conv_place {
    char *at;
    size_t step;
};

static __device__ __forceinline__ struct conv_place
place_of(const struct conv_job &job, struct conv_lane lane, size_t row)
{
    const struct conv_args &a = job.a;
    struct conv_place it;

    if (lane.is_head) {
        it.at = (char *)(a.unit + row * job.first + lane.channel);
        it.step = (size_t)job.first * 2;
    } else {
        it.at = (char *)(a.y + row * a.y_stride + lane.channel - job.first);
        it.step = a.y_stride * 4;
    }
    return it;
}

/* A row's four sums; q_scale: of a query, else 1. */
static __device__ __forceinline__ void put(char *to, struct conv_lane lane,
                                           float4 sum, uint32_t head_lanes,
                                           float q_scale)
{
    const float4 y = silu_of(sum);

    if (lane.is_head) {
        const uint2 unit = unit_of(y, head_lanes, q_scale);

        if (lane.is_mine)
            *(uint2 *)to = unit;
    } else {
        *(float4 *)to = y;
    }
}

/* The tail behind the span: inputs that are still there, all read before one
 * is written. */
template <uint32_t WIDTH>
static __device__ __forceinline__ void keep_tail(const struct conv_args &a,
                                                 const struct conv_span &span,
                                                 uint32_t channel)
{
    float4 x[WIDTH];

#pragma unroll
    for (int i = 0; i + 1 < (int)WIDTH; i++)
        x[i] = input<WIDTH>(a, span, (int)span.n_row - (int)WIDTH + 1 + i,
                            channel);
#pragma unroll
    for (int i = 0; i + 1 < (int)WIDTH; i++)
        *(float4 *)(span.tail + (size_t)i * a.n_channel + channel) = x[i];
}

/* The tail belongs to the thread of the span's first rows, which alone reads
 * it. Lanes of a head's warp without a channel take part in its sums. */
template <uint32_t WIDTH>
static __global__ void __launch_bounds__(N_THREAD)
    conv(const __grid_constant__ struct conv_job job)
{
    launch_begin();

    const struct conv_args &a = job.a;
    const struct conv_span span = a.span[blockIdx.z];
    const struct conv_lane lane = lane_of(job);
    const int first = (int)(blockIdx.y * ROWS);
    const int end = min(first + (int)ROWS, (int)span.n_row);
    const bool is_query = 2 * lane.channel < job.first;
    const float q_scale =
        is_query ? 1.0f / __fsqrt_rn((float)a.shape.d_k) : 1.0f;
    float4 w[WIDTH], x[WIDTH];

    if (first >= (int)span.n_row || (!lane.is_head && !lane.is_mine))
        return;
#pragma unroll
    for (uint32_t i = 0; i < WIDTH; i++) {
        w[i] = lane.is_mine
                   ? *(const float4 *)(a.weight + (size_t)i * a.n_channel +
                                       lane.channel)
                   : zero4();
        x[i] = i + 1 < WIDTH && lane.is_mine
                   ? input<WIDTH>(a, span, first + (int)i - (int)WIDTH + 1,
                                  lane.channel)
                   : zero4();
    }
    const int limit = lane.is_mine ? end : first; /* of what is read */
    const float *from =
        a.x + (span.first_row + (size_t)first) * a.x_stride + lane.channel;
    struct conv_place to = place_of(job, lane, span.first_row + (size_t)first);
    float4 ahead[AHEAD];

#pragma unroll
    for (int n = 0; n < AHEAD; n++)
        ahead[n] = first + n < limit ? *(const float4 *)(from + n * a.x_stride)
                                     : zero4();
    for (int t = first; t < end; t += AHEAD) {
        from += AHEAD * a.x_stride;
#pragma unroll
        for (int n = 0; n < AHEAD && t + n < end; n++) {
            float4 sum = zero4();

            x[WIDTH - 1] = ahead[n];
            if (t + n + AHEAD < limit)
                ahead[n] = *(const float4 *)(from + n * a.x_stride);
#pragma unroll
            for (uint32_t i = 0; i < WIDTH; i++)
                sum = fma4(w[i], x[i], sum);
            put(to.at, lane, sum, job.head_lanes, q_scale);
            to.at += to.step;
#pragma unroll
            for (uint32_t i = 0; i + 1 < WIDTH; i++)
                x[i] = x[i + 1];
        }
    }
    if (first == 0 && lane.is_mine)
        keep_tail<WIDTH>(a, span, lane.channel);
}

static uint32_t n_block_of(uint32_t n_thread)
{
    return (n_thread + N_THREAD - 1) / N_THREAD;
}

template <uint32_t WIDTH>
static void launch(struct gpu *gpu, const struct conv_job *job, uint32_t n_row)
{
    const struct conv_args *a = &job->a;
    const dim3 grid(job->n_head_block +
                        n_block_of((a->n_channel - job->first) / 4),
                    (n_row + ROWS - 1) / ROWS, a->n_span);

    launch_early(gpu, conv<WIDTH>, grid, N_THREAD, *job);
}

static struct conv_job job_of(const struct conv_args *a)
{
    struct conv_job job = {};

    job.a = *a;
    if (!a->unit)
        return job;
    job.first = 2 * a->shape.n_k_head * a->shape.d_k;
    if (!cuda_delta_has(a->shape))
        return job;
    job.n_head = 2 * a->shape.n_k_head;
    job.head_lanes = a->shape.d_k <= 64 ? 16 : 32;
    job.n_head_block = n_block_of(job.n_head * job.head_lanes);
    return job;
}

void cuda_conv(struct gpu *gpu, const struct conv_args *args)
{
    static void (*const BY_WIDTH[CONV_WIDTH_MAX + 1])(
        struct gpu *, const struct conv_job *,
        uint32_t) = {NULL,      launch<1>, launch<2>, launch<3>, launch<4>,
                     launch<5>, launch<6>, launch<7>, launch<8>};
    struct conv_job job = job_of(args);
    uint32_t n_row = 0;

    assert(args->width >= 1 && args->width <= CONV_WIDTH_MAX);
    assert(args->n_channel % 4 == 0 && args->x_stride % 4 == 0 &&
           args->y_stride % 4 == 0 && job.first % 4 == 0);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row = args->span[i].n_row > n_row ? args->span[i].n_row : n_row;
    job.a.span = (const struct conv_span *)gpu_stage(
        gpu, args->span, args->n_span * sizeof(*args->span));
    if (gpu_is_replaying(gpu) || !n_row)
        return;
    BY_WIDTH[args->width](gpu, &job, n_row);
    if (args->unit && !job.n_head)
        conv_unit_plain(gpu, &job.a);
}
