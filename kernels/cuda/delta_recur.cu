/*
 * The recurrence of the delta rule over the chunks of a span. A CTA has
 * DELTA_SLICE outputs of one v-head, so that 32 heads of 128 fill 128 SMs.
 *
 * All is transposed: rows of the products are outputs e, columns tokens or key
 * dims. Then the state's sums, rounded, are operands in the lanes where they
 * are (fragment.cuh). Two warps have 16 outputs each of the state in registers
 * and walk the critical path: a, the triangle, the fold. Two more take the
 * rounded state and u from shared memory and make the outputs, at most a chunk
 * behind. A fifth warp loads, a chunk ahead.
 *
 * The triangle next to the diagonal is a chain of 16 steps for each output,
 * fma, multiplication and rounding each. A lane has one output, so that its
 * chain needs no exchange: sums pass through shared memory into lanes of
 * outputs, u back as operands.
 *
 * Bound by that chain: 64 rows of about 14 clocks, and the latencies of
 * reading the state, of three sums over blocks and of the fold around it.
 */
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/delta.cuh"

#include <assert.h>

#define N_STAGE 2u
#define N_STATE 2u /* warps with the state, and as many for outputs */
#define N_WARP (2u * N_STATE + 1u)
#define U_STRIDE 72u /* tokens of a row of u: 144 bytes, no bank met twice */
#define R_STRIDE 20u
#define V_STRIDE 36u

/* What the loading warp brings for one chunk. */
template <uint32_t D_K> struct recur_stage {
    char tile[2][GRID * (D_K <= 64 ? 64 : 128) * 2];
    struct chunk_head head;
    float v[GRID][V_STRIDE];
};

/* Between a state warp and its output warp, for one chunk. */
template <uint32_t D_K> struct recur_hand {
    uint4 state[D_K / 16][32];
    uint16_t u[16][U_STRIDE];
};

template <uint32_t D_K> struct recur_shared {
    struct recur_stage<D_K> stage[N_STAGE];
    struct recur_hand<D_K> hand[N_STATE][2];
    uint16_t aged[N_STATE][16][U_STRIDE];
    float r[N_STATE][16][R_STRIDE];
    uint64_t full[N_STAGE], empty[N_STAGE];
    uint64_t has_state[N_STATE][2], has_u[N_STATE][2], is_free[N_STATE][2];
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

/* ------------------------------------------------------------- loading */

/* Four inputs of a row that the call does not bring: of the ring, or zeros. */
static __device__ void fill_values(const struct delta_many &many,
                                   const struct recur_work &work,
                                   struct delta_chunk at, uint32_t row,
                                   uint32_t first, float *to)
{
    const uint32_t d_v = many.args.shape.d_v;
    const uint16_t *ring = (const uint16_t *)work.span->state.ring_u +
                           ((size_t)work.head * GRID + row) * d_v + work.output;

    for (uint32_t i = 0; i < 4; i++)
        to[i] =
            row < at.first
                ? __uint_as_float((uint32_t)ring[slice_entry(first + i)] << 16)
                : 0.0f;
}

template <uint32_t D_K>
static __device__ void
load_chunk(const struct delta_many &many, const struct recur_work &work,
           uint32_t turn, struct recur_stage<D_K> *stage, uint32_t barrier)
{
    const struct delta_args &a = many.args;
    const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);
    const uint32_t lane = threadIdx.x % 32;

    if (lane == 0) {
        const size_t slot = work.slot + turn;

        barrier_expect(barrier, sizeof(stage->tile) + sizeof(stage->head));
        copy_bulk(shared_of(stage->tile),
                  many.tile + (slot * a.shape.n_k_head + work.k_head) *
                                  sizeof(stage->tile),
                  sizeof(stage->tile), barrier);
        copy_bulk(shared_of(&stage->head),
                  &many.head[slot * a.shape.n_v_head + work.head],
                  sizeof(stage->head), barrier);
    }
    for (uint32_t i = lane; i < GRID * DELTA_SLICE / 4; i += 32) {
        const uint32_t row = i / 8, first = i % 8 * 4;
        float *to = &stage->v[row][first];

        if (row >= at.first && row < at.end)
            copy_16(shared_of(to), a.v + (at.row + row) * a.qkv_stride +
                                       (size_t)work.head * a.shape.d_v +
                                       work.output + first);
        else
            fill_values(many, work, at, row, first, to);
    }
    barrier_arrive_copied(barrier);
    barrier_arrive(barrier); /* for fill_values() */
}

