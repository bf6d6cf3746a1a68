/*
 * What stands around the delta rule: its gates before it, the norm and gate of
 * its outputs behind it. Memory-bound both; a group of the norm is a warp, so
 * that its sum has one order: a lane's fours in turn, then the lanes in pairs.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define N_THREAD 256u

static __global__ void __launch_bounds__(N_THREAD)
    delta_gate(struct delta_gate_args a)
{
    const size_t i = (size_t)blockIdx.x * N_THREAD + threadIdx.x;
    const size_t row = i / a.n_v_head, h = i % a.n_v_head;

    launch_begin();
    if (row >= a.n_row)
        return;
    a.beta[i] = scalar_sigmoid(a.b[row * a.b_stride + h]);
    a.log_decay[i] = a.decay_scale[h] *
                     scalar_softplus(a.a[row * a.a_stride + h] + a.dt_bias[h]);
}

void cuda_delta_gate(struct gpu *gpu, const struct delta_gate_args *args)
{
    const size_t n = (size_t)args->n_row * args->n_v_head;
    const uint32_t n_block = (uint32_t)((n + N_THREAD - 1) / N_THREAD);

    if (!gpu_is_replaying(gpu) && n)
        launch_early(gpu, delta_gate, dim3(n_block), N_THREAD, *args);
}

/* N fours a lane: dim is at most 128 N. */
template <uint32_t N>
static __global__ void __launch_bounds__(N_THREAD)
    gated_norm(struct gated_norm_args a)
{
    const struct norm_args &norm = a.norm;
    const size_t i = ((size_t)blockIdx.x * N_THREAD + threadIdx.x) / 32;
    const size_t row = i / norm.n_group, at = i % norm.n_group * norm.dim;
    float4 x[N], z[N];
    float sum = 0.0f;

    launch_begin();
    if (row >= norm.n_row)
        return;
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        const uint32_t e = n * 128 + threadIdx.x % 32 * 4;
        const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const bool is_here = e < norm.dim;

        x[n] = is_here
                   ? *(const float4 *)(norm.x + row * norm.x_stride + at + e)
                   : zero;
        z[n] =
            is_here ? *(const float4 *)(a.z + row * a.z_stride + at + e) : zero;
        sum = __fmaf_rn(x[n].x, x[n].x, sum);
        sum = __fmaf_rn(x[n].y, x[n].y, sum);
        sum = __fmaf_rn(x[n].z, x[n].z, sum);
        sum = __fmaf_rn(x[n].w, x[n].w, sum);
    }
    for (int step = 16; step; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float scale = 1.0f / __fsqrt_rn(sum / (float)norm.dim + norm.eps);
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        const uint32_t e = n * 128 + threadIdx.x % 32 * 4;

        if (e >= norm.dim)
            continue;
        const float4 w = *(const float4 *)(norm.weight + e);
        const float4 y =
            make_float4(x[n].x * scale * w.x * scalar_silu(z[n].x),
                        x[n].y * scale * w.y * scalar_silu(z[n].y),
                        x[n].z * scale * w.z * scalar_silu(z[n].z),
                        x[n].w * scale * w.w * scalar_silu(z[n].w));
        if (norm.y)
            *(float4 *)(norm.y + row * norm.y_stride + at + e) = y;
        if (norm.y_rounded)
            *(uint2 *)(norm.y_rounded + i * norm.dim + e) =
                make_uint2(round_pair(y.x, y.y), round_pair(y.z, y.w));
    }
}

void cuda_gated_norm(struct gpu *gpu, const struct gated_norm_args *args)
{
    const struct norm_args *norm = &args->norm;
    const size_t n = (size_t)norm->n_row * norm->n_group * 32;
    const uint32_t n_block = (uint32_t)((n + N_THREAD - 1) / N_THREAD);

    assert(norm->dim % 4 == 0 && norm->dim <= 256);
    if (gpu_is_replaying(gpu) || !n)
        return;
    if (norm->dim <= 128)
        launch_early(gpu, gated_norm<1>, dim3(n_block), N_THREAD, *args);
    else
        launch_early(gpu, gated_norm<2>, dim3(n_block), N_THREAD, *args);
}
