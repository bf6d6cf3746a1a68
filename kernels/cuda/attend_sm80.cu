/*
 * Attention by mma.sync and cp.async, in the arithmetic of attend.cuh: the
 * shape of FlashAttention-2 (arXiv:2307.08691).
 *
 * A warp has 16 packed rows and goes through the keys step by step; scores,
 * weights and O stay in its registers, where the sums of one product are the
 * operand of the next. The warps of a CTA share keys and values: values of a
 * step come while its scores are made, keys of the next while its values are
 * multiplied.
 *
 * Many rows: as many warps as there is shared memory for; O of past chains lies
 * in the output meanwhile. Few rows: four warps a chain, which share keys, then
 * dims, and each make all weights; a second kernel merges the chains. Both
 * rotate keys where they lie, and blocks of int8 are widened before them
 * (attend_wide.cu).
 *
 * Bound: bytes of keys and values for few rows, 4 n_key d operations a row and
 * head at the rate of mma.sync for many.
 */
#include "kernels/cuda/attend_sm80.cuh"

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/way.h"

#define FEW_ROWS 16u
#define FEW_WARPS 4u
#define SCORE_PAD 8u /* so that eight rows' pairs meet no bank twice */

template <int D> struct sm80 {
    static constexpr uint32_t STEP = step_keys(D), KV_BYTES = STEP * D * 2;
    static constexpr uint32_t N_BLOCK = STEP / KV_BLOCK; /* of a step */
    static constexpr uint32_t CHAIN_STEPS = ATTEND_CHAIN / STEP;
    static constexpr uint32_t MANY_WARPS = D > 128 ? 4 : 8;
    static_assert(FEW_WARPS * 32 % STEP == 0 && MANY_WARPS * 32 % STEP == 0,
                  "rotate_keys()");
};

/* A warp's share where N of them have the same rows: keys of a step, dims. */
template <int D, int N> struct share {
    static constexpr uint32_t KEYS = step_keys(D) / N, DIMS = D / N;
};

/* Which of them this one is. */
template <int N> static __device__ __forceinline__ uint32_t share_of(void)
{
    return N > 1 ? threadIdx.x / 32 : 0;
}

/* What a CTA has: 16 packed rows a warp, and steps [step, end) of keys. */
struct part {
    struct attend_span span;
    uint32_t head, first, n_packed; /* KV head; first packed row */
    uint32_t step, end;
    uint32_t n_chain; /* of few rows */
};

struct sm80_call {
    struct attend_frame frame;
    const struct attend_span *span; /* on the device */
    uint32_t n_span;
    uint32_t n_row; /* of a span at most */
    /* Of few rows: tiles of a span and chains of its past at most, and a
     * chain's results. */
    uint32_t n_tile, n_chain;
    float *part;
};

template <int D> struct room {
    unsigned char *q, *k, *v;
    float *score; /* of few rows: [16][STEP + SCORE_PAD] */
};

/* All groups but the newest have come, to all threads. */
static __device__ __forceinline__ void copies_await(void)
{
    cp_async_wait<1>();
    __syncthreads();
}

/* ----------------------------------------------------------------- copying */

static __device__ __forceinline__ uint64_t
last_block(const struct attend_span &span)
{
    uint64_t n_key = span.position + span.n_row;

    return (n_key + KV_BLOCK - 1) / KV_BLOCK - 1;
}

/* Keys or values of a step out of their blocks, to tiles of STEP rows. Behind
 * the last block any finite values will do. */
template <int D>
static __device__ __forceinline__ void copy_blocks(unsigned char *to,
                                                   const struct part &at,
                                                   uint32_t step, uint32_t head)
{
    constexpr uint32_t N_BLOCK = sm80<D>::N_BLOCK;
    uint64_t last = last_block(at.span);

#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        uint64_t block = min((uint64_t)step * N_BLOCK + b, last);
        const unsigned char *from = keys_of<D>(at.span.block[block], head);

        for (uint32_t i = threadIdx.x; i < D * 8; i += blockDim.x)
            cp_async_16(to + (i / 512 * N_BLOCK + b) * TILE_BYTES +
                            i % 512 * 16,
                        from + i * 16);
    }
}

