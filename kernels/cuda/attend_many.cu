/*
 * Attention of many rows: FlashAttention-3's shape (arXiv:2407.08608) in the
 * arithmetic of attend.cuh.
 *
 * The query heads of a KV group are packed into rows, so that 128 rows of a
 * CTA share their keys. Two passes go ahead: queries are scaled, rounded and
 * tiled; keys of the past are rotated and tiled (values lie in their blocks as
 * the tensor cores want them). Then, in each CTA, one thread brings keys and
 * values by bulk copies, two stages of each, and two warpgroups of 64 rows
 * multiply: S = Q K^T of the next step runs beside O += P V of this one, and
 * the warpgroups take turns, so that one computes weights while the other
 * multiplies. The rows of `out` hold O between chains.
 *
 * Bound: 4 n_key d operations a row and head (half of it under the diagonal of
 * a prompt) over 790 TFLOP/s.
 */
#include "kernels/cuda/attend_many.cuh"
#include "kernels/cuda/attend_sm90.cuh"

#include <assert.h>

#define N_GROUP_THREAD 128u
#define N_THREAD (3 * N_GROUP_THREAD)
#define TURN 1 /* named barriers TURN and TURN + 1: whose turn it is */

template <int D> struct many {
    static constexpr uint32_t STEP = attend_step<D>::N;
    static constexpr uint32_t N_STAGE = D == 64 ? 4 : 2;
    static constexpr uint32_t Q_BYTES = MANY_ROWS * D * 2;
    static constexpr uint32_t KV_BYTES = STEP * D * 2; /* keys, or values */
    static constexpr uint32_t SHARED = Q_BYTES + 2 * N_STAGE * KV_BYTES;
    static constexpr uint32_t BARRIERS = 1 + 4 * N_STAGE;
    static constexpr uint32_t BYTES = SHARED + BARRIERS * 8 + 1024;
};

template <int D> struct room {
    unsigned char *q, *k, *v;
    uint64_t *q_full, *k_full, *k_empty, *v_full, *v_empty;
};

template <int D>
static __device__ struct room<D> room_of(unsigned char *shared) {
    uint32_t at = shared_at(shared);
    unsigned char *q = shared + (1024 - at % 1024) % 1024;
    unsigned char *k = q + many<D>::Q_BYTES;
    unsigned char *v = k + many<D>::N_STAGE * many<D>::KV_BYTES;
    uint64_t *bar = (uint64_t *)(v + many<D>::N_STAGE * many<D>::KV_BYTES);
    uint32_t n = many<D>::N_STAGE;
    return {
        q, k, v, bar, bar + 1, bar + 1 + n, bar + 1 + 2 * n, bar + 1 + 3 * n};
}

/* 128 packed rows of a span. */
struct many_item {
    struct many_span in;
    uint32_t head, first, n_packed;
};

static __device__ uint32_t n_tile_of(const struct attend_frame &f,
                                     const struct attend_span &span)
{
    return (span.n_row * f.group + MANY_ROWS - 1) / MANY_ROWS;
}

/* Keys that its last row sees. */
static __device__ uint64_t n_key_of(const struct attend_frame &f,
                                    const struct many_item &item)
{
    uint32_t last = min(item.first + MANY_ROWS, item.n_packed) - 1;
    return item.in.span.position + last / f.group + 1;
}

