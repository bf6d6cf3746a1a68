/*
 * The recurrence of the delta rule over the chunks of a span. A CTA has
 * DELTA_SLICE outputs of one v-head, so that 32 heads of 128 fill 128 SMs.
 *
 * All is transposed: rows of the products are outputs e, columns tokens or key
 * dims. Then the state's sums, rounded, are operands in the lanes where they
 * are (fragment.cuh). The warps are
 *   two owners   16 outputs of the state in registers: r = beta (v - exp(G) a)
 *                of a chunk, then the fold, block after block as u comes
 *   a solver     the triangles of the four blocks, and between them what a
 *                block means for those behind it
 *   two outputs  o, from the rounded state and u, at most a chunk behind
 *   two loaders  a chunk ahead
 * The path from chunk to chunk is r of the first blocks, the four triangles,
 * and the last block's share of the fold; the rest is beside it.
 *
 * The triangle next to the diagonal is a chain of 16 steps for each output,
 * fma and rounding each. A lane of the solver has one output, so that its
 * chain needs no exchange: sums pass through shared memory into lanes of
 * outputs, u back as operands. Next to latencies the bandwidth of shared
 * memory is the bound: a float that all lanes read costs it a clock. On an H100
 * a chunk takes 2.3 us (docs/PERFORMANCE.md).
 */
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/delta.cuh"

#include <assert.h>

#define N_STAGE 2u
#define N_SLICE 2u /* of 16 outputs */
#define N_WARP 8u
#define U_STRIDE 72u /* tokens of a row of u: 144 bytes, no bank met twice */
#define R_STRIDE 68u /* of r, and */
#define P_STRIDE 20u /* of a block's sums */
#define V_STRIDE 36u

/* What the loading warps bring for one chunk. */
template <uint32_t D_K> struct __align__(256) recur_stage
{
    char tile[2][GRID * (D_K <= 64 ? 64 : 128) * 2];
    struct chunk_head head;
    float v[GRID][V_STRIDE];
};

/* For the output warps, of one chunk. */
template <uint32_t D_K> struct recur_hand {
    uint4 state[N_SLICE][D_K / 16][32];
    uint16_t u[DELTA_SLICE][U_STRIDE];
};

/* Barriers of one phase a chunk: has_r of tokens 0 .. 31 and 32 .. 63; by chunk
 * parity where an output warp takes part, which may lag. */
template <uint32_t D_K> struct recur_shared {
    struct recur_stage<D_K> stage[N_STAGE];
    struct recur_hand<D_K> hand[2];
    float r[DELTA_SLICE][R_STRIDE];
    float sum[DELTA_SLICE][P_STRIDE];
    uint64_t full[N_STAGE], empty[N_STAGE];
    uint64_t has_r[2], has_block[N_BLOCK];
    uint64_t has_state[N_SLICE][2], has_u[2], is_free[2];
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

/* Once all lanes of a warp have written: one arrival. */
static __device__ __forceinline__ void hand_over(uint64_t *barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(shared_of(barrier));
}

/* ------------------------------------------------------------- loading */

/*
 * This lane's inputs v: four outputs of every eighth row. Where the call does
 * not bring a row they are the ring's u, or zeros, and written here.
 */
static __device__ void load_values(const struct delta_many &many,
                                   const struct recur_work &work,
                                   struct delta_chunk at, uint32_t warp,
                                   float (*v)[V_STRIDE])
{
    const struct delta_args &a = many.args;
    const uint32_t lane = threadIdx.x % 32, first = lane % 8 * 4;
    const uint32_t d_v = a.shape.d_v, begin = warp * 4 + lane / 8;
    const size_t step = 8 * a.qkv_stride;
    const float *from = a.v + (at.row + begin) * a.qkv_stride +
                        (size_t)work.head * d_v + work.output + first;
    const uint16_t *ring = (const uint16_t *)work.span->state.ring_u +
                           (size_t)work.head * GRID * d_v + work.output;
    const uint32_t to = shared_of(&v[begin][first]);

    if (at.first == 0 && at.end == GRID) {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++, from += step)
            copy_16(to + i * 8 * V_STRIDE * 4, from);
        return;
    }
    for (uint32_t row = begin; row < GRID; row += 8, from += step) {
        if (row >= at.first && row < at.end)
            copy_16(shared_of(&v[row][first]), from);
        else
            for (uint32_t i = first; i < first + 4; i++)
                v[row][i] = row < at.first
                                ? bf16_low(ring[row * d_v + slice_entry(i)])
                                : 0.0f;
    }
}

