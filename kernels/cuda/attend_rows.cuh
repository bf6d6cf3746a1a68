#ifndef KERNELS_CUDA_ATTEND_ROWS_CUH
#define KERNELS_CUDA_ATTEND_ROWS_CUH
/*
 * 64 packed rows of a warpgroup against keys and values that come into stages
 * of shared memory: what attend_many.cu and attend_list.cu share. N_GROUP
 * warpgroups (1 or 2) of a CTA have neighbouring rows of a tile; two take
 * turns, so that one computes weights while the other multiplies. Between
 * chains O lies in shared memory and, what has no room there, in a scratch of
 * the CTA, small enough for the L2 cache.
 */
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attend_end.cuh"
#include "kernels/cuda/attend_softmax.cuh"
#include "kernels/cuda/wgmma.cuh"

#define N_GROUP_THREAD 128u
/* Named barriers, one for each warpgroup. */
#define TURN 1    /* whose turn it is */
#define QUERIES 3 /* its queries are done with; they are there */

/* O of past chains is fetched in batches of so many units, as many ahead. */
#define BATCH 4u
#define N_AHEAD 2u

/* Sizes. Two CTAs of a cluster that share their keys were 1 to 4 % faster from
 * 128 dims on and 7 % slower at 64 (H100, prompts of 16,384). */
template <int D, int N> struct plan {
    static constexpr uint32_t N_CTA = N > 1 && D >= 128 ? 2 : 1;
    static constexpr uint32_t STEP = step_keys(D);
    static constexpr uint32_t N_STAGE = D == 64 ? 4 : 2;
    static constexpr uint32_t ROWS = N * 64; /* of a tile */
    static constexpr uint32_t Q_BYTES = ROWS * D * 2;
    static constexpr uint32_t KV_BYTES = STEP * D * 2; /* keys, or values */
    /* O of past chains, 16 bytes of each thread to a unit: so many lie in
     * shared memory, the far rest in the scratch. */
    static constexpr uint32_t N_UNIT = D / 8;
    static constexpr uint32_t N_NEAR = D <= 128 ? N_UNIT : N > 1 ? 8 : 24;
    static constexpr uint32_t SUM_BYTES = N_NEAR * N * N_GROUP_THREAD * 16;
    static constexpr uint32_t BARRIERS = 4 * N_STAGE;
    static constexpr uint32_t BYTES =
        Q_BYTES + 2 * N_STAGE * KV_BYTES + SUM_BYTES + BARRIERS * 8 + 1024;
};

template <int D, int N> struct room {
    unsigned char *q, *k, *v;
    float4 *sum;
    uint64_t *k_full, *k_empty, *v_full, *v_empty;
};

template <int D, int N>
static __device__ __forceinline__ struct room<D, N>
room_of(unsigned char *shared) {
    constexpr uint32_t N_STAGE = plan<D, N>::N_STAGE;
    constexpr uint32_t KV = plan<D, N>::KV_BYTES;
    struct room<D, N> m;

    m.q = shared + (1024 - shared_address(shared) % 1024) % 1024;
    m.k = m.q + plan<D, N>::Q_BYTES;
    m.v = m.k + N_STAGE * KV;
    m.sum = (float4 *)(m.v + N_STAGE * KV);
    m.k_full = (uint64_t *)(m.v + N_STAGE * KV + plan<D, N>::SUM_BYTES);
    m.k_empty = m.k_full + N_STAGE;
    m.v_full = m.k_empty + N_STAGE;
    m.v_empty = m.v_full + N_STAGE;
    return m;
}

/* A tile: packed rows of a span. */
struct tile {
    struct attend_span span;
    size_t k_at; /* attend_many.cu: its keys, as struct many_span has it */
    uint32_t head, first, n_packed;
    uint32_t n_step; /* of keys, up to its last row */
};

/* Place and phase of step i in a ring of stages. */
template <int D, int N>
static __device__ __forceinline__ uint32_t stage_of(uint32_t i)
{
    return i % plan<D, N>::N_STAGE;
}
template <int D, int N>
static __device__ __forceinline__ uint32_t phase_of(uint32_t i)
{
    return i / plan<D, N>::N_STAGE % 2;
}

/* A stage is free again, say to the producers of all CTAs of the cluster. */
template <int D, int N>
static __device__ __forceinline__ void free_stage(uint64_t *at)
{
    if (plan<D, N>::N_CTA == 1)
        mbarrier_arrive(at);
    else
        for (uint32_t rank = 0; rank < plan<D, N>::N_CTA; rank++)
            mbarrier_arrive_at(at, rank);
}