/* Tile the queries: 64 packed rows of a KV head a CTA. */
template <int D>
static __global__ void pack_queries(unsigned char *scratch,
                                    const struct attend_frame f,
                                    const struct many_span *span)
{
    const struct many_span &s = span[blockIdx.z];
    uint32_t n_packed = s.span.n_row * f.group, first = blockIdx.x * 64;
    uint32_t n_tile = n_tile_of(f, s.span) * 2;
    if (blockIdx.x >= n_tile)
        return;
    unsigned char *to =
        scratch + s.q_at + ((size_t)blockIdx.y * n_tile + blockIdx.x) * D * 128;

    for (uint32_t i = threadIdx.x; i < 64 * D / 8; i += blockDim.x) {
        uint32_t r = i / (D / 8), e = i % (D / 8) * 8, packed = first + r;
        uint32_t row = s.span.first_row + packed / f.group;
        uint32_t head = blockIdx.y * f.group + packed % f.group;
        const float *q = f.q + row * f.q_stride + (size_t)head * f.d_head + e;
        uint32_t w[4];
        for (uint32_t j = 0; j < 4; j++) {
            bool has = packed < n_packed && e + 2 * j < f.d_head;
            float low = has ? q[2 * j] : 0.0f;
            float high = has && e + 2 * j + 1 < f.d_head ? q[2 * j + 1] : 0.0f;
            w[j] = bf16_pair(low * f.factor, high * f.factor);
        }
        *(uint4 *)(to + tile_at(r, e, 64)) = {w[0], w[1], w[2], w[3]};
    }
}

/* Rotate the keys of a block, and tile them by steps. */
template <int D>
static __global__ void rotate_keys(unsigned char *scratch,
                                   const struct attend_frame f,
                                   const struct many_span *span)
{
    constexpr uint32_t STEP = many<D>::STEP;
    const struct many_span &s = span[blockIdx.z];
    uint64_t n_key = s.span.position + s.span.n_row, b = blockIdx.x;
    uint64_t n_step = (n_key + STEP - 1) / STEP;
    if (b * KV_BLOCK >= n_step * STEP)
        return;
    bool has = b * KV_BLOCK < n_key;
    const unsigned char *from =
        has ? keys_of<D>(s.span.block[b], blockIdx.y) : NULL;
    unsigned char *to =
        scratch + s.k_at +
        (blockIdx.y * n_step + b * KV_BLOCK / STEP) * many<D>::KV_BYTES;
    uint32_t first = b * KV_BLOCK % STEP;

    for (uint32_t i = threadIdx.x; i < 64 * D / 8; i += blockDim.x) {
        uint32_t j = i / (D / 8), e = i % (D / 8) * 8;
        if (e >= f.n_pair && e < 2 * f.n_pair)
            continue; /* goes with its partner */
        uint4 x = {0, 0, 0, 0}, y = x;
        if (has)
            x = *(const uint4 *)(from + tile_at(j, e, 64));
        if (e < f.n_pair) {
            if (has)
                y = *(const uint4 *)(from + tile_at(j, e + f.n_pair, 64));
            rotate_unit(f, &x, &y, b, e, j);
            *(uint4 *)(to + tile_at(first + j, e + f.n_pair, STEP)) = y;
        }
        *(uint4 *)(to + tile_at(first + j, e, STEP)) = x;
    }
}

/* One thread brings what the warpgroups multiply. */
template <int D>
static __device__ void produce(const struct many_call &c,
                               const struct many_item &item, struct room<D> m,
                               uint32_t n_step)
{
    using shape = many<D>;
    const struct attend_span &span = item.in.span;
    uint32_t head = item.head;
    uint64_t n_key = span.position + span.n_row;
    uint64_t n_step_all = (n_key + shape::STEP - 1) / shape::STEP;
    uint32_t n_tile = n_tile_of(c.frame, span) * 2;
    const unsigned char *q =
        c.scratch + item.in.q_at +
        ((size_t)head * n_tile + item.first / 64) * D * 128;
    const unsigned char *k =
        c.scratch + item.in.k_at + head * n_step_all * shape::KV_BYTES;
    uint64_t n_block = (n_key + KV_BLOCK - 1) / KV_BLOCK;

    barrier_expect(m.q_full, shape::Q_BYTES);
    bulk_copy(m.q, q, shape::Q_BYTES, m.q_full);
    for (uint32_t i = 0; i < n_step; i++) {
        uint32_t stage = i % shape::N_STAGE;
        uint32_t parity = i / shape::N_STAGE % 2 ^ 1;
        const unsigned char *v[shape::STEP / KV_BLOCK];
#pragma unroll
        for (uint32_t j = 0; j < shape::STEP / KV_BLOCK; j++) {
            /* Behind the last block any finite values will do. */
            uint64_t b = i * (shape::STEP / KV_BLOCK) + j;
            v[j] = values_of<D>(span.block[min(b, n_block - 1)],
                                c.frame.n_kv_head, head);
        }
        barrier_wait(m.k_empty + stage, parity);
        barrier_expect(m.k_full + stage, shape::KV_BYTES);
        bulk_copy(m.k + stage * shape::KV_BYTES,
                  k + i * (size_t)shape::KV_BYTES, shape::KV_BYTES,
                  m.k_full + stage);
        barrier_wait(m.v_empty + stage, parity);
        barrier_expect(m.v_full + stage, shape::KV_BYTES);
#pragma unroll
        for (uint32_t j = 0; j < shape::STEP / KV_BLOCK; j++)
            bulk_copy(m.v + stage * shape::KV_BYTES + j * D * 128, v[j],
                      D * 128, m.v_full + stage);
    }
}