template <uint32_t D_K>
static __device__ void load(const struct delta_many &many,
                            const struct recur_work &work,
                            struct recur_shared<D_K> *shared)
{
    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const uint32_t s = turn % N_STAGE;

        if (turn >= N_STAGE)
            barrier_wait(shared_of(&shared->empty[s]), turn / N_STAGE % 2 ^ 1);
        load_chunk<D_K>(many, work, turn, &shared->stage[s],
                        shared_of(&shared->full[s]));
    }
}

/* --------------------------------------------------------------- state */

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

/* P over dims of the state and keys or queries, for all tokens. */
template <uint32_t D_K>
static __device__ __forceinline__ void
read_state(float out[GRID / 8][4], const uint32_t s[D_K / 16][4], uint32_t tile)
{
#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
#pragma unroll
        for (uint32_t p = 0; p < N_BLOCK; p++) {
            uint32_t b[4];

            load_matrices(b, tile + right_at(p, k, tile_stride(D_K)));
            mma(out[2 * p], s[k], b[0], b[1]);
            mma(out[2 * p + 1], s[k], b[2], b[3]);
        }
}

/* r = v - exp(G) a, as the sums lie. */
static __device__ __forceinline__ void
subtract_past(float r[GRID / 8][4], const struct chunk_head *head,
              const float (*v)[V_STRIDE], uint32_t output)
{
    const uint32_t t = threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t p = 0; p < GRID / 8; p++) {
        const float2 since = *(const float2 *)&head->since[8 * p + t];
        const float *even = &v[8 * p + t][output],
                    *odd = &v[8 * p + t + 1][output];

        r[p][0] = __fmaf_rn(-since.x, r[p][0], even[0]);
        r[p][1] = __fmaf_rn(-since.y, r[p][1], odd[0]);
        r[p][2] = __fmaf_rn(-since.x, r[p][2], even[8]);
        r[p][3] = __fmaf_rn(-since.y, r[p][3], odd[8]);
    }
}

/*
 * The triangle of one block: r of its 16 rows, as two tiles of sums, to u and
 * aged u in shared memory, [output][token].
 */
static __device__ __forceinline__ void
solve(const float r[2][4], float (*turned)[R_STRIDE],
      const struct chunk_head *head, uint32_t block, uint16_t (*u)[U_STRIDE],
      uint16_t (*aged)[U_STRIDE])
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4 * 2;
    const uint32_t e = lane % 16;
    float x[16], y[16];
    uint32_t pair[8];

    *(float2 *)&turned[g][t] = make_float2(r[0][0], r[0][1]);
    *(float2 *)&turned[g + 8][t] = make_float2(r[0][2], r[0][3]);
    *(float2 *)&turned[g][t + 8] = make_float2(r[1][0], r[1][1]);
    *(float2 *)&turned[g + 8][t + 8] = make_float2(r[1][2], r[1][3]);
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < 16; i += 4)
        *(float4 *)&x[i] = *(const float4 *)&turned[e][i];
#pragma unroll
    for (uint32_t j = 0; j < 16; j++) {
        x[j] = bf16_rounded(head->beta[16 * block + j] * x[j]);
        y[j] = head->until[16 * block + j] * x[j];
#pragma unroll
        for (uint32_t i = j + 1; i < 16; i++)
            x[i] = __fmaf_rn(head->near[block][j][i], x[j], x[i]);
    }
    if (lane < 16) {
        uint4 *to = (uint4 *)&u[e][16 * block];

#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            pair[i] = __byte_perm(__float_as_uint(x[2 * i]),
                                  __float_as_uint(x[2 * i + 1]), 0x7632);
        to[0] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
        to[1] = make_uint4(pair[4], pair[5], pair[6], pair[7]);
        to = (uint4 *)&aged[e][16 * block];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            pair[i] = bf16_pair(y[2 * i], y[2 * i + 1]);
        to[0] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
        to[1] = make_uint4(pair[4], pair[5], pair[6], pair[7]);
    }
    __syncwarp();
}

/* Block `block` of u, [output][token], as an A operand. */
static __device__ __forceinline__ void
load_u(uint32_t out[4], const uint16_t (*u)[U_STRIDE], uint32_t block)
{
    const uint32_t lane = threadIdx.x % 32;

    load_matrices(out, shared_of(&u[lane % 16][16 * block + lane / 16 * 8]));
}

