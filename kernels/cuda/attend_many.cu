/*
 * Attention of many rows: FlashAttention-3's shape (arXiv:2407.08608) in the
 * arithmetic of attend.cuh.
 *
 * The query heads of a KV group are packed into rows, so that the 128 rows of
 * a tile share their keys. attend_rotate.cu has rotated the keys, or is about
 * to end: only the thread that brings them waits for it. Values lie in their
 * blocks as the tensor cores want them. A CTA stays on its SM and takes the
 * tiles of a list. One thread brings keys and values by bulk
 * copies, and two warpgroups of 64 rows round their queries and multiply: S = Q
 * K^T of the next step runs beside O += P V of this one, and the warpgroups
 * take turns (attend_rows.cuh).
 *
 * Bound: 4 n_key d operations a row and head (half of it under the diagonal of
 * a prompt) over 790 TFLOP/s.
 */
#include "kernels/cuda/attend_many.cuh"
#include "kernels/cuda/attend_rows.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>
#include <string.h>

#define N_GROUP 2
/* What a set costs besides its steps, as steps. */
#define SET_STEPS 2u
#define N_THREAD ((N_GROUP + 1) * N_GROUP_THREAD)

/*
 * Tile `round` of this CTA, by many_share(); false behind the last. The CTAs of
 * a cluster take neighbours with the steps of the longer.
 */
template <int D>
static __device__ bool tile_take(struct tile *tile, const struct many_call &c,
                                 uint32_t round)
{
    constexpr uint32_t N_CTA = plan<D, N_GROUP>::N_CTA,
                       N_ROW = N_CTA * MANY_ROWS;
    uint32_t cluster = blockIdx.x / N_CTA;
    uint32_t turn = c.turn[c.turn[cluster] + round];

    if (turn == MANY_NONE)
        return false;
    tile->head = turn / MANY_SPANS % MANY_HEADS;
    const struct many_span &in = c.span[turn % MANY_SPANS];
    tile->span = in.span;
    tile->k_at = in.k_at;
    uint32_t first = turn / MANY_SPANS / MANY_HEADS * N_ROW;
    tile->first = first + blockIdx.x % N_CTA * MANY_ROWS;
    tile->n_packed = tile->span.n_row * c.frame.group;
    tile->n_step = 0;
    if (first < tile->n_packed) {
        uint32_t last = min(first + N_ROW, tile->n_packed) - 1;
        uint64_t n_key = tile->span.position + last / c.frame.group + 1;
        tile->n_step = (uint32_t)((n_key + plan<D, N_GROUP>::STEP - 1) /
                                  plan<D, N_GROUP>::STEP);
    }
    return true;
}

/* To all CTAs of the cluster. */
template <int D>
static __device__ __forceinline__ void spread(void *to, const void *from,
                                              uint32_t bytes, uint64_t *bar)
{
    if (plan<D, N_GROUP>::N_CTA == 1)
        bulk_copy(to, from, bytes, bar);
    else
        ptx_bulk_copy_multicast(shared_address(to), from, bytes,
                                shared_address(bar), 3);
}

/* Bring a tile's keys and values, each CTA of the cluster its share; n_past
 * steps went before. */
template <int D>
static __device__ void bring(const struct many_call &c, const struct tile &tile,
                             struct room<D, N_GROUP> m, uint32_t n_past)
{
    using shape = plan<D, N_GROUP>;
    constexpr uint32_t SHARE = shape::KV_BYTES / shape::N_CTA;
    constexpr uint32_t BLOCK = D * KV_BLOCK * 2; /* bytes of a head in one */
    constexpr uint32_t PIECE = SHARE < BLOCK ? SHARE : BLOCK;
    const struct attend_span &span = tile.span;
    uint64_t n_key = span.position + span.n_row;
    uint64_t n_step_all = (n_key + shape::STEP - 1) / shape::STEP;
    uint64_t n_block = (n_key + KV_BLOCK - 1) / KV_BLOCK;
    uint32_t at = blockIdx.x % shape::N_CTA * SHARE;
    const unsigned char *k =
        c.scratch + tile.k_at + at + tile.head * n_step_all * shape::KV_BYTES;

