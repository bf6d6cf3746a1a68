/*
 * Attention of few rows: decoding and the check of drafts. The bits are those
 * of attend_many.cu, so the order is that of attend.cuh; what is free is who
 * does it.
 *
 * A cluster of D / 64 CTAs has one chain of keys, one KV head and 8 packed
 * rows. Scores need no order: each CTA takes every (D / 64)th block of keys.
 * Maxima are exact: once the blocks' maxima have been exchanged, every CTA
 * finds M of every step, weighs its own blocks and copies the weights to the
 * others. O is one chain over the keys for each dim: each CTA takes one tile of
 * 64 dims, its four warps 16 dims each, and all weights. Products have keys or
 * dims as their 16 rows and the packed rows as their 8 columns. A fifth warp
 * brings tiles by bulk copies, keys first, so that values are on their way
 * while weights are made. A second kernel merges the chains.
 *
 * Bound: the bytes of keys and values over the bandwidth of a copy.
 */
#include "kernels/cuda/attend_few.cuh"

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/attend_tile8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

#define N_WORKER 128u /* threads that compute */
#define N_THREAD (N_WORKER + 32)
#define SCORE_STRIDE 72u /* floats of 64 scores, apart in banks */
#define WORKERS 1        /* named barriers */
#define EVERYONE 2

template <int D> struct few {
    static constexpr uint32_t N_CTA = D / 64; /* of a cluster */
    static constexpr uint32_t CHAIN = ATTEND_CHAIN, STEP = step_keys(D);
    static constexpr uint32_t N_STEP = CHAIN / STEP;
    static constexpr uint32_t N_BLOCK = CHAIN / KV_BLOCK;
    static constexpr uint32_t N_OWN = N_BLOCK / N_CTA;
    /* Pairs of a key whose angles within a block stay in registers, half of
     * them with each half of a warp; the others are read again and again. */
    static constexpr uint32_t N_HELD = D == 128 ? 64 : 32;
};

/* Weights of a block and their sums, which travel together. */
template <int R> struct weights {
    unsigned char tile[R * 128]; /* as a tile of R packed rows */
    float sum[R][4];
};

/* N tiles are under way. */
template <int D, int R, int N> struct room {
    unsigned char tile[N][TILE_BYTES];
    struct weights<R> weight[few<D>::N_BLOCK];
    float score[few<D>::N_OWN][R][SCORE_STRIDE];
    struct angle angle[few<D>::N_OWN][D / 2]; /* of the blocks' first tokens */
    float warp_max[few<D>::N_OWN][4][R];
    float block_max[few<D>::N_BLOCK][R];
    float max[few<D>::N_STEP][R], factor[few<D>::N_STEP][R];
    float sum[R];
    uint64_t full[N], empty[N], max_ready, weight_ready, all_weighed;
};

/* R packed rows of a span against one chain of keys. */
struct few_item {
    struct attend_span span;
    uint32_t first, n_packed; /* packed row; of the span */
    uint32_t head, rank;      /* KV head; of the CTA in its cluster */
    uint32_t chain, n_chain;
    uint32_t n_block, n_own; /* of the chain; those whose scores are ours */
};

static __device__ uint64_t position_of(const struct few_item &item,
                                       uint32_t group, uint32_t row)
{
    uint32_t packed = min(item.first + row, item.n_packed - 1);
    return item.span.position + packed / group;
}

/* Returns false if there is nothing to do for this cluster. */
template <int D, int R>
static __device__ bool item_init(struct few_item *item,
                                 const struct few_call &c)
{
    constexpr uint32_t N_CTA = few<D>::N_CTA;
    uint32_t i = blockIdx.x / N_CTA;

    item->span = c.span[i / c.n_tile];
    item->first = i % c.n_tile * R;
    item->n_packed = item->span.n_row * c.frame.group;
    item->head = blockIdx.y;
    item->rank = blockIdx.x % N_CTA;
    item->chain = blockIdx.z;
    if (item->first >= item->n_packed)
        return false;
    uint64_t n_key = position_of(*item, c.frame.group, R - 1) + 1;
    item->n_chain = (uint32_t)((n_key + few<D>::CHAIN - 1) / few<D>::CHAIN);
    if (item->chain >= item->n_chain)
        return false;
    uint64_t left = n_key - (uint64_t)item->chain * few<D>::CHAIN;
    item->n_block = (uint32_t)min((left + KV_BLOCK - 1) / KV_BLOCK,
                                  (uint64_t)few<D>::N_BLOCK);
    item->n_own = (item->n_block + N_CTA - 1 - item->rank) / N_CTA;
    return true;
}

