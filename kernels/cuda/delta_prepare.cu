/*
 * What of the delta rule does not need the state, for all chunks at once: tiles
 * of keys and queries, decays, the weights ~-w and ~x, and T of the blocks. One
 * CTA of five warps for a chunk of a k-head and all of its v-heads; a warp
 * takes two of the ten blocks of the triangle.
 *
 * Rows that the call does not bring are arranged so that recur need not know:
 * those of the ring (j < first) get since = 0, beta = 1, weights of zero and
 * the ring's T, so that an input v = r_j comes out as r_j; those behind the end
 * are all zero.
 *
 * Memory, per token of 16 k-heads and 32 v-heads of 128 x 128: 8 KiB of unit
 * rows read, 8 KiB of tiles and 5.6 KiB of weights written.
 */
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/delta.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

#define N_WARP 5u
#define HEADS_MAX 4u /* v-heads of a k-head */
#define W_STRIDE 20u
#define T_STRIDE 24u

static_assert(sizeof(struct chunk_head) % 16 == 0, "bulk copies");

/* A warp's block on the diagonal: -w, by column, and then T, by row. */
union triangle {
    float4 four[DELTA_BLOCK][W_STRIDE / 4];
    float w[DELTA_BLOCK][W_STRIDE];
    uint16_t t[DELTA_BLOCK][T_STRIDE];
};

struct prepare_shared {
    double g[HEADS_MAX][GRID];
    float log_decay[HEADS_MAX][GRID], beta[HEADS_MAX][GRID];
    union triangle triangle[N_WARP];
};

/* One warp's 16 rows of keys and queries on their way into the tiles. */
template <uint32_t D_K>
static __device__ void fill_tiles(const struct delta_many &many,
                                  const struct delta_span *span,
                                  struct delta_chunk at, char *tile)
{
    constexpr uint32_t N_VECTOR = D_K / 8;
    const struct delta_shape shape = many.args.shape;
    const uint32_t begin = threadIdx.x / 32 * DELTA_BLOCK;
    const size_t stride = unit_stride(shape);
    const uint16_t *unit = many.args.unit + (size_t)blockIdx.x * D_K;
    const uint16_t *ring =
        (const uint16_t *)span->state.ring_k + (size_t)blockIdx.x * GRID * D_K;

#pragma unroll
    for (uint32_t i = threadIdx.x % 32; i < DELTA_BLOCK * N_VECTOR; i += 32) {
        const uint32_t row = begin + i / N_VECTOR, v = i % N_VECTOR;
        char *const key = tile + tile_at(row, v, tile_stride(D_K));
        char *const query = key + tile_bytes(D_K);
        const uint16_t *from = unit + (at.row + row) * stride + 8 * v;
        const uint4 zero = make_uint4(0, 0, 0, 0);

        if (row >= at.first && row < at.end) {
            copy_16(shared_of(key), from + stride / 2);
            copy_16(shared_of(query), from);
            continue;
        }
        if (row < at.first)
            copy_16(shared_of(key), ring + (size_t)row * D_K + 8 * v);
        else
            *(uint4 *)key = zero;
        *(uint4 *)query = zero;
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
    const uint32_t lane = threadIdx.x % 32, head = blockIdx.x * n_each;

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

/* A warp's two blocks. Four have one on the diagonal, which is more work. */
static __device__ struct pairs pairs_of(uint32_t turn, uint32_t warp)
{
    const uint32_t last = N_BLOCK - 1;
    struct pairs it = {};

    if (turn == 0) {
        it.i = warp < N_BLOCK ? warp : last;
        it.j = warp < N_BLOCK ? warp : last - 1;
        return it;
    }
    it.i = warp < 1 ? 1 : warp < 3 ? 2 : last;
    it.j = warp - far_at(it.i, 0);
    return it;
}

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
                             union triangle *triangle, struct chunk_head *out)
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
        if (i == j)
            triangle->w[column][row] = -w[c / 4][c % 4];
    }
    out->seen[seen_at(i, j)][lane] =
        make_uint4(bf16_pair(x[0][0], x[0][1]), bf16_pair(x[1][0], x[1][1]),
                   bf16_pair(x[0][2], x[0][3]), bf16_pair(x[1][2], x[1][3]));
    if (i > j)
        out->far[far_at(i, j)][lane] = make_uint4(
            bf16_pair(-w[0][0], -w[0][1]), bf16_pair(-w[1][0], -w[1][1]),
            bf16_pair(-w[0][2], -w[0][3]), bf16_pair(-w[1][2], -w[1][3]));
}

/*
 * T of a block, a lane a column; both halves of the warp do the same. ring: T
 * of the block's first token, of which the first `n_kept` are there.
 */