template <uint32_t D_K>
static __device__ void load_chunk(const struct delta_many &many,
                                  const struct recur_work &work, uint32_t turn,
                                  uint32_t warp, struct recur_stage<D_K> *stage,
                                  uint32_t barrier)
{
    const struct delta_shape shape = many.args.shape;

    if (warp == 0 && threadIdx.x % 32 == 0) {
        const size_t slot = work.slot + turn;

        barrier_expect(barrier, sizeof(stage->tile) + sizeof(stage->head));
        copy_bulk(shared_of(stage->tile),
                  many.tile + (slot * shape.n_k_head + work.k_head) *
                                  sizeof(stage->tile),
                  sizeof(stage->tile), barrier);
        copy_bulk(shared_of(&stage->head),
                  &many.head[slot * shape.n_v_head + work.head],
                  sizeof(stage->head), barrier);
    }
    load_values(many, work, delta_chunk(work.span, work.chunk + turn), warp,
                stage->v);
    barrier_arrive_copied(barrier);
    barrier_arrive(barrier); /* of what this lane wrote itself */
}

template <uint32_t D_K>
static __device__ void load(const struct delta_many &many,
                            const struct recur_work &work, uint32_t warp,
                            struct recur_shared<D_K> *shared)
{
    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const uint32_t s = turn % N_STAGE;

        if (turn >= N_STAGE)
            barrier_wait(shared_of(&shared->empty[s]), turn / N_STAGE % 2 ^ 1);
        load_chunk<D_K>(many, work, turn, warp, &shared->stage[s],
                        shared_of(&shared->full[s]));
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

/*
 * P over dims of the state and keys or queries, of two blocks of tokens. right:
 * where the lane points for the first of them. All operands are asked for
 * before the first product.
 */
template <uint32_t D_K>
static __device__ __forceinline__ void
read_state(float out[4][4], const uint32_t s[D_K / 16][4], uint32_t right)
{
    uint32_t b[D_K / 16][2][4];

#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
#pragma unroll
        for (uint32_t p = 0; p < 2; p++)
            load_matrices(b[k][p],
                          tile_step(right, k) + p * 32 * tile_stride(D_K));
#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
#pragma unroll
        for (uint32_t p = 0; p < 2; p++) {
            mma(out[2 * p], s[k], b[k][p][0], b[k][p][1]);
            mma(out[2 * p + 1], s[k], b[k][p][2], b[k][p][3]);
        }
}

/* What r of 32 tokens needs besides a, in the places of its sums. */
struct recur_inputs {
    float2 since[4], beta[4];
    float v[4][4];
};

static __device__ __forceinline__ struct recur_inputs
load_inputs(const struct chunk_head *head, const float (*v)[V_STRIDE],
            uint32_t first, uint32_t output)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = first + threadIdx.x % 4 * 2;
    struct recur_inputs it;

#pragma unroll
    for (uint32_t p = 0; p < 4; p++) {
        it.since[p] = *(const float2 *)&head->since[8 * p + t];
        it.beta[p] = *(const float2 *)&head->beta[8 * p + t];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            it.v[p][i] = v[8 * p + t + i % 2][output + g + i / 2 * 8];
    }
    return it;
}

/* r = beta (v - exp(G) a) of 32 tokens, to where the solver reads. */
static __device__ __forceinline__ void put_r(const float a[4][4],
                                             const struct recur_inputs *in,
                                             uint32_t first,
                                             float (*r)[R_STRIDE])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = first + threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t p = 0; p < 4; p++) {
        const float2 since = in->since[p], beta = in->beta[p];

#pragma unroll
        for (uint32_t i = 0; i < 4; i += 2)
            *(float2 *)&r[g + 4 * i][8 * p + t] = make_float2(
                beta.x * __fmaf_rn(-since.x, a[p][i], in->v[p][i]),
                beta.y * __fmaf_rn(-since.y, a[p][i + 1], in->v[p][i + 1]));
    }
}

/* Block `block` of u, [output][token], as an A operand. */
static __device__ __forceinline__ void
load_u(uint32_t out[4], const uint16_t (*u)[U_STRIDE], uint32_t block)
{
    const uint32_t lane = threadIdx.x % 32;

    load_matrices(out, shared_of(&u[lane % 16][16 * block + lane / 16 * 8]));
}