/* Tile number `tile` of keys, or values, of a head of a block. */
template <int D, bool IS_INT8>
static __device__ __forceinline__ void
copy_tile(unsigned char *to, uint64_t *full, const void *block, uint32_t head,
          uint32_t tile, bool is_key)
{
    if (!IS_INT8) {
        mbarrier_expect(full, TILE_BYTES);
        bulk_copy(to, keys_of<D>(block, head) + tile * TILE_BYTES, TILE_BYTES,
                  full);
        return;
    }
    const unsigned char *from =
        (const unsigned char *)block + (head * (D / 64) + tile) * TILE8_BYTES;
    mbarrier_expect(full, TILE8_BYTES);
    if (!is_key) {
        bulk_copy(to, from, TILE8_BYTES, full);
        return;
    }
#pragma unroll
    for (uint32_t w = 0; w < 4; w++)
        bulk_copy(to + TILE8_PART_AT(w), from + w * TILE8_PART, TILE8_PART,
                  full);
}

/* The fifth warp: our blocks' keys, then our dims of all blocks' values. */
template <int D, int R, int N, bool IS_INT8>
static __device__ void produce(const struct few_call &c,
                               const struct few_item &item,
                               struct room<D, R, N> *m)
{
    constexpr uint32_t N_CTA = few<D>::N_CTA;
    uint32_t lane = threadIdx.x % 32, n_key_tile = item.n_own * N_CTA;
    const void *block = NULL;

    if (lane < item.n_block)
        block = item.span.block[item.chain * few<D>::N_BLOCK + lane];
    for (uint32_t i = 0; i < n_key_tile + item.n_block; i++) {
        bool is_key = i < n_key_tile;
        uint32_t b = is_key ? item.rank + i / N_CTA * N_CTA : i - n_key_tile;
        const void *from =
            (const void *)__shfl_sync(~0u, (unsigned long long)block, (int)b);
        if (lane)
            continue;
        uint32_t slot = i % N;
        mbarrier_wait(m->empty + slot, i / N % 2 ^ 1);
        copy_tile<D, IS_INT8>(m->tile[slot], m->full + slot, from,
                              is_key ? item.head
                                     : c.frame.n_kv_head + item.head,
                              is_key ? i % N_CTA : item.rank, is_key);
    }
    __syncwarp();
}

/* Eight queries, from row `first` on, as the right side of products: dims by
 * packed rows. */
template <int D>
static __device__ void load_queries(uint32_t (*q)[2], const struct few_call &c,
                                    const struct few_item &item, uint32_t first)
{
    const struct attend_frame &f = c.frame;
    uint32_t lane = threadIdx.x % 32, packed = item.first + first + lane / 4;
    size_t row = item.span.first_row + packed / f.group;
    uint32_t head = item.head * f.group + packed % f.group;
    const float *from = f.q + row * f.q_stride + (size_t)head * f.d_head;

#pragma unroll
    for (uint32_t i = 0; i < D / 16; i++) {
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            uint32_t e = 16 * i + 8 * j + lane % 4 * 2;
            float2 x = {0.0f, 0.0f};
            if (packed < item.n_packed && e < f.d_head)
                x = *(const float2 *)(from + e);
            q[i][j] = bf16_pair(x.x * f.factor, x.y * f.factor);
        }
    }
}