/* One of the two rows of a thread. */
struct row {
    uint32_t n_seen;        /* keys up to its own */
    float max, sum;         /* of this chain: M, and L_c of this thread's c */
    float all_max, all_sum; /* of the chains before */
};

/* S = Q K^T of a step. */
template <int D>
static __device__ __forceinline__ void scores(float *s, uint32_t q, uint32_t k)
{
    constexpr uint32_t STEP = many<D>::STEP;
    asm volatile("" : "+r"(q)); /* or 16 descriptors take 32 registers */
    uint64_t a = tile_descriptor(q, 16), b = tile_descriptor(k, 16);
#pragma unroll
    for (int t = 0; t < D / 16; t++)
        wgmma_scores<STEP>(s, a + t / 4 * (TILE_BYTES >> 4) + t % 4 * 2,
                           b + t / 4 * (STEP * 128 >> 4) + t % 4 * 2, t > 0);
}

/* O += P V of a step. */
template <int D>
static __device__ __forceinline__ void values(float *o, const uint32_t *p,
                                              uint32_t v)
{
    uint64_t b = tile_descriptor(v, TILE_BYTES);
#pragma unroll
    for (uint32_t t = 0; t < many<D>::STEP / 16; t++)
        wgmma_values<D>(o, p + 4 * t,
                        b + t / 4 * (D * 128 >> 4) + t % 4 * (2048 >> 4));
}

/* Scores of keys behind the row: minus infinity. */
template <int N>
static __device__ __forceinline__ void hide(float *s, int n_seen0, int n_seen1)
{
    int c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            s[4 * i + j] = 8 * i + c + j < n_seen0 ? s[4 * i + j] : -INFINITY;
            s[4 * i + 2 + j] =
                8 * i + c + j < n_seen1 ? s[4 * i + 2 + j] : -INFINITY;
        }
    }
}

/* Scores to weights; the factor that O takes on. s: those of the row. */
template <int N>
static __device__ __forceinline__ float weigh(float *s, struct row *row)
{
    float max = s[0];
#pragma unroll
    for (int i = 0; i < N / 8; i++)
        max = fmaxf(max, fmaxf(s[4 * i], s[4 * i + 1]));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    max = fmaxf(max, row->max);
    float base = finite_max(max), factor = exp2_of(row->max - base);
    float sum = 0.0f;
#pragma unroll
    for (int b = 0; b < N / 64; b++) {
        float t = 0.0f;
#pragma unroll
        for (int i = 8 * b; i < 8 * b + 8; i++) {
            s[4 * i] = exp2_of(s[4 * i] - base);
            s[4 * i + 1] = exp2_of(s[4 * i + 1] - base);
            t = i == 8 * b ? s[4 * i] : t + s[4 * i];
            t = t + s[4 * i + 1];
        }
        sum = b ? sum + t : t;
    }
    row->max = max;
    row->sum = __fmaf_rn(row->sum, factor, sum);
    return factor;
}