/* u of one block, aged to the chunk's end. until: of its 16 tokens. */
static __device__ __forceinline__ void age(uint32_t u[4], const float2 until[2])
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        u[i] = bf16_pair(until[i / 2].x * bf16_low(u[i]),
                         until[i / 2].y * bf16_high(u[i]));
}

/* A block's share of the sums of the fold, once its u is there. */
template <uint32_t D_K>
static __device__ __forceinline__ void
add_fold(float fold[D_K / 8][4], const struct recur_stage<D_K> *stage,
         uint32_t block, uint32_t turn, const uint16_t (*u)[U_STRIDE],
         const uint64_t *has_block)
{
    const uint32_t stride = tile_stride(D_K);
    const uint32_t deep =
        deep_of(shared_of(stage->tile[0]), stride) + block * 32 * stride;
    const float *until = &stage->head.until[16 * block + threadIdx.x % 4 * 2];
    const float2 aging[2] = {*(const float2 *)until,
                             *(const float2 *)&until[8]};
    uint32_t a[4], k[D_K / 16][4];

#pragma unroll
    for (uint32_t n = 0; n < D_K / 16; n++)
        load_transposed(k[n], tile_step(deep, n));
    barrier_wait(shared_of(has_block), turn % 2);
    load_u(a, u, block);
    age(a, aging);
#pragma unroll
    for (uint32_t n = 0; n < D_K / 16; n++) {
        mma(fold[2 * n], a, k[n][0], k[n][1]);
        mma(fold[2 * n + 1], a, k[n][2], k[n][3]);
    }
}

/* r of half a chunk, from the rounded state. */
template <uint32_t D_K>
static __device__ __forceinline__ void
hand_r(const uint32_t rounded[D_K / 16][4], uint32_t half, uint32_t warp,
       const struct recur_stage<D_K> *stage, struct recur_shared<D_K> *shared)
{
    const uint32_t stride = tile_stride(D_K);
    const uint32_t right = right_of(shared_of(stage->tile[0]), stride);
    const struct recur_inputs in =
        load_inputs(&stage->head, stage->v, 32 * half, 16 * warp);
    float a[4][4] = {};

    read_state<D_K>(a, rounded, right + half * 64 * stride);
    put_r(a, &in, 32 * half, &shared->r[16 * warp]);
    hand_over(&shared->has_r[half]);
}

/* The rounded state, for outputs. */
template <uint32_t D_K>
static __device__ __forceinline__ void
hand_state(const uint32_t rounded[D_K / 16][4], uint32_t turn, uint32_t warp,
           struct recur_shared<D_K> *shared)
{
    if (turn >= 2)
        barrier_wait(shared_of(&shared->is_free[turn % 2]), turn / 2 % 2 ^ 1);
#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
        shared->hand[turn % 2].state[warp][k][threadIdx.x % 32] = make_uint4(
            rounded[k][0], rounded[k][1], rounded[k][2], rounded[k][3]);
    hand_over(&shared->has_state[warp][turn % 2]);
}

/* From r of a chunk to the state behind it, which is right if it is full. */
template <uint32_t D_K>
static __device__ __forceinline__ void
own_chunk(float s[D_K / 8][4], uint32_t turn, uint32_t warp, bool is_last,
          struct recur_shared<D_K> *shared)
{
    const struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];
    const uint16_t(*u)[U_STRIDE] = &shared->hand[turn % 2].u[16 * warp];
    const float whole = stage->head.whole[0];
    const uint32_t next = turn + 1;
    float fold[D_K / 8][4] = {};
    uint32_t rounded[D_K / 16][4];

#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
        fragment_of(rounded[k], s[2 * k], s[2 * k + 1]);
    hand_r<D_K>(rounded, 0, warp, stage, shared);
    if (turn) /* so late, since the next chunk waits for r */
        hand_over(&shared->empty[(turn - 1) % N_STAGE]);
    hand_r<D_K>(rounded, 1, warp, stage, shared);
    hand_state<D_K>(rounded, turn, warp, shared);
#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        if (b + 1 == N_BLOCK && !is_last)
            barrier_wait(shared_of(&shared->full[next % N_STAGE]),
                         next / N_STAGE % 2);
        add_fold<D_K>(fold, stage, b, turn, u, &shared->has_block[b]);
    }
#pragma unroll
    for (uint32_t i = 0; i < D_K / 2; i++)
        s[i / 4][i % 4] = __fmaf_rn(whole, s[i / 4][i % 4], fold[i / 4][i % 4]);
}