/* Angles of our blocks, for all warps. */
template <int D, int R, int N, bool IS_PLACED>
static __device__ void load_angles(const struct few_item &item,
                                   const struct attend_frame &f,
                                   struct room<D, R, N> *m)
{
    for (uint32_t i = threadIdx.x; i < item.n_own * f.n_pair; i += N_WORKER) {
        uint32_t own = i / f.n_pair;
        uint64_t b = (uint64_t)item.chain * few<D>::N_BLOCK + item.rank +
                     own * few<D>::N_CTA;
        m->angle[own][i % f.n_pair] =
            angle_first<IS_PLACED>(f, item.span, b, i % f.n_pair);
    }
    named_sync(WORKERS, N_WORKER);
}

/* Our flat blocks, a bit each. */
template <int D, bool IS_PLACED>
static __device__ __forceinline__ uint32_t
flat_blocks(const struct few_item &item)
{
    uint32_t own = threadIdx.x % 32;
    uint64_t b = (uint64_t)item.chain * few<D>::N_BLOCK + item.rank +
                 own * few<D>::N_CTA;

    return !IS_PLACED ? 0
                      : __ballot_sync(~0u, own < item.n_own &&
                                               is_flat<true>(item.span, b));
}

/* Eight pairs of a key, from dim e on; tile i of its dims in slot first + i. */
template <int D, int R, int N>
static __device__ __forceinline__ void
rotate(struct room<D, R, N> *m, uint32_t n_pair, uint32_t first, uint32_t own,
       uint32_t e, const struct angle *within, bool is_flat)
{
    uint32_t j = threadIdx.x / 32 * 16 + threadIdx.x % 16, e2 = e + n_pair;
    uint4 *x =
        (uint4 *)(m->tile[(first + e / 64) % N] + tile_at(j, e % 64, 64));
    uint4 *y =
        (uint4 *)(m->tile[(first + e2 / 64) % N] + tile_at(j, e2 % 64, 64));

    turn_unit(x, y, &m->angle[own][e], within, is_flat);
}

