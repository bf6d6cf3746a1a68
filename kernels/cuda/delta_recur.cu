/*
 * The recurrence of the delta rule over the chunks of a span. A CTA has
 * DELTA_SLICE outputs of one v-head, so that 32 heads of 128 fill 128 SMs. Two
 * of a v-head are a cluster: each brings half of what both read to both. (Of
 * four not all of an H100's SMs could be had at once: 1,155 us for 613.)
 *
 * All is transposed: rows of the products are outputs e, columns tokens or key
 * dims. Then sums, rounded, are operands in the lanes where they are
 * (fragment.cuh), and what is one behind the other needs no exchange: one warp
 * goes from the state to r, from r to u, block after block, and back to the
 * state. The warps are
 *   two owners   each of 16 outputs: the state in registers, r, u, the fold
 *   two outputs  o, from an owner's rounded state and u, at most a chunk behind
 *   two loaders  up to three chunks ahead: one thread by the copy engine, both
 *                warps what of a chunk that the call does not bring whole
 *                wants arranging
 */
#include "kernels/cuda/delta_tile.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define N_STAGE 2u            /* on GPUs with less shared memory */
#define N_LOADED (2 * 64 + 1) /* arrivals that make a stage full */
#define N_SHARE 1u            /* CTAs of a cluster, of one v-head */
#else
#define N_STAGE 3u
#define N_LOADED 2u /* of each loading warp one */
#define N_SHARE 2u
#endif
#define N_SLICE 2u /* of 16 outputs */
#define N_WARP 6u
#define PREPARE_EACH 4u /* CTAs of prepare that an SM runs at once */

/* What the loading warps bring for one chunk. */
template <uint32_t D_K> struct __align__(TILE_ALIGN) recur_stage
{
    char tile[2][GRID * (D_K <= 64 ? 64 : 128) * 2];
    float v[GRID * DELTA_SLICE];
    struct chunk_head head;
};

/* Where the copy engine leaves values: vectors of four as in a tile. */
static __device__ __forceinline__ uint32_t value_at(uint32_t row,
                                                    uint32_t output)
{
    return row * DELTA_SLICE + (output / 4 ^ row % 8) * 4 + output % 4;
}

/* From an owner to its output warp, of one chunk: A operands, rounded. */
template <uint32_t D_K> struct recur_hand {
    uint4 state[D_K / 16][32];
    uint4 u[N_BLOCK][32];
};

/* Barriers between an owner and its output warp are by chunk parity. */
template <uint32_t D_K> struct recur_shared {
    struct recur_stage<D_K> stage[N_STAGE];
    struct recur_hand<D_K> hand[N_SLICE][2];
    uint64_t full[N_STAGE], empty[N_STAGE];
    uint64_t has_state[N_SLICE][2], has_u[N_SLICE][2], is_free[N_SLICE][2];
};

/* One CTA's part of the work. */
struct recur_work {
    const struct delta_span *span;
    uint32_t head, k_head, output; /* output: first of the slice */
    uint32_t chunk, end;           /* of the span */
    size_t slot;                   /* of the first chunk */
};

static __device__ struct recur_work work_of(const struct delta_many &many)
{
    const struct delta_shape shape = many.args.shape;
    struct recur_work it;

    it.span = &many.args.span[blockIdx.z];
    it.head = blockIdx.y;
    it.k_head = it.head / (shape.n_v_head / shape.n_k_head);
    it.output = blockIdx.x * DELTA_SLICE;
    it.chunk = many.chunk;
    it.slot = (size_t)blockIdx.z * many.n_chunk;
    const uint32_t n_chunk =
        (uint32_t)((it.span->position % GRID + it.span->n_row + GRID - 1) /
                   GRID);
    it.end =
        it.chunk + many.n_chunk < n_chunk ? it.chunk + many.n_chunk : n_chunk;
    return it;
}

/* Once all lanes of a warp have written: one arrival. compute-sanitizer does
 * not see that it speaks for all; with one of every lane it finds no race. */
static __device__ __forceinline__ void hand_over(uint64_t *barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbarrier_arrive(barrier);
}

/* A stage that a warp has read, to all CTAs that bring something to it. */
static __device__ __forceinline__ void hand_back(uint64_t *empty)
{
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    if (threadIdx.x % 32 < N_SHARE)
        mbarrier_arrive_at(empty, threadIdx.x % 32);
#else
    hand_over(empty);
#endif
}