static __device__ void invert(union triangle *triangle, const uint16_t *ring,
                              uint32_t stride, uint32_t n_kept, uint4 *out)
{
    const uint32_t lane = threadIdx.x % 32, column = lane % DELTA_BLOCK;
    const uint32_t g = lane / 4, t = lane % 4 * 2;
    float x[DELTA_BLOCK] = {};

    __syncwarp();
#pragma unroll
    for (uint32_t l = 0; l < DELTA_BLOCK; l++) {
        x[l] = l == column ? 1.0f : bf16_rounded(x[l]);
        if (l < n_kept)
            x[l] = bf16_low(ring[(size_t)l * stride + column]);
#pragma unroll
        for (uint32_t i = l / 4; i < DELTA_BLOCK / 4; i++) {
            const float4 four = triangle->four[l][i];
            const float w[4] = {four.x, four.y, four.z, four.w};

#pragma unroll
            for (uint32_t c = 0; c < 4; c++)
                if (4 * i + c > l)
                    x[4 * i + c] = __fmaf_rn(w[c], x[l], x[4 * i + c]);
        }
    }
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < DELTA_BLOCK; i++)
        triangle->t[i][column] = (uint16_t)(__float_as_uint(x[i]) >> 16);
    __syncwarp();
    out[lane] = make_uint4(*(const uint32_t *)&triangle->t[g][t],
                           *(const uint32_t *)&triangle->t[g][t + 8],
                           *(const uint32_t *)&triangle->t[g + 8][t],
                           *(const uint32_t *)&triangle->t[g + 8][t + 8]);
    __syncwarp();
}

/* Of one block, what a v-head needs of it. */
static __device__ void finish(const struct delta_many &many,
                              const struct delta_span *span,
                              struct delta_chunk at, const struct pairs *it,
                              struct prepare_shared *shared,
                              struct chunk_head *out)
{
    const struct delta_shape shape = many.args.shape;
    const uint32_t n_each = shape.n_v_head / shape.n_k_head;
    const uint32_t stride = ring_stride(shape.d_v), begin = 16 * it->i;
    const uint32_t n_kept = at.first > begin ? at.first - begin : 0;
    union triangle *triangle = &shared->triangle[threadIdx.x / 32];

    for (uint32_t h = 0; h < n_each; h++) {
        const size_t token = (size_t)(blockIdx.x * n_each + h) * GRID + begin;

        weigh(it, at, shared->g[h], shared->beta[h], triangle, &out[h]);
        if (it->i == it->j)
            invert(triangle,
                   (const uint16_t *)span->state.ring_u + token * stride +
                       shape.d_v,
                   stride, n_kept, out[h].near[it->i]);
    }
}

template <uint32_t D_K>
static __global__ void __launch_bounds__(N_WARP * 32)
    prepare(const __grid_constant__ struct delta_many many)
{
    extern __shared__ __align__(256) char tile[];
    __shared__ struct prepare_shared shared;
    const struct delta_args &a = many.args;
    const struct delta_span *span = &a.span[blockIdx.z];

    launch_begin();

    const struct delta_chunk at = delta_chunk(span, many.chunk + blockIdx.y);
    const size_t slot = (size_t)blockIdx.z * many.n_chunk + blockIdx.y;
    const uint32_t n_each = a.shape.n_v_head / a.shape.n_k_head;
    const uint32_t warp = threadIdx.x / 32;

    struct chunk_head *out =
        many.head + slot * a.shape.n_v_head + blockIdx.x * n_each;
    char *tiles = many.tile +
                  (slot * a.shape.n_k_head + blockIdx.x) * 2 * tile_bytes(D_K);

    if (at.first >= at.end)
        return;
    if (warp < N_BLOCK)
        fill_tiles<D_K>(many, span, at, tile);
    else
        fill_decays(many, span, at, &shared);
    copies_wait();
    copies_after_writes();
    __syncthreads();
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0)
        copy_bulk_out(tiles, shared_of(tile), 2 * tile_bytes(D_K));
#else
    for (uint32_t i = threadIdx.x; i < tile_bytes(D_K) / 8; i += blockDim.x)
        ((uint4 *)tiles)[i] = ((const uint4 *)tile)[i];
#endif
    fill_vectors(many, at, &shared, out);
#pragma unroll
    for (uint32_t turn = 0; turn < 2; turn++) {
        struct pairs it = pairs_of(turn, warp);

        multiply<D_K>(shared_of(tile), &it);
        finish(many, span, at, &it, &shared, out);
    }
    if (threadIdx.x == 0)
        copies_out_wait();
}

template <uint32_t D_K>
static void launch(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_args *a = &many->args;
    const dim3 grid(a->shape.n_k_head, many->n_chunk, a->n_span);

    launch_early_with(gpu_stream(gpu), prepare<D_K>, grid, N_WARP * 32,
                      2 * tile_bytes(D_K), *many);
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
