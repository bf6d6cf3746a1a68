/*
 * Heads of recurrent states scaled down: see kernels/state_cap.h. A CTA has a
 * head; eight threads add its squares in double, from shared memory, each the
 * chain of one of the eight sums. It comes once in a thousand tokens.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/state_cap.h"

#define THREADS 256u
#define STAGED 4096u /* numbers */
#define N_SUM 8u

/* By value, its spans on the device. */
struct cap {
    const struct delta_span *span;
    unsigned long long *n_scaled;
    double cap;
    uint32_t n_each; /* numbers of a head */
};

/* Thread k < N_SUM: sum k. */
static __device__ double add_squares(const float *s, uint32_t n,
                                     float staged[STAGED])
{
    double sum = 0.0;

    for (uint32_t first = 0; first < n; first += STAGED) {
        const uint32_t left = n - first;
        const uint32_t n_now = left < STAGED ? left : STAGED;

        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_now; i += THREADS)
            staged[i] = s[first + i];
        __syncthreads();
        if (threadIdx.x < N_SUM)
#pragma unroll 8
            for (uint32_t i = threadIdx.x; i < n_now; i += N_SUM)
                sum += (double)staged[i] * (double)staged[i];
    }
    return sum;
}

static __global__ void __launch_bounds__(THREADS)
    cap_heads(const __grid_constant__ struct cap a)
{
    launch_begin();
    __shared__ float staged[STAGED], scale;
    __shared__ double sum[N_SUM];
    float *s = a.span[blockIdx.y].state.s + (size_t)blockIdx.x * a.n_each;
    const double mine = add_squares(s, a.n_each, staged);

    if (threadIdx.x < N_SUM)
        sum[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;

        for (uint32_t k = 0; k < N_SUM; k++)
            total += sum[k];
        const double rms = sqrt(total / (double)a.n_each);
        const bool is_above = isfinite(rms) && rms > a.cap;
        scale = is_above ? (float)(a.cap / rms) : 0.0f;
        if (is_above)
            atomicAdd(a.n_scaled, 1ull);
    }
    __syncthreads();
    const float by = scale; /* a cap and a norm are above zero */
    for (uint32_t i = threadIdx.x; i < a.n_each && by > 0.0f; i += THREADS)
        s[i] *= by;
}

void cuda_state_cap(struct gpu *gpu, const struct state_cap_args *args)
{
    const struct delta_span *span = (const struct delta_span *)gpu_stage(
        gpu, args->span, args->n_span * sizeof(*args->span));
    struct cap a;

    a.span = span;
    a.n_scaled = (unsigned long long *)args->n_scaled;
    a.cap = (double)args->cap;
    a.n_each = args->shape.d_k * args->shape.d_v;
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, cap_heads, dim3(args->shape.n_v_head, args->n_span),
                     THREADS, a);
}
