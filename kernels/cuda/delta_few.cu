/*
 * The delta rule for spans of at most DELTA_FEW rows: decode, and verification
 * of drafts. One CTA for a span and v-head, one warp for 32 outputs. It asks
 * for its whole state at once, 16 KiB a warp, and multiplies keys and makes its
 * rows of T while the state is on its way; the state is written
 * only by a fold. So memory is the bound: 64 KiB of state for a head of 128 x
 * 128, and what is in the ring.
 *
 * Products are as in recur (outputs or ring tokens x rows), with columns for
 * the call's keys and behind them for its queries. Two neighbouring outputs lie
 * at the same place of a warp's two tiles, so that a lane loads 8 bytes, and so
 * they lie in ring_u (slice_entry()).
 *
 * A call may pass a grid point: the part up to it is done and folded, then the
 * rest with an empty ring. The v-heads of a k-head are then a cluster, since
 * one of them overwrites the ring that all read.
 */
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/delta.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>
#include <cooperative_groups.h>

#define D_V_MAX 192u
/* bf16 behind a row of operands, so that eight rows meet no bank twice. */
#define PAD 8u

/* R rows fit: columns c < R are keys of rows, columns R + c queries. */
template <uint32_t D_K, uint32_t R> struct few_shared {
    char key[GRID * (D_K <= 64 ? 64 : 128) * 2]; /* a tile: ring, then rows */
    uint16_t r[GRID][D_V_MAX + PAD];             /* by slice_entry() */
    uint16_t near[GRID][DELTA_BLOCK + PAD];      /* T */
    uint16_t row[2 * R][D_K + PAD];              /* keys, queries */
    uint16_t weight[2 * R][GRID + PAD];          /* ~-w, ~x */
    float w[R][DELTA_BLOCK];                     /* -w in the row's block */
    float v[R][D_V_MAX];
    double g[GRID];
    float since[R], beta[R];
};

/* Rows [row, row + n) of a span, with indices i .. i + n - 1 in their chunk. */
struct few_part {
    uint32_t row, i, n;
    size_t batch_row;
};

/* A warp's outputs of the state: [step][half of rows][dims 2t, +1, +8, +9]. */
template <uint32_t D_K> struct few_state {
    float2 x[D_K / 16][2][4];
};

static __device__ __forceinline__ uint32_t state_dim(uint32_t s, uint32_t i)
{
    return 16 * s + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
}

template <uint32_t D_K>
static __device__ __forceinline__ void load_state(struct few_state<D_K> *to,
                                                  const float *s, uint32_t d_v)
{
    const uint32_t e = threadIdx.x / 32 * 32 + threadIdx.x % 32 / 4 * 2;

#pragma unroll
    for (uint32_t k = 0; k < D_K / 16; k++)
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            to->x[k][i / 4][i % 4] =
                *(const float2 *)(s + (size_t)state_dim(k, i % 4) * d_v + e +
                                  i / 4 * 16);
}

/* What the ring has for this head, the rows' v, and zeros for r and T up to the
 * end of a block. */
template <uint32_t D_K, uint32_t R>
static __device__ void
copy_inputs(const struct delta_args &a, const struct delta_state &state,
            struct few_part part, struct few_shared<D_K, R> *shared)
{
    const uint32_t head = blockIdx.x, d_v = a.shape.d_v;
    const uint32_t k_head = head / (a.shape.n_v_head / a.shape.n_k_head);
    const uint4 *key =
        (const uint4 *)state.ring_k + (size_t)k_head * GRID * D_K / 8;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t n_each = ring_stride(d_v) / 8; /* vectors of a token: < 32 */
    const uint4 *r = (const uint4 *)state.ring_u + (size_t)head * GRID * n_each;
    const float *v = a.v + part.batch_row * a.qkv_stride + (size_t)head * d_v;

