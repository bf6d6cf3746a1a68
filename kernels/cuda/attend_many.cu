/*
 * Attention of many rows: FlashAttention-3's shape (arXiv:2407.08608) in the
 * arithmetic of attend.cuh.
 *
 * The query heads of a KV group are packed into rows, so that the 128 rows of
 * a tile share their keys. attend_rotate.cu has rotated the keys, or is about
 * to end: only the thread that brings them waits for it. Values lie in their
 * blocks as the tensor cores want them. A CTA stays on its SM and takes tile
 * after tile, long ones first. One thread brings keys and values by bulk
 * copies, and two warpgroups of 64 rows round their queries and multiply: S = Q
 * K^T of the next step runs beside O += P V of this one, and the warpgroups
 * take turns, so that one computes weights while the other multiplies. Between
 * chains O lies in shared memory and, what has no room there, in a scratch of
 * the CTA, small enough for the L2 cache.
 *
 * Bound: 4 n_key d operations a row and head (half of it under the diagonal of
 * a prompt) over 790 TFLOP/s.
 */
#include "kernels/cuda/attend_many.cuh"
#include "kernels/cuda/attend_sm90.cuh"
#include "kernels/cuda/attend_softmax.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

#define N_GROUP_THREAD 128u
#define N_THREAD (3 * N_GROUP_THREAD)
/* Named barriers, one for each warpgroup. */
#define TURN 1    /* whose turn it is */
#define QUERIES 3 /* its queries are done with; they are there */

/* O of past chains is fetched in batches of so many units, as many ahead. */
#define BATCH 4u
#define N_AHEAD 2u

template <int D> struct many {
    /* CTAs of a cluster. Two were 1 to 4 % faster from 128 dims on and 7 %
     * slower at 64 (H100, prompts of 16,384). */
    static constexpr uint32_t N_CTA = D >= 128 ? 2 : 1;
    static constexpr uint32_t STEP = step_keys(D);
    static constexpr uint32_t N_STAGE = D == 64 ? 4 : 2;
    static constexpr uint32_t Q_BYTES = MANY_ROWS * D * 2;
    static constexpr uint32_t KV_BYTES = STEP * D * 2; /* keys, or values */
    /* O of past chains, 16 bytes of each thread to a unit: so many lie in
     * shared memory, the far rest in the scratch. */
    static constexpr uint32_t N_UNIT = D / 8, N_NEAR = D > 128 ? 8 : N_UNIT;
    static constexpr uint32_t SUM_BYTES = N_NEAR * 2 * N_GROUP_THREAD * 16;
    static constexpr uint32_t BARRIERS = 4 * N_STAGE;
    static constexpr uint32_t BYTES =
        Q_BYTES + 2 * N_STAGE * KV_BYTES + SUM_BYTES + BARRIERS * 8 + 1024;
};

template <int D> struct room {
    unsigned char *q, *k, *v;
    float4 *sum;
    uint64_t *k_full, *k_empty, *v_full, *v_empty;
};

template <int D>
static __device__ __forceinline__ struct room<D>
room_of(unsigned char *shared) {
    constexpr uint32_t N = many<D>::N_STAGE, KV = many<D>::KV_BYTES;
    struct room<D> m;

    m.q = shared + (1024 - shared_at(shared) % 1024) % 1024;
    m.k = m.q + many<D>::Q_BYTES;
    m.v = m.k + N * KV;
    m.sum = (float4 *)(m.v + N * KV);
    m.k_full = (uint64_t *)(m.v + N * KV + many<D>::SUM_BYTES);
    m.k_empty = m.k_full + N;
    m.v_full = m.k_empty + N;
    m.v_empty = m.v_full + N;
    return m;
}

/* A tile: 128 packed rows of a span. */
struct tile {
    struct many_span in;
    uint32_t head, first, n_packed;
    uint32_t n_step; /* of keys, up to its last row */
};

/*
 * Tile `round` of this CTA; false behind the last. The CTAs of a cluster take
 * neighbours with the steps of the longer. Heads of a tile side by side, since
 * they start at the same time; the longest first; and every other round
 * backwards, which shares the work out evenly.
 */