/* Where the result of row r of an item lies; NULL for padding. */
static __device__ float *out_of(const struct attend_frame &f,
                                const struct many_item &item, uint32_t r)
{
    uint32_t packed = item.first + r;
    size_t row = item.in.span.first_row + packed / f.group;
    size_t head = item.head * f.group + packed % f.group;

    return packed < item.n_packed ? f.out + row * f.out_stride + head * f.d_head
                                  : NULL;
}

/* What becomes of a chain: O takes `old` times what out holds, and `now` times
 * itself, times `scale` in the end. */
struct merge {
    float old, now, scale;
    bool is_first, is_last;
};

/* The chain (max, sum) is over; max and sum still hold it. */
static __device__ __forceinline__ struct merge
merge_of(struct row *row, float max, float sum, bool is_first)
{
    sum = sum + __shfl_xor_sync(~0u, sum, 1);
    sum = sum + __shfl_xor_sync(~0u, sum, 2);
    float both = is_first ? max : fmaxf(row->all_max, max);
    struct merge y = {.old = exp2_of(row->all_max - both),
                      .now = exp2_of(max - both),
                      .is_first = is_first};
    row->all_sum = is_first ? sum : __fmaf_rn(row->all_sum, y.old, sum * y.now);
    row->all_max = both;
    return y;
}

/* o: the row's part of O, two neighbours in four. */
template <int D>
static __device__ __forceinline__ void merge_out(float *o, struct merge by,
                                                 float *out, uint32_t d_head)
{
    float2 *at = (float2 *)(out + threadIdx.x % 4 * 2);

    if (!out)
        return;
#pragma unroll
    for (uint32_t i0 = 0; i0 < D / 8; i0 += 8) {
        float2 old[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            if (!by.is_first && (i0 + i) * 8 < d_head)
                old[i] = at[(i0 + i) * 4];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            float x = o[4 * (i0 + i)], y = o[4 * (i0 + i) + 1];
            if (!by.is_first) {
                x = __fmaf_rn(old[i].x, by.old, x * by.now);
                y = __fmaf_rn(old[i].y, by.old, y * by.now);
            }
            if (by.is_last) {
                x = x * by.scale + 0.0f;
                y = y * by.scale + 0.0f;
            }
            if ((i0 + i) * 8 < d_head)
                at[(i0 + i) * 4] = {x, y};
        }
    }
}

static __device__ __forceinline__ void row_init(struct row *row,
                                                const struct many_item &item,
                                                uint32_t group, uint32_t r)
{
    uint32_t token = min(item.first + r, item.n_packed - 1) / group;

    row->n_seen = (uint32_t)item.in.span.position + token + 1;
    row->max = row->all_max = -INFINITY;
    row->sum = row->all_sum = 0.0f;
}

/* The weights of step i, and what they make of O, which is complete up to the
 * step before once `wgmma_wait<0>` has been passed. */
template <int D>
static __device__ __forceinline__ void softmax(float *s, struct row *row,
                                               float *factor, uint32_t i)
{
    constexpr int STEP = many<D>::STEP;
    /* Of this step; none if it is not positive. */
    int seen0 = (int)(row[0].n_seen - i * STEP);
    int seen1 = (int)(row[1].n_seen - i * STEP);
    if (seen0 < STEP || seen1 < STEP)
        hide<STEP>(s, seen0, seen1);
    factor[0] = weigh<STEP>(s, row);
    factor[1] = weigh<STEP>(s + 2, row + 1);
}

template <int D>
static __device__ __forceinline__ void to_weights(uint32_t *p, const float *s)
{
#pragma unroll
    for (uint32_t i = 0; i < many<D>::STEP / 4; i++)
        p[i] = bf16_pair(s[2 * i], s[2 * i + 1]);
}