/* 16 queries, by n_thread threads, scaled, rounded and tiled; zeros where there
 * are none. */
template <int D>
static __device__ __forceinline__ void
load_queries(unsigned char *q, const struct attend_frame &f,
             const struct part &at, uint32_t first, uint32_t n_thread)
{
    for (uint32_t i = threadIdx.x % n_thread; i < 16 * D / 8; i += n_thread) {
        uint32_t packed = first + i / (D / 8), e = i % (D / 8) * 8;
        size_t row = at.span.first_row + packed / f.group;
        size_t head = at.head * f.group + packed % f.group;
        const float *from = f.q + row * f.q_stride + head * f.d_head + e;
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f}, y = x;

        if (packed < at.n_packed && e < f.d_head) {
            x = *(const float4 *)from;
            y = *(const float4 *)(from + 4);
        }
        *(uint4 *)(q + tile_at(i / (D / 8), e, 16)) = {
            bf16_pair(x.x * f.factor, x.y * f.factor),
            bf16_pair(x.z * f.factor, x.w * f.factor),
            bf16_pair(y.x * f.factor, y.y * f.factor),
            bf16_pair(y.z * f.factor, y.w * f.factor)};
    }
}

/* The keys of a step where they lie: a thread has a key, eight pairs at a time,
 * and beside it others have other pairs of the same key. */
template <int D, bool IS_PLACED>
static __device__ __forceinline__ void
rotate_keys(unsigned char *k, const struct attend_frame &f,
            const struct attend_span &span, uint32_t step)
{
    constexpr uint32_t STEP = sm80<D>::STEP;
    uint32_t j = threadIdx.x % STEP;
    uint64_t block = (uint64_t)step * sm80<D>::N_BLOCK + j / KV_BLOCK;

    if (IS_PLACED)
        block = min(block, last_block(span));

    for (uint32_t e = threadIdx.x / STEP * 8; e < f.n_pair;
         e += blockDim.x / STEP * 8) {
        uint4 *x = (uint4 *)(k + tile_at(j, e, STEP));
        uint4 *y = (uint4 *)(k + tile_at(j, e + f.n_pair, STEP));
        struct angle angle[8];
        uint4 a = *x, b = *y;

#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            angle[i] = angle_at<IS_PLACED>(f, span, block, e + i, j % KV_BLOCK);
        rotate_unit(&a, &b, angle);
        *x = a;
        *y = b;
    }
    __syncthreads();
}

/* ---------------------------------------------------------------- products */

/* S = Q K^T of a step, of this warp's keys. */
template <int D, int N>
static __device__ __forceinline__ void scores(float *s, uint32_t q, uint32_t k)
{
    constexpr uint32_t STEP = sm80<D>::STEP, KEYS = share<D, N>::KEYS;
    uint32_t lane = threadIdx.x % 32, first = share_of<N>() * KEYS;

#pragma unroll
    for (uint32_t i = 0; i < KEYS / 2; i++)
        s[i] = 0.0f;
#pragma unroll
    for (uint32_t t = 0; t < D / 16; t++) {
        uint32_t a[4];

        load_matrices(a, q + tile_at(lane % 16, 16 * t + lane / 16 * 8, 16));
#pragma unroll
        for (uint32_t j = 0; j < KEYS; j += 16) {
            uint32_t b[4];

            load_matrices(b, k + tile_at(first + j + lane / 16 * 8 + lane % 8,
                                         16 * t + lane / 8 % 2 * 8, STEP));
            mma(s + j / 2, a, b[0], b[1]);
            mma(s + j / 2 + 4, a, b[2], b[3]);
        }
    }
}