/* ------------------------------------------------------------- loading */

/*
 * This lane's inputs v: four outputs of every eighth row. Where the call does
 * not bring a row they are the ring's r, or zeros, and written here.
 */
static __device__ void load_values(const struct delta_many &many,
                                   const struct recur_work &work,
                                   struct delta_chunk at, uint32_t warp,
                                   float *v)
{
    const struct delta_args &a = many.args;
    const uint32_t lane = threadIdx.x % 32, first = lane % 8 * 4;
    const uint32_t d_v = a.shape.d_v, begin = warp * 4 + lane / 8;
    const float *from = a.v + (at.row + begin) * a.qkv_stride +
                        (size_t)work.head * d_v + work.output + first;
    const uint16_t *ring = (const uint16_t *)work.span->state.ring_u +
                           (size_t)work.head * GRID * ring_stride(d_v) +
                           work.output;

    for (uint32_t row = begin; row < GRID; row += 8, from += 8 * a.qkv_stride) {
        float *const to = &v[value_at(row, first)];

        if (row >= at.first && row < at.end)
            cp_async_16(to, from);
        else
            for (uint32_t i = 0; i < 4; i++)
                to[i] = row < at.first ? bf16_low(ring[row * ring_stride(d_v) +
                                                       slice_entry(first + i)])
                                       : 0.0f;
    }
}

/*
 * What the CTAs of a cluster have in common, keys, queries and what prepare has
 * made: each brings its share to all. One thread, which announces all bytes
 * that will come here.
 */
template <uint32_t D_K>
static __device__ __forceinline__ void
load_common(const struct delta_many &many, const struct recur_work &work,
            uint32_t turn, struct delta_chunk at,
            struct recur_stage<D_K> *stage, uint32_t barrier)
{
    constexpr uint16_t ALL = (1u << N_SHARE) - 1;
    const uint32_t rank = cluster_rank();
    const uint32_t c = work.chunk + turn, n_v = many.args.shape.n_v_head;
    const uint32_t head_bytes =
        at.end < GRID ? sizeof(stage->head) : offsetof(struct chunk_head, g);
    const uint32_t begin = head_bytes / 16 * rank / N_SHARE * 16;
    const uint32_t end = head_bytes / 16 * (rank + 1) / N_SHARE * 16;
    const char *head =
        (const char *)&many.head[(work.slot + turn) * n_v + work.head];

    ptx_mbarrier_expect(barrier, sizeof(stage->tile) + head_bytes +
                                     (tile_is_unit(at) ? sizeof(stage->v) : 0));
    if (tile_is_unit(at)) {
        tile_share<D_K, N_SHARE>(many, at, work.k_head,
                                 shared_address(stage->tile), barrier);
        ptx_tensor_copy_2d(shared_address(stage->v), &many.v,
                           work.head * many.args.shape.d_v + work.output,
                           (uint32_t)at.row, barrier);
    } else if (rank == 0)
        ptx_bulk_copy_multicast(shared_address(stage->tile),
                                tile_left(many, blockIdx.z, c, work.k_head),
                                sizeof(stage->tile), barrier, ALL);
    ptx_bulk_copy_multicast(shared_address(&stage->head) + begin, head + begin,
                            end - begin, barrier, ALL);
}

template <uint32_t D_K>
static __device__ void load_chunk(const struct delta_many &many,
                                  const struct recur_work &work, uint32_t turn,
                                  uint32_t warp, struct recur_stage<D_K> *stage,
                                  uint32_t barrier)
{
    const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);

#if __CUDA_ARCH__ >= 900
    if (!tile_is_unit(at)) {
        load_values(many, work, at, warp, stage->v);
        cp_async_wait_all();
        bulk_fence(); /* the engine's, some chunks on */
        __syncwarp();
    }
    if (threadIdx.x % 32)
        return;
    if (warp)
        ptx_mbarrier_arrive(barrier);
    else
        load_common<D_K>(many, work, turn, at, stage, barrier);
