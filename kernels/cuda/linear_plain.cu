/*
 * linear with the fp32 chain (kernels/linear.h), for the router of a layer of
 * experts. The matrix is small and its chain is long: a step of one row takes
 * the latency of n_in additions, 4 cycles each, and hardly more, if all that it
 * reads is at hand.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

#include <assert.h>

#define PANEL LINEAR_PANEL
#define FEW_ROWS 8u /* of a block of the router's product ... */
#define FEW_THREADS 256u
#define FEW_STEP 8u   /* inputs that are read ahead of their addition */
#define FEW_AHEAD 16u /* quads that a thread asks for at once */
/* Inputs that it holds at a time; half of them before Hopper. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FEW_DEPTH 1024u
#else
#define FEW_DEPTH 2048u
#endif
#define FEW_BYTES ((FEW_ROWS + PANEL) * FEW_DEPTH * 4)
#define MANY 64u /* ... where rows are many: its rows and outputs */
#define MANY_DEPTH 32u
#define EACH 4u /* of both a thread */
#define MANY_THREADS (MANY / EACH * (MANY / EACH))

struct plain {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    const void *panel;
    size_t n_step; /* inputs as a panel pads them */
    uint32_t n_row, n_in, n_out;
    bool is_f32, is_even; /* even: x may be read four floats at a time */
};

/* Two steps of four outputs, as a panel of bf16 has them in 16 bytes. */
static __device__ __forceinline__ float4 even_step(uint4 v)
{
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.y << 16),
                       __uint_as_float(v.z << 16), __uint_as_float(v.w << 16));
}

static __device__ __forceinline__ float4 odd_step(uint4 v)
{
    return make_float4(
        __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y & 0xffff0000u),
        __uint_as_float(v.z & 0xffff0000u), __uint_as_float(v.w & 0xffff0000u));
}

/* A panel's weights from input k on. */
static __device__ __forceinline__ const void *weights_at(const struct plain &a,
                                                         size_t panel, size_t k)
{
    const size_t at = (panel * a.n_step + k) * PANEL;

    return a.is_f32 ? (const void *)((const float *)a.panel + at)
                    : (const void *)((const uint16_t *)a.panel + at);
}

/* Quad i of a panel's to its place. */
static __device__ __forceinline__ void put_quad(const struct plain &a,
                                                float4 *w, uint32_t i, uint4 v)
{
    if (a.is_f32) {
        *(uint4 *)&w[i] = v;
        return;
    }
    w[i / 4 * 8 + i % 4] = even_step(v);
    w[i / 4 * 8 + 4 + i % 4] = odd_step(v);
}

/* Weights of inputs [k0, k0 + n) of a panel, [n][PANEL]; k0 is even. */
static __device__ __forceinline__ void load_weights(const struct plain &a,
                                                    uint32_t panel, uint32_t k0,
                                                    uint32_t n, float *w)
{
    const uint4 *from = (const uint4 *)weights_at(a, panel, k0);
    const uint32_t n_quad = (a.is_f32 ? n : (n + 1) / 2) * (PANEL / 4);

    for (uint32_t i0 = threadIdx.x; i0 < n_quad;
         i0 += FEW_THREADS * FEW_AHEAD) {
        uint4 v[FEW_AHEAD];

#pragma unroll
        for (uint32_t j = 0; j < FEW_AHEAD; j++)
            if (i0 + j * FEW_THREADS < n_quad)
                v[j] = from[i0 + j * FEW_THREADS];
#pragma unroll
        for (uint32_t j = 0; j < FEW_AHEAD; j++)
            if (i0 + j * FEW_THREADS < n_quad)
                put_quad(a, (float4 *)w, i0 + j * FEW_THREADS, v[j]);
    }
}

static __device__ __forceinline__ float4 load_quad(const struct plain &a,
                                                   size_t row, uint32_t k)
{
    const float *x = a.x + row * a.x_stride + k;

    if (a.is_even && k + 4 <= a.n_in)
        return *(const float4 *)x;
    return make_float4(k < a.n_in ? x[0] : 0.0f, k + 1 < a.n_in ? x[1] : 0.0f,
                       k + 2 < a.n_in ? x[2] : 0.0f,
                       k + 3 < a.n_in ? x[3] : 0.0f);
}