    for (uint32_t j = threadIdx.x; j < part.i * (D_K / 8); j += blockDim.x)
        cp_async_16(shared->key +
                        tile_at(j / (D_K / 8), j % (D_K / 8), tile_stride(D_K)),
                    &key[j]);
    if (lane < n_each)
        for (uint32_t row = warp; row < part.i; row += blockDim.x / 32)
            cp_async_16(8 * lane < d_v ? &shared->r[row][8 * lane]
                                       : &shared->near[row][8 * lane - d_v],
                        &r[row * n_each + lane]);
    for (uint32_t j = threadIdx.x; j < part.n * (d_v / 4); j += blockDim.x)
        cp_async_16(&shared->v[j / (d_v / 4)][j % (d_v / 4) * 4],
                    v + j / (d_v / 4) * a.qkv_stride + j % (d_v / 4) * 4);
    for (uint32_t j = threadIdx.x; j < part.i / 2; j += blockDim.x)
        cp_async_16(&shared->g[2 * j],
                    state.ring_g + (size_t)head * GRID + 2 * j);
    for (uint32_t row = part.i; row % 16 || row < part.i + part.n; row++) {
        shared->r[row][threadIdx.x] = 0;
        if (threadIdx.x < DELTA_BLOCK)
            shared->near[row][threadIdx.x] = 0;
    }
}

/* Keys and queries of the rows, and keys once more behind the ring's. */
template <uint32_t D_K, uint32_t R>
static __device__ void copy_rows(const struct delta_args &a,
                                 struct few_part part,
                                 struct few_shared<D_K, R> *shared)
{
    constexpr uint32_t N_VECTOR = D_K / 8;
    const uint32_t k_head = blockIdx.x / (a.shape.n_v_head / a.shape.n_k_head);
    const size_t stride = unit_stride(a.shape);
    const uint16_t *unit =
        a.unit + part.batch_row * stride + (size_t)k_head * D_K;

    for (uint32_t j = threadIdx.x; j < part.n * N_VECTOR; j += blockDim.x) {
        const uint32_t c = j / N_VECTOR, v = j % N_VECTOR;
        const uint16_t *query = unit + c * stride + 8 * v;
        const uint16_t *key = query + stride / 2;

        cp_async_16(&shared->row[R + c][8 * v], query);
        cp_async_16(&shared->row[c][8 * v], key);
        cp_async_16(shared->key + tile_at(part.i + c, v, tile_stride(D_K)),
                    key);
    }
}

/* G of the rows, by one thread, and what follows from it. */
template <uint32_t D_K, uint32_t R>
static __device__ void load_gates(const struct delta_args &a,
                                  struct few_part part, const double *ring,
                                  struct few_shared<D_K, R> *shared)
{
    const size_t at = part.batch_row * a.shape.n_v_head + blockIdx.x;
    double g = part.i ? ring[part.i - 1] : 0.0;

    if (part.i % 2) /* the others come in pairs */
        shared->g[part.i - 1] = g;
    for (uint32_t c = 0; c < part.n; c++) {
        const size_t from = at + (size_t)c * a.shape.n_v_head;

        g = g + (double)a.log_decay[from];
        shared->g[part.i + c] = g;
        shared->since[c] = scalar_exp((float)g);
        shared->beta[c] = a.beta[from];
    }
}

/* B operand: columns 8p .. of rows of operands, inner step s. */
template <uint32_t N>
static __device__ __forceinline__ void
load_columns(uint32_t b[2], const uint16_t (*row)[N], uint32_t p, uint32_t s)
{
    const uint32_t lane = threadIdx.x % 32;
    const uint16_t *at = &row[8 * p + lane / 4][16 * s + lane % 4 * 2];

    b[0] = *(const uint32_t *)at;
    b[1] = *(const uint32_t *)(at + 8);
}

/* w and x of the rows with the ring and with each other. */
template <uint32_t D_K, uint32_t R>
static __device__ void weigh(struct few_part part,
                             struct few_shared<D_K, R> *shared)
{
    const uint32_t lane = threadIdx.x % 32, n_warp = blockDim.x / 32;