#else
    const uint32_t n_v = many.args.shape.n_v_head;

    copy_share(shared_address(stage->tile),
               tile_left(many, blockIdx.z, work.chunk + turn, work.k_head),
               sizeof(stage->tile), threadIdx.x % 64, 64);
    copy_share(shared_address(&stage->head),
               &many.head[(work.slot + turn) * n_v + work.head],
               sizeof(stage->head), threadIdx.x % 64, 64);
    if (warp == 0 && threadIdx.x % 32 == 0)
        ptx_mbarrier_arrive(barrier);
    load_values(many, work, at, warp, stage->v);
    ptx_mbarrier_arrive_copied(barrier);
    ptx_mbarrier_arrive(barrier); /* of what this lane wrote itself */
#endif
}

template <uint32_t D_K>
static __device__ void load(const struct delta_many &many,
                            const struct recur_work &work, uint32_t warp,
                            struct recur_shared<D_K> *shared)
{
    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const uint32_t s = turn % N_STAGE;

        if (turn >= N_STAGE)
            ptx_mbarrier_wait(shared_address(&shared->empty[s]),
                              turn / N_STAGE % 2 ^ 1);
        load_chunk<D_K>(many, work, turn, warp, &shared->stage[s],
                        shared_address(&shared->full[s]));
    }
}

/* --------------------------------------------------------------- owner */

/* The state of 16 outputs from memory, or back: sums of tile n are dims 8n.. */
template <uint32_t D_K, bool IS_STORE>
static __device__ void move_state(const struct delta_many &many,
                                  const struct recur_work &work, uint32_t warp,
                                  float s[D_K / 8][4])
{
    const uint32_t lane = threadIdx.x % 32, d_v = many.args.shape.d_v;
    float *at = work.span->state.s +
                ((size_t)work.head * D_K + lane % 4 * 2) * d_v + work.output +
                16 * warp + lane / 4;

#pragma unroll
    for (uint32_t n = 0; n < D_K / 8; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            float *one = &at[(size_t)(8 * n + i % 2) * d_v + i / 2 * 8];

            if (IS_STORE)
                *one = s[n][i];
            else
                s[n][i] = *one;
        }
}

/* Keys or queries of all tokens, one step of 16 dims: B operands. */
template <uint32_t D_K>
static __device__ __forceinline__ void load_step(uint32_t b[N_BLOCK][4],
                                                 uint32_t tile, uint32_t k)
{
    const uint32_t right = tile_half_step(right_of(tile, TILE_DIMS), k);

#pragma unroll
    for (uint32_t p = 0; p < N_BLOCK; p++)
        load_matrices(b[p], right + tile_block(p));
}

/* P over dims of the state and them goes on by one step. */
static __device__ __forceinline__ void add_step(float sum[GRID / 8][4],
                                                const uint32_t s[4],
                                                const uint32_t b[N_BLOCK][4])
{
#pragma unroll
    for (uint32_t p = 0; p < N_BLOCK; p++) {
        mma(sum[2 * p], s, b[p][0], b[p][1]);
        mma(sum[2 * p + 1], s, b[p][2], b[p][3]);
    }
}

/* What r needs besides a, in the places of its sums. */
struct recur_inputs {
    float2 since[GRID / 8], beta[GRID / 8];
    float v[GRID / 8][4];
};

static __device__ __forceinline__ void
load_inputs(struct recur_inputs *in, const struct chunk_head *head,
            const float *v, uint32_t output)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t p = 0; p < GRID / 8; p++) {
        in->since[p] = *(const float2 *)&head->since[8 * p + t];
        in->beta[p] = *(const float2 *)&head->beta[8 * p + t];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            in->v[p][i] =
                v[value_at(8 * p + t + i % 2, output + g + i / 2 * 8)];
    }
}