/* Rows [row, row + FEW_ROWS) of inputs [k0, k0 + n), [FEW_ROWS][FEW_DEPTH]. */
static __device__ __forceinline__ void load_rows(const struct plain &a,
                                                 uint32_t row, uint32_t k0,
                                                 uint32_t n, float *x)
{
    const uint32_t n_row = min(FEW_ROWS, a.n_row - row), n_quad = (n + 3) / 4;

    for (uint32_t i0 = threadIdx.x; i0 < n_row * n_quad;
         i0 += FEW_THREADS * FEW_AHEAD) {
        float4 v[FEW_AHEAD];

#pragma unroll
        for (uint32_t j = 0; j < FEW_AHEAD; j++) {
            const uint32_t i = i0 + j * FEW_THREADS;

            if (i < n_row * n_quad)
                v[j] = load_quad(a, row + i / n_quad, k0 + i % n_quad * 4);
        }
#pragma unroll
        for (uint32_t j = 0; j < FEW_AHEAD; j++) {
            const uint32_t i = i0 + j * FEW_THREADS;

            if (i < n_row * n_quad)
                *(float4 *)(x + i / n_quad * FEW_DEPTH + i % n_quad * 4) = v[j];
        }
    }
}

/* FEW_STEP inputs of two rows and an output, read before they are used. */
struct few_step {
    float4 x[2][FEW_STEP / 4];
    float w[FEW_STEP];
};

static __device__ __forceinline__ void
read_step(const float *x, const float *w, uint32_t k, struct few_step *to)
{
#pragma unroll
    for (uint32_t i = 0; i < FEW_STEP / 4; i++) {
        to->x[0][i] = *(const float4 *)(x + k + 4 * i);
        to->x[1][i] = *(const float4 *)(x + FEW_DEPTH + k + 4 * i);
    }
#pragma unroll
    for (uint32_t i = 0; i < FEW_STEP; i++)
        to->w[i] = w[(k + i) * PANEL];
}

static __device__ __forceinline__ void chain_step(const struct few_step *s,
                                                  float sum[2])
{
#pragma unroll
    for (uint32_t i = 0; i < FEW_STEP; i += 4)
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const float4 x = s->x[r][i / 4];

            sum[r] = __fmaf_rn(x.x, s->w[i], sum[r]);
            sum[r] = __fmaf_rn(x.y, s->w[i + 1], sum[r]);
            sum[r] = __fmaf_rn(x.z, s->w[i + 2], sum[r]);
            sum[r] = __fmaf_rn(x.w, s->w[i + 3], sum[r]);
        }
}

/* Go on with the chains of two rows: the next step is read while this one is
 * added. What is read behind the last is not used. */
static __device__ __forceinline__ void
chain_rows(const float *x, const float *w, uint32_t n, float sum[2])
{
    const uint32_t n_whole = n / (2 * FEW_STEP) * (2 * FEW_STEP);
    struct few_step even, odd;

    if (n_whole)
        read_step(x, w, 0, &even);
    for (uint32_t k = 0; k < n_whole; k += 2 * FEW_STEP) {
        read_step(x, w, k + FEW_STEP, &odd);
        chain_step(&even, sum);
        read_step(x, w, k + 2 * FEW_STEP < n_whole ? k + 2 * FEW_STEP : 0,
                  &even);
        chain_step(&odd, sum);
    }
    for (uint32_t k = n_whole; k < n; k++) {
        sum[0] = __fmaf_rn(x[k], w[k * PANEL], sum[0]);
        sum[1] = __fmaf_rn(x[FEW_DEPTH + k], w[k * PANEL], sum[1]);
    }
}

/*
 * Few rows: the chain's length is the time, so all that it reads lies in shared
 * memory before it begins, the weights before the kernel ahead is done. A
 * thread has one output of two rows; warps whose rows are none only load.
 */