template <int D>
static __device__ bool tile_take(struct tile *tile, const struct many_call &c,
                                 uint32_t round)
{
    uint32_t n_kv_head = c.frame.n_kv_head;
    constexpr uint32_t N_CTA = many<D>::N_CTA, N_ROW = N_CTA * MANY_ROWS;
    uint32_t n_set = many_tiles(c.frame, c.n_row_max) / N_CTA;
    uint32_t n = c.n_cta / N_CTA, cluster = blockIdx.x / N_CTA;
    uint32_t i = round * n + (round % 2 ? n - 1 - cluster : cluster);
    if (i >= n_set * c.n_span * n_kv_head)
        return false;
    tile->head = i % n_kv_head;
    tile->in = c.span[i / n_kv_head % c.n_span];
    uint32_t first = (n_set - 1 - i / n_kv_head / c.n_span) * N_ROW;
    tile->first = first + blockIdx.x % N_CTA * MANY_ROWS;
    tile->n_packed = tile->in.span.n_row * c.frame.group;
    tile->n_step = 0;
    if (first < tile->n_packed) {
        uint32_t last = min(first + N_ROW, tile->n_packed) - 1;
        uint64_t n_key = tile->in.span.position + last / c.frame.group + 1;
        tile->n_step = (uint32_t)((n_key + many<D>::STEP - 1) / many<D>::STEP);
    }
    return true;
}

/* Place and phase of step i in a ring of stages. */
template <int D> static __device__ __forceinline__ uint32_t stage_of(uint32_t i)
{
    return i % many<D>::N_STAGE;
}
template <int D> static __device__ __forceinline__ uint32_t phase_of(uint32_t i)
{
    return i / many<D>::N_STAGE % 2;
}

/* A stage is free again, say to the producers of all CTAs of the cluster. */
template <int D> static __device__ __forceinline__ void free_stage(uint64_t *at)
{
    if (many<D>::N_CTA == 1)
        barrier_arrive(at);
    else
        for (uint32_t rank = 0; rank < many<D>::N_CTA; rank++)
            cluster_arrive_free(cluster_at(shared_at(at), rank));
}

/* To all CTAs of the cluster. */
template <int D>
static __device__ __forceinline__ void spread(void *to, const void *from,
                                              uint32_t bytes, uint64_t *bar)
{
    if (many<D>::N_CTA == 1)
        bulk_copy(to, from, bytes, bar);
    else
        bulk_copy_both(to, from, bytes, bar);
}

/* Bring a tile's keys and values, each CTA of the cluster its share; n_past
 * steps went before. */
template <int D>
static __device__ void bring(const struct many_call &c, const struct tile &tile,
                             struct room<D> m, uint32_t n_past)
{
    using shape = many<D>;
    constexpr uint32_t SHARE = shape::KV_BYTES / shape::N_CTA;
    constexpr uint32_t BLOCK = D * KV_BLOCK * 2; /* bytes of a head in one */
    constexpr uint32_t PIECE = SHARE < BLOCK ? SHARE : BLOCK;
    const struct attend_span &span = tile.in.span;
    uint64_t n_key = span.position + span.n_row;
    uint64_t n_step_all = (n_key + shape::STEP - 1) / shape::STEP;
    uint64_t n_block = (n_key + KV_BLOCK - 1) / KV_BLOCK;
    uint32_t at = blockIdx.x % shape::N_CTA * SHARE;
    const unsigned char *k = c.scratch + tile.in.k_at + at +
                             tile.head * n_step_all * shape::KV_BYTES;