    for (uint32_t m = threadIdx.x / 32; 16 * m < part.i + part.n; m += n_warp) {
        const uint32_t left =
            left_of(shared_address(shared->key), tile_stride(D_K)) +
            m * 32 * tile_stride(D_K);
        float dot[R / 4][4] = {};

#pragma unroll
        for (uint32_t s = 0; s < D_K / 16; s++) {
            uint32_t key[4], b[2];

            load_matrices(key, tile_step(left, s));
#pragma unroll
            for (uint32_t p = 0; p < R / 4; p++) {
                load_columns(b, shared->row, p, s);
                mma(dot[p], key, b[0], b[1]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < R; i++) {
            const uint32_t column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            const uint32_t c = column % R,
                           j = 16 * m + lane / 4 + i / 2 % 2 * 8;
            const bool is_query = column >= R;

            if (c >= part.n)
                continue;
            const float aged = decay(shared->g[part.i + c], shared->g[j]);
            const bool is_seen = is_query ? j <= part.i + c : j < part.i + c;
            float weight = is_seen ? aged * dot[i / 4][i % 4] : 0.0f;
            if (!is_query)
                weight = -(shared->beta[c] * weight);
            shared->weight[column][j] = (uint16_t)(bf16_pair(weight, 0.0f));
            if (!is_query && j / DELTA_BLOCK == (part.i + c) / DELTA_BLOCK)
                shared->w[c][j % DELTA_BLOCK] = weight;
        }
    }
}

/* T of the rows, by one warp: a lane a column, both halves the same. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void invert(struct few_part part,
                                              struct few_shared<D_K, R> *shared)
{
    const uint32_t column = threadIdx.x % DELTA_BLOCK;

    for (uint32_t c = 0; c < part.n; c++) {
        const uint32_t i = (part.i + c) % DELTA_BLOCK;
        uint16_t(*t)[DELTA_BLOCK + PAD] = &shared->near[part.i + c - i];
        float sum = 0.0f;

#pragma unroll 4
        for (uint32_t l = 0; l < i; l++)
            sum = __fmaf_rn(shared->w[c][l], bf16_low(t[l][column]), sum);
        t[i][column] = (uint16_t)bf16_pair(i == column ? 1.0f : sum, 0.0f);
        __syncwarp();
    }
}

/* Products of the state with keys and queries, [tile of outputs]. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
read_state(float out[2][R / 4][4], const struct few_state<D_K> *state,
           const struct few_shared<D_K, R> *shared)
{
#pragma unroll
    for (uint32_t s = 0; s < D_K / 16; s++) {
        const float2(*x)[4] = state->x[s];
        const uint32_t a[2][4] = {
            {bf16_pair(x[0][0].x, x[0][1].x), bf16_pair(x[1][0].x, x[1][1].x),
             bf16_pair(x[0][2].x, x[0][3].x), bf16_pair(x[1][2].x, x[1][3].x)},
            {bf16_pair(x[0][0].y, x[0][1].y), bf16_pair(x[1][0].y, x[1][1].y),
             bf16_pair(x[0][2].y, x[0][3].y), bf16_pair(x[1][2].y, x[1][3].y)}};

#pragma unroll
        for (uint32_t p = 0; p < R / 4; p++) {
            uint32_t b[2];

            load_columns(b, shared->row, p, s);
            mma(out[0][p], a[0], b[0], b[1]);
            mma(out[1][p], a[1], b[0], b[1]);
        }
    }
}

/* u of block j from its r and T: A operands of this warp's two tiles. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
solve(uint32_t u[2][4], uint32_t j, const struct few_shared<D_K, R> *shared)
{
    const uint32_t lane = threadIdx.x % 32, slice = threadIdx.x / 32 * 32;

#pragma unroll
    for (uint32_t p = 0; p < 2; p++) {
        float sum[2][4] = {};
        uint32_t r[4], t[2];

        load_transposed(
            r, shared_address(&shared->r[16 * j + lane / 16 * 8 + lane % 8]
                                        [slice + 16 * p + lane / 8 % 2 * 8]));
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            load_columns(t, &shared->near[16 * j], n, 0);
            mma(sum[n], r, t[0], t[1]);
        }
        fragment_of(u[p], sum[0], sum[1]);
    }
}

/* Sums go on over blocks [0, END) of u and weights, columns of tiles P .. */
template <uint32_t D_K, uint32_t R, uint32_t P, uint32_t P_END>
static __device__ __forceinline__ void
add_blocks(float sum[2][R / 4][4], uint32_t end,
           const uint32_t u[N_BLOCK][2][4],
           const struct few_shared<D_K, R> *shared)
{
#pragma unroll
    for (uint32_t j = 0; j < N_BLOCK; j++) {
        uint32_t b[2];

        if (j >= end)
            continue;
#pragma unroll
        for (uint32_t p = P; p < P_END; p++) {
            load_columns(b, shared->weight, p, j);
            mma(sum[0][p], u[j][0], b[0], b[1]);
            mma(sum[1][p], u[j][1], b[0], b[1]);
        }
    }
}

/* r of the rows of one block. read: sums with the state. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
finish_r(struct few_part part, uint32_t block, const float read[2][R / 4][4],
         const uint32_t u[N_BLOCK][2][4], struct few_shared<D_K, R> *shared)
{
    constexpr uint32_t N_KEY = R < 8 ? 1 : R / 8; /* tiles with keys */
    const uint32_t lane = threadIdx.x % 32, slice = threadIdx.x / 32 * 32;
    float sum[2][R / 4][4] = {};

#pragma unroll
    for (uint32_t i = 0; i < 4 * N_KEY; i++) {
        const uint32_t c = i / 4 * 8 + lane % 4 * 2 + i % 2;

        if (c >= part.n || (part.i + c) / 16 != block)
            continue;
        const float2 v = *(const float2 *)&shared
                              ->v[c][slice + lane / 4 * 2 + i / 2 % 2 * 16];
        const float since = -shared->since[c], beta = shared->beta[c];
        sum[0][i / 4][i % 4] =
            beta * __fmaf_rn(since, read[0][i / 4][i % 4], v.x);
        sum[1][i / 4][i % 4] =
            beta * __fmaf_rn(since, read[1][i / 4][i % 4], v.y);
    }
    add_blocks<D_K, R, 0, N_KEY>(sum, block, u, shared);
#pragma unroll
    for (uint32_t i = 0; i < 4 * N_KEY; i++) {
        const uint32_t c = i / 4 * 8 + lane % 4 * 2 + i % 2;

        if (c >= part.n || (part.i + c) / 16 != block)
            continue;
        uint16_t *r = &shared->r[part.i + c][slice + i / 2 % 2 * 8 + lane / 4];
        r[0] = (uint16_t)bf16_pair(sum[0][i / 4][i % 4], 0.0f);
        r[16] = (uint16_t)bf16_pair(sum[1][i / 4][i % 4], 0.0f);
    }
    __syncwarp();
}

/* Outputs of the rows of one block. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
put_outputs(const struct delta_args &a, struct few_part part, uint32_t block,
            const float read[2][R / 4][4], const uint32_t u[N_BLOCK][2][4],
            const struct few_shared<D_K, R> *shared)
{
    constexpr uint32_t QUERY = R < 8 ? 0 : R / 8; /* first with queries */
    const uint32_t lane = threadIdx.x % 32, slice = threadIdx.x / 32 * 32;
    const size_t e = (size_t)blockIdx.x * a.shape.d_v + slice + lane / 4 * 2;
    float sum[2][R / 4][4] = {};

#pragma unroll
    for (uint32_t i = 4 * QUERY; i < R; i++) {
        const uint32_t c = i / 4 * 8 + lane % 4 * 2 + i % 2 - R;

        if (c >= part.n)
            continue; /* also what was no query: c wraps */
        const float since = shared->since[c];
        sum[0][i / 4][i % 4] = since * read[0][i / 4][i % 4];
        sum[1][i / 4][i % 4] = since * read[1][i / 4][i % 4];
    }
    add_blocks<D_K, R, QUERY, R / 4>(sum, block + 1, u, shared);
#pragma unroll
    for (uint32_t i = 4 * QUERY; i < R; i++) {
        const uint32_t c = i / 4 * 8 + lane % 4 * 2 + i % 2 - R;

        if (c >= part.n || (part.i + c) / 16 != block)
            continue;
        *(float2 *)(a.out + (part.batch_row + c) * a.out_stride + e +
                    i / 2 % 2 * 16) =
            make_float2(sum[0][i / 4][i % 4], sum[1][i / 4][i % 4]);
    }
}