/* u of a chunk, and the sums of the fold. r: v - exp(G) a; it is used up. */
template <uint32_t D_K>
static __device__ __forceinline__ void
solve_chunk(float r[GRID / 8][4], float fold[D_K / 8][4],
            const struct recur_stage<D_K> *stage, float (*turned)[R_STRIDE],
            uint16_t (*u)[U_STRIDE], uint16_t (*aged)[U_STRIDE])
{
    const struct chunk_head *head = &stage->head;
    const uint32_t lane = threadIdx.x % 32, key = shared_of(stage->tile[0]);
    float far[N_BLOCK][2][4] = {};

#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        uint32_t a[4];

#pragma unroll
        for (uint32_t i = 0; i < 8 && b; i++)
            r[2 * b + i / 4][i % 4] -= far[b][i / 4][i % 4];
        solve(&r[2 * b], turned, head, b, u, aged);
        load_u(a, u, b);
#pragma unroll
        for (uint32_t i = b + 1; i < N_BLOCK; i++) {
            const uint4 w = head->far[far_at(i, b)][lane];

            mma(far[i][0], a, w.x, w.y);
            mma(far[i][1], a, w.z, w.w);
        }
        load_u(a, aged, b);
#pragma unroll
        for (uint32_t n = 0; n < D_K / 8; n += 2) {
            uint32_t k[4];

            load_transposed(k, key + deep_at(b, n, tile_stride(D_K)));
            mma(fold[n], a, k[0], k[1]);
            mma(fold[n + 1], a, k[2], k[3]);
        }
    }
}

/* Entries of ring_u that the call has brought, of 16 outputs. */
static __device__ void keep_u(const struct delta_many &many,
                              const struct recur_work &work, uint32_t warp,
                              struct delta_chunk at,
                              const uint16_t (*u)[U_STRIDE])
{
    const uint32_t lane = threadIdx.x % 32, e = lane % 16,
                   d_v = many.args.shape.d_v;
    uint16_t *ring = (uint16_t *)work.span->state.ring_u +
                     (size_t)work.head * GRID * d_v + work.output +
                     slice_entry(16 * warp + e);

    for (uint32_t row = at.first + lane / 16; row < at.end; row += 2)
        ring[(size_t)row * d_v] = u[e][row];
}

template <uint32_t D_K>
static __device__ void recur_state(const struct delta_many &many,
                                   const struct recur_work &work,
                                   struct recur_shared<D_K> *shared)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float s[D_K / 8][4];
    bool is_folded = false;

    move_state<D_K, false>(many, work, warp, s);
    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);
        struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];
        struct recur_hand<D_K> *hand = &shared->hand[warp][turn % 2];
        float r[GRID / 8][4] = {}, fold[D_K / 8][4] = {};
        uint32_t rounded[D_K / 16][4];

        if (turn >= 2)
            barrier_wait(shared_of(&shared->is_free[warp][turn % 2]),
                         turn / 2 % 2 ^ 1);
#pragma unroll
        for (uint32_t k = 0; k < D_K / 16; k++) {
            fragment_of(rounded[k], s[2 * k], s[2 * k + 1]);
            hand->state[k][lane] = make_uint4(rounded[k][0], rounded[k][1],
                                              rounded[k][2], rounded[k][3]);
        }
        __syncwarp();
        if (lane == 0)
            barrier_arrive(shared_of(&shared->has_state[warp][turn % 2]));
        barrier_wait(shared_of(&shared->full[turn % N_STAGE]),
                     turn / N_STAGE % 2);
        read_state<D_K>(r, rounded, shared_of(stage->tile[0]));
        subtract_past(r, &stage->head, stage->v, 16 * warp + lane / 4);
        solve_chunk<D_K>(r, fold, stage, shared->r[warp], hand->u,
                         shared->aged[warp]);
        if (lane == 0)
            barrier_arrive(shared_of(&shared->has_u[warp][turn % 2]));
        if (at.end == GRID) {
            const float whole = stage->head.whole[0];

#pragma unroll
            for (uint32_t n = 0; n < D_K / 8; n++)
#pragma unroll
                for (uint32_t i = 0; i < 4; i++)
                    s[n][i] = __fmaf_rn(whole, s[n][i], fold[n][i]);
            is_folded = true;
        } else {
            keep_u(many, work, warp, at, hand->u);
        }
        __syncwarp();
        if (lane == 0)
            barrier_arrive(shared_of(&shared->empty[turn % N_STAGE]));
    }
    if (is_folded)
        move_state<D_K, true>(many, work, warp, s);
}