/* Rotate this warp's 16 keys of a block where they lie. */
template <int D, int R, int N>
static __device__ __forceinline__ void
rotate_keys(struct room<D, R, N> *m, const struct attend_frame &f,
            uint32_t first, uint32_t own, const struct angle *held,
            bool is_flat)
{
    constexpr uint32_t N_HELD = few<D>::N_HELD;
    uint32_t lane = threadIdx.x % 32, j = threadIdx.x / 32 * 16 + lane % 16;
    uint32_t e0 = lane / 16 * 8;

#pragma unroll
    for (uint32_t e = 0; e < N_HELD; e += 16)
        if (e0 + e < f.n_pair)
            rotate(m, f.n_pair, first, own, e0 + e, held + e / 2, is_flat);
    for (uint32_t e = N_HELD + e0; e < f.n_pair; e += 16) {
        struct angle within[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            within[i] = angle_within(f, e + i, j);
        rotate(m, f.n_pair, first, own, e, within, is_flat);
    }
    __syncwarp();
}

/* Keep eight rows' scores of a warp's 16 keys, `first` the first row; their
 * maxima besides. s: keys by packed rows; at: this thread's first key. */
template <int D, int R, int N>
static __device__ __forceinline__ void
keep_scores(const struct few_item &item, struct room<D, R, N> *m, float *s,
            uint32_t group, uint32_t first, uint32_t own, uint64_t at)
{
    uint32_t lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint32_t key = 16 * w + lane / 4, row = first + lane % 4 * 2;
    uint64_t p0 = position_of(item, group, row);
    uint64_t p1 = position_of(item, group, row + 1);

    s[0] = at <= p0 ? s[0] : -INFINITY;
    s[1] = at <= p1 ? s[1] : -INFINITY;
    s[2] = at + 8 <= p0 ? s[2] : -INFINITY;
    s[3] = at + 8 <= p1 ? s[3] : -INFINITY;
    m->score[own][row][key] = s[0];
    m->score[own][row + 1][key] = s[1];
    m->score[own][row][key + 8] = s[2];
    m->score[own][row + 1][key + 8] = s[3];
    float max0 = fmaxf(s[0], s[2]), max1 = fmaxf(s[1], s[3]);
#pragma unroll
    for (int d = 4; d < 32; d *= 2) {
        max0 = fmaxf(max0, __shfl_xor_sync(~0u, max0, d));
        max1 = fmaxf(max1, __shfl_xor_sync(~0u, max1, d));
    }
    if (lane < 4) {
        m->warp_max[own][w][row] = max0;
        m->warp_max[own][w][row + 1] = max1;
    }
}

/* Scores of our blocks. */
template <int D, int R, int N, bool IS_INT8, bool IS_PLACED>
static __device__ void score(const struct few_call &c,
                             const struct few_item &item,
                             struct room<D, R, N> *m)
{
    constexpr uint32_t N_CTA = few<D>::N_CTA;
    uint32_t lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint32_t q[R / 8][D / 16][2];
    struct angle held[few<D>::N_HELD / 2];
    uint32_t flat = flat_blocks<D, IS_PLACED>(item);

#pragma unroll
    for (uint32_t i = 0; i < R / 8; i++)
        load_queries<D>(q[i], c, item, 8 * i);
#pragma unroll
    for (uint32_t i = 0; i < few<D>::N_HELD / 2; i++) {
        uint32_t e = i / 8 * 16 + lane / 16 * 8 + i % 8;
        if (e < c.frame.n_pair)
            held[i] = angle_within(c.frame, e, 16 * w + lane % 16);
    }
    for (uint32_t i = 0; i < item.n_own; i++) {
        uint32_t first = i * N_CTA;
        uint64_t b = (uint64_t)item.chain * few<D>::N_BLOCK + item.rank + first;
        float s[R / 8][4] = {{0.0f}};
#pragma unroll
        for (uint32_t j = 0; j < N_CTA; j++)
            mbarrier_wait(m->full + (first + j) % N, (first + j) / N % 2);
#pragma unroll
        for (uint32_t j = 0; IS_INT8 && j < N_CTA; j++)
            widen_keys(m->tile[(first + j) % N]);
        rotate_keys(m, c.frame, first, i, held, IS_PLACED && flat >> i & 1);
#pragma unroll
        for (uint32_t t = 0; t < D / 16; t++) {
            uint32_t k[4];
            load_matrices(k, shared_address(m->tile[(first + t / 4) % N]) +
                                 tile_at(16 * w + lane % 16,
                                         t % 4 * 16 + lane / 16 * 8, 64));
#pragma unroll
            for (uint32_t j = 0; j < R / 8; j++)
                mma(s[j], k, q[j][t][0], q[j][t][1]);
        }
        bulk_fence();
        __syncwarp();
        if (lane < N_CTA)
            mbarrier_arrive(m->empty + (first + lane) % N);
#pragma unroll
        for (uint32_t j = 0; j < R / 8; j++)
            keep_scores(item, m, s[j], c.frame.group, 8 * j, i,
                        b * KV_BLOCK + 16 * w + lane / 4);
    }
}

/* Exchange the blocks' maxima; then M and the factor of every step. */
template <int D, int R, int N>
static __device__ void find_maxima(const struct few_item &item,
                                   struct room<D, R, N> *m)
{
    constexpr uint32_t N_CTA = few<D>::N_CTA;
    constexpr uint32_t N_EACH = few<D>::STEP / KV_BLOCK;

    named_sync(WORKERS, N_WORKER);
    for (uint32_t i = threadIdx.x; i < item.n_own * R; i += N_WORKER) {
        uint32_t own = i / R, row = i % R;
        const float(*max)[R] = m->warp_max[own];
        float x = fmaxf(fmaxf(max[0][row], max[1][row]),
                        fmaxf(max[2][row], max[3][row]));
        float *to = &m->block_max[item.rank + own * N_CTA][row];
        for (uint32_t r = 0; r < N_CTA; r++)
            cluster_store((uint32_t *)to, __float_as_uint(x), r);
    }
    named_sync(WORKERS, N_WORKER);
    if (threadIdx.x < N_CTA)
        mbarrier_arrive_release_at(&m->max_ready, threadIdx.x);
    mbarrier_wait_acquire(&m->max_ready, 0);
    if (threadIdx.x < R) {
        uint32_t row = threadIdx.x;
        float max = -INFINITY;
#pragma unroll
        for (uint32_t i = 0; i < few<D>::N_STEP; i++) {
            float x = -INFINITY;
#pragma unroll
            for (uint32_t b = i * N_EACH; b < (i + 1) * N_EACH; b++)
                x = b < item.n_block ? fmaxf(x, m->block_max[b][row]) : x;
            float before = max;
            max = raised(max, x);
            m->max[i][row] = max;
            m->factor[i][row] = exp2_of(before - finite_max(max));
        }
    }
    named_sync(WORKERS, N_WORKER);
}

/* Weights of our blocks and their sums, and copies to the other CTAs. */
template <int D, int R, int N>
static __device__ void weigh(const struct few_item &item,
                             struct room<D, R, N> *m)
{
    constexpr uint32_t N_CTA = few<D>::N_CTA;
    uint32_t lane = threadIdx.x % 32, c = lane % 4;

    for (uint32_t k = threadIdx.x / 32; k < item.n_own * (R / 8); k += 4) {
        uint32_t i = k / (R / 8), row = k % (R / 8) * 8 + lane / 4;
        uint32_t b = item.rank + i * N_CTA;
        float base = finite_max(m->max[b * KV_BLOCK / few<D>::STEP][row]);
        const float *s = m->score[i][row] + 2 * c;
        float t = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            float2 x = *(const float2 *)(s + 8 * j);
            x = {exp2_of(x.x - base), exp2_of(x.y - base)};
            t = j ? t + x.x : x.x;
            t = t + x.y;
            *(uint32_t *)(m->weight[b].tile + tile_at(row, 8 * j + 2 * c, R)) =
                bf16_pair(x.x, x.y);
        }
        m->weight[b].sum[row][c] = t;
    }
    bulk_fence();
    named_sync(WORKERS, N_WORKER);
    if (threadIdx.x == 0)
        mbarrier_arrive(&m->weight_ready);
    for (uint32_t i = threadIdx.x; i < item.n_own * (N_CTA - 1);
         i += N_WORKER) {
        uint32_t b = item.rank + i / (N_CTA - 1) * N_CTA;
        uint32_t to = (item.rank + 1 + i % (N_CTA - 1)) % N_CTA;
        bulk_copy_at(&m->weight[b], sizeof(struct weights<R>), &m->weight_ready,
                     to);
    }
}