/* r = beta (v - exp(G) a), from a, where its sums are. */
static __device__ __forceinline__ void
take_inputs(float r[GRID / 8][4], const struct recur_inputs *in)
{
#pragma unroll
    for (uint32_t p = 0; p < GRID / 8; p++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            r[p][i] = (i % 2 ? in->beta[p].y : in->beta[p].x) *
                      __fmaf_rn(i % 2 ? -in->since[p].y : -in->since[p].x,
                                r[p][i], in->v[p][i]);
}

/* What of a chunk belongs to one block: T, ~-w of the blocks behind it, and the
 * ages of its tokens. */
struct recur_block {
    uint4 near, far[N_BLOCK];
    float2 until[2];
};

static __device__ __forceinline__ void
load_block(struct recur_block *it, const struct chunk_head *head, uint32_t b)
{
    const uint32_t lane = threadIdx.x % 32, t = 16 * b + lane % 4 * 2;

    it->near = head->near[b][lane];
    it->until[0] = *(const float2 *)&head->until[t];
    it->until[1] = *(const float2 *)&head->until[t + 8];
#pragma unroll
    for (uint32_t i = b + 1; i < N_BLOCK; i++)
        it->far[i] = head->far[far_at(i, b)][lane];
}

/* Keys of a block as the fold multiplies them. */
template <uint32_t D_K>
static __device__ __forceinline__ void
load_keys(uint32_t key[D_K / 16][4], const struct recur_stage<D_K> *stage,
          uint32_t block)
{
    const uint32_t deep =
        deep_of(shared_address(stage->tile[0]), TILE_DIMS) + tile_block(block);

#pragma unroll
    for (uint32_t n = 0; n < D_K / 16; n++)
        load_transposed(key[n], tile_half_step(deep, n));
}

/* A block's share of the fold, of its aged u. */
template <uint32_t D_K>
static __device__ __forceinline__ void add_fold(float s[D_K / 8][4],
                                                const uint32_t u[4],
                                                const uint32_t key[D_K / 16][4])
{
#pragma unroll
    for (uint32_t n = 0; n < D_K / 16; n++) {
        mma(s[2 * n], u, key[n][0], key[n][1]);
        mma(s[2 * n + 1], u, key[n][2], key[n][3]);
    }
}

/* What an owner has in registers from chunk to chunk. */
template <uint32_t D_K> struct recur_own {
    float s[D_K / 8][4];          /* the state, right behind full chunks */
    float r[GRID / 8][4];         /* of the last chunk */
    uint32_t step[2][N_BLOCK][4]; /* the next chunk's first keys */
};

/*
 * From r, all but what the blocks mean for each other, to u, and of the state
 * behind the chunk all but the last block's share. The fold of a block stands
 * between the two products of the next, which wait for each other; what a block
 * multiplies is asked for a block ahead.
 */
template <uint32_t D_K>
static __device__ __forceinline__ void
solve_chunk(struct recur_own<D_K> *own, const struct recur_stage<D_K> *stage,
            uint32_t aged[4], uint32_t key[D_K / 16][4], uint4 (*to)[32])
{
    float(*r)[4] = own->r;
    struct recur_block block[2];

    load_block(&block[0], &stage->head, 0);
    load_keys<D_K>(key, stage, 0);
#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        const struct recur_block *it = &block[b % 2];
        float sum[2][4] = {};
        uint32_t rounded[4], u[4];

        if (b + 1 < N_BLOCK)
            load_block(&block[(b + 1) % 2], &stage->head, b + 1);
        fragment_of(rounded, r[2 * b], r[2 * b + 1]);
        mma(sum[0], rounded, it->near.x, it->near.y);
        mma(sum[1], rounded, it->near.z, it->near.w);
        if (b) {
            add_fold<D_K>(own->s, aged, key);
            load_keys<D_K>(key, stage, b);
        }
        fragment_of(u, sum[0], sum[1]);
#pragma unroll
        for (uint32_t i = b + 1; i < N_BLOCK; i++) {
            mma(r[2 * i], u, it->far[i].x, it->far[i].y);
            mma(r[2 * i + 1], u, it->far[i].z, it->far[i].w);
        }
        to[b][threadIdx.x % 32] = make_uint4(u[0], u[1], u[2], u[3]);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            aged[i] = bf16_pair(it->until[i / 2].x * bf16_low(u[i]),
                                it->until[i / 2].y * bf16_high(u[i]));
    }
}

/* r of one output to the ring's entries that the call has brought. */
static __device__ void keep_r(const struct delta_many &many,
                              const struct recur_work &work, uint32_t warp,
                              struct delta_chunk at, const float r[GRID / 8][4])
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4 * 2;
    const uint32_t stride = ring_stride(many.args.shape.d_v);
    uint16_t *ring = (uint16_t *)work.span->state.ring_u +
                     (size_t)work.head * GRID * stride + work.output;

#pragma unroll
    for (uint32_t i = 0; i < GRID / 2; i++) {
        const uint32_t row = 8 * (i / 4) + t + i % 2;
        const uint32_t output = 16 * warp + g + i / 2 % 2 * 8;

        if (row >= at.first && row < at.end)
            ring[(size_t)row * stride + slice_entry(output)] =
                (uint16_t)bf16_pair(r[i / 4][i % 4], 0.0f);
    }
}

