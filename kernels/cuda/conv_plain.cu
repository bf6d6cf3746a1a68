/*
 * Unit rows for the head dims of delta_plain.cu, as plain loops: a block has a
 * head of queries or keys of a span, its threads the dims. The sum of squares
 * is one chain, ascending, which every thread computes.
 */
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define THREADS 128u
#define DIM_MAX 256u

/* Raw input of a channel at row t of the span; t < 0 is in the tail. */
static __device__ float input(const struct conv_args &a,
                              const struct conv_span &span, int t,
                              uint32_t channel)
{
    if (t < 0)
        return span
            .tail[(size_t)(t + (int)a.width - 1) * a.n_channel + channel];
    return a.x[(span.first_row + (size_t)t) * a.x_stride + channel];
}

static __device__ float convolved(const struct conv_args &a,
                                  const struct conv_span &span, int t,
                                  uint32_t channel)
{
    float sum = 0.0f;

    for (int i = 0; i < (int)a.width; i++)
        sum = __fmaf_rn(a.weight[(size_t)i * a.n_channel + channel],
                        input(a, span, t - (int)a.width + 1 + i, channel), sum);
    return scalar_silu(sum);
}

static __device__ float inverse_norm(const float *x, uint32_t n)
{
    float sum = 0.0f;

    for (uint32_t d = 0; d < n; d++)
        sum = __fmaf_rn(x[d], x[d], sum);
    return 1.0f / __fsqrt_rn(sum + 1e-6f);
}

static __global__ void conv_unit(const __grid_constant__ struct conv_args a)
{
    __shared__ float y[DIM_MAX];

    launch_begin();

    const struct conv_span &span = a.span[blockIdx.y];
    const uint32_t d_k = a.shape.d_k, begin = blockIdx.x * d_k;
    const float q_scale =
        blockIdx.x < a.shape.n_k_head ? 1.0f / __fsqrt_rn((float)d_k) : 1.0f;

    for (uint32_t t = 0; t < span.n_row; t++) {
        uint16_t *to = a.unit + (span.first_row + (size_t)t) * gridDim.x * d_k;

        for (uint32_t d = threadIdx.x; d < d_k; d += THREADS)
            y[d] = convolved(a, span, (int)t, begin + d);
        __syncthreads();
        const float scale = inverse_norm(y, d_k);
        for (uint32_t d = threadIdx.x; d < d_k; d += THREADS)
            to[begin + d] = (uint16_t)bf16_pair(y[d] * scale * q_scale, 0.0f);
        __syncthreads();
    }
    /* Oldest first: each is read before its place is written. */
    for (uint32_t d = threadIdx.x; d < d_k && span.n_row; d += THREADS)
        for (int i = 0; i + 1 < (int)a.width; i++)
            span.tail[(size_t)i * a.n_channel + begin + d] = input(
                a, span, (int)span.n_row - (int)a.width + 1 + i, begin + d);
}

void conv_unit_plain(struct gpu *gpu, const struct conv_args *args)
{
    assert(args->shape.d_k <= DIM_MAX);
    launch_early(gpu, conv_unit, dim3(2 * args->shape.n_k_head, args->n_span),
                 THREADS, *args);
}