/* u of all blocks that there are, and what the rows bring on the way. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
finish(const struct delta_args &a, struct few_part part,
       const float read[2][R / 4][4], uint32_t u[N_BLOCK][2][4],
       struct few_shared<D_K, R> *shared)
{
#pragma unroll
    for (uint32_t i = 0; i < 8 * N_BLOCK; i++)
        u[i / 8][i / 4 % 2][i % 4] = 0; /* or it would live above, unset */
#pragma unroll
    for (uint32_t b = 0; b < N_BLOCK; b++) {
        const bool has_rows = 16 * (b + 1) > part.i;

        if (16 * b >= part.i + part.n)
            continue;
        if (has_rows)
            finish_r(part, b, read, u, shared);
        solve(u[b], b, shared);
        if (has_rows)
            put_outputs(a, part, b, read, u, shared);
    }
}

/* The ring's entries of the rows. */
template <uint32_t D_K, uint32_t R>
static __device__ void
keep(const struct delta_args &a, const struct delta_state &state,
     struct few_part part, const struct few_shared<D_K, R> *shared)
{
    const uint32_t head = blockIdx.x, d_v = a.shape.d_v;
    const uint32_t n_each = a.shape.n_v_head / a.shape.n_k_head;
    const uint32_t stride = ring_stride(d_v);
    uint16_t *r = (uint16_t *)state.ring_u + (size_t)head * GRID * stride;
    uint16_t *key =
        (uint16_t *)state.ring_k + (size_t)(head / n_each) * GRID * D_K;

