/*
 * Rows of floats become rows of bf16, once per product: 6 bytes an element
 * through memory. A block takes 4,096 elements of a row, a thread 4 quads of
 * them, far apart so that a warp's accesses are whole lines.
 */
#include "kernels/cuda/linear_launch.h"

#define ROUND_THREADS 256u
#define ROUND_QUADS 4u
#define ROUND_EACH (ROUND_THREADS * ROUND_QUADS * 4) /* elements of a block */

/* Elements i .. i + 3 of the inputs, zeros behind them. */
static __device__ float4 load_quad(const float *x, uint32_t i, uint32_t n_in,
                                   bool is_aligned)
{
    if (is_aligned && i + 4 <= n_in)
        return *(const float4 *)(x + i);
    return make_float4(i < n_in ? x[i] : 0.0f, i + 1 < n_in ? x[i + 1] : 0.0f,
                       i + 2 < n_in ? x[i + 2] : 0.0f,
                       i + 3 < n_in ? x[i + 3] : 0.0f);
}

static __global__ void __launch_bounds__(ROUND_THREADS)
    round_kernel(const struct round_job job, uint32_t n_padded, bool is_aligned)
{
    const uint32_t i = blockIdx.y * ROUND_EACH + threadIdx.x * 4;
    uint16_t *to = (uint16_t *)job.to + (size_t)blockIdx.x * n_padded;
    float4 v[ROUND_QUADS];

    launch_begin();
    const uint32_t row = job.row ? job.row[blockIdx.x] : blockIdx.x;
    const float *x = job.x + row * job.x_stride;
#pragma unroll
    for (uint32_t q = 0; q < ROUND_QUADS; q++)
        v[q] = load_quad(x, i + q * ROUND_THREADS * 4, job.n_in, is_aligned);
#pragma unroll
    for (uint32_t q = 0; q < ROUND_QUADS; q++)
        if (i + q * ROUND_THREADS * 4 < n_padded)
            *(uint2 *)(to + i + q * ROUND_THREADS * 4) = make_uint2(
                round_pair(v[q].x, v[q].y), round_pair(v[q].z, v[q].w));
}

void round_launch(struct gpu *gpu, const struct round_job *job)
{
    const uint32_t n_padded = (uint32_t)linear_padded(job->n_in);
    const bool is_aligned =
        (uintptr_t)job->x % 16 == 0 && job->x_stride % 4 == 0;
    const dim3 grid(job->n_row, (n_padded + ROUND_EACH - 1) / ROUND_EACH);

    launch_early(gpu, round_kernel, grid, ROUND_THREADS, *job, n_padded,
                 is_aligned);
}