template <uint32_t D_K>
static __device__ void own(const struct delta_many &many,
                           const struct recur_work &work, uint32_t warp,
                           struct recur_shared<D_K> *shared)
{
    const uint32_t n_turn = work.end - work.chunk;
    const bool is_full = delta_chunk(work.span, work.end - 1).end == GRID;
    float s[D_K / 8][4];

    move_state<D_K, false>(many, work, warp, s);
    barrier_wait(shared_of(&shared->full[0]), 0);
    for (uint32_t turn = 0; turn < n_turn; turn++) {
        if (turn && turn + 1 == n_turn && !is_full)
            move_state<D_K, true>(many, work, warp, s);
        own_chunk<D_K>(s, turn, warp, turn + 1 == n_turn, shared);
    }
    if (is_full)
        move_state<D_K, true>(many, work, warp, s);
}

/* -------------------------------------------------------------- solver */

static __device__ __forceinline__ void load_near(float out[NEAR],
                                                 const float *near)
{
#pragma unroll
    for (uint32_t i = 0; i < NEAR; i += 4)
        *(float4 *)&out[i] = *(const float4 *)&near[i];
}

/* The triangle of one block: x is r of this lane's output and becomes u. */
static __device__ __forceinline__ void solve(float x[DELTA_BLOCK],
                                             const float near[NEAR])
{
#pragma unroll
    for (uint32_t j = 0; j < DELTA_BLOCK; j++) {
        x[j] = bf16_rounded(x[j]);
#pragma unroll
        for (uint32_t i = j + 1; i < DELTA_BLOCK; i++)
            x[i] = __fmaf_rn(near[near_at(i, j)], x[j], x[i]);
    }
}

/* u of one block and this lane's output to its row. */
static __device__ __forceinline__ void put_u(const float x[DELTA_BLOCK],
                                             uint16_t *u)
{
    uint32_t pair[8];

#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        pair[i] = __byte_perm(__float_as_uint(x[2 * i]),
                              __float_as_uint(x[2 * i + 1]), 0x7632);
    ((uint4 *)u)[0] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    ((uint4 *)u)[1] = make_uint4(pair[4], pair[5], pair[6], pair[7]);
}

/* Sums of one block from where they lie to lanes of outputs: x -= sum. */
static __device__ __forceinline__ void subtract(float x[DELTA_BLOCK],
                                                const float sum[N_SLICE][2][4],
                                                float (*turned)[P_STRIDE])
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4 * 2;

#pragma unroll
    for (uint32_t i = 0; i < 4 * N_SLICE; i++) {
        const float *two = &sum[i / 4][i % 2][i / 2 % 2 * 2];

        *(float2 *)&turned[g + i / 2 * 8][t + i % 2 * 8] =
            make_float2(two[0], two[1]);
    }
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < DELTA_BLOCK; i += 4) {
        const float4 four = *(const float4 *)&turned[lane][i];

        x[i] -= four.x;
        x[i + 1] -= four.y;
        x[i + 2] -= four.z;
        x[i + 3] -= four.w;
    }
}

/* What block b means for those behind it, the next of them first. w: of the
 * blocks behind it, asked for beforehand. */
static __device__ __forceinline__ void
add_far(float far[N_BLOCK][N_SLICE][2][4], uint32_t b, const uint4 w[N_BLOCK],
        const uint32_t u[N_SLICE][4])
{
#pragma unroll
    for (uint32_t i = b + 1; i < N_BLOCK; i++)
#pragma unroll
        for (uint32_t n = 0; n < N_SLICE; n++) {
            mma(far[i][n][0], u[n], w[i].x, w[i].y);
            mma(far[i][n][1], u[n], w[i].z, w[i].w);
        }
}

/* The four blocks of a chunk. */
template <uint32_t D_K>
static __device__ __forceinline__ void
solve_chunk(const struct chunk_head *head, uint32_t turn,
            struct recur_shared<D_K> *shared)
{
    const uint32_t lane = threadIdx.x % 32;
    uint16_t(*u)[U_STRIDE] = shared->hand[turn % 2].u;
    float far[N_BLOCK][N_SLICE][2][4] = {}, near[NEAR], x[DELTA_BLOCK];