    for (uint32_t i = 0; i < tile.n_step; i++) {
        uint32_t stage = stage_of<D>(n_past + i);
        uint32_t parity = phase_of<D>(n_past + i) ^ 1;
        unsigned char *to = m.v + stage * shape::KV_BYTES + at;
        const unsigned char *v[SHARE / PIECE];
#pragma unroll
        for (uint32_t j = 0; j < SHARE / PIECE; j++) {
            uint32_t first = at + j * PIECE;
            /* Behind the last block any finite values will do. */
            uint64_t b = (uint64_t)i * (shape::KV_BYTES / BLOCK);
            b = min(b + first / BLOCK, n_block - 1);
            v[j] = values_of<D>(span.block[b], c.frame.n_kv_head, tile.head) +
                   first % BLOCK;
        }
        barrier_wait(m.k_empty + stage, parity);
        barrier_expect(m.k_full + stage, shape::KV_BYTES);
        spread<D>(m.k + stage * shape::KV_BYTES + at,
                  k + i * (size_t)shape::KV_BYTES, SHARE, m.k_full + stage);
        barrier_wait(m.v_empty + stage, parity);
        barrier_expect(m.v_full + stage, shape::KV_BYTES);
#pragma unroll
        for (uint32_t j = 0; j < SHARE / PIECE; j++)
            spread<D>(to + j * PIECE, v[j], PIECE, m.v_full + stage);
    }
}

/* The tile's queries to the L2 cache, steps before the consumers want them. */
static __device__ void announce(const struct many_call &c,
                                const struct tile &tile)
{
    const struct attend_frame &f = c.frame;
    uint32_t bytes = f.group * f.d_head * (uint32_t)sizeof(float);
    uint32_t end = min(tile.first + MANY_ROWS, tile.n_packed);
    const float *q = f.q + tile.in.span.first_row * f.q_stride +
                     (size_t)tile.head * f.group * f.d_head;

    for (uint32_t i = tile.first / f.group; i * f.group < end; i++)
        bulk_prefetch(q + i * f.q_stride, bytes);
}

template <int D>
static __device__ void produce(const struct many_call &c, struct room<D> m)
{
    uint32_t n_past = 0;
    struct tile tile;

    launch_wait(); /* for the keys; all else was there before them */
    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        announce(c, tile);
        bring<D>(c, tile, m, n_past);
        n_past += tile.n_step;
    }
}

/* Unit i of a warpgroup's queries, eight dims of one row; zeros where there
 * are none. */