/* Others copied from here until they had all weights; a CTA of a cluster that
 * has them says so to all, and none ends before it heard it of all. No barrier
 * of the cluster: compute-sanitizer lets nobody go on who arrived at one, and
 * the fifth warp arrives only when values have been multiplied. */
template <int D, int R, int N>
static __device__ void say_weighed(struct room<D, R, N> *m)
{
    constexpr uint32_t N_CTA = few<D>::N_CTA;

    if (N_CTA > 1 && threadIdx.x < N_CTA)
        mbarrier_arrive_at(&m->all_weighed, threadIdx.x);
}

template <int D, int R, int N>
static __device__ void wait_for_weighed(struct room<D, R, N> *m)
{
    if (few<D>::N_CTA > 1)
        mbarrier_wait(&m->all_weighed, 0);
}

/* L of the chain, by one warp. */
template <int D, int R, int N>
static __device__ void add_sums(const struct few_item &item,
                                struct room<D, R, N> *m)
{
    constexpr uint32_t N_EACH = few<D>::STEP / KV_BLOCK;
    uint32_t c = threadIdx.x % 4;

    mbarrier_wait(&m->weight_ready, 0);
    for (uint32_t row = threadIdx.x % 32 / 4; row < R; row += 8) {
        float sum = 0.0f;
        for (uint32_t b = 0; b < item.n_block; b += N_EACH) {
            float t = m->weight[b].sum[row][c];
            if (N_EACH == 2 && b + 1 < item.n_block)
                t = t + m->weight[b + 1].sum[row][c];
            sum = __fmaf_rn(sum, m->factor[b / N_EACH][row], t);
        }
        sum = sum + __shfl_xor_sync(~0u, sum, 1);
        sum = sum + __shfl_xor_sync(~0u, sum, 2);
        m->sum[row] = sum;
    }
}

template <int R> struct operands {
    uint32_t p[R / 8][2][4], v[4][4];
};