/* From the scores of this warp's keys those of all. */
template <int D>
static __device__ __forceinline__ void exchange(float *s, float *score)
{
    constexpr uint32_t STEP = sm80<D>::STEP;
    constexpr uint32_t KEYS = share<D, FEW_WARPS>::KEYS;
    uint32_t lane = threadIdx.x % 32, stride = STEP + SCORE_PAD;
    float *at = score + lane / 4 * stride + lane % 4 * 2;
    float *mine = at + share_of<FEW_WARPS>() * KEYS;

#pragma unroll
    for (uint32_t i = 0; i < KEYS / 4; i++)
        *(float2 *)(mine + i / 2 * 8 + i % 2 * 8 * stride) = {s[2 * i],
                                                              s[2 * i + 1]};
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < STEP / 4; i++) {
        float2 x = *(const float2 *)(at + i / 2 * 8 + i % 2 * 8 * stride);

        s[2 * i] = x.x;
        s[2 * i + 1] = x.y;
    }
}

/* O += P V of a step, of this warp's dims. */
template <int D, int N>
static __device__ __forceinline__ void values(float *o, const uint32_t *p,
                                              uint32_t v)
{
    constexpr uint32_t STEP = sm80<D>::STEP, DIMS = share<D, N>::DIMS;
    uint32_t lane = threadIdx.x % 32, first = share_of<N>() * DIMS;

#pragma unroll
    for (uint32_t t = 0; t < STEP / 16; t++)
#pragma unroll
        for (uint32_t e = 0; e < DIMS; e += 16) {
            uint32_t b[4];

            load_transposed(b, v + tile_at(16 * t + lane % 16,
                                           first + e + lane / 16 * 8, STEP));
            mma(o + e / 2, p + 4 * t, b[0], b[1]);
            mma(o + e / 2 + 4, p + 4 * t, b[2], b[3]);
        }
}

/* ----------------------------------------------------------------- softmax */

/* One of the two rows of a thread. */
struct row {
    uint64_t n_seen;        /* keys up to its own */
    float max, sum;         /* of this chain: M, and L_c of this thread's c */
    float all_max, all_sum; /* of the chains before */
};

/* Scores to weights; the factor that O takes on. s: those of the row. */
template <int N>
static __device__ __forceinline__ float weigh(float *s, struct row *row,
                                              uint64_t first_key)
{
    uint32_t c = threadIdx.x % 4 * 2;
    int n_seen = (int)min((int64_t)(row->n_seen - first_key), (int64_t)N);
    float max = -INFINITY;

#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        s[4 * i] = (int)(8 * i + c) < n_seen ? s[4 * i] : -INFINITY;
        s[4 * i + 1] = (int)(8 * i + c + 1) < n_seen ? s[4 * i + 1] : -INFINITY;
        max = fmaxf(max, fmaxf(s[4 * i], s[4 * i + 1]));
    }
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    max = raised(row->max, max);
    float base = finite_max(max), factor = exp2_of(row->max - base);
    float sum = to_weights<N>(s, base);
    row->max = max;
    row->sum = __fmaf_rn(row->sum, factor, sum);
    return factor;
}

/* L of the row's chain, of all four c. */
static __device__ __forceinline__ float chain_sum(const struct row *row)
{
    float sum = row->sum;

    sum = sum + __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
}