    for (uint32_t i = part.i; i < part.i + part.n; i++) {
        r[(size_t)i * stride + threadIdx.x] = shared->r[i][threadIdx.x];
        if (threadIdx.x < DELTA_BLOCK)
            r[(size_t)i * stride + d_v + threadIdx.x] =
                shared->near[i][threadIdx.x];
    }
    for (uint32_t c = threadIdx.x; c < part.n; c += blockDim.x)
        state.ring_g[(size_t)head * GRID + part.i + c] = shared->g[part.i + c];
    if (head % n_each)
        return;
    for (uint32_t j = threadIdx.x; j < part.n * (D_K / 2); j += blockDim.x)
        ((uint32_t *)key)[part.i * (D_K / 2) + j] =
            ((const uint32_t *)shared->row[j / (D_K / 2)])[j % (D_K / 2)];
}

/* u aged to the chunk's end. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
age(uint32_t u[N_BLOCK][2][4], const struct few_shared<D_K, R> *shared)
{
    const uint32_t t = threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t j = 0; j < N_BLOCK; j++) {
        float until[4];

#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            until[i] = decay(shared->g[GRID - 1],
                             shared->g[16 * j + i / 2 * 8 + t + i % 2]);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t *pair = &u[j][i / 4][i % 4];

            *pair = bf16_pair(until[i % 4 / 2 * 2] * bf16_low(*pair),
                              until[i % 4 / 2 * 2 + 1] * bf16_high(*pair));
        }
    }
}

/* Sum i of tiles n and n + 1 in the state, of both tiles of outputs. */
static __device__ __forceinline__ float2 *folded_at(float *s, uint32_t n,
                                                    uint32_t i, uint32_t d_v)
{
    const uint32_t dim = 8 * (n + i / 4) + threadIdx.x % 4 * 2 + i % 2;

    return (float2 *)(s + (size_t)dim * d_v + i / 2 % 2 * 16);
}

