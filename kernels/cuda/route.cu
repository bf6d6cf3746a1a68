/*
 * Layers of experts: the router's product, route and combine, with the bits of
 * the CPU's fp32 arithmetic, so that equal rows go to equal experts.
 *
 * Rows are put in order of experts, and among an expert's in their own: for a
 * decode step in one block, else by a block for each expert, which counts who
 * chose it, then hands out its places.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define PANEL LINEAR_PANEL
#define FEW_ROWS 8u /* of a block of the router's product ... */
#define FEW_THREADS 256u
#define FEW_STEP 8u     /* inputs that are read ahead of their addition */
#define FEW_AHEAD 16u   /* quads that a thread asks for at once */
#define FEW_DEPTH 2048u /* inputs that it holds at a time */
#define FEW_BYTES ((FEW_ROWS + PANEL) * FEW_DEPTH * 4)
#define MANY 64u /* ... where rows are many: its rows and outputs */
#define MANY_DEPTH 32u
#define EACH 4u /* of both a thread */
#define MANY_THREADS (MANY / EACH * (MANY / EACH))
#define LANES 16u /* of a sum, as scalar_sum() */
#define GROUP_THREADS 256u
#define STEP_THREADS 1024u /* of the block that routes a step, ... */
#define STEP_EACH 2u       /* rows of a warp */
#define STEP_ROWS 64u      /* which has so many rows at most */
#define THREADS 256u
#define CHOSEN_AHEAD                                                           \
    8u /* experts of a row whose results are asked for at once */

/* ------------------------------------------------------------------- product
 */

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

static uint32_t up(size_t n, uint32_t by)
{
    return (uint32_t)((n + by - 1) / by);
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
    a.n_step = is_f32 ? w->n_in : up(w->n_in, LINEAR_STEP) * LINEAR_STEP;
    a.n_row = args->n_row;
    a.n_in = w->n_in;
    a.n_out = w->n_out;
    a.is_f32 = is_f32;
    a.is_even = (uintptr_t)a.x % 16 == 0 && a.x_stride % 4 == 0;
    if (gpu_is_replaying(gpu) || !a.n_row)
        return;
    const dim3 few(up(a.n_out, PANEL), up(a.n_row, FEW_ROWS));

    /* By then the other kernel's blocks fill the GPU, too. */
    if (few.x * few.y > 4 * (uint32_t)gpu_n_sm(gpu)) {
        launch_early(gpu, plain_many,
                     dim3(up(a.n_out, MANY), up(a.n_row, MANY)), MANY_THREADS,
                     a);
        return;
    }
    (void)cudaFuncSetAttribute(
        plain_few, cudaFuncAttributeMaxDynamicSharedMemorySize, FEW_BYTES);
    launch_early_with(gpu_stream(gpu), plain_few, few, FEW_THREADS, FEW_BYTES,
                      a);
}

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
        const uint32_t by_row = up(to->n_row, STEP_EACH) * 32;
        const uint32_t by_expert = up(to->n_expert, 32) * 32;
        const uint32_t n_thread = by_row > by_expert ? by_row : by_expert;

        (void)cudaFuncSetAttribute(route_step,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)(EXPERT_MAX * (12 + STEP_THREADS / 8)));
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