/* One step, whose keys have come; values come meanwhile. */
template <int D, int N, bool IS_PLACED>
static __device__ __forceinline__ void
take_step(float *o, struct row *row, const struct attend_frame &f,
          const struct part &at, struct room<D> m, uint32_t i)
{
    constexpr uint32_t STEP = sm80<D>::STEP;
    float s[STEP / 2], factor[2];
    uint32_t p[STEP / 4];

    copy_blocks<D>(m.v, at, i, f.n_kv_head + at.head);
    cp_async_commit();
    copies_await();
    rotate_keys<D, IS_PLACED>(m.k, f, at.span, i);
    scores<D, N>(s, shared_address(m.q), shared_address(m.k));
    if (N > 1) /* behind whose barrier keys are done with */
        exchange<D>(s, m.score);
    else
        __syncthreads();
    if (i + 1 < at.end)
        copy_blocks<D>(m.k, at, i + 1, at.head);
    cp_async_commit();
    factor[0] = weigh<STEP>(s, row, (uint64_t)i * STEP);
    factor[1] = weigh<STEP>(s + 2, row + 1, (uint64_t)i * STEP);
#pragma unroll
    for (uint32_t j = 0; j < STEP / 4; j++)
        p[j] = bf16_pair(s[2 * j], s[2 * j + 1]);
#pragma unroll
    for (uint32_t j = 0; j < share<D, N>::DIMS / 2; j++)
        o[j] = o[j] * factor[j / 2 % 2];
    copies_await();
    values<D, N>(o, p, shared_address(m.v));
    __syncthreads();
}

/* ----------------------------------------------------------------- results */

/* Where packed row r of a CTA goes; to NULL behind the last. */
static __device__ __forceinline__ struct ending
end_of(const struct attend_frame &f, const struct part &at, uint32_t r)
{
    uint32_t packed = at.first + r;
    size_t row = at.span.first_row + packed / f.group;
    size_t head = at.head * f.group + packed % f.group;

    if (packed < at.n_packed)
        return ending_of(f, row, head);
    return {NULL, NULL, NULL};
}

/* From dim e of it on. */
static __device__ __forceinline__ struct ending end_from(struct ending to,
                                                         uint32_t e)
{
    return {to.out ? to.out + e : NULL, to.rounded ? to.rounded + e : NULL,
            to.gate ? to.gate + e : NULL};
}

/* The chain's O joins those before, which lie in the output. DIMS of its dims
 * are this warp's, of which d_head are there. */
template <int DIMS>
static __device__ __forceinline__ void
join(float *o, const float *out, uint32_t d_head, float old, float now)
{
#pragma unroll
    for (uint32_t i = 0; i < DIMS / 8; i++)
        if (out && i * 8 < d_head) {
            float2 x = *(const float2 *)(out + i * 8 + threadIdx.x % 4 * 2);
            o[4 * i] = __fmaf_rn(x.x, old, o[4 * i] * now);
            o[4 * i + 1] = __fmaf_rn(x.y, old, o[4 * i + 1] * now);
        }
}

template <int DIMS>
static __device__ __forceinline__ void put(const float *o, float *out,
                                           uint32_t d_head)
{
#pragma unroll
    for (uint32_t i = 0; i < DIMS / 8; i++)
        if (out && i * 8 < d_head)
            *(float2 *)(out + i * 8 + threadIdx.x % 4 * 2) = {
                o[4 * i] + 0.0f, o[4 * i + 1] + 0.0f};
}

/* A chain of a row ends: is_last, or another one begins. */
template <int DIMS>
static __device__ __forceinline__ void
end_chain(float *o, struct row *row, const struct ending &to, uint32_t d_head,
          bool is_first, bool is_last)
{
    float sum = chain_sum(row);

    if (is_first) {
        row->all_max = row->max;
        row->all_sum = sum;
    } else {
        float max = fmaxf(row->all_max, row->max);
        float old = exp2_of(row->all_max - max), now = exp2_of(row->max - max);

        join<DIMS>(o, to.out, d_head, old, now);
        row->all_sum = __fmaf_rn(row->all_sum, old, sum * now);
        row->all_max = max;
    }
    if (!is_last)
        put<DIMS>(o, to.out, d_head);
    else if (to.out)
        end_dims<DIMS>(to, o, 1.0f / row->all_sum, d_head);
    row->max = -INFINITY;
    row->sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < DIMS / 8; i++)
        o[4 * i] = o[4 * i + 1] = 0.0f;
}

/* ----------------------------------------------------------------- kernels */