/* The tile's queries and gates to the L2 cache, steps before the consumers want
 * them. */
template <enum end END>
static __device__ void announce(const struct attend_frame &f,
                                const struct tile &tile, uint32_t n_row)
{
    const uint32_t bytes = f.group * f.d_head * (uint32_t)sizeof(float);
    const uint32_t end = min(tile.first + n_row, tile.n_packed);
    const uint32_t token = tile.first / f.group;
    const size_t row = tile.span.first_row + token;
    const size_t at = (size_t)tile.head * f.group * f.d_head;
    const float *q = f.q + row * f.q_stride + at;
    const float *gate = f.gate + row * f.gate_stride + at;

    for (uint32_t i = token * f.group; i < end; i += f.group) {
        bulk_prefetch(q, bytes);
        q += f.q_stride;
        if (is_gated<END>(f)) {
            bulk_prefetch(gate, bytes);
            gate += f.gate_stride;
        }
    }
}

/* Unit i of a warpgroup's queries, eight dims of one row; zeros where there
 * are none. */
template <int D, int N>
static __device__ __forceinline__ void
query_unit(float4 *to, const struct attend_frame &f, const struct tile &tile,
           uint32_t first, uint32_t i)
{
    uint32_t packed = first + i / (D / 8), e = i % (D / 8) * 8;
    size_t row = tile.span.first_row + packed / f.group;
    size_t head = tile.head * f.group + packed % f.group;
    const float *q = f.q + row * f.q_stride + head * f.d_head + e;
    bool has = packed < tile.n_packed && e < f.d_head;

    to[0] = to[1] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (has) {
        to[0] = __ldg((const float4 *)q);
        to[1] = __ldg((const float4 *)q + 1);
    }
}

static __device__ __forceinline__ uint4 query_round(const float4 *x, float by)
{
    return {bf16_pair(x[0].x * by, x[0].y * by),
            bf16_pair(x[0].z * by, x[0].w * by),
            bf16_pair(x[1].x * by, x[1].y * by),
            bf16_pair(x[1].z * by, x[1].w * by)};
}

/* The queries of a warpgroup, scaled, rounded and tiled, once it is done with
 * those of the tile before. */
template <int D, int N>
static __device__ __forceinline__ void
load_queries(const struct attend_frame &f, const struct tile &tile,
             unsigned char *q, uint32_t group)
{
    constexpr uint32_t N_UNIT = 64 * D / 8 / N_GROUP_THREAD;
    constexpr uint32_t N_ONCE = N_UNIT < 8 ? N_UNIT : 8;
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    uint32_t first = tile.first + group * 64;
    float4 x[N_ONCE][2];

    q += group * 64 * D * 2;
#pragma unroll
    for (uint32_t i0 = 0; i0 < N_UNIT; i0 += N_ONCE) {
#pragma unroll
        for (uint32_t i = 0; i < N_ONCE; i++)
            query_unit<D, N>(x[i], f, tile, first,
                             t + (i0 + i) * N_GROUP_THREAD);
        if (i0 == 0)
            named_sync(QUERIES + group, N_GROUP_THREAD);
#pragma unroll
        for (uint32_t i = 0; i < N_ONCE; i++) {
            uint32_t at = t + (i0 + i) * N_GROUP_THREAD;
            *(uint4 *)(q + tile_at(at / (D / 8), at % (D / 8) * 8, 64)) =
                query_round(x[i], f.factor);
        }
    }
    bulk_fence();
    named_sync(QUERIES + group, N_GROUP_THREAD);
}

/* S = Q K^T of a step. */
template <int D, int N>
static __device__ __forceinline__ void scores(float *s, uint32_t q, uint32_t k)
{
    constexpr uint32_t STEP = plan<D, N>::STEP;
    asm volatile("" : "+r"(q)); /* or 16 descriptors take 32 registers */
    uint64_t a = wgmma_descriptor(q), b = wgmma_descriptor(k);
#pragma unroll
    for (int t = 0; t < D / 16; t++)
        wgmma_ss<STEP>(s, a + t / 4 * (TILE_BYTES >> 4) + t % 4 * 2,
                       b + t / 4 * (STEP * 128 >> 4) + t % 4 * 2, t > 0);
}

/* O += P V of a step. */
template <int D, int N>
static __device__ __forceinline__ void values(float *o, const uint32_t *p,
                                              uint32_t v)
{
    uint64_t b = wgmma_descriptor_across(v, TILE_BYTES);
#pragma unroll
    for (uint32_t t = 0; t < plan<D, N>::STEP / 16; t++)
        wgmma_rs_add<D>(o, p + 4 * t,
                        b + t / 4 * (D * 128 >> 4) + t % 4 * (2048 >> 4));
}

