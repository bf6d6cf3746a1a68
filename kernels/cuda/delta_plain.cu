/*
 * The delta rule for head dims that no model of size has (small tests do): the
 * steps of kernels/backend.h, row by row, as plain loops. A block has a k-head
 * of a session with its v-heads, since these share the ring of keys; threads
 * are tokens of the ring, then outputs. Which kernel runs is decided by the
 * shape alone, so each shape has one arithmetic: here sums are fma chains, and
 * ring_u has u, its rows' last DELTA_BLOCK unused.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>
#include <cuda_bf16.h>

#define THREADS 128u
#define DIM_MAX 256u

struct head {
    float q[DIM_MAX], k[DIM_MAX]; /* of the unit row */
    float w[GRID], x[GRID], decay[GRID];
    float since_grid;
};

static __device__ float rounded(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

static __device__ float bf16_at(const void *ring, size_t at)
{
    return __bfloat162float(((const __nv_bfloat16 *)ring)[at]);
}

static __device__ void take_keys(const struct delta_args &a, size_t row,
                                 struct head *head, __nv_bfloat16 *ring)
{
    const uint32_t d_k = a.shape.d_k, n_key = a.shape.n_k_head * d_k;
    const __nv_bfloat16 *q = (const __nv_bfloat16 *)a.unit + row * 2 * n_key +
                             (size_t)blockIdx.x * d_k;

    for (uint32_t d = threadIdx.x; d < d_k; d += THREADS) {
        head->q[d] = __bfloat162float(q[d]);
        head->k[d] = __bfloat162float(q[n_key + d]);
        ring[d] = q[n_key + d];
    }
    __syncthreads();
}

/* Weights of the ring's tokens up to i. */
static __device__ void weigh(const struct delta_args &a, const void *ring_k,
                             const double *g, uint32_t i, struct head *head)
{
    const uint32_t d_k = a.shape.d_k;

    for (uint32_t j = threadIdx.x; j <= i; j += THREADS) {
        const float decay = scalar_exp((float)(g[i] - g[j]));
        float w = 0.0f, x = 0.0f;

        for (uint32_t d = 0; d < d_k; d++) {
            const float key = bf16_at(ring_k, (size_t)j * d_k + d);

            w = __fmaf_rn(head->k[d], key, w);
            x = __fmaf_rn(head->q[d], key, x);
        }
        head->decay[j] = decay;
        head->w[j] = decay * w;
        head->x[j] = decay * x;
    }
    if (threadIdx.x == 0)
        head->since_grid = scalar_exp((float)g[i]);
    __syncthreads();
}

struct output {
    const float *s; /* [d_k][d_v] */
    void *ring_u;   /* [GRID][d_v + DELTA_BLOCK] */
    float beta, v;
};

/* Output e of row i; its u goes into the ring. */
static __device__ float solve(const struct delta_args &a,
                              const struct head *head, struct output o,
                              uint32_t i, uint32_t e)
{
    const uint32_t d_v = a.shape.d_v, stride = d_v + DELTA_BLOCK;
    const uint32_t near = i - i % DELTA_BLOCK;
    float by_k = 0.0f, by_q = 0.0f, past = 0.0f, out = 0.0f;

    for (uint32_t d = 0; d < a.shape.d_k; d++) {
        const float s = rounded(o.s[(size_t)d * d_v + e]);

        by_k = __fmaf_rn(head->k[d], s, by_k);
        by_q = __fmaf_rn(head->q[d], s, by_q);
    }
    for (uint32_t j = 0; j < near; j++)
        past = __fmaf_rn(rounded(head->w[j]),
                         bf16_at(o.ring_u, (size_t)j * stride + e), past);
    float r = __fmaf_rn(-head->since_grid, by_k, o.v) - past;
    for (uint32_t j = near; j < i; j++)
        r = __fmaf_rn(-head->w[j], bf16_at(o.ring_u, (size_t)j * stride + e),
                      r);
    ((__nv_bfloat16 *)o.ring_u)[(size_t)i * stride + e] =
        __float2bfloat16_rn(o.beta * r);
    for (uint32_t j = 0; j <= i; j++)
        out = __fmaf_rn(rounded(head->x[j]),
                        bf16_at(o.ring_u, (size_t)j * stride + e), out);
    return __fmaf_rn(head->since_grid, by_q, out);
}

/* Fold a full ring into the state. */
static __device__ void fold(const struct delta_args &a, const struct head *head,
                            const void *ring_k, struct output o, float *s)
{
    const uint32_t d_k = a.shape.d_k, d_v = a.shape.d_v;
    const uint32_t stride = d_v + DELTA_BLOCK;

    for (uint32_t at = threadIdx.x; at < d_k * d_v; at += THREADS) {
        const uint32_t d = at / d_v, e = at % d_v;
        float sum = 0.0f;

        for (uint32_t j = 0; j < GRID; j++)
            sum = __fmaf_rn(
                rounded(head->decay[j] * bf16_at(ring_k, (size_t)j * d_k + d)),
                bf16_at(o.ring_u, (size_t)j * stride + e), sum);
        s[at] = __fmaf_rn(head->since_grid, s[at], sum);
    }
}

static __global__ void delta_plain(const __grid_constant__ struct delta_args a)
{
    launch_begin();
    __shared__ struct head head;
    const struct delta_span &span = a.span[blockIdx.y];
    const uint32_t d_k = a.shape.d_k, d_v = a.shape.d_v;
    const uint32_t n_each = a.shape.n_v_head / a.shape.n_k_head;
    __nv_bfloat16 *ring_k =
        (__nv_bfloat16 *)span.state.ring_k + (size_t)blockIdx.x * GRID * d_k;

    for (uint32_t t = 0; t < span.n_row; t++) {
        const uint32_t i = (span.position + t) % GRID;
        const size_t row = span.first_row + t;

        take_keys(a, row, &head, ring_k + (size_t)i * d_k);
        for (uint32_t h = blockIdx.x * n_each; h < (blockIdx.x + 1) * n_each;
             h++) {
            double *g = span.state.ring_g + (size_t)h * GRID;
            float *s = span.state.s + (size_t)h * d_k * d_v;
            struct output o;

            if (threadIdx.x == 0)
                g[i] = (i ? g[i - 1] : 0.0) +
                       (double)a.log_decay[row * a.shape.n_v_head + h];
            __syncthreads();
            weigh(a, ring_k, g, i, &head);
            o.s = s;
            o.ring_u = (__nv_bfloat16 *)span.state.ring_u +
                       (size_t)h * GRID * (d_v + DELTA_BLOCK);
            o.beta = a.beta[row * a.shape.n_v_head + h];
            for (uint32_t e = threadIdx.x; e < d_v; e += THREADS) {
                o.v = a.v[row * a.qkv_stride + (size_t)h * d_v + e];
                a.out[row * a.out_stride + (size_t)h * d_v + e] =
                    solve(a, &head, o, i, e);
            }
            __syncthreads();
            if (i == GRID - 1)
                fold(a, &head, ring_k, o, s);
            __syncthreads();
        }
    }
}

void cuda_delta_plain(struct gpu *gpu, const struct delta_args *args)
{
    struct delta_args a = *args;

    assert(a.shape.d_k <= DIM_MAX && a.shape.n_v_head % a.shape.n_k_head == 0);
    a.span = (const struct delta_span *)gpu_stage(gpu, args->span,
                                                  a.n_span * sizeof(*a.span));
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, delta_plain, dim3(a.shape.n_k_head, a.n_span),
                     THREADS, a);
}
