/*
 * Causal depthwise convolution and SiLU. A thread has four channels of ROWS
 * rows, its window in registers, so that an input is read once but for the
 * width - 1 before the thread's first. Memory-bound: 4 bytes in and 4 out for
 * each channel of each row.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define ROWS 16u
#define AHEAD 8 /* rows asked for at once */
#define N_THREAD 128u

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

static __device__ __forceinline__ float4 fma4(float4 w, float4 x, float4 sum)
{
    return make_float4(__fmaf_rn(w.x, x.x, sum.x), __fmaf_rn(w.y, x.y, sum.y),
                       __fmaf_rn(w.z, x.z, sum.z), __fmaf_rn(w.w, x.w, sum.w));
}

/*
 * The tail belongs to the thread of the span's first rows, which alone reads
 * it: the new one is inputs that are still there, and oldest first each is read
 * before its place is written.
 */
template <uint32_t WIDTH>
static __global__ void __launch_bounds__(N_THREAD) conv(struct conv_args a)
{
    launch_begin();

    const struct conv_span span = a.span[blockIdx.z];
    const uint32_t channel = (blockIdx.x * N_THREAD + threadIdx.x) * 4;
    const int first = (int)(blockIdx.y * ROWS);
    const int end = min(first + (int)ROWS, (int)span.n_row);
    float4 w[WIDTH], x[WIDTH];

    if (channel >= a.n_channel || first >= (int)span.n_row)
        return;
#pragma unroll
    for (uint32_t i = 0; i < WIDTH; i++) {
        w[i] = *(const float4 *)(a.weight + (size_t)i * a.n_channel + channel);
        x[i] = i + 1 < WIDTH
                   ? input<WIDTH>(a, span, first + (int)i - (int)WIDTH + 1,
                                  channel)
                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    for (int t = first; t < end; t += AHEAD) {
        float4 ahead[AHEAD];

#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            ahead[n] = t + n < end ? input<WIDTH>(a, span, t + n, channel)
                                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

            x[WIDTH - 1] = ahead[n];
#pragma unroll
            for (uint32_t i = 0; i < WIDTH; i++)
                sum = fma4(w[i], x[i], sum);
            if (t + n < end)
                *(float4 *)(a.y +
                            (span.first_row + (size_t)(t + n)) * a.y_stride +
                            channel) =
                    make_float4(scalar_silu(sum.x), scalar_silu(sum.y),
                                scalar_silu(sum.z), scalar_silu(sum.w));
#pragma unroll
            for (uint32_t i = 0; i + 1 < WIDTH; i++)
                x[i] = x[i + 1];
        }
    }
    for (int i = 0; i + 1 < (int)WIDTH && first == 0; i++)
        *(float4 *)(span.tail + (size_t)i * a.n_channel + channel) =
            input<WIDTH>(a, span, (int)span.n_row - (int)WIDTH + 1 + i,
                         channel);
}

template <uint32_t WIDTH>
static void launch(struct gpu *gpu, const struct conv_args *a, uint32_t n_row)
{
    const dim3 grid((a->n_channel / 4 + N_THREAD - 1) / N_THREAD,
                    (n_row + ROWS - 1) / ROWS, a->n_span);

    launch_early(gpu, conv<WIDTH>, grid, N_THREAD, *a);
}

void cuda_conv(struct gpu *gpu, const struct conv_args *args)
{
    static void (*const BY_WIDTH[CONV_WIDTH_MAX + 1])(
        struct gpu *, const struct conv_args *,
        uint32_t) = {NULL,      launch<1>, launch<2>, launch<3>, launch<4>,
                     launch<5>, launch<6>, launch<7>, launch<8>};
    struct conv_args a = *args;
    uint32_t n_row = 0;

    assert(args->width >= 1 && args->width <= CONV_WIDTH_MAX);
    assert(args->n_channel % 4 == 0 && args->x_stride % 4 == 0 &&
           args->y_stride % 4 == 0);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row = args->span[i].n_row > n_row ? args->span[i].n_row : n_row;
    a.span = (const struct conv_span *)gpu_stage(
        gpu, args->span, args->n_span * sizeof(*args->span));
    if (!gpu_is_replaying(gpu) && n_row)
        BY_WIDTH[args->width](gpu, &a, n_row);
}