/* M has been raised: O follows. */
template <int D, int N>
static __device__ __forceinline__ void rescale(float *o, const float *factor)
{
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        o[i] = o[i] * factor[i / 2 % 2];
}

/* This thread's O of past chains. */
struct past {
    float4 *near, *far;
};

/* BATCH units of it from unit i on. */
template <int D, int N>
static __device__ __forceinline__ void fetch(float4 *old, struct past past,
                                             uint32_t i)
{
    constexpr uint32_t N_NEAR = plan<D, N>::N_NEAR;
#pragma unroll
    for (uint32_t j = 0; j < BATCH; j++)
        old[j] = i + j < N_NEAR
                     ? past.near[(i + j) * N_GROUP_THREAD]
                     : __ldcg(past.far + (i + j - N_NEAR) * N_GROUP_THREAD);
}

/* They join O. */
static __device__ __forceinline__ void
merge_old(float *o, const float4 *old, const struct merge *by, uint32_t i)
{
#pragma unroll
    for (uint32_t j = 0; j < BATCH; j++) {
        float *x = o + 4 * (i + j);
        x[0] = __fmaf_rn(old[j].x, by[0].old, x[0] * by[0].now);
        x[1] = __fmaf_rn(old[j].y, by[0].old, x[1] * by[0].now);
        x[2] = __fmaf_rn(old[j].z, by[1].old, x[2] * by[1].now);
        x[3] = __fmaf_rn(old[j].w, by[1].old, x[3] * by[1].now);
    }
}

/* They are put away, and O begins again. */
template <int D, int N>
static __device__ __forceinline__ void put_away(float *o, struct past past,
                                                uint32_t i)
{
    constexpr uint32_t N_NEAR = plan<D, N>::N_NEAR;
#pragma unroll
    for (uint32_t j = i; j < i + BATCH; j++) {
        float *x = o + 4 * j;
        float4 y = {x[0], x[1], x[2], x[3]};
        if (j < N_NEAR)
            past.near[j * N_GROUP_THREAD] = y;
        else
            __stcg(past.far + (j - N_NEAR) * N_GROUP_THREAD, y);
        x[0] = x[1] = x[2] = x[3] = 0.0f;
    }
}

/* All of O at the end of a chain, batches fetched ahead; is_last: it stays. */
template <int D, int N>
static __device__ __forceinline__ void
merge_all(float *o, struct past past, const struct merge *by, bool is_last)
{
    constexpr uint32_t N_BATCH = plan<D, N>::N_UNIT / BATCH;
    float4 old[N_AHEAD + 1][BATCH];

#pragma unroll
    for (uint32_t i = 0; i < N_AHEAD && i < N_BATCH; i++)
        fetch<D, N>(old[i], past, i * BATCH);
#pragma unroll
    for (uint32_t i = 0; i < N_BATCH; i++) {
        if (i + N_AHEAD < N_BATCH)
            fetch<D, N>(old[(i + N_AHEAD) % (N_AHEAD + 1)], past,
                        (i + N_AHEAD) * BATCH);
        merge_old(o, old[i % (N_AHEAD + 1)], by, i * BATCH);
        if (!is_last)
            put_away<D, N>(o, past, i * BATCH);
    }
}

static __device__ __forceinline__ void
row_init(struct row *row, const struct tile &tile, uint32_t group, uint32_t r)
{
    uint32_t token = min(tile.first + r, tile.n_packed - 1) / group;

    row->n_seen = (uint32_t)tile.span.position + token + 1;
    row->max = row->all_max = -INFINITY;
    row->sum = row->all_sum = 0.0f;
}

template <int D, int N>
static __device__ __forceinline__ void to_weights(uint32_t *p, const float *s)
{
#pragma unroll
    for (uint32_t i = 0; i < plan<D, N>::STEP / 4; i++)
        p[i] = bf16_pair(s[2 * i], s[2 * i + 1]);
}

/* What a warpgroup keeps from tile to tile. */
struct worker {
    uint32_t group;  /* 0 or 1: which 64 rows */
    uint32_t n_past; /* steps */
    struct past past;
};

/* What a warpgroup has of a tile under way: step `at` of all its steps is the
 * tile's first. */