static __global__ void __launch_bounds__(FEW_THREADS)
    plain_few(const __grid_constant__ struct plain a)
{
    extern __shared__ __align__(16) float few_room[];
    float *w = few_room, *x = few_room + FEW_DEPTH * PANEL;
    const uint32_t lane = threadIdx.x % PANEL, r = threadIdx.x / PANEL * 2;
    const uint32_t row = blockIdx.y * FEW_ROWS;
    const uint32_t out = blockIdx.x * PANEL + lane;
    float sum[2] = {0.0f, 0.0f};

    launch_next();
    load_weights(a, blockIdx.x, 0, min(a.n_in, FEW_DEPTH), w);
    launch_wait();
    for (uint32_t k0 = 0; k0 < a.n_in; k0 += FEW_DEPTH) {
        const uint32_t n = min(a.n_in - k0, FEW_DEPTH);

        if (k0)
            load_weights(a, blockIdx.x, k0, n, w);
        load_rows(a, row, k0, n, x);
        __syncthreads();
        if (r < FEW_ROWS && row + threadIdx.x / 32 * 4 < a.n_row)
            chain_rows(x + r * FEW_DEPTH, w + lane, n, sum);
        __syncthreads();
    }
    for (uint32_t i = 0; i < 2 && r < FEW_ROWS; i++)
        if (row + r + i < a.n_row && out < a.n_out)
            a.y[(row + r + i) * a.y_stride + out] = sum[i];
}

/* A block's next MANY_DEPTH inputs on their way, a thread's part. */
struct many_part {
    float4 x[2];
    uint4 w[2];
};

struct many_room {
    float x[MANY_DEPTH][MANY + 4], w[MANY_DEPTH][MANY];
};

/* Sixteen bytes of weights that a panel's MANY_DEPTH inputs are made of. */
static __device__ __forceinline__ uint32_t panel_quads(const struct plain &a)
{
    return MANY_DEPTH * PANEL / (a.is_f32 ? 4 : 8);
}

/* Quads of x: 8 of a row side by side. Of w: those of a panel side by side. */
static __device__ __forceinline__ void
fetch_many(const struct plain &a, uint32_t k0, struct many_part *part)
{
    const uint32_t n_step = a.is_f32 ? a.n_in : (uint32_t)a.n_step;
    const uint32_t each = panel_quads(a);

#pragma unroll
    for (uint32_t n = 0; n < 2; n++) {
        const uint32_t i = n * MANY_THREADS + threadIdx.x;
        const uint32_t row = blockIdx.y * MANY + i / 8;
        const uint32_t panel = blockIdx.x * (MANY / PANEL) + i / each;
        const uint32_t k = k0 + i % each / 4 * (a.is_f32 ? 1 : 2);

        part->x[n] = row < a.n_row ? load_quad(a, row, k0 + i % 8 * 4)
                                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        part->w[n] = make_uint4(0, 0, 0, 0);
        if (i < MANY / PANEL * each && panel * PANEL < a.n_out && k < n_step)
            part->w[n] = ((const uint4 *)weights_at(a, panel, k0))[i % each];
    }
}

static __device__ __forceinline__ void put_many(const struct plain &a,
                                                const struct many_part *part,
                                                struct many_room *to)
{
    const uint32_t each = panel_quads(a);

#pragma unroll
    for (uint32_t n = 0; n < 2; n++) {
        const uint32_t i = n * MANY_THREADS + threadIdx.x;
        const uint32_t k = i % each / 4, o = i / each * PANEL + i % 4 * 4;
        float(*x)[MANY + 4] = &to->x[i % 8 * 4];

        x[0][i / 8] = part->x[n].x;
        x[1][i / 8] = part->x[n].y;
        x[2][i / 8] = part->x[n].z;
        x[3][i / 8] = part->x[n].w;
        if (i >= MANY / PANEL * each)
            continue;
        if (a.is_f32) {
            *(uint4 *)&to->w[k][o] = part->w[n];
        } else {
            *(float4 *)&to->w[2 * k][o] = even_step(part->w[n]);
            *(float4 *)&to->w[2 * k + 1][o] = odd_step(part->w[n]);
        }
    }
}