/* ------------------------------------------------------------- outputs */

/* P over tokens of ~x and u, added to exp(G) c; to memory. */
static __device__ __forceinline__ void
put_outputs(const struct delta_many &many, const struct recur_work &work,
            struct delta_chunk at, const float c[GRID / 8][4],
            const struct chunk_head *head, const uint16_t (*u)[U_STRIDE],
            uint32_t warp)
{
    const struct delta_args &a = many.args;
    const uint32_t lane = threadIdx.x % 32, t = lane % 4 * 2;
    float *out = a.out + at.row * a.out_stride +
                 (size_t)work.head * a.shape.d_v + work.output + 16 * warp +
                 lane / 4;
    uint32_t past[N_BLOCK][4];

#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        float sum[2][4] = {};

        load_u(past[b], u, b);
#pragma unroll
        for (uint32_t j = 0; j <= b; j++) {
            const uint4 x = head->seen[seen_at(b, j)][lane];

            mma(sum[0], past[j], x.x, x.y);
            mma(sum[1], past[j], x.z, x.w);
        }
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t row = 16 * b + i / 4 * 8 + t + i % 2;

            if (row >= at.first && row < at.end)
                out[row * a.out_stride + i / 2 % 2 * 8] =
                    __fmaf_rn(head->since[row], c[2 * b + i / 4][i % 4],
                              sum[i / 4][i % 4]);
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
static __device__ void recur_output(const struct delta_many &many,
                                    const struct recur_work &work,
                                    struct recur_shared<D_K> *shared)
{
    const uint32_t warp = threadIdx.x / 32 - N_STATE, lane = threadIdx.x % 32;

    for (uint32_t turn = 0; work.chunk + turn < work.end; turn++) {
        const struct delta_chunk at = delta_chunk(work.span, work.chunk + turn);
        struct recur_stage<D_K> *stage = &shared->stage[turn % N_STAGE];
        struct recur_hand<D_K> *hand = &shared->hand[warp][turn % 2];
        float c[GRID / 8][4] = {};
        uint32_t rounded[D_K / 16][4];

        barrier_wait(shared_of(&shared->full[turn % N_STAGE]),
                     turn / N_STAGE % 2);
        barrier_wait(shared_of(&shared->has_state[warp][turn % 2]),
                     turn / 2 % 2);
#pragma unroll
        for (uint32_t k = 0; k < D_K / 16; k++)
            *(uint4 *)rounded[k] = hand->state[k][lane];
        read_state<D_K>(c, rounded, shared_of(stage->tile[1]));
        barrier_wait(shared_of(&shared->has_u[warp][turn % 2]), turn / 2 % 2);
        put_outputs(many, work, at, c, &stage->head, hand->u, warp);
        if (at.end < GRID && work.output == 0 && warp == 0)
            keep_keys<D_K>(many, work, at, stage);
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(shared_of(&shared->is_free[warp][turn % 2]));
            barrier_arrive(shared_of(&shared->empty[turn % N_STAGE]));
        }
    }
}

template <uint32_t D_K>
static __global__ void __launch_bounds__(N_WARP * 32, 1)
    recur(struct delta_many many)
{
    extern __shared__ __align__(128) char raw[];
    struct recur_shared<D_K> *shared = (struct recur_shared<D_K> *)raw;
    const struct recur_work work = work_of(many);
    const uint32_t warp = threadIdx.x / 32;

    if (work.chunk >= work.end)
        return;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < N_STAGE; i++) {
            barrier_init(shared_of(&shared->full[i]), 2 * 32 + 1);
            barrier_init(shared_of(&shared->empty[i]), 2 * N_STATE);
        }
        for (uint32_t i = 0; i < 2 * N_STATE; i++) {
            barrier_init(shared_of(&shared->has_state[i / 2][i % 2]), 1);
            barrier_init(shared_of(&shared->has_u[i / 2][i % 2]), 1);
            barrier_init(shared_of(&shared->is_free[i / 2][i % 2]), 1);
        }
        barrier_publish();
    }
    __syncthreads();
    if (warp < N_STATE)
        recur_state<D_K>(many, work, shared);
    else if (warp < 2 * N_STATE)
        recur_output<D_K>(many, work, shared);
    else
        load<D_K>(many, work, shared);
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