/* 64 rows against n_step steps of keys, by warpgroup `wg` of two. */
template <int D>
static __device__ void consume(const struct many_call &c,
                               const struct many_item &item, struct room<D> m,
                               uint32_t n_step, uint32_t wg)
{
    using shape = many<D>;
    constexpr uint32_t N_STAGE = shape::N_STAGE, STEP = shape::STEP;
    uint32_t t = threadIdx.x % N_GROUP_THREAD, d_head = c.frame.d_head;
    uint32_t r = wg * 64 + t / 32 * 16 + t % 32 / 4; /* and r + 8 */
    uint32_t q = shared_at(m.q) + wg * 64 * D * 2;
    float o[D / 2], s[STEP / 2], factor[2];
    uint32_t p[STEP / 4];
    struct row row[2];

    row_init(row, item, c.frame.group, r);
    row_init(row + 1, item, c.frame.group, r + 8);
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        o[i] = 0.0f;
    barrier_wait(m.q_full, 0);
    barrier_wait(m.k_full, 0);
    wgmma_begin();
    scores<D>(s, q, shared_at(m.k));
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin<STEP / 2>(s);
    if (t == 0)
        barrier_arrive(m.k_empty);
    softmax<D>(s, row, factor, 0);
    to_weights<D>(p, s);
    if (wg == 1)
        named_arrive(TURN, 2 * N_GROUP_THREAD);
    for (uint32_t i = 1; i < n_step; i++) {
        uint32_t stage = i % N_STAGE, last = (i - 1) % N_STAGE;
        barrier_wait(m.k_full + stage, i / N_STAGE % 2);
        named_sync(TURN + wg, 2 * N_GROUP_THREAD);
        wgmma_pin<STEP / 2>(s);
        wgmma_pin<D / 2>(o);
        words_pin<STEP / 4>(p);
        wgmma_begin();
        scores<D>(s, q, shared_at(m.k) + stage * shape::KV_BYTES);
        wgmma_commit();
        barrier_wait(m.v_full + last, (i - 1) / N_STAGE % 2);
        values<D>(o, p, shared_at(m.v) + last * shape::KV_BYTES);
        wgmma_commit();
        named_arrive(TURN + (wg ^ 1), 2 * N_GROUP_THREAD);
        wgmma_wait<1>();
        wgmma_pin<STEP / 2>(s);
        if (t == 0)
            barrier_arrive(m.k_empty + stage);
        bool is_chain = i % (ATTEND_CHAIN / STEP) == 0;
        float max[2] = {row[0].max, row[1].max};
        float sum[2] = {row[0].sum, row[1].sum};
        if (is_chain) {
            row[0].max = row[1].max = -INFINITY;
            row[0].sum = row[1].sum = 0.0f;
        }
        softmax<D>(s, row, factor, i);
        wgmma_pin<STEP / 2>(s); /* before the wait, not behind it */
        wgmma_wait<0>();
        wgmma_pin<D / 2>(o);
        if (t == 0)
            barrier_arrive(m.v_empty + last);
        if (is_chain) {
            bool is_first = i == ATTEND_CHAIN / STEP;
#pragma unroll
            for (int j = 0; j < 2; j++)
                merge_out<D>(o + 2 * j,
                             merge_of(row + j, max[j], sum[j], is_first),
                             out_of(c.frame, item, r + 8 * j), d_head);
#pragma unroll
            for (int j = 0; j < D / 2; j++)
                o[j] = 0.0f;
        } else {
#pragma unroll
            for (int j = 0; j < D / 2; j++)
                o[j] = o[j] * factor[j / 2 % 2];
        }
        to_weights<D>(p, s);
    }
    uint32_t last = (n_step - 1) % N_STAGE;
    barrier_wait(m.v_full + last, (n_step - 1) / N_STAGE % 2);
    wgmma_pin<D / 2>(o);
    words_pin<STEP / 4>(p);
    wgmma_begin();
    values<D>(o, p, shared_at(m.v) + last * shape::KV_BYTES);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin<D / 2>(o);
    bool is_first = n_step <= ATTEND_CHAIN / STEP;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        struct merge by = merge_of(row + j, row[j].max, row[j].sum, is_first);
        by.is_last = true;
        by.scale = 1.0f / row[j].all_sum;
        merge_out<D>(o + 2 * j, by, out_of(c.frame, item, r + 8 * j), d_head);
    }
}