template <int D, int N> struct pass {
    static constexpr uint32_t STEP = plan<D, N>::STEP;
    float o[D / 2], s[STEP / 2]; /* O; scores, then weights */
    uint32_t p[STEP / 4];        /* weights as they are multiplied */
    struct row row[2];
    float factor[2];
    uint32_t q, k, v; /* shared memory: our queries, the stages */
    uint32_t at, n_step;
    bool is_lead; /* the thread that speaks for the warpgroup */
};

/* S of the tile's first step. */
template <int D, int N>
static __device__ __forceinline__ void begin(struct pass<D, N> *x,
                                             struct room<D, N> m)
{
    uint32_t stage = stage_of<D, N>(x->at);

    mbarrier_wait(m.k_full + stage, phase_of<D, N>(x->at));
    wgmma_fence();
    scores<D, N>(x->s, x->q, x->k + stage * plan<D, N>::KV_BYTES);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin<pass<D, N>::STEP / 2>(x->s);
    if (x->is_lead)
        free_stage<D, N>(m.k_empty + stage);
}

/* When it is this warpgroup's turn: S of step i, and O of the step before. S is
 * there at the end, O is still under way. */
template <int D, int N>
static __device__ __forceinline__ void
issue(struct pass<D, N> *x, struct room<D, N> m, uint32_t i, uint32_t group)
{
    constexpr uint32_t STEP = pass<D, N>::STEP, BYTES = plan<D, N>::KV_BYTES;
    uint32_t stage = stage_of<D, N>(x->at + i),
             last = stage_of<D, N>(x->at + i - 1);

    if (N > 1)
        named_sync(TURN + group, 2 * N_GROUP_THREAD);
    wgmma_pin<STEP / 2>(x->s);
    wgmma_pin<D / 2>(x->o);
    wgmma_pin_words<STEP / 4>(x->p);
    wgmma_fence();
    scores<D, N>(x->s, x->q, x->k + stage * BYTES);
    wgmma_commit();
    mbarrier_wait(m.v_full + last, phase_of<D, N>(x->at + i - 1));
    wgmma_fence(); /* or the assembler adds it, for the wait is a loop */
    values<D, N>(x->o, x->p, x->v + last * BYTES);
    wgmma_commit();
    if (N > 1)
        named_arrive(TURN + (group ^ 1), 2 * N_GROUP_THREAD);
    wgmma_wait<1>();
    wgmma_pin<STEP / 2>(x->s);
    if (x->is_lead)
        free_stage<D, N>(m.k_empty + stage);
}

/* O of the step before i is there. */
template <int D, int N>
static __device__ __forceinline__ void await(struct pass<D, N> *x,
                                             struct room<D, N> m, uint32_t i)
{
    /* No sum of weights is negative, but the assembler does not know it, and
     * so may not move the weights behind the wait for the product. */
    uint32_t never = x->row[0].sum < 0.0f || x->row[1].sum < 0.0f;

    if (i + 1 < x->n_step)
        mbarrier_wait(m.k_full + stage_of<D, N>(x->at + i + 1),
                      phase_of<D, N>(x->at + i + 1) ^ never);
    wgmma_wait<0>();
    wgmma_pin<D / 2>(x->o);
    if (x->is_lead)
        free_stage<D, N>(m.v_empty + stage_of<D, N>(x->at + i - 1));
}

/* O of the tile's last step. */
template <int D, int N>
static __device__ __forceinline__ void finish(struct pass<D, N> *x,
                                              struct room<D, N> m)
{
    uint32_t last = x->at + x->n_step - 1, stage = stage_of<D, N>(last);

    mbarrier_wait(m.v_full + stage, phase_of<D, N>(last));
    wgmma_pin<D / 2>(x->o);
    wgmma_pin_words<pass<D, N>::STEP / 4>(x->p);
    wgmma_fence();
    values<D, N>(x->o, x->p, x->v + stage * plan<D, N>::KV_BYTES);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin<D / 2>(x->o);
    if (x->is_lead)
        free_stage<D, N>(m.v_empty + stage);
}

/* Step i, when a chain ends before it. */
template <int D, int N>
static __device__ __forceinline__ void
change_chain(struct pass<D, N> *x, struct room<D, N> m, const struct worker &w,
             uint32_t i)
{
    bool is_first = i * plan<D, N>::STEP == ATTEND_CHAIN;
    struct merge by[2];

    issue(x, m, i, w.group);
    end_chain(x->row, by, is_first);
    softmax<plan<D, N>::STEP>(x->s, x->row, x->factor, i * plan<D, N>::STEP);
    await(x, m, i);
    to_weights<D, N>(x->p, x->s);
    if (!is_first) {
        merge_all<D, N>(x->o, w.past, by, false);
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < plan<D, N>::N_UNIT; j += BATCH)
        put_away<D, N>(x->o, w.past, j);
}