static __device__ __forceinline__ void chain_many(const struct many_room *room,
                                                  uint32_t n, uint32_t r,
                                                  uint32_t o,
                                                  float sum[EACH][EACH])
{
#pragma unroll 4
    for (uint32_t k = 0; k < n; k++) {
        const float4 x4 = *(const float4 *)&room->x[k][r];
        const float4 w4 = *(const float4 *)&room->w[k][o];
        const float xs[EACH] = {x4.x, x4.y, x4.z, x4.w};
        const float ws[EACH] = {w4.x, w4.y, w4.z, w4.w};

#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
#pragma unroll
            for (uint32_t j = 0; j < EACH; j++)
                sum[i][j] = __fmaf_rn(xs[i], ws[j], sum[i][j]);
    }
}

/* Many rows: MANY by MANY outputs a block, EACH by EACH a thread. */
static __global__ void __launch_bounds__(MANY_THREADS)
    plain_many(const __grid_constant__ struct plain a)
{
    __shared__ __align__(16) struct many_room room;
    const uint32_t r = threadIdx.x / (MANY / EACH) * EACH;
    const uint32_t o = threadIdx.x % (MANY / EACH) * EACH;
    const uint32_t row = blockIdx.y * MANY + r, out = blockIdx.x * MANY + o;
    float sum[EACH][EACH] = {};
    struct many_part part;

    launch_begin();
    fetch_many(a, 0, &part);
    for (uint32_t k0 = 0; k0 < a.n_in; k0 += MANY_DEPTH) {
        put_many(a, &part, &room);
        __syncthreads();
        if (k0 + MANY_DEPTH < a.n_in)
            fetch_many(a, k0 + MANY_DEPTH, &part);
        chain_many(&room, min(a.n_in - k0, MANY_DEPTH), r, o, sum);
        __syncthreads();
    }
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++)
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++)
            if (row + i < a.n_row && out + j < a.n_out)
                a.y[(row + i) * a.y_stride + out + j] = sum[i][j];
}

void cuda_linear_plain(struct gpu *gpu, const struct linear_args *args)
{
    const struct linear *w = args->w;
    const bool is_f32 = w->type == LINEAR_F32;
    struct plain a;

    assert(is_f32 || w->type == LINEAR_BF16);
    assert(!args->x_rounded);
    a.y = args->y;
    a.y_stride = args->y_stride;
    a.x = args->x;
    a.x_stride = args->x_stride;
    a.panel = w->panel;
    a.n_step = is_f32 ? w->n_in : div_up(w->n_in, LINEAR_STEP) * LINEAR_STEP;
    a.n_row = args->n_row;
    a.n_in = w->n_in;
    a.n_out = w->n_out;
    a.is_f32 = is_f32;
    a.is_even = (uintptr_t)a.x % 16 == 0 && a.x_stride % 4 == 0;
    if (gpu_is_replaying(gpu) || !a.n_row)
        return;
    const dim3 few(div_up(a.n_out, PANEL), div_up(a.n_row, FEW_ROWS));

    /* By then the other kernel's blocks fill the GPU, too. */
    if (few.x * few.y > 4 * (uint32_t)gpu_n_sm(gpu)) {
        launch_early(gpu, plain_many,
                     dim3(div_up(a.n_out, MANY), div_up(a.n_row, MANY)),
                     MANY_THREADS, a);
        return;
    }
    const uint32_t bytes = way_is_sm80() ? FEW_BYTES / 2 : FEW_BYTES;

    static_assert(FEW_BYTES / 2 <= WAY_SHARED_LEAST, "on every GPU");
    launch_allow(plain_few, bytes);
    launch_early_with(gpu_stream(gpu), plain_few, few, FEW_THREADS, bytes, a);
}