    load_near(near, head->near[0]);
#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        uint32_t a[N_SLICE][4];
        uint4 w[N_BLOCK];

#pragma unroll
        for (uint32_t i = b + 1; i < N_BLOCK; i++)
            w[i] = head->far[far_at(i, b)][lane];
        if (b % 2 == 0)
            barrier_wait(shared_of(&shared->has_r[b / 2]), turn % 2);
#pragma unroll
        for (uint32_t i = 0; i < DELTA_BLOCK; i += 4)
            *(float4 *)&x[i] = *(const float4 *)&shared->r[lane][16 * b + i];
        if (b)
            subtract(x, far[b], shared->sum);
        solve(x, near);
        put_u(x, &u[lane][16 * b]);
        __syncwarp();
        load_u(a[0], u, b);
        load_u(a[1], &u[16], b);
        hand_over(&shared->has_block[b]);
        add_far(far, b, w, a);
        if (b + 1 < N_BLOCK)
            load_near(near, head->near[b + 1]);
    }
}

/* Entries of ring_u that the call has brought. */
static __device__ void keep_u(const struct delta_many &many,
                              const struct recur_work &work,
                              struct delta_chunk at,
                              const uint16_t (*u)[U_STRIDE])
{
    const uint32_t lane = threadIdx.x % 32, d_v = many.args.shape.d_v;
    uint16_t *ring = (uint16_t *)work.span->state.ring_u +
                     (size_t)work.head * GRID * d_v + work.output +
                     slice_entry(lane);

    for (uint32_t row = at.first; row < at.end; row++)
        ring[(size_t)row * d_v] = u[lane][row];
}

template <uint32_t D_K>
static __device__ void solve_all(const struct delta_many &many,
                                 const struct recur_work &work,
                                 struct recur_shared<D_K> *shared)
{
    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);
        const struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];

        barrier_wait(shared_of(&shared->full[turn % N_STAGE]),
                     turn / N_STAGE % 2);
        if (turn >= 2)
            barrier_wait(shared_of(&shared->is_free[turn % 2]),
                         turn / 2 % 2 ^ 1);
        solve_chunk<D_K>(&stage->head, turn, shared);
        hand_over(&shared->has_u[turn % 2]);
        if (at.end < GRID)
            keep_u(many, work, at, shared->hand[turn % 2].u);
        hand_over(&shared->empty[turn % N_STAGE]);
    }
}

/* ------------------------------------------------------------- outputs */

/* P over tokens of ~x and u, of block b. past: u as far as it is needed. */
static __device__ __forceinline__ void sum_past(float sum[2][4], uint32_t b,
                                                const uint32_t past[N_BLOCK][4],
                                                const struct chunk_head *head)
{
#pragma unroll
    for (uint32_t j = 0; j <= b; j++) {
        const uint4 x = head->seen[seen_at(b, j)][threadIdx.x % 32];

        mma(sum[0], past[j], x.x, x.y);
        mma(sum[1], past[j], x.z, x.w);
    }
}

/* o = that, added to exp(G) c; to memory. */
static __device__ __forceinline__ void
put_outputs(const struct delta_many &many, const struct recur_work &work,
            struct delta_chunk at, const float c[GRID / 8][4],
            const struct chunk_head *head, const uint16_t (*u)[U_STRIDE])
{
    const struct delta_args &a = many.args;
    const uint32_t lane = threadIdx.x % 32, t = lane % 4 * 2;
    const bool is_full = at.first == 0 && at.end == GRID;
    float *out = a.out + (at.row + t) * a.out_stride +
                 (size_t)work.head * a.shape.d_v + work.output + lane / 4;
    uint32_t past[N_BLOCK][4];

#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        float sum[2][4] = {};

        load_u(past[b], u, b);
        sum_past(sum, b, past, head);
#pragma unroll
        for (uint32_t p = 0; p < 2; p++, out += 8 * a.out_stride) {
            const uint32_t row = 16 * b + 8 * p + t;
            const float2 since = *(const float2 *)&head->since[row];
            const float *read = c[2 * b + p];

            if (is_full || (row >= at.first && row < at.end)) {
                out[0] = __fmaf_rn(since.x, read[0], sum[p][0]);
                out[8] = __fmaf_rn(since.x, read[2], sum[p][2]);
            }
            if (is_full || (row + 1 >= at.first && row + 1 < at.end)) {
                out[a.out_stride] = __fmaf_rn(since.y, read[1], sum[p][1]);
                out[a.out_stride + 8] = __fmaf_rn(since.y, read[3], sum[p][3]);
            }
        }
    }
}

/* Entries of ring_k and ring_g that the call has brought; one warp. */
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
    if (work.head % (shape.n_v_head / shape.n_k_head))
        return;
    for (uint32_t i = at.first * (D_K / 8) + lane; i < at.end * (D_K / 8);
         i += 32)
        ((uint4 *)ring_k)[i] =
            *(const uint4 *)(stage->tile[0] + tile_at(i / (D_K / 8),
                                                      i % (D_K / 8),
                                                      tile_stride(D_K)));
}