/* The full ring into the state, which stays where it was read from. */
template <uint32_t D_K, uint32_t R>
static __device__ __forceinline__ void
fold(float *s, uint32_t d_v, uint32_t u[N_BLOCK][2][4],
     const struct few_shared<D_K, R> *shared)
{
    const uint32_t lane = threadIdx.x % 32;
    const float whole = scalar_exp((float)shared->g[GRID - 1]);
    float *at = s + threadIdx.x / 32 * 32 + lane / 4 * 2;
    const uint32_t deep =
        deep_of(shared_address(shared->key), tile_stride(D_K));

    age(u, shared);
    for (uint32_t n = 0; n < D_K / 8; n += 2) {
        float sum[2][2][4];

#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const float2 old = *folded_at(at, n, i, d_v);

            sum[0][i / 4][i % 4] = whole * old.x;
            sum[1][i / 4][i % 4] = whole * old.y;
        }
#pragma unroll
        for (uint32_t j = 0; j < N_BLOCK; j++) {
            uint32_t k[4];

            load_transposed(k,
                            tile_step(deep, n / 2) + j * 32 * tile_stride(D_K));
#pragma unroll
            for (uint32_t p = 0; p < 2; p++) {
                mma(sum[p][0], u[j][p], k[0], k[1]);
                mma(sum[p][1], u[j][p], k[2], k[3]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            *folded_at(at, n, i, d_v) =
                make_float2(sum[0][i / 4][i % 4], sum[1][i / 4][i % 4]);
    }
}

/* Twelve warps fit an SM, 192 KiB of states on their way. */
template <uint32_t D_K, uint32_t R, uint32_t N_THREAD>
static __global__ void __launch_bounds__(N_THREAD, 384 / N_THREAD)
    few(struct delta_args a)
{
    extern __shared__ __align__(256) char raw[];
    struct few_shared<D_K, R> *shared = (struct few_shared<D_K, R> *)raw;

    launch_begin();

    const struct delta_span &span = a.span[blockIdx.y];
    const uint32_t d_v = a.shape.d_v;
    float *s = span.state.s + (size_t)blockIdx.x * D_K * d_v;
    struct few_part part = {0, (uint32_t)(span.position % GRID), 0, 0};
    struct few_state<D_K> state;

    if (span.n_row > R)
        return;
    for (; part.row < span.n_row; part.row += part.n, part.i = 0) {
        float read[2][R / 4][4] = {};
        uint32_t u[N_BLOCK][2][4];

        part.batch_row = span.first_row + part.row;
        part.n = min(span.n_row - part.row, GRID - part.i);
        copy_inputs(a, span.state, part, shared);
        copy_rows(a, part, shared);
        load_state(&state, s, d_v);
        if (threadIdx.x == blockDim.x - 1)
            load_gates(a, part, span.state.ring_g + (size_t)blockIdx.x * GRID,
                       shared);
        cp_async_wait_all();
        __syncthreads();
        weigh(part, shared);
        __syncthreads();
        if (threadIdx.x < 32)
            invert(part, shared);
        read_state(read, &state, shared);
        __syncthreads();
        finish(a, part, read, u, shared);
#if __CUDA_ARCH__ >= 900 /* or no call passes a grid point: delta_sm80.cu */
        if (part.row)    /* others may still read the old ring */
            cooperative_groups::this_cluster().sync();
#endif
        if (part.i + part.n < GRID)
            keep(a, span.state, part, shared);
        else
            fold(s, d_v, u, shared);
        __syncthreads();
    }
}

template <uint32_t D_K, uint32_t R, uint32_t N_THREAD>
static void launch(struct gpu *gpu, const struct delta_args *a, uint32_t n_row)
{
    static_assert(sizeof(struct few_shared<D_K, R>) <= WAY_SHARED_LEAST,
                  "on every GPU");
    struct launch_config how = {};

    how.stream = gpu_stream(gpu);
    how.grid = dim3(a->shape.n_v_head, a->n_span);
    how.n_thread = a->shape.d_v;
    how.shared_bytes = sizeof(struct few_shared<D_K, R>);
    if (n_row > 1) /* one row passes no grid point */
        how.n_cluster = a->shape.n_v_head / a->shape.n_k_head;
    launch_allow(few<D_K, R, N_THREAD>, how.shared_bytes);
    launch_kernel(how, few<D_K, R, N_THREAD>, *a);
}

template <uint32_t D_K, uint32_t R>
static void launch_outputs(struct gpu *gpu, const struct delta_args *args,
                           uint32_t n_row)
{
    if (args->shape.d_v <= 128)
        launch<D_K, R, 128>(gpu, args, n_row);
    else
        launch<D_K, R, D_V_MAX>(gpu, args, n_row);
}

template <uint32_t D_K>
static void launch_rows(struct gpu *gpu, const struct delta_args *args,
                        uint32_t n_row)
{
    if (n_row <= 4)
        launch_outputs<D_K, 4>(gpu, args, n_row);
    else if (n_row <= 8)
        launch_outputs<D_K, 8>(gpu, args, n_row);
    else
        launch_outputs<D_K, DELTA_FEW>(gpu, args, n_row);
}

void delta_few(struct gpu *gpu, const struct delta_args *args, uint32_t n_row)
{
    const struct delta_shape shape = args->shape;

    assert(shape.d_v % 32 == 0 && shape.d_v <= D_V_MAX);
    if (shape.d_k == 64)
        launch_rows<64>(gpu, args, n_row);
    else if (shape.d_k == 96)
        launch_rows<96>(gpu, args, n_row);
    else
        launch_rows<128>(gpu, args, n_row);
}