/* P over dims of the rounded state and keys, and the state for outputs. */
template <uint32_t D_K>
static __device__ __forceinline__ void
multiply_state(struct recur_own<D_K> *own, struct recur_inputs *in,
               const struct recur_stage<D_K> *stage, uint32_t warp,
               uint4 (*to)[32])
{
    const uint32_t tile = shared_address(stage->tile[0]);
    uint32_t s[D_K / 16][4];

#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
        fragment_of(s[k], own->s[2 * k], own->s[2 * k + 1]);
#pragma unroll
    for (uint32_t i = 0; i < GRID / 2; i++)
        own->r[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++) {
        if (k + 1 < D_K / 16)
            load_step<D_K>(own->step[(k + 1) % 2], tile, k + 1);
        if (k + 2 == D_K / 16)
            load_inputs(in, &stage->head, stage->v, 16 * warp);
        add_step(own->r, s[k], own->step[k % 2]);
        to[k][threadIdx.x % 32] =
            make_uint4(s[k][0], s[k][1], s[k][2], s[k][3]);
    }
}

/* From the state to the state behind a chunk. */
template <uint32_t D_K>
static __device__ __forceinline__ void
own_chunk(struct recur_own<D_K> *own, uint32_t turn, bool is_last,
          uint32_t warp, struct recur_shared<D_K> *shared)
{
    const uint32_t next = turn + 1;
    const struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];
    struct recur_hand<D_K> *hand = &shared->hand[warp][turn % 2];
    const float whole = stage->head.whole[0];
    uint32_t aged[4], key[D_K / 16][4];
    struct recur_inputs in;

    if (turn >= 2)
        ptx_mbarrier_wait(shared_address(&shared->is_free[warp][turn % 2]),
                          turn / 2 % 2 ^ 1);
    multiply_state<D_K>(own, &in, stage, warp, hand->state);
    hand_over(&shared->has_state[warp][turn % 2]);
#pragma unroll
    for (uint32_t i = 0; i < D_K / 2; i++)
        own->s[i / 4][i % 4] *= whole;
    take_inputs(own->r, &in);
    solve_chunk<D_K>(own, stage, aged, key, hand->u);
    hand_over(&shared->has_u[warp][turn % 2]);
    if (!is_last) {
        ptx_mbarrier_wait(shared_address(&shared->full[next % N_STAGE]),
                          next / N_STAGE % 2);
        load_step<D_K>(own->step[0],
                       shared_address(shared->stage[next % N_STAGE].tile[0]),
                       0);
    }
    add_fold<D_K>(own->s, aged, key);
    hand_back(&shared->empty[turn % N_STAGE]);
}

template <uint32_t D_K>
static __device__ void own(const struct delta_many &many,
                           const struct recur_work &work, uint32_t warp,
                           struct recur_shared<D_K> *shared)
{
    const uint32_t n_turn = work.end - work.chunk;
    const struct delta_chunk last = delta_chunk(work.span, work.end - 1);
    struct recur_own<D_K> own;

    move_state<D_K, false>(many, work, warp, own.s);
    ptx_mbarrier_wait(shared_address(&shared->full[0]), 0);
    load_step<D_K>(own.step[0], shared_address(shared->stage[0].tile[0]), 0);
    for (uint32_t turn = 0; turn < n_turn; turn++) {
        const bool is_last = turn + 1 == n_turn;

        if (turn && is_last && last.end < GRID)
            move_state<D_K, true>(many, work, warp, own.s);
        own_chunk<D_K>(&own, turn, is_last, warp, shared);
    }
    if (last.end == GRID)
        move_state<D_K, true>(many, work, warp, own.s);
    else
        keep_r(many, work, warp, last, own.r);
}

/* ------------------------------------------------------------- outputs */

/* o from exp(G) c, where its sums are: P over tokens of ~x and u. */
static __device__ __forceinline__ void add_seen(float o[GRID / 8][4],
                                                const struct chunk_head *head,
                                                const uint4 (*u)[32])
{
    const uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (uint32_t j = 0; j < N_BLOCK; j++) {
        const uint4 four = u[j][lane];
        const uint32_t a[4] = {four.x, four.y, four.z, four.w};

#pragma unroll
        for (uint32_t i = j; i < N_BLOCK; i++) {
            const uint4 x = head->seen[seen_at(i, j)][lane];

            mma(o[2 * i], a, x.x, x.y);
            mma(o[2 * i + 1], a, x.z, x.w);
        }
    }
}