/* Weights of block b, and its values as far as they are this warp's 16 dims. */
template <int D, int R, int N, bool IS_INT8>
static __device__ __forceinline__ void
load_block(const struct few_item &item, struct room<D, R, N> *m, uint32_t b,
           struct operands<R> *to)
{
    uint32_t lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint32_t i = item.n_own * few<D>::N_CTA + b, slot = i % N;
    uint32_t p_at = shared_address(m->weight[b].tile);
    uint32_t v_at =
        shared_address(m->tile[slot]) +
        tile_at(lane / 16 * 8 + lane % 8, 16 * w + lane / 8 % 2 * 8, 64);

    mbarrier_wait(m->full + slot, i / N % 2);
    if (IS_INT8)
        load_values8(to->v, m->tile[slot]);
#pragma unroll
    for (uint32_t t = 0; !IS_INT8 && t < 4; t++)
        load_transposed(to->v[t], v_at + t * 16 * 128);
#pragma unroll
    for (uint32_t j = 0; j < R / 8; j++) {
        uint32_t row = 8 * j + lane % 8, key = lane / 8 * 8;
        load_matrices(to->p[j][0], p_at + tile_at(row, key, R));
        load_matrices(to->p[j][1], p_at + tile_at(row, 32 + key, R));
    }
}

/* O of this warp's 16 dims: block b joins, while the next one is loaded. */
template <int D, int R, int N, bool IS_INT8>
static __device__ __forceinline__ void
multiply_block(const struct few_item &item, struct room<D, R, N> *m, uint32_t b,
               struct operands<R> *now, struct operands<R> *next, float (*o)[4])
{
    constexpr uint32_t N_EACH = few<D>::STEP / KV_BLOCK;
    uint32_t lane = threadIdx.x % 32, row = lane % 4 * 2;
    uint32_t slot = (item.n_own * few<D>::N_CTA + b) % N;

    if (b + 1 < item.n_block)
        load_block<D, R, N, IS_INT8>(item, m, b + 1, next);
#pragma unroll
    for (uint32_t j = 0; j < R / 8; j++) {
        if (b % N_EACH)
            continue;
        float2 f = *(const float2 *)&m->factor[b / N_EACH][8 * j + row];
        o[j][0] *= f.x, o[j][1] *= f.y, o[j][2] *= f.x, o[j][3] *= f.y;
    }
#pragma unroll
    for (uint32_t t = 0; t < 4; t++)
#pragma unroll
        for (uint32_t j = 0; j < R / 8; j++)
            mma(o[j], now->v[t], now->p[j][t / 2][t % 2 * 2],
                now->p[j][t / 2][t % 2 * 2 + 1]);
    __syncwarp();
    if (lane == 0)
        mbarrier_arrive(m->empty + slot);
}

/* o: for each 8 packed rows the accumulators of dims by rows. */
template <int D, int R, int N, bool IS_INT8>
static __device__ void multiply(const struct few_item &item,
                                struct room<D, R, N> *m, float (*o)[4])
{
    struct operands<R> even, odd;

    load_block<D, R, N, IS_INT8>(item, m, 0, &even);
    for (uint32_t b = 0; b < item.n_block; b += 2) {
        multiply_block<D, R, N, IS_INT8>(item, m, b, &even, &odd, o);
        if (b + 1 < item.n_block)
            multiply_block<D, R, N, IS_INT8>(item, m, b + 1, &odd, &even, o);
    }
}

/* Where a chain's part of a packed row lies: O, then M and L. */
template <int D>
static __device__ float *part_of(const struct few_call &c, size_t item_head,
                                 uint32_t chain, uint32_t row)
{
    size_t i = (item_head * c.n_chain + chain) * c.n_row + row;
    return c.part + i * (D + 4);
}

