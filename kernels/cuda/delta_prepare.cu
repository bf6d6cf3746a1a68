/*
 * What of the delta rule does not need the state, for all chunks at once: keys
 * and queries normalised and rounded, decays, and the weights ~w, ~x and -w of
 * the triangles. One CTA of five warps for a chunk of a k-head and all of its
 * v-heads; a warp takes two of the ten blocks of the triangle.
 *
 * Rows that the call does not bring are arranged so that recur need not know:
 * those of the ring (j < first) get since = 0, beta = 1 and weights of zero, so
 * that an input v = u_j comes out as u_j; those behind the end are all zero.
 *
 * Memory, per token of 16 k-heads and 32 v-heads of 128 x 128: 16 KiB of rows
 * read, 8 KiB of tiles and 6.6 KiB of weights written.
 */
#include "kernels/cuda/delta.cuh"

#include <assert.h>

#define N_WARP 5u
#define HEADS_MAX 4u /* v-heads of a k-head */

static_assert(sizeof(struct chunk_head) % 16 == 0, "bulk copies");

struct prepare_shared {
    double g[HEADS_MAX][GRID];
    float log_decay[HEADS_MAX][GRID], beta[HEADS_MAX][GRID];
};

/* Four bf16 of a row to their place in a tile. */
static __device__ __forceinline__ void put(char *tile, uint32_t row,
                                           uint32_t stride, uint2 four)
{
    const uint32_t lane = threadIdx.x % 32;

    *(uint2 *)(tile + tile_at(row, lane / 2, stride) + lane % 2 * 8) = four;
}

/* One warp's 16 rows of keys and queries into the tiles. */
template <uint32_t D_K>
static __device__ void fill_tiles(const struct delta_many &many,
                                  const struct delta_span *span,
                                  struct delta_chunk at, char *tile)
{
    const struct delta_args &a = many.args;
    const uint32_t stride = tile_stride(D_K), lane = threadIdx.x % 32;
    const uint32_t head = blockIdx.y, begin = threadIdx.x / 32 * DELTA_BLOCK;
    const bool is_mine = 4 * lane < D_K;
    const float q_scale = 1.0f / __fsqrt_rn((float)D_K);
    char *const query = tile + tile_bytes(D_K);
    const size_t column = (size_t)head * D_K + 4 * lane;
    const uint16_t *ring =
        (const uint16_t *)span->state.ring_k + (size_t)head * GRID * D_K;

#pragma unroll
    for (uint32_t part = 0; part < DELTA_BLOCK; part += 4) {
        float4 k[4], q[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = begin + part + i;
            const bool is_here = is_mine && row >= at.first && row < at.end;
            const size_t from = (at.row + row) * a.qkv_stride + column;
            const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

            k[i] = is_here ? *(const float4 *)(a.k + from) : zero;
            q[i] = is_here ? *(const float4 *)(a.q + from) : zero;
        }
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = begin + part + i;
            uint2 key = unit_key(k[i], unit_scale(k[i]));

            if (row < at.first && is_mine)
                key = *(const uint2 *)(ring + (size_t)row * D_K + 4 * lane);
            const uint2 ask = unit_query(q[i], unit_scale(q[i]), q_scale);
            if (is_mine) {
                put(tile, row, stride, key);
                put(query, row, stride, ask);
            }
        }
    }
}

/* The chain of decays, a lane a head, and the vectors that follow from it. */
static __device__ void fill_decays(const struct delta_many &many,
                                   const struct delta_span *span,
                                   struct delta_chunk at,
                                   struct prepare_shared *shared)
{
    const struct delta_args &a = many.args;
    const uint32_t n_v = a.shape.n_v_head, n_each = n_v / a.shape.n_k_head;
    const uint32_t lane = threadIdx.x % 32, head = blockIdx.y * n_each;

    for (uint32_t i = lane; i < n_each * GRID; i += 32) {
        const uint32_t h = i / GRID, row = i % GRID;
        const bool is_here = row >= at.first && row < at.end;
        const size_t from = (at.row + row) * n_v + head + h;

        shared->log_decay[h][row] = is_here ? a.log_decay[from] : 0.0f;
        shared->beta[h][row] = is_here          ? a.beta[from]
                               : row < at.first ? 1.0f
                                                : 0.0f;
    }
    __syncwarp();
    if (lane < n_each) {
        const double *ring = span->state.ring_g + (size_t)(head + lane) * GRID;
        double g = 0.0;

        for (uint32_t row = 0; row < at.first; row++)
            shared->g[lane][row] = g = ring[row];
#pragma unroll 8
        for (uint32_t row = at.first; row < GRID; row++)
            shared->g[lane][row] = g = g + (double)shared->log_decay[lane][row];
    }
}

static __device__ void fill_vectors(const struct delta_many &many,
                                    struct delta_chunk at,
                                    const struct prepare_shared *shared,
                                    struct chunk_head *out)
{
    const struct delta_args &a = many.args;
    const uint32_t n_v = a.shape.n_v_head, n_each = n_v / a.shape.n_k_head;

    for (uint32_t i = threadIdx.x; i < n_each * GRID; i += N_WARP * 32) {
        const uint32_t h = i / GRID, row = i % GRID;
        const bool is_here = row >= at.first && row < at.end;
        const double g = shared->g[h][row], last = shared->g[h][GRID - 1];

        out[h].g[row] = g;
        out[h].since[row] = is_here ? scalar_exp((float)g) : 0.0f;
        out[h].until[row] = decay(last, g);
        out[h].beta[row] = shared->beta[h][row];
        if (row == 0)
            out[h].whole[0] = scalar_exp((float)last);
    }
}