template <int D>
static __device__ __forceinline__ struct room<D>
room_of(unsigned char *shared) {
    struct room<D> m;

    m.k = shared + (1024 - shared_address(shared) % 1024) % 1024;
    m.v = m.k + sm80<D>::KV_BYTES;
    m.q = m.v + sm80<D>::KV_BYTES;
    m.score = (float *)(m.q + FEW_ROWS * D * 2);
    return m;
}

static __device__ __forceinline__ void
row_init(struct row *row, const struct attend_frame &f, const struct part &at,
         uint32_t r)
{
    uint32_t token = min(at.first + r, at.n_packed - 1) / f.group;

    row->n_seen = at.span.position + token + 1;
    row->max = row->all_max = -INFINITY;
    row->sum = row->all_sum = 0.0f;
}

/* Steps that rows up to packed row `last` see. */
template <int D>
static __device__ __forceinline__ uint32_t
steps_of(const struct attend_frame &f, const struct part &at, uint32_t last)
{
    uint32_t token = min(last, at.n_packed - 1) / f.group;
    uint64_t n_key = at.span.position + token + 1;

    return (uint32_t)((n_key + sm80<D>::STEP - 1) / sm80<D>::STEP);
}

/* The first keys are asked for. */
template <int D>
static __device__ __forceinline__ void copy_first(const struct part &at,
                                                  struct room<D> m)
{
    copy_blocks<D>(m.k, at, at.step, at.head);
    cp_async_commit();
}

/* Tiles of rows are blockIdx.z, the longest first. */
template <int D, bool IS_PLACED>
static __global__ void __launch_bounds__(sm80<D>::MANY_WARPS * 32)
    many(const __grid_constant__ struct sm80_call c)
{
    constexpr uint32_t N_ROW = sm80<D>::MANY_WARPS * 16;
    constexpr uint32_t CHAIN_STEPS = sm80<D>::CHAIN_STEPS;
    extern __shared__ unsigned char shared[];
    const struct attend_frame &f = c.frame;
    uint32_t r = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    struct room<D> m = room_of<D>(shared);
    float o[D / 2] = {};
    struct row row[2];
    struct part at;

    at.span = c.span[blockIdx.y];
    at.head = blockIdx.x;
    at.first = (gridDim.z - 1 - blockIdx.z) * N_ROW;
    at.n_packed = at.span.n_row * f.group;
    if (at.first >= at.n_packed)
        return;
    at.step = 0;
    at.end = steps_of<D>(f, at, at.first + N_ROW - 1);
    copy_first<D>(at, m);
    m.q += threadIdx.x / 32 * 16 * D * 2;
    load_queries<D>(m.q, f, at, at.first + threadIdx.x / 32 * 16, 32);
    row_init(&row[0], f, at, r);
    row_init(&row[1], f, at, r + 8);
    const struct ending to[2] = {end_of(f, at, r), end_of(f, at, r + 8)};

    for (uint32_t i = 0; i < at.end; i++) {
        take_step<D, 1, IS_PLACED>(o, row, f, at, m, i);
        bool is_last = i + 1 == at.end, is_first = i < CHAIN_STEPS;

        if (!is_last && (i + 1) % CHAIN_STEPS)
            continue;
        end_chain<D>(o, row, to[0], f.d_head, is_first, is_last);
        end_chain<D>(o + 2, row + 1, to[1], f.d_head, is_first, is_last);
    }
}

/* Where a chain's part of packed row r of a tile lies: O, then M and L. */
template <int D>
static __device__ __forceinline__ float *part_of(const struct sm80_call &c,
                                                 const struct part &at,
                                                 uint32_t chain, uint32_t r)
{
    size_t i = blockIdx.x * gridDim.y + blockIdx.y;

    return c.part + ((i * c.n_chain + chain) * FEW_ROWS + r) * (D + 4);
}