template <int D>
static __device__ __forceinline__ void
query_unit(float4 *to, const struct attend_frame &f, const struct tile &tile,
           uint32_t first, uint32_t i)
{
    uint32_t packed = first + i / (D / 8), e = i % (D / 8) * 8;
    size_t row = tile.in.span.first_row + packed / f.group;
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
template <int D>
static __device__ __forceinline__ void
load_queries(const struct attend_frame &f, const struct tile &tile,
             unsigned char *q, uint32_t group)
{
    constexpr uint32_t N = 64 * D / 8 / N_GROUP_THREAD, N_ONCE = N < 8 ? N : 8;
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    uint32_t first = tile.first + group * 64;
    float4 x[N_ONCE][2];

    q += group * 64 * D * 2;
#pragma unroll
    for (uint32_t i0 = 0; i0 < N; i0 += N_ONCE) {
#pragma unroll
        for (uint32_t i = 0; i < N_ONCE; i++)
            query_unit<D>(x[i], f, tile, first, t + (i0 + i) * N_GROUP_THREAD);
        if (i0 == 0)
            named_sync(QUERIES + group, N_GROUP_THREAD);
#pragma unroll
        for (uint32_t i = 0; i < N_ONCE; i++) {
            uint32_t at = t + (i0 + i) * N_GROUP_THREAD;
            *(uint4 *)(q + tile_at(at / (D / 8), at % (D / 8) * 8, 64)) =
                query_round(x[i], f.factor);
        }
    }
    copy_fence();
    named_sync(QUERIES + group, N_GROUP_THREAD);
}

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

/* M has been raised: O follows. */
template <int D>
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
template <int D>
static __device__ __forceinline__ void fetch(float4 *old, struct past past,
                                             uint32_t i)
{
    constexpr uint32_t N_NEAR = many<D>::N_NEAR;
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
template <int D>
static __device__ __forceinline__ void put_away(float *o, struct past past,
                                                uint32_t i)
{
    constexpr uint32_t N_NEAR = many<D>::N_NEAR;
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
template <int D>
static __device__ __forceinline__ void
merge_all(float *o, struct past past, const struct merge *by, bool is_last)
{
    constexpr uint32_t N = many<D>::N_UNIT / BATCH;
    float4 old[N_AHEAD + 1][BATCH];

#pragma unroll
    for (uint32_t i = 0; i < N_AHEAD && i < N; i++)
        fetch<D>(old[i], past, i * BATCH);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) {
        if (i + N_AHEAD < N)
            fetch<D>(old[(i + N_AHEAD) % (N_AHEAD + 1)], past,
                     (i + N_AHEAD) * BATCH);
        merge_old(o, old[i % (N_AHEAD + 1)], by, i * BATCH);
        if (!is_last)
            put_away<D>(o, past, i * BATCH);
    }
}

/* The result of row r of a tile; o: its part of O, two neighbours in four. */
template <int D>
static __device__ __forceinline__ void
store(const float *o, float sum, const struct attend_frame &f,
      const struct tile &tile, uint32_t r)
{
    uint32_t packed = tile.first + r;
    size_t row = tile.in.span.first_row + packed / f.group;
    size_t head = tile.head * f.group + packed % f.group;
    float *out = f.out + row * f.out_stride + head * f.d_head;
    float scale = 1.0f / sum;

    if (packed >= tile.n_packed)
        return;
#pragma unroll
    for (uint32_t i = 0; i < D / 8; i++)
        if (i * 8 < f.d_head)
            *(float2 *)(out + i * 8 + threadIdx.x % 4 * 2) = {
                o[4 * i] * scale + 0.0f, o[4 * i + 1] * scale + 0.0f};
}

static __device__ __forceinline__ void
row_init(struct row *row, const struct tile &tile, uint32_t group, uint32_t r)
{
    uint32_t token = min(tile.first + r, tile.n_packed - 1) / group;

    row->n_seen = (uint32_t)tile.in.span.position + token + 1;
    row->max = row->all_max = -INFINITY;
    row->sum = row->all_sum = 0.0f;
}

template <int D>
static __device__ __forceinline__ void to_weights(uint32_t *p, const float *s)
{
#pragma unroll
    for (uint32_t i = 0; i < many<D>::STEP / 4; i++)
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
template <int D> struct pass {
    static constexpr uint32_t STEP = many<D>::STEP;
    float o[D / 2], s[STEP / 2]; /* O; scores, then weights */
    uint32_t p[STEP / 4];        /* weights as they are multiplied */
    struct row row[2];
    float factor[2];
    uint32_t q, k, v; /* shared memory: our queries, the stages */
    uint32_t at, n_step;
    bool is_lead; /* the thread that speaks for the warpgroup */
};

/* S of the tile's first step. */
template <int D>
static __device__ __forceinline__ void begin(struct pass<D> *x,
                                             struct room<D> m)
{
    uint32_t stage = stage_of<D>(x->at);

    barrier_wait(m.k_full + stage, phase_of<D>(x->at));
    wgmma_begin();
    scores<D>(x->s, x->q, x->k + stage * many<D>::KV_BYTES);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin<pass<D>::STEP / 2>(x->s);
    if (x->is_lead)
        free_stage<D>(m.k_empty + stage);
}

/* When it is this warpgroup's turn: S of step i, and O of the step before. S is
 * there at the end, O is still under way. */
template <int D>
static __device__ __forceinline__ void
issue(struct pass<D> *x, struct room<D> m, uint32_t i, uint32_t group)
{
    constexpr uint32_t STEP = pass<D>::STEP, BYTES = many<D>::KV_BYTES;
    uint32_t stage = stage_of<D>(x->at + i), last = stage_of<D>(x->at + i - 1);

    named_sync(TURN + group, 2 * N_GROUP_THREAD);
    wgmma_pin<STEP / 2>(x->s);
    wgmma_pin<D / 2>(x->o);
    words_pin<STEP / 4>(x->p);
    wgmma_begin();
    scores<D>(x->s, x->q, x->k + stage * BYTES);
    wgmma_commit();
    barrier_wait(m.v_full + last, phase_of<D>(x->at + i - 1));
    wgmma_begin(); /* or the assembler adds it, for the wait is a loop */
    values<D>(x->o, x->p, x->v + last * BYTES);
    wgmma_commit();
    named_arrive(TURN + (group ^ 1), 2 * N_GROUP_THREAD);
    wgmma_wait<1>();
    wgmma_pin<STEP / 2>(x->s);
    if (x->is_lead)
        free_stage<D>(m.k_empty + stage);
}

/* O of the step before i is there. */
template <int D>
static __device__ __forceinline__ void await(struct pass<D> *x,
                                             struct room<D> m, uint32_t i)
{
    /* No sum of weights is negative, but the assembler does not know it, and
     * so may not move the weights behind the wait for the product. */
    uint32_t never = x->row[0].sum < 0.0f || x->row[1].sum < 0.0f;

    if (i + 1 < x->n_step)
        barrier_wait(m.k_full + stage_of<D>(x->at + i + 1),
                     phase_of<D>(x->at + i + 1) ^ never);
    wgmma_wait<0>();
    wgmma_pin<D / 2>(x->o);
    if (x->is_lead)
        free_stage<D>(m.v_empty + stage_of<D>(x->at + i - 1));
}

/* O of the tile's last step. */
template <int D>
static __device__ __forceinline__ void finish(struct pass<D> *x,
                                              struct room<D> m)
{
    uint32_t last = x->at + x->n_step - 1, stage = stage_of<D>(last);

    barrier_wait(m.v_full + stage, phase_of<D>(last));
    wgmma_pin<D / 2>(x->o);
    words_pin<pass<D>::STEP / 4>(x->p);
    wgmma_begin();
    values<D>(x->o, x->p, x->v + stage * many<D>::KV_BYTES);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin<D / 2>(x->o);
    if (x->is_lead)
        free_stage<D>(m.v_empty + stage);
}

/* Step i, when a chain ends before it. */
template <int D>
static __device__ __forceinline__ void
change_chain(struct pass<D> *x, struct room<D> m, const struct worker &w,
             uint32_t i)
{
    bool is_first = i * many<D>::STEP == ATTEND_CHAIN;
    struct merge by[2];

    issue(x, m, i, w.group);
    end_chain(x->row, by, is_first);
    softmax<many<D>::STEP>(x->s, x->row, x->factor, i * many<D>::STEP);
    await(x, m, i);
    to_weights<D>(x->p, x->s);
    if (!is_first) {
        merge_all<D>(x->o, w.past, by, false);
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < many<D>::N_UNIT; j += BATCH)
        put_away<D>(x->o, w.past, j);
}

/* 64 rows of a tile against its keys. */
template <int D>
static __device__ void consume(const struct many_call &c,
                               const struct tile &tile, struct room<D> m,
                               const struct worker &w)
{
    constexpr uint32_t STEP = many<D>::STEP;
    constexpr uint32_t N_CHAIN_STEP = ATTEND_CHAIN / STEP;
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    uint32_t r = w.group * 64 + t / 32 * 16 + t % 32 / 4; /* and r + 8 */
    struct merge by[2];
    struct pass<D> x;

    x.q = shared_at(m.q) + w.group * 64 * D * 2;
    x.k = shared_at(m.k);
    x.v = shared_at(m.v);
    x.at = w.n_past;
    x.n_step = tile.n_step;
    x.is_lead = t == 0;
    row_init(x.row, tile, c.frame.group, r);
    row_init(x.row + 1, tile, c.frame.group, r + 8);
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        x.o[i] = 0.0f;
    load_queries<D>(c.frame, tile, m.q, w.group);
    begin(&x, m);
    softmax<STEP>(x.s, x.row, x.factor, 0);
    to_weights<D>(x.p, x.s);
    if (x.n_step > 1)
        barrier_wait(m.k_full + stage_of<D>(x.at + 1), phase_of<D>(x.at + 1));
    for (uint32_t i = 1; i < x.n_step; i++) {
        if (i % N_CHAIN_STEP == 0) {
            change_chain(&x, m, w, i);
            continue;
        }
        issue(&x, m, i, w.group);
        bool is_raised = softmax<STEP>(x.s, x.row, x.factor, i * STEP);
        await(&x, m, i);
        to_weights<D>(x.p, x.s);
        if (is_raised)
            rescale<D>(x.o, x.factor);
    }
    finish(&x, m);
    bool is_first = x.n_step <= N_CHAIN_STEP;
    end_chain(x.row, by, is_first);
    if (!is_first)
        merge_all<D>(x.o, w.past, by, true);
    store<D>(x.o, x.row[0].all_sum, c.frame, tile, r);
    store<D>(x.o + 2, x.row[1].all_sum, c.frame, tile, r + 8);
}

template <int D>
static __device__ void work(const struct many_call &c, struct room<D> m,
                            uint32_t group)
{
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    struct worker w = {.group = group};
    struct tile tile;

    constexpr uint32_t N_NEAR = many<D>::N_NEAR;
    constexpr uint32_t N_FAR = many<D>::N_UNIT - N_NEAR;
    w.past.near = m.sum + group * N_NEAR * N_GROUP_THREAD + t;
    w.past.far = (float4 *)(c.scratch + c.sum_at) +
                 (blockIdx.x * 2 + group) * N_FAR * N_GROUP_THREAD + t;
    if (group == 1) /* the first turn is the other's */
        named_arrive(TURN, 2 * N_GROUP_THREAD);
    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        if (!tile.n_step)
            continue;
        consume<D>(c, tile, m, w);
        w.n_past += tile.n_step;
    }
}

template <int D>
static __global__ void __cluster_dims__(many<D>::N_CTA, 1, 1)
    __launch_bounds__(N_THREAD, 1)
        multiply(const __grid_constant__ struct many_call c)
{
    extern __shared__ unsigned char shared[];
    struct room<D> m = room_of<D>(shared);
    uint32_t group = threadIdx.x / N_GROUP_THREAD;

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < many<D>::N_STAGE; i++) {
            barrier_init(m.k_full + i, 1);
            barrier_init(m.v_full + i, 1);
            barrier_init(m.k_empty + i, 2 * many<D>::N_CTA);
            barrier_init(m.v_empty + i, 2 * many<D>::N_CTA);
        }
        barrier_init_fence();
    }
    cluster_sync();
    /* At the end the other CTA may still free stages of ours. */
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        if (threadIdx.x == 0)
            produce<D>(c, m);
        __syncwarp();
        cluster_sync();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        work<D>(c, m, group - 1);
        cluster_sync();
    }
}