static __device__ __forceinline__ void
put_outputs(const struct delta_many &many, const struct recur_work &work,
            uint32_t warp, struct delta_chunk at, const float o[GRID / 8][4])
{
    const struct delta_args &a = many.args;
    const uint32_t lane = threadIdx.x % 32, t = lane % 4 * 2;
    const bool is_full = at.first == 0 && at.end == GRID;
    float *out = a.out + (at.row + t) * a.out_stride +
                 (size_t)work.head * a.shape.d_v + work.output + 16 * warp +
                 lane / 4;

#pragma unroll
    for (uint32_t p = 0; p < GRID / 8; p++, out += 8 * a.out_stride) {
        const uint32_t row = 8 * p + t;

        if (is_full || (row >= at.first && row < at.end)) {
            out[0] = o[p][0];
            out[8] = o[p][2];
        }
        if (is_full || (row + 1 >= at.first && row + 1 < at.end)) {
            out[a.out_stride] = o[p][1];
            out[a.out_stride + 8] = o[p][3];
        }
    }
}

/* T of the ring's entries that the call has brought; one warp. */
static __device__ void keep_near(const struct delta_many &many,
                                 const struct recur_work &work,
                                 struct delta_chunk at,
                                 const struct chunk_head *head)
{
    const uint32_t lane = threadIdx.x % 32, d_v = many.args.shape.d_v;
    uint16_t *ring = (uint16_t *)work.span->state.ring_u +
                     (size_t)work.head * GRID * ring_stride(d_v) + d_v +
                     lane % 4 * 2;

    for (uint32_t i = 0; i < 2 * N_BLOCK; i++) {
        const uint32_t row = 8 * i + lane / 4;
        const uint4 t = head->near[i / 2][lane];

        if (row < at.first || row >= at.end)
            continue;
        uint32_t *to = (uint32_t *)&ring[(size_t)row * ring_stride(d_v)];
        to[0] = i % 2 ? t.z : t.x;
        to[4] = i % 2 ? t.w : t.y;
    }
}

/* The other entries of the rings that the call has brought; one warp. */
template <uint32_t D_K>
static __device__ void
keep_keys(const struct delta_many &many, const struct recur_work &work,
          struct delta_chunk at, const struct recur_stage<D_K> *stage)
{
    const struct delta_shape shape = many.args.shape;
    const uint32_t lane = threadIdx.x % 32;
    double *ring_g = work.span->state.ring_g + (size_t)work.head * GRID;
    uint16_t *ring_k =
        (uint16_t *)work.span->state.ring_k + (size_t)work.k_head * GRID * D_K;

    for (uint32_t row = at.first + lane; row < at.end; row += 32)
        ring_g[row] = stage->head.g[row];
    keep_near(many, work, at, &stage->head);
    if (work.head % (shape.n_v_head / shape.n_k_head))
        return;
    for (uint32_t i = at.first * (D_K / 8) + lane; i < at.end * (D_K / 8);
         i += 32)
        ((uint4 *)ring_k)[i] =
            *(const uint4 *)(stage->tile[0] +
                             tile_vector_at(i / (D_K / 8), i % (D_K / 8)));
}

/* The outputs of a chunk, at the pace of its owner. */
template <uint32_t D_K>
static __device__ __forceinline__ void
put_chunk(const struct delta_many &many, const struct recur_work &work,
          uint32_t turn, uint32_t warp, struct recur_shared<D_K> *shared)
{
    const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);
    const struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];
    const struct recur_hand<D_K> *hand = &shared->hand[warp][turn % 2];
    const float *since = &stage->head.since[threadIdx.x % 4 * 2];
    const uint32_t tile = shared_address(stage->tile[1]);
    float o[GRID / 8][4] = {};
    uint32_t step[2][N_BLOCK][4], s[D_K / 16][4];

    ptx_mbarrier_wait(shared_address(&shared->full[turn % N_STAGE]),
                      turn / N_STAGE % 2);
    load_step<D_K>(step[0], tile, 0);
    ptx_mbarrier_wait(shared_address(&shared->has_state[warp][turn % 2]),
                      turn / 2 % 2);
#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
        *(uint4 *)s[k] = hand->state[k][threadIdx.x % 32];