template <uint32_t D_K>
static __device__ void put_all(const struct delta_many &many,
                               const struct recur_work &work, uint32_t warp,
                               struct recur_shared<D_K> *shared)
{
    struct recur_work mine = work;

    mine.output += 16 * warp;
    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);
        const struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];
        const struct recur_hand<D_K> *hand = &shared->hand[turn % 2];
        const uint32_t right =
            right_of(shared_of(stage->tile[1]), tile_stride(D_K));
        float c[GRID / 8][4] = {};
        uint32_t rounded[D_K / 16][4];

        barrier_wait(shared_of(&shared->full[turn % N_STAGE]),
                     turn / N_STAGE % 2);
        barrier_wait(shared_of(&shared->has_state[warp][turn % 2]),
                     turn / 2 % 2);
#pragma unroll
        for (uint32_t k = 0; k < D_K / 16; k++)
            *(uint4 *)rounded[k] = hand->state[warp][k][threadIdx.x % 32];
        read_state<D_K>(&c[0], rounded, right);
        read_state<D_K>(&c[4], rounded, right + 64 * tile_stride(D_K));
        barrier_wait(shared_of(&shared->has_u[turn % 2]), turn / 2 % 2);
        put_outputs(many, mine, at, c, &stage->head, &hand->u[16 * warp]);
        if (at.end < GRID && work.output == 0 && warp == 0)
            keep_keys<D_K>(many, work, at, stage);
        hand_over(&shared->is_free[turn % 2]);
        hand_over(&shared->empty[turn % N_STAGE]);
    }
}

template <uint32_t D_K>
static __device__ void init_barriers(struct recur_shared<D_K> *shared)
{
    for (uint32_t i = 0; i < N_STAGE; i++) {
        barrier_init(shared_of(&shared->full[i]), 2 * 64 + 1);
        barrier_init(shared_of(&shared->empty[i]), 2 * N_SLICE + 1);
    }
    for (uint32_t b = 0; b < N_BLOCK; b++)
        barrier_init(shared_of(&shared->has_block[b]), 1);
    for (uint32_t i = 0; i < 2; i++) {
        barrier_init(shared_of(&shared->has_r[i]), N_SLICE);
        barrier_init(shared_of(&shared->has_state[0][i]), 1);
        barrier_init(shared_of(&shared->has_state[1][i]), 1);
        barrier_init(shared_of(&shared->has_u[i]), 1);
        barrier_init(shared_of(&shared->is_free[i]), N_SLICE);
    }
    barrier_publish();
}

template <uint32_t D_K>
static __global__ void __launch_bounds__(N_WARP * 32, 1)
    recur(struct delta_many many)
{
    extern __shared__ __align__(256) char raw[];
    struct recur_shared<D_K> *shared = (struct recur_shared<D_K> *)raw;
    const struct recur_work work = work_of(many);

    if (work.chunk >= work.end)
        return;
    if (threadIdx.x == 0)
        init_barriers(shared);
    __syncthreads();
    switch (threadIdx.x / 32) { /* warps i and i + 4 share a scheduler: the */
    case 0:                     /* solver has one for itself */
    case 1:
        own<D_K>(many, work, threadIdx.x / 32, shared);
        break;
    case 2:
        solve_all<D_K>(many, work, shared);
        break;
    case 4:
    case 5:
        put_all<D_K>(many, work, threadIdx.x / 32 - 4, shared);
        break;
    case 3:
    case 7:
        load<D_K>(many, work, threadIdx.x / 128, shared);
        break;
    default:
        break;
    }
}

template <uint32_t D_K>
static void launch(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_args *a = &many->args;
    const dim3 grid(a->shape.d_v / DELTA_SLICE, a->shape.n_v_head, a->n_span);
    const int bytes = (int)sizeof(struct recur_shared<D_K>);

    cudaFuncSetAttribute(recur<D_K>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    recur<D_K><<<grid, N_WARP * 32, bytes, gpu_stream(gpu)>>>(*many);
}

void delta_recur(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_shape shape = many->args.shape;

    assert(shape.d_v % DELTA_SLICE == 0);
    if (shape.d_k == 64)
        launch<64>(gpu, many);
    else if (shape.d_k == 96)
        launch<96>(gpu, many);
    else
        launch<128>(gpu, many);
}