/* Returns false behind the span's rows. */
template <int D>
static __device__ __forceinline__ bool few_part(struct part *at,
                                                const struct sm80_call &c)
{
    at->span = c.span[blockIdx.x / c.n_tile];
    at->head = blockIdx.y;
    at->first = blockIdx.x % c.n_tile * FEW_ROWS;
    at->n_packed = at->span.n_row * c.frame.group;
    if (at->first >= at->n_packed)
        return false;
    at->end = steps_of<D>(c.frame, *at, at->first + FEW_ROWS - 1);
    at->n_chain = (at->end + sm80<D>::CHAIN_STEPS - 1) / sm80<D>::CHAIN_STEPS;
    return true;
}

/* A CTA has one chain of 16 packed rows; its warps share keys, then dims. */
template <int D, bool IS_PLACED>
static __global__ void __launch_bounds__(FEW_WARPS * 32)
    few(const __grid_constant__ struct sm80_call c)
{
    constexpr uint32_t CHAIN_STEPS = sm80<D>::CHAIN_STEPS;
    constexpr uint32_t DIMS = share<D, FEW_WARPS>::DIMS;
    extern __shared__ unsigned char shared[];
    const struct attend_frame &f = c.frame;
    uint32_t r = threadIdx.x % 32 / 4, e = share_of<FEW_WARPS>() * DIMS;
    uint32_t d_head = f.d_head > e ? f.d_head - e : 0; /* from e on */
    struct room<D> m = room_of<D>(shared);
    float o[DIMS / 2] = {};
    struct row row[2];
    struct part at;

    if (!few_part<D>(&at, c) || blockIdx.z >= at.n_chain)
        return;
    at.step = blockIdx.z * CHAIN_STEPS;
    at.end = min(at.end, at.step + CHAIN_STEPS);
    copy_first<D>(at, m);
    load_queries<D>(m.q, f, at, at.first, FEW_WARPS * 32);
    row_init(&row[0], f, at, r);
    row_init(&row[1], f, at, r + 8);
    for (uint32_t i = at.step; i < at.end; i++)
        take_step<D, FEW_WARPS, IS_PLACED>(o, row, f, at, m, i);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++, r += 8) {
        if (at.n_chain == 1) {
            end_chain<DIMS>(o + 2 * half, row + half,
                            end_from(end_of(f, at, r), e), d_head, true, true);
            continue;
        }
        float *to = part_of<D>(c, at, blockIdx.z, r);
        float sum = chain_sum(row + half);

        put<DIMS>(o + 2 * half, to + e, d_head);
        if (threadIdx.x < 32 && threadIdx.x % 4 == 0) {
            to[D] = row[half].max;
            to[D + 1] = sum;
        }
    }
}

/* Merge the chains of a packed row, a thread a dim. */
template <int D>
static __global__ void __launch_bounds__(D)
    merge(const __grid_constant__ struct sm80_call c)
{
    uint32_t r = blockIdx.z, e = threadIdx.x;
    float o = 0.0f, sum = 0.0f, max = -INFINITY;
    struct part at;

    if (!few_part<D>(&at, c) || at.n_chain == 1 || e >= c.frame.d_head)
        return;
    const struct ending to = end_of(c.frame, at, r);

    if (!to.out)
        return;
#pragma unroll 4
    for (uint32_t i = 0; i < at.n_chain; i++) {
        const float *part = part_of<D>(c, at, i, r);
        float own = part[D], raised = fmaxf(max, own);
        float old = exp2_of(max - raised), now = exp2_of(own - raised);

        sum = __fmaf_rn(sum, old, part[D + 1] * now);
        o = __fmaf_rn(o, old, part[e] * now);
        max = raised;
    }
    end_dim(to, e, o * (1.0f / sum) + 0.0f);
}

/* -------------------------------------------------------------------- host */

/* Keys, values and the queries of n times 16 rows. */
template <int D> static constexpr uint32_t shared_bytes(uint32_t n)
{
    return 2 * sm80<D>::KV_BYTES + n * 16 * D * 2 + 1024;
}