template <int D, int R, int N>
static __device__ void store(const struct few_call &c,
                             const struct few_item &item,
                             struct room<D, R, N> *m, const float (*o)[4])
{
    const struct attend_frame &f = c.frame;
    uint32_t lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint32_t e = item.rank * 64 + 16 * w + lane / 4;

#pragma unroll
    for (uint32_t i = 0; i < R / 4; i++) {
        uint32_t r = i / 2 * 8 + lane % 4 * 2 + i % 2, packed = item.first + r;
        float x = o[i / 2][i % 2], y = o[i / 2][2 + i % 2];
        if (packed >= item.n_packed)
            continue;
        if (item.n_chain > 1) {
            size_t i_head = blockIdx.x / few<D>::N_CTA * gridDim.y + item.head;
            float *to = part_of<D>(c, i_head, item.chain, r);
            to[e] = x;
            to[e + 8] = y;
            if (e == 0) {
                uint32_t last = (item.n_block - 1) * KV_BLOCK / few<D>::STEP;
                to[D] = m->max[last][r];
                to[D + 1] = m->sum[r];
            }
            continue;
        }
        size_t at = item.span.first_row + packed / f.group;
        uint32_t head = item.head * f.group + packed % f.group;
        const struct ending to = ending_of(f, at, head);
        float scale = 1.0f / m->sum[r];
        if (e < f.d_head)
            end_dim(to, e, x * scale + 0.0f);
        if (e + 8 < f.d_head)
            end_dim(to, e + 8, y * scale + 0.0f);
    }
}

template <int D, int R, int N, bool IS_INT8, bool IS_PLACED>
static __global__ void __launch_bounds__(N_THREAD)
    attend_chain(const __grid_constant__ struct few_call c)
{
    extern __shared__ unsigned char shared[];
    uint32_t at = shared_address(shared);
    struct room<D, R, N> *m =
        (struct room<D, R, N> *)(shared + (1024 - at % 1024) % 1024);
    struct few_item item;

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < N; i++) {
            mbarrier_init(m->full + i, 1);
            mbarrier_init(m->empty + i, 4);
        }
        mbarrier_init(&m->max_ready, few<D>::N_CTA);
        mbarrier_init(&m->weight_ready, 2);
        mbarrier_init(&m->all_weighed, few<D>::N_CTA);
        mbarrier_init_fence();
    }
    launch_wait(); /* for whoever made q and the blocks */
    launch_next();
    if (!item_init<D, R>(&item, c))
        return;
    if (threadIdx.x == 0)
        mbarrier_expect(&m->weight_ready, (item.n_block - item.n_own) *
                                              sizeof(struct weights<R>));
    cluster_sync();
    if (threadIdx.x >= N_WORKER) {
        produce<D, R, N, IS_INT8>(c, item, m);
        add_sums<D, R, N>(item, m);
        named_arrive(EVERYONE, N_THREAD);
    } else {
        float o[R / 8][4] = {{0.0f}};
        load_angles<D, R, N, IS_PLACED>(item, c.frame, m);
        score<D, R, N, IS_INT8, IS_PLACED>(c, item, m);
        find_maxima<D, R, N>(item, m);
        weigh<D, R, N>(item, m);
        mbarrier_wait(&m->weight_ready, 0);
        say_weighed<D, R, N>(m);
        multiply<D, R, N, IS_INT8>(item, m, o);
        named_sync(EVERYONE, N_THREAD);
        store<D, R, N>(c, item, m, o);
    }
    wait_for_weighed<D, R, N>(m);
}

/*
 * Merge the chains of a packed row, a thread a dim. M is a running maximum, so
 * that a warp finds the factors of 32 chains at once, and then goes along them.
 */