size_t many_k_bytes(const struct attend_frame *f, uint64_t n_key)
{
    size_t n_step = (n_key + MANY_ROWS - 1) / MANY_ROWS;
    return f->n_kv_head * n_step * MANY_ROWS * attend_padded(f->d_head) * 2;
}

size_t many_sum_bytes(const struct attend_frame *f, uint32_t n_cta)
{
    constexpr uint32_t N_FAR = many<256>::N_UNIT - many<256>::N_NEAR;
    size_t bytes = 2 * N_FAR * N_GROUP_THREAD * sizeof(float4);
    return attend_padded(f->d_head) > 128 ? n_cta * bytes : 0;
}

template <int D>
static void multiply_of(cudaStream_t stream, const struct many_call *c)
{
    cudaFuncSetAttribute(multiply<D>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         many<D>::BYTES);
    launch_early_with(stream, multiply<D>, dim3(c->n_cta), N_THREAD,
                      many<D>::BYTES, *c);
}

void attend_many(cudaStream_t stream, const struct many_call *call)
{
    many_rotate(stream, call);
    switch (attend_padded(call->frame.d_head)) {
    case 64:
        multiply_of<64>(stream, call);
        break;
    case 128:
        multiply_of<128>(stream, call);
        break;
    default:
        multiply_of<256>(stream, call);
        break;
    }
}