template <int D>
static void few_of(cudaStream_t stream, const struct sm80_call *c)
{
    dim3 grid(c->n_span * c->n_tile, c->frame.n_kv_head, c->n_chain);
    constexpr uint32_t bytes =
        shared_bytes<D>(1) +
        FEW_ROWS * (uint32_t)sizeof(float) * (sm80<D>::STEP + SCORE_PAD);

    static_assert(bytes <= WAY_SHARED_LEAST, "on every GPU");

    void (*kernel)(sm80_call) =
        c->frame.is_placed ? few<D, true> : few<D, false>;

    /* Errors are found where the step is waited for. */
    launch_allow(kernel, bytes);
    kernel<<<grid, FEW_WARPS * 32, bytes, stream>>>(*c);
    if (c->n_chain > 1) {
        grid.z = FEW_ROWS;
        merge<D><<<grid, D, 0, stream>>>(*c);
    }
}

template <int D>
static void many_of(cudaStream_t stream, const struct sm80_call *c)
{
    constexpr uint32_t N_WARP = sm80<D>::MANY_WARPS;
    uint32_t n_packed = c->n_row * c->frame.group;
    dim3 grid(c->frame.n_kv_head, c->n_span,
              (n_packed + N_WARP * 16 - 1) / (N_WARP * 16));
    constexpr uint32_t bytes = shared_bytes<D>(N_WARP);

    static_assert(bytes <= WAY_SHARED_LEAST, "on every GPU");

    void (*kernel)(sm80_call) =
        c->frame.is_placed ? many<D, true> : many<D, false>;

    launch_allow(kernel, bytes);
    kernel<<<grid, N_WARP * 32, bytes, stream>>>(*c);
}

template <int D>
static void launch_of(cudaStream_t stream, const struct sm80_call *c,
                      bool is_many)
{
    if (is_many)
        many_of<D>(stream, c);
    else
        few_of<D>(stream, c);
}

static void launch(cudaStream_t stream, const struct sm80_call *c, bool is_many)
{
    switch (attend_padded(c->frame.d_head)) {
    case 64:
        launch_of<64>(stream, c, is_many);
        break;
    case 128:
        launch_of<128>(stream, c, is_many);
        break;
    default:
        launch_of<256>(stream, c, is_many);
        break;
    }
}

/* Of few rows and more than one chain. */
static size_t part_bytes(const struct sm80_call *c, bool is_many)
{
    size_t n = (size_t)c->n_span * c->n_tile * c->frame.n_kv_head;

    return is_many || c->n_chain == 1
               ? 0
               : n * c->n_chain * FEW_ROWS *
                     (attend_padded(c->frame.d_head) + 4) * sizeof(float);
}

void attend_sm80(struct gpu *gpu, const struct attend_shape *shape,
                 const struct attend_frame *frame, struct attend_span *span,
                 uint32_t n_span, bool is_many)
{
    struct sm80_call call = {.frame = *frame, .n_span = n_span};
    uint64_t n_key = 0;

    for (uint32_t i = 0; i < n_span; i++) {
        call.n_row = max(call.n_row, span[i].n_row);
        n_key = max(n_key, span[i].position + span[i].n_row);
    }
    uint64_t n_block = wide_n_block(gpu, n_key);
    size_t wide = (wide_bytes(shape, n_span, n_block) + 1023) / 1024 * 1024;
    call.n_tile = (call.n_row * frame->group + FEW_ROWS - 1) / FEW_ROWS;
    call.n_chain =
        (uint32_t)((n_block * KV_BLOCK + ATTEND_CHAIN - 1) / ATTEND_CHAIN);
    unsigned char *scratch =
        (unsigned char *)gpu_scratch(gpu, wide + part_bytes(&call, is_many));
    call.part = (float *)(scratch + wide);
    attend_widen(gpu, shape, span, n_span, n_block, scratch);
    call.span = (const struct attend_span *)gpu_stage(gpu, span,
                                                      n_span * sizeof(*span));
    if (!gpu_is_replaying(gpu))
        launch(gpu_stream(gpu), &call, is_many);
}