template <int D>
static __global__ void __launch_bounds__(D)
    merge_chains(const __grid_constant__ struct few_call c)
{
    const struct attend_frame &f = c.frame;
    uint32_t r = blockIdx.z, e = threadIdx.x, lane = e % 32;
    struct few_item item;

    launch_wait();
    item.span = c.span[blockIdx.x / c.n_tile];
    item.first = blockIdx.x % c.n_tile * c.n_row;
    item.n_packed = item.span.n_row * f.group;
    if (item.first + r >= item.n_packed)
        return;
    uint64_t n_key = position_of(item, f.group, c.n_row - 1) + 1;
    uint32_t n_chain = (uint32_t)((n_key + few<D>::CHAIN - 1) / few<D>::CHAIN);
    if (n_chain == 1)
        return;
    size_t i = blockIdx.x * gridDim.y + blockIdx.y;
    const float *part = part_of<D>(c, i, 0, r);
    size_t stride = part_of<D>(c, i, 1, r) - part;
    float o = 0.0f, sum = 0.0f, max = -INFINITY;
    for (uint32_t first = 0; first < n_chain; first += 32) {
        uint32_t n = min(n_chain - first, 32u);
        float x[32], own_max = -INFINITY, own_sum = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < 32; j++)
            x[j] = j < n ? part[(first + j) * stride + e] : 0.0f;
        if (lane < n) {
            own_max = part[(first + lane) * stride + D];
            own_sum = part[(first + lane) * stride + D + 1];
        }
        float both = fmaxf(max, own_max);
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            float y = __shfl_up_sync(~0u, both, d);
            both = lane >= (uint32_t)d ? fmaxf(both, y) : both;
        }
        float before = __shfl_up_sync(~0u, both, 1);
        before = lane ? before : max;
        float old = exp2_of(before - both), now = exp2_of(own_max - both);
#pragma unroll
        for (uint32_t j = 0; j < 32; j++) {
            float a = __shfl_sync(~0u, old, j), b = __shfl_sync(~0u, now, j);
            float y = __shfl_sync(~0u, own_sum, j);
            sum = __fmaf_rn(sum, a, y * b);
            o = __fmaf_rn(o, a, x[j] * b);
        }
        max = __shfl_sync(~0u, both, 31);
    }
    uint32_t packed = item.first + r;
    size_t row = item.span.first_row + packed / f.group;
    uint32_t head = blockIdx.y * f.group + packed % f.group;
    if (e < f.d_head)
        end_dim(ending_of(f, row, head), e, o * (1.0f / sum) + 0.0f);
}

size_t few_part_bytes(const struct few_call *c)
{
    if (c->n_chain == 1)
        return 0;
    size_t n = (size_t)c->n_span * c->n_tile * c->frame.n_kv_head;
    return n * c->n_chain * c->n_row * (attend_padded(c->frame.d_head) + 4) *
           sizeof(float);
}

template <int D, int R, int N>
static void launch_chains(cudaStream_t stream, const struct few_call *c)
{
    void (*const kernel)(struct few_call) =
        c->frame.is_placed ? attend_chain<D, R, N, false, true>
        : c->frame.is_int8 ? attend_chain<D, R, N, true, false>
                           : attend_chain<D, R, N, false, false>;
    struct launch_config how = {};

    how.stream = stream;
    how.grid = dim3(c->n_span * c->n_tile * few<D>::N_CTA, c->frame.n_kv_head,
                    c->n_chain);
    how.n_thread = N_THREAD;
    how.shared_bytes = sizeof(struct room<D, R, N>) + 1024;
    how.n_cluster = few<D>::N_CTA;
    launch_allow(kernel, how.shared_bytes);
    launch_kernel(how, kernel, *c);
}

template <int D>
static void attend_few_of(cudaStream_t stream, const struct few_call *c)
{
    uint32_t n_item = c->n_span * c->n_tile;
    uint64_t n_cta =
        (uint64_t)n_item * few<D>::N_CTA * c->frame.n_kv_head * c->n_chain;

    /* Tiles under way: an SM holds three CTAs of 5, two of 8, one of 20. */
    if (c->n_row > FEW_ROWS)
        launch_chains<D, 2 * FEW_ROWS, D == 256 ? 5 : 12>(stream, c);
    else if (n_cta <= c->n_sm)
        launch_chains<D, FEW_ROWS, 20>(stream, c);
    else
        launch_chains<D, FEW_ROWS, D == 128 ? 8 : 5>(stream, c);
    if (c->n_chain > 1)
        launch_early_on(stream, merge_chains<D>,
                        dim3(n_item, c->frame.n_kv_head, c->n_row), D, *c);
}

void attend_few(cudaStream_t stream, const struct few_call *call)
{
    switch (attend_padded(call->frame.d_head)) {
    case 64:
        attend_few_of<64>(stream, call);
        break;
    case 128:
        attend_few_of<128>(stream, call);
        break;
    default:
        attend_few_of<256>(stream, call);
        break;
    }
}