    for (uint32_t i = 0; i < tile.n_step; i++) {
        uint32_t stage = stage_of<D, N_GROUP>(n_past + i);
        uint32_t parity = phase_of<D, N_GROUP>(n_past + i) ^ 1;
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
        mbarrier_wait(m.k_empty + stage, parity);
        mbarrier_expect(m.k_full + stage, shape::KV_BYTES);
        spread<D>(m.k + stage * shape::KV_BYTES + at,
                  k + i * (size_t)shape::KV_BYTES, SHARE, m.k_full + stage);
        mbarrier_wait(m.v_empty + stage, parity);
        mbarrier_expect(m.v_full + stage, shape::KV_BYTES);
#pragma unroll
        for (uint32_t j = 0; j < SHARE / PIECE; j++)
            spread<D>(to + j * PIECE, v[j], PIECE, m.v_full + stage);
    }
}

template <int D, enum end END>
static __device__ void produce(const struct many_call &c,
                               struct room<D, N_GROUP> m)
{
    uint32_t n_past = 0;
    struct tile tile;

    launch_wait(); /* for the keys; all else was there before them */
    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        announce<END>(c.frame, tile, MANY_ROWS);
        bring<D>(c, tile, m, n_past);
        n_past += tile.n_step;
    }
}

template <int D, enum end END>
static __device__ void work(const struct many_call &c,
                            struct room<D, N_GROUP> m, uint32_t group)
{
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    struct worker w = {.group = group};
    struct tile tile;

    constexpr uint32_t N_NEAR = plan<D, N_GROUP>::N_NEAR;
    constexpr uint32_t N_FAR = plan<D, N_GROUP>::N_UNIT - N_NEAR;
    w.past.near = m.sum + group * N_NEAR * N_GROUP_THREAD + t;
    w.past.far = (float4 *)(c.scratch + c.sum_at) +
                 (blockIdx.x * 2 + group) * N_FAR * N_GROUP_THREAD + t;
    if (group == 1) /* the first turn is the other's */
        named_arrive(TURN, 2 * N_GROUP_THREAD);
    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        if (!tile.n_step)
            continue;
        consume<D, N_GROUP, END>(c.frame, tile, m, w);
        w.n_past += tile.n_step;
    }
}

template <int D, enum end END>
static __global__ void __cluster_dims__(plan<D, N_GROUP>::N_CTA, 1, 1)
    __launch_bounds__(N_THREAD, 1)
        multiply(const __grid_constant__ struct many_call c)
{
    extern __shared__ unsigned char shared[];
    struct room<D, N_GROUP> m = room_of<D, N_GROUP>(shared);
    uint32_t group = threadIdx.x / N_GROUP_THREAD;

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < plan<D, N_GROUP>::N_STAGE; i++) {
            mbarrier_init(m.k_full + i, 1);
            mbarrier_init(m.v_full + i, 1);
            mbarrier_init(m.k_empty + i, 2 * plan<D, N_GROUP>::N_CTA);
            mbarrier_init(m.v_empty + i, 2 * plan<D, N_GROUP>::N_CTA);
        }
        mbarrier_init_fence();
    }
    cluster_sync();
    /* At the end the other CTA may still free stages of ours. */
    if (group == 0) {
        registers_give<56>();
        if (threadIdx.x == 0)
            produce<D, END>(c, m);
        __syncwarp();
        cluster_sync();
    } else {
        registers_take<224>();
        work<D, END>(c, m, group - 1);
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
    constexpr uint32_t N_FAR =
        plan<256, N_GROUP>::N_UNIT - plan<256, N_GROUP>::N_NEAR;
    size_t bytes = 2 * N_FAR * N_GROUP_THREAD * sizeof(float4);
    return attend_padded(f->d_head) > 128 ? n_cta * bytes : 0;
}

/* Tiles of a set, which a cluster takes at once. */
static uint32_t set_tiles(const struct attend_frame *f)
{
    return attend_padded(f->d_head) < 128 ? plan<64, N_GROUP>::N_CTA
                                          : plan<128, N_GROUP>::N_CTA;
}

/* Steps of set `set` of a span; 0: it has none. */
static uint32_t set_steps(const struct attend_frame *f,
                          const struct attend_span *span, uint32_t set)
{
    uint32_t n_row = set_tiles(f) * MANY_ROWS, n = span->n_row * f->group;
    uint32_t step = step_keys(attend_padded(f->d_head));

    if (set * n_row >= n)
        return 0;
    uint32_t end = (set + 1) * n_row < n ? (set + 1) * n_row : n;
    return (uint32_t)((span->position + (end - 1) / f->group + step) / step);
}