/* One block of pairs of tokens: products of keys with keys and queries with
 * keys, as the sums of two tiles. */
struct pairs {
    uint32_t i, j; /* blocks of the rows, and of the tokens they meet */
    float kk[2][4], qk[2][4];
};

template <uint32_t D_K>
static __device__ __forceinline__ void multiply(uint32_t tile, struct pairs *it)
{
    const uint32_t stride = tile_stride(D_K), query = tile_bytes(D_K);
    const uint32_t left = left_of(tile, stride) + it->i * 32 * stride;
    const uint32_t right = right_of(tile, stride) + it->j * 32 * stride;

#pragma unroll
    for (uint32_t s = 0; s < D_K / 16; s++) {
        uint32_t k[4], q[4], b[4];

        load_matrices(k, tile_step(left, s));
        load_matrices(q, tile_step(left, s) + query);
        load_matrices(b, tile_step(right, s));
        mma(it->kk[0], k, b[0], b[1]);
        mma(it->kk[1], k, b[2], b[3]);
        mma(it->qk[0], q, b[0], b[1]);
        mma(it->qk[1], q, b[2], b[3]);
    }
}

/* Weights of one block for one v-head. */
static __device__ void weigh(const struct pairs *it, struct delta_chunk at,
                             const double *g, const float *beta,
                             struct chunk_head *out)
{
    const uint32_t lane = threadIdx.x % 32, i = it->i, j = it->j;
    float w[2][4], x[2][4];

#pragma unroll
    for (uint32_t c = 0; c < 8; c++) {
        const uint32_t row = lane / 4 + c / 2 % 2 * 8;
        const uint32_t column = c / 4 * 8 + lane % 4 * 2 + c % 2;
        const uint32_t at_i = 16 * i + row, at_j = 16 * j + column;
        const bool is_here = at_i >= at.first && at_i < at.end;
        const float aged = decay(g[at_i], g[at_j]);

        w[c / 4][c % 4] = is_here && at_j < at_i
                              ? beta[at_i] * (aged * it->kk[c / 4][c % 4])
                              : 0.0f;
        x[c / 4][c % 4] =
            is_here && at_j <= at_i ? aged * it->qk[c / 4][c % 4] : 0.0f;
        if (i == j && column < row)
            out->near[i][near_at(row, column)] = -w[c / 4][c % 4];
    }
    out->seen[seen_at(i, j)][lane] =
        make_uint4(bf16_pair(x[0][0], x[0][1]), bf16_pair(x[1][0], x[1][1]),
                   bf16_pair(x[0][2], x[0][3]), bf16_pair(x[1][2], x[1][3]));
    if (i > j)
        out->far[far_at(i, j)][lane] = make_uint4(
            bf16_pair(w[0][0], w[0][1]), bf16_pair(w[1][0], w[1][1]),
            bf16_pair(w[0][2], w[0][3]), bf16_pair(w[1][2], w[1][3]));
}

template <uint32_t D_K>
static __global__ void __launch_bounds__(N_WARP * 32)
    prepare(struct delta_many many)
{
    extern __shared__ __align__(256) char tile[];
    __shared__ struct prepare_shared shared;
    const struct delta_args &a = many.args;
    const struct delta_span *span = &a.span[blockIdx.z];
    const struct delta_chunk at = delta_chunk(span, many.chunk + blockIdx.x);
    const size_t slot = (size_t)blockIdx.z * many.n_chunk + blockIdx.x;
    const uint32_t n_each = a.shape.n_v_head / a.shape.n_k_head;
    const uint32_t warp = threadIdx.x / 32;
    struct chunk_head *out =
        many.head + slot * a.shape.n_v_head + blockIdx.y * n_each;
    char *tiles = many.tile +
                  (slot * a.shape.n_k_head + blockIdx.y) * 2 * tile_bytes(D_K);

    if (at.first >= at.end)
        return;
    if (warp < N_BLOCK)
        fill_tiles<D_K>(many, span, at, tile);
    else
        fill_decays(many, span, at, &shared);
    __syncthreads();
    for (uint32_t i = threadIdx.x * 16; i < 2 * tile_bytes(D_K);
         i += N_WARP * 32 * 16)
        *(uint4 *)(tiles + i) = *(const uint4 *)(tile + i);
    fill_vectors(many, at, &shared, out);
#pragma unroll
    for (uint32_t turn = 0; turn < 2; turn++) {
        const uint32_t block = turn * N_WARP + warp;
        struct pairs it = {};

        it.i = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3;
        it.j = block - seen_at(it.i, 0);
        multiply<D_K>(shared_of(tile), &it);
        for (uint32_t h = 0; h < n_each; h++)
            weigh(&it, at, shared.g[h], shared.beta[h], &out[h]);
    }
}

template <uint32_t D_K>
static void launch(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_args *a = &many->args;
    const dim3 grid(many->n_chunk, a->shape.n_k_head, a->n_span);
    const uint32_t bytes = 2 * tile_bytes(D_K);

    prepare<D_K><<<grid, N_WARP * 32, bytes, gpu_stream(gpu)>>>(*many);
}

void delta_prepare(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_shape shape = many->args.shape;

    assert(shape.n_v_head / shape.n_k_head <= HEADS_MAX);
    if (shape.d_k == 64)
        launch<64>(gpu, many);
    else if (shape.d_k == 96)
        launch<96>(gpu, many);
    else
        launch<128>(gpu, many);
}