/* The result of row r of a tile from where it is; o: its part of O, two
 * neighbours in four. */
template <int D, enum end END>
static __device__ __forceinline__ void
store(const float *o, float by, const struct attend_frame &f,
      const struct tile &tile, uint32_t r)
{
    uint32_t packed = tile.first + r;
    size_t row = tile.span.first_row + packed / f.group;
    size_t head = tile.head * f.group + packed % f.group;
    struct ending to = ending_of(f, row, head);

    if (!is_gated<END>(f))
        to.gate = NULL;
    if (!is_rounded<END>(f))
        to.rounded = NULL;
    if (packed < tile.n_packed)
        end_dims<D>(to, o, by, f.d_head);
}

/* The last step of a tile, and its results. */
template <int D, int N, enum end END>
static __device__ __forceinline__ void
end_tile(struct pass<D, N> *x, const struct attend_frame &f,
         const struct tile &tile, struct room<D, N> m, const struct worker &w)
{
    constexpr uint32_t N_CHAIN_STEP = ATTEND_CHAIN / plan<D, N>::STEP;
    const uint32_t t = threadIdx.x % N_GROUP_THREAD;
    const uint32_t r = w.group * 64 + t / 32 * 16; /* the warp's first */
    const bool is_first = x->n_step <= N_CHAIN_STEP;
    const bool is_plain = !is_gated<END>(f) && !is_rounded<END>(f);
    struct merge by[2];

    finish(x, m);
    end_chain(x->row, by, is_first);
    if (!is_first)
        merge_all<D, N>(x->o, w.past, by, true);
    const float scale[2] = {1.0f / x->row[0].all_sum, 1.0f / x->row[1].all_sum};
    if (D <= 64 || (D <= 128 && is_plain)) {
        store<D, END>(x->o, scale[0], f, tile, r + t % 32 / 4);
        store<D, END>(x->o + 2, scale[1], f, tile, r + t % 32 / 4 + 8);
        return;
    }
    const struct leave leave = leave_of(f, tile.head, tile.span.first_row,
                                        tile.first + r, tile.n_packed);
    unsigned char *place =
        m.q + w.group * 64 * D * 2 + t / 32 * (TILE_BYTES / 4);

    if (is_gated<END>(f))
        end_wide<D, true>(x->o, scale, f, leave, place);
    else if (is_plain)
        end_wide<D, false>(x->o, scale, f, leave, place);
    else
        end_rounded<D>(x->o, scale, f, leave, place);
}

/* 64 rows of a tile against its keys. */
template <int D, int N, enum end END>
static __device__ void consume(const struct attend_frame &f,
                               const struct tile &tile, struct room<D, N> m,
                               const struct worker &w)
{
    constexpr uint32_t STEP = plan<D, N>::STEP;
    constexpr uint32_t N_CHAIN_STEP = ATTEND_CHAIN / STEP;
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    uint32_t r = w.group * 64 + t / 32 * 16 + t % 32 / 4; /* and r + 8 */
    struct pass<D, N> x;

    x.q = shared_address(m.q) + w.group * 64 * D * 2;
    x.k = shared_address(m.k);
    x.v = shared_address(m.v);
    x.at = w.n_past;
    x.n_step = tile.n_step;
    x.is_lead = t == 0;
    row_init(x.row, tile, f.group, r);
    row_init(x.row + 1, tile, f.group, r + 8);
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        x.o[i] = 0.0f;
    load_queries<D, N>(f, tile, m.q, w.group);
    begin(&x, m);
    softmax<STEP>(x.s, x.row, x.factor, 0);
    to_weights<D, N>(x.p, x.s);
    if (x.n_step > 1)
        mbarrier_wait(m.k_full + stage_of<D, N>(x.at + 1),
                      phase_of<D, N>(x.at + 1));
    for (uint32_t i = 1; i < x.n_step; i++) {
        if (i % N_CHAIN_STEP == 0) {
            change_chain(&x, m, w, i);
            continue;
        }
        issue(&x, m, i, w.group);
        bool is_raised = softmax<STEP>(x.s, x.row, x.factor, i * STEP);
        await(&x, m, i);
        to_weights<D, N>(x.p, x.s);
        if (is_raised)
            rescale<D, N>(x.o, x.factor);
    }
    end_tile<D, N, END>(&x, f, tile, m, w);
}

#endif