template <int D>
static __global__ void __launch_bounds__(N_THREAD, 1)
    multiply(const __grid_constant__ struct many_call c)
{
    using shape = many<D>;
    extern __shared__ unsigned char shared[];
    /* Heads of one tile side by side, the longest tiles first. */
    uint32_t i = blockIdx.x / c.frame.n_kv_head;
    uint32_t n_tile = gridDim.x / c.frame.n_kv_head / c.n_span;
    struct many_item item = {.in = c.span[i % c.n_span]};
    item.head = blockIdx.x % c.frame.n_kv_head;
    item.first = (n_tile - 1 - i / c.n_span) * MANY_ROWS;
    item.n_packed = item.in.span.n_row * c.frame.group;
    if (item.first >= item.n_packed)
        return;
    struct room<D> m = room_of<D>(shared);
    uint32_t wg = threadIdx.x / N_GROUP_THREAD;
    uint32_t n_step =
        (uint32_t)((n_key_of(c.frame, item) + shape::STEP - 1) / shape::STEP);

    if (threadIdx.x == 0) {
        barrier_init(m.q_full, 1);
        for (uint32_t j = 0; j < shape::N_STAGE; j++) {
            barrier_init(m.k_full + j, 1);
            barrier_init(m.v_full + j, 1);
            barrier_init(m.k_empty + j, 2);
            barrier_init(m.v_empty + j, 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (wg == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0)
            produce<D>(c, item, m, n_step);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume<D>(c, item, m, n_step, wg - 1);
    }
}

size_t many_q_bytes(const struct attend_frame *f, uint32_t n_row)
{
    size_t n_tile = ((size_t)n_row * f->group + MANY_ROWS - 1) / MANY_ROWS;
    return f->n_kv_head * n_tile * MANY_ROWS * attend_padded(f->d_head) * 2;
}

size_t many_k_bytes(const struct attend_frame *f, uint64_t n_key)
{
    size_t n_step = (n_key + MANY_ROWS - 1) / MANY_ROWS;
    return f->n_kv_head * n_step * MANY_ROWS * attend_padded(f->d_head) * 2;
}

template <int D>
static void attend_many_of(cudaStream_t stream, const struct many_call *c)
{
    uint32_t n_kv_head = c->frame.n_kv_head;
    uint32_t n_packed = c->n_row_max * c->frame.group;
    uint32_t n_tile = (n_packed + MANY_ROWS - 1) / MANY_ROWS;
    uint32_t n_block = (uint32_t)((c->n_key_max + 127) / 128 * 2);

    cudaFuncSetAttribute(multiply<D>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         many<D>::BYTES);
    pack_queries<D><<<dim3(2 * n_tile, n_kv_head, c->n_span), 256, 0, stream>>>(
        c->scratch, c->frame, c->span);
    rotate_keys<D><<<dim3(n_block, n_kv_head, c->n_span), 256, 0, stream>>>(
        c->scratch, c->frame, c->span);
    multiply<D>
        <<<n_tile * c->n_span * n_kv_head, N_THREAD, many<D>::BYTES, stream>>>(
            *c);
}

void attend_many(cudaStream_t stream, const struct many_call *call)
{
    switch (attend_padded(call->frame.d_head)) {
    case 64:
        attend_many_of<64>(stream, call);
        break;
    case 128:
        attend_many_of<128>(stream, call);
        break;
    default:
        attend_many_of<256>(stream, call);
        break;
    }
}