#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++) {
        if (k + 1 < D_K / 16)
            load_step<D_K>(step[(k + 1) % 2], tile, k + 1);
        add_step(o, s[k], step[k % 2]);
    }
#pragma unroll
    for (uint32_t i = 0; i < GRID / 2; i++)
        o[i / 4][i % 4] *= since[i / 4 * 8 + i % 2];
    ptx_mbarrier_wait(shared_address(&shared->has_u[warp][turn % 2]),
                      turn / 2 % 2);
    add_seen(o, &stage->head, hand->u);
    if (at.end < GRID && work.output == 0 && warp == 0)
        keep_keys<D_K>(many, work, at, stage);
    hand_over(&shared->is_free[warp][turn % 2]);
    hand_back(&shared->empty[turn % N_STAGE]);
    put_outputs(many, work, warp, at, o);
}

template <uint32_t D_K>
static __device__ void init_barriers(struct recur_shared<D_K> *shared)
{
    for (uint32_t i = 0; i < N_STAGE; i++) {
        mbarrier_init(&shared->full[i], N_LOADED);
        mbarrier_init(&shared->empty[i], 2 * N_SLICE * N_SHARE);
    }
    for (uint32_t i = 0; i < 2 * N_SLICE; i++) {
        mbarrier_init(&shared->has_state[i / 2][i % 2], 1);
        mbarrier_init(&shared->has_u[i / 2][i % 2], 1);
        mbarrier_init(&shared->is_free[i / 2][i % 2], 1);
    }
    mbarrier_init_fence();
}

template <uint32_t D_K>
static __global__ void __launch_bounds__(N_WARP * 32, 1)
    recur(const __grid_constant__ struct delta_many many)
{
    extern __shared__ __align__(TILE_ALIGN) char raw[];
    struct recur_shared<D_K> *shared = (struct recur_shared<D_K> *)raw;

    if (threadIdx.x == 0)
        init_barriers(shared);
    cluster_sync_relaxed();
    launch_begin();

    const struct recur_work work = work_of(many);
    if (work.chunk >= work.end)
        return;
    const uint32_t role = threadIdx.x / 64, warp = threadIdx.x / 32 % 2;

    if (role == 0)
        own<D_K>(many, work, warp, shared);
    else if (role == 1)
        for (uint32_t turn = 0; work.chunk + turn < work.end; turn++)
            put_chunk<D_K>(many, work, turn, warp, shared);
    else
        load<D_K>(many, work, warp, shared);
    /* Others may still write here and arrive. */
    __syncwarp();
    cluster_sync_relaxed();
}

/* A stage less on GPUs before Hopper. */
template <uint32_t D_K> static uint32_t shared_bytes(void)
{
    return sizeof(struct recur_shared<D_K>) -
           (way_is_sm80() ? sizeof(struct recur_stage<D_K>) : 0);
}

bool delta_recur_fits(struct delta_shape shape)
{
    return way_shared_bytes() >= (shape.d_k == 64   ? shared_bytes<64>()
                                  : shape.d_k == 96 ? shared_bytes<96>()
                                                    : shared_bytes<128>());
}

/*
 * Early only where all CTAs of prepare are on the SMs at once. Else those of
 * recur, which come first as soon as they may come, take the shared memory in
 * which prepare's next ones would run, and wait.
 */
template <uint32_t D_K>
static void launch(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_args *a = &many->args;
    const uint32_t n_before = a->shape.n_k_head * many->n_chunk * a->n_span;
    struct launch_config how = {};

    how.stream = gpu_stream(gpu);
    how.grid = dim3(a->shape.d_v / DELTA_SLICE, a->shape.n_v_head, a->n_span);
    how.n_thread = N_WARP * 32;
    how.shared_bytes = shared_bytes<D_K>();
    how.n_cluster = N_SHARE;
    how.is_late = n_before > PREPARE_EACH * (uint32_t)gpu_n_sm(gpu);
    launch_allow(recur<D_K>, how.shared_bytes);
    launch_kernel(how, recur<D_K>, *many);
}

void delta_recur(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_shape shape = many->args.shape;

    assert(shape.d_v % (N_SHARE * DELTA_SLICE) == 0);
    if (shape.d_k == 64)
        launch<64>(gpu, many);
    else if (shape.d_k == 96)
        launch<96>(gpu, many);
    else
        launch<128>(gpu, many);
}