/*
 * How many KV heads go at once: as few as have a set for each cluster, about.
 * CTAs then read the same keys at the same time, and of a long prompt what they
 * read stays in the L2 cache.
 */
static uint32_t heads_at_once(const struct many_call *c)
{
    uint32_t n_set =
        c->n_span * many_tiles(c->frame, c->n_row_max) / set_tiles(&c->frame);
    uint32_t n = (c->n_cta / set_tiles(&c->frame) + n_set / 2) / n_set;

    return n ? n : 1;
}

/* Sets in the order in which clusters take them, and by whom. */
struct shares {
    uint32_t n_cluster, n;
    uint32_t load[MANY_CLUSTERS], count[MANY_CLUSTERS];
    struct {
        uint32_t set, cluster;
    } taken[MANY_SETS];
};

/* The cluster that will be done first takes it. */
static void take(struct shares *shares, uint32_t set, uint32_t n_step)
{
    uint32_t k = 0;

    for (uint32_t i = 1; i < shares->n_cluster; i++)
        k = shares->load[i] < shares->load[k] ? i : k;
    shares->load[k] += n_step + SET_STEPS;
    shares->count[k]++;
    shares->taken[shares->n++] = {set, k};
}

static size_t lists_of(uint32_t *turn, const struct shares *shares)
{
    uint32_t at = shares->n_cluster, next[MANY_CLUSTERS];

    for (uint32_t k = 0; k < shares->n_cluster; k++) {
        turn[k] = next[k] = at;
        at += shares->count[k];
        turn[at++] = MANY_NONE;
    }
    for (uint32_t i = 0; i < shares->n; i++)
        turn[next[shares->taken[i].cluster]++] = shares->taken[i].set;
    return at;
}

uint32_t many_heads(const struct many_call *c)
{
    uint32_t n = many_tiles(c->frame, c->n_row_max) / set_tiles(&c->frame);

    assert(n * c->n_span <= MANY_SETS && c->frame.n_kv_head <= MANY_HEADS);
    return MANY_SETS / (n * c->n_span);
}

size_t many_share(uint32_t *turn, const struct many_call *c,
                  const struct many_span *span, struct many_range heads)
{
    const struct attend_frame *f = &c->frame;
    uint32_t n_set = many_tiles(*f, c->n_row_max) / set_tiles(f);
    uint32_t n_once = heads_at_once(c);
    struct shares shares;

    shares.n_cluster = c->n_cta / set_tiles(f);
    shares.n = 0;
    assert(shares.n_cluster <= MANY_CLUSTERS);
    memset(shares.load, 0, sizeof(shares.load));
    memset(shares.count, 0, sizeof(shares.count));
    for (uint32_t at = heads.first; at < heads.end; at += n_once)
        for (uint32_t i = 0; i < n_set * c->n_span; i++) {
            uint32_t set = n_set - 1 - i / c->n_span, s = i % c->n_span;
            uint32_t n_step = set_steps(f, &span[s].span, set);

            for (uint32_t h = at; n_step && h < at + n_once && h < heads.end;
                 h++)
                take(&shares, (set * MANY_HEADS + h) * MANY_SPANS + s, n_step);
        }
    return lists_of(turn, &shares);
}

template <int D, enum end END>
static void multiply_of(cudaStream_t stream, const struct many_call *c)
{
    launch_allow(multiply<D, END>, plan<D, N_GROUP>::BYTES);
    launch_early_with(stream, multiply<D, END>, dim3(c->n_cta), N_THREAD,
                      plan<D, N_GROUP>::BYTES, *c);
}

template <int D>
static void multiply_any(cudaStream_t stream, const struct many_call *c)
{
    if (c->frame.gate)
        multiply_of<D, END_GATED>(stream, c);
    else if (c->frame.rounded)
        multiply_of<D, END_ROUNDED>(stream, c);
    else
        multiply_of<D, END_FLOATS>(stream, c);
}

void attend_many(cudaStream_t stream, const struct many_call *call)
{
    switch (attend_padded(call->frame.d_head)) {
    case 64:
        multiply_any<64>(stream, call);
        break;
    case 128:
        multiply_any<128>(stream, call);
        break;
    default:
        multiply_any<256>(stream, call);
        break;
    }
}
