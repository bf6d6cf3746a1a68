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
 * rows read, 5.4 KiB of weights written.
 */
#include "kernels/cuda/delta_tile.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

#define N_WARP 5u
#define HEADS_MAX 4u /* v-heads of a k-head */
#define T_STRIDE 24u

static_assert(sizeof(struct chunk_head) % 16 == 0, "bulk copies");
static_assert(offsetof(struct chunk_head, g) % 16 == 0, "bulk copies");

/*
 * A block on the diagonal: -w, and then T, by column. Four more floats, so that
 * two of them can be read at once. Column c of -w is row c / 2 + c % 2 * 8,
 * with its rows r at r ^ c / 4 % 2 * 8: what a warp writes at once meets no
 * bank twice.
 */
union triangle {
    float4 four[DELTA_BLOCK * DELTA_BLOCK / 4 + 1];
    float w[DELTA_BLOCK * DELTA_BLOCK];
    uint16_t t[DELTA_BLOCK][T_STRIDE];
};

static __device__ __forceinline__ uint32_t triangle_at(uint32_t row,
                                                       uint32_t column)
{
    return (column / 2 + column % 2 * 8) * DELTA_BLOCK +
           (row ^ column / 4 % 2 * 8);
}

template <uint32_t D_K> struct __align__(TILE_ALIGN) prepare_shared
{
    char tile[2][GRID * (D_K <= 64 ? 64 : 128) * 2];
    double g[HEADS_MAX][GRID];
    float beta[HEADS_MAX][GRID];
    union {
        float log_decay[HEADS_MAX][GRID]; /* until g is there */
        union triangle triangle[N_BLOCK][2];
    };
    uint64_t full; /* tile is there */
};

/* One CTA's part of the work. */
struct prepare_work {
    const struct delta_span *span;
    struct delta_chunk at;
    uint32_t head, n_each; /* its first v-head, how many */
    struct chunk_head *out;
};

/* One warp's 16 rows of keys and queries, wherever they are. */
template <uint32_t D_K>
static __device__ void fill_rows(const struct delta_many &many,
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
        char *const key = tile + tile_vector_at(row, v);
        char *const query = key + tile_bytes(D_K);
        const uint16_t *from = unit + (at.row + row) * stride + 8 * v;
        const uint4 zero = make_uint4(0, 0, 0, 0);

        if (row >= at.first && row < at.end) {
            cp_async_16(key, from + stride / 2);
            cp_async_16(query, from);
            continue;
        }
        if (row < at.first)
            cp_async_16(key, ring + (size_t)row * D_K + 8 * v);
        else
            *(uint4 *)key = zero;
        *(uint4 *)query = zero;
    }
}

/* The tiles on their way; one warp of N_BLOCK, each arrives once. */
template <uint32_t D_K>
static __device__ void
fill_tiles(const struct delta_many &many, const struct delta_span *span,
           struct delta_chunk at, struct prepare_shared<D_K> *shared)
{
    const uint32_t full = shared_address(&shared->full);

    if (tile_is_unit(at)) {
        if (threadIdx.x == 0) {
            ptx_mbarrier_expect(full, sizeof(shared->tile));
            tile_copy<D_K>(many, at, blockIdx.x, shared_address(shared->tile),
                           full);
        } else if (threadIdx.x % 32 == 0)
            ptx_mbarrier_arrive(full);
        return;
    }
    fill_rows<D_K>(many, span, at, shared->tile[0]);
    cp_async_wait_all();
    bulk_fence();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        ptx_mbarrier_arrive(full);
}

/* For recur, which does not find them elsewhere. */
template <uint32_t D_K>
static __device__ void leave_tiles(const struct delta_many &many,
                                   const struct prepare_shared<D_K> *shared)
{
    char *to = tile_left(many, blockIdx.z, many.chunk + blockIdx.y, blockIdx.x);

#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0)
        bulk_store(to, shared->tile, sizeof(shared->tile));
#else
    for (uint32_t i = threadIdx.x; i < sizeof(shared->tile) / 16;
         i += blockDim.x)
        ((uint4 *)to)[i] = ((const uint4 *)shared->tile)[i];
#endif
}

/*
 * A chain of sums from row `first` on, whose sum so far is g. Eight at a time,
 * so that what it adds is asked for, and widened, before it is its turn.
 */
static __device__ void add_decays(double *to, const float *log_decay,
                                  uint32_t first, double g)
{
    uint32_t row = first;

    for (; row % 8; row++)
        to[row] = g = g + (double)log_decay[row];
#pragma unroll 2
    for (; row < GRID; row += 8) {
        double sum[8];

#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            sum[i] = (double)log_decay[row + i];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            sum[i] = g = g + sum[i];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            to[row + i] = sum[i];
    }
}

/* The chain of decays, a lane a head, and beta; one warp. */
template <uint32_t D_K>
static __device__ void fill_decays(const struct delta_many &many,
                                   const struct prepare_work &work,
                                   struct prepare_shared<D_K> *shared)
{
    const struct delta_args &a = many.args;
    const struct delta_chunk at = work.at;
    const uint32_t lane = threadIdx.x % 32;

    for (uint32_t i = lane; i < work.n_each * GRID; i += 32) {
        const uint32_t h = i / GRID, row = i % GRID;
        const bool is_here = row >= at.first && row < at.end;
        const size_t from = (at.row + row) * a.shape.n_v_head + work.head + h;

        shared->log_decay[h][row] = is_here ? a.log_decay[from] : 0.0f;
        shared->beta[h][row] = is_here          ? a.beta[from]
                               : row < at.first ? 1.0f
                                                : 0.0f;
    }
    __syncwarp();
    if (lane < work.n_each) {
        const double *ring =
            work.span->state.ring_g + (size_t)(work.head + lane) * GRID;
        double g = 0.0;

        for (uint32_t row = 0; row < at.first; row++)
            shared->g[lane][row] = g = ring[row];
        add_decays(shared->g[lane], shared->log_decay[lane], at.first, g);
    }
}

/* What follows from the decays, a token a lane. */
template <uint32_t D_K>
static __device__ void fill_vectors(const struct prepare_work &work,
                                    const struct prepare_shared<D_K> *shared)
{
    for (uint32_t i = threadIdx.x; i < work.n_each * GRID; i += N_WARP * 32) {
        const uint32_t h = i / GRID, row = i % GRID;
        const bool is_here = row >= work.at.first && row < work.at.end;
        const double g = shared->g[h][row], last = shared->g[h][GRID - 1];
        struct chunk_head *out = &work.out[h];

        out->since[row] = is_here ? decay(g, 0.0) : 0.0f;
        out->until[row] = decay(last, g);
        out->beta[row] = shared->beta[h][row];
        if (work.at.end < GRID)
            out->g[row] = g;
        if (row == 0)
            out->whole[0] = decay(last, 0.0);
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
    const uint32_t left = left_of(tile, TILE_DIMS) + tile_block(it->i);
    const uint32_t right = right_of(tile, TILE_DIMS) + tile_block(it->j);

#pragma unroll
    for (uint32_t s = 0; s < D_K / 16; s++) {
        uint32_t k[4], q[4], b[4];

        load_matrices(k, tile_half_step(left, s));
        load_matrices(q, tile_half_step(left, s) + tile_bytes(D_K));
        load_matrices(b, tile_half_step(right, s));
        mma(it->kk[0], k, b[0], b[1]);
        mma(it->kk[1], k, b[2], b[3]);
        mma(it->qk[0], q, b[0], b[1]);
        mma(it->qk[1], q, b[2], b[3]);
    }
}

/* Weights of one block for one v-head, on the diagonal its triangle as well. */
template <bool IS_DIAGONAL>
static __device__ __forceinline__ void
weigh(const struct pairs *it, struct delta_chunk at, const double *g,
      const float *beta, union triangle *triangle, struct chunk_head *out)
{
    const uint32_t lane = threadIdx.x % 32, row = lane / 4, t = lane % 4 * 2;
    const uint32_t at_i = 16 * it->i + row, at_j = 16 * it->j + t;
    const double later[2] = {g[at_i], g[at_i + 8]};
    const double earlier[4] = {g[at_j], g[at_j + 1], g[at_j + 8], g[at_j + 9]};
    const float less[2] = {-beta[at_i], -beta[at_i + 8]};
    const bool is_here[2] = {at_i >= at.first && at_i < at.end,
                             at_i + 8 >= at.first && at_i + 8 < at.end};
    float w[2][4], x[2][4]; /* -w */

#pragma unroll
    for (uint32_t c = 0; c < 8; c++) {
        const uint32_t r = c / 2 % 2, column = t + c / 4 * 8 + c % 2;
        float *const to_w = &w[c / 4][c % 4], *const to_x = &x[c / 4][c % 4];

        *to_w = -0.0f;
        *to_x = 0.0f;
        if (IS_DIAGONAL && c / 4 > r)
            continue;
        const float aged = decay(later[r], earlier[c / 4 * 2 + c % 2]);
        if (is_here[r] && (!IS_DIAGONAL || column < row + 8 * r))
            *to_w = less[r] * (aged * it->kk[c / 4][c % 4]);
        if (is_here[r] && (!IS_DIAGONAL || column <= row + 8 * r))
            *to_x = aged * it->qk[c / 4][c % 4];
    }
    out->seen[seen_at(it->i, it->j)][lane] =
        make_uint4(bf16_pair(x[0][0], x[0][1]), bf16_pair(x[1][0], x[1][1]),
                   bf16_pair(x[0][2], x[0][3]), bf16_pair(x[1][2], x[1][3]));
    if (!IS_DIAGONAL)
        out->far[far_at(it->i, it->j)][lane] = make_uint4(
            bf16_pair(w[0][0], w[0][1]), bf16_pair(w[1][0], w[1][1]),
            bf16_pair(w[0][2], w[0][3]), bf16_pair(w[1][2], w[1][3]));
    else
#pragma unroll
        for (uint32_t c = 0; c < 8; c++)
            triangle
                ->w[triangle_at(row + c / 2 % 2 * 8, t + c / 4 * 8 + c % 2)] =
                w[c / 4][c % 4];
}

/*
 * T of a block of two v-heads, half a warp each, a lane a column. ring: T of
 * the block's first token, of which the first `n_kept` are there.
 */
template <bool HAS_KEPT>
static __device__ __forceinline__ void invert(union triangle *triangle,
                                              const uint16_t *ring,
                                              uint32_t stride, uint32_t n_kept)
{
    const uint32_t column = threadIdx.x % DELTA_BLOCK;
    float x[DELTA_BLOCK] = {};
    uint32_t t[DELTA_BLOCK / 2];

    __syncwarp();
#pragma unroll
    for (uint32_t l = 0; l < DELTA_BLOCK; l++) {
        x[l] = l == column ? 1.0f : bf16_rounded(x[l]);
        if (HAS_KEPT && l < n_kept)
            x[l] = bf16_low(ring[(size_t)l * stride + column]);
#pragma unroll
        for (uint32_t i = l / 4; i < DELTA_BLOCK / 4; i++) {
            const float4 four = triangle->four[triangle_at(4 * i, l) / 4];
            const float w[4] = {four.x, four.y, four.z, four.w};

#pragma unroll
            for (uint32_t c = 0; c < 4; c++)
                if (4 * i + c > l)
                    x[4 * i + c] = __fmaf_rn(w[c], x[l], x[4 * i + c]);
        }
    }
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < DELTA_BLOCK / 2; i++)
        t[i] = __byte_perm(__float_as_uint(x[2 * i]),
                           __float_as_uint(x[2 * i + 1]), 0x7632);
    *(uint4 *)&triangle->t[column][0] = make_uint4(t[0], t[1], t[2], t[3]);
    *(uint4 *)&triangle->t[column][8] = make_uint4(t[4], t[5], t[6], t[7]);
    __syncwarp();
}

/* T as B operands. */
static __device__ __forceinline__ void put_inverse(const union triangle *from,
                                                   uint4 *out)
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t t[4];

    load_transposed(t, shared_address(&from->t[lane % 16][lane / 16 * 8]));
    out[lane] = make_uint4(t[0], t[1], t[2], t[3]);
}

/* What the v-heads need of a block on the diagonal. */
static __device__ __forceinline__ void
finish_diagonal(const struct delta_many &many, const struct prepare_work &work,
                const struct pairs *it, const double (*g)[GRID],
                const float (*beta)[GRID], union triangle *triangle)
{
    const uint32_t half = threadIdx.x % 32 / DELTA_BLOCK, begin = 16 * it->i;
    const uint32_t d_v = many.args.shape.d_v, stride = ring_stride(d_v);
    const uint32_t n_kept = work.at.first > begin ? work.at.first - begin : 0;

    for (uint32_t h = 0; h < work.n_each; h += 2) {
        const uint32_t n = work.n_each - h < 2 ? 1 : 2, mine = half % n;
        const size_t token = (size_t)(work.head + h + mine) * GRID + begin;

        for (uint32_t e = 0; e < n; e++)
            weigh<true>(it, work.at, g[h + e], beta[h + e], &triangle[e],
                        &work.out[h + e]);
        if (n_kept)
            invert<true>(&triangle[mine],
                         (const uint16_t *)work.span->state.ring_u +
                             token * stride + d_v,
                         stride, n_kept);
        else
            invert<false>(&triangle[mine], NULL, 0, 0);
        for (uint32_t e = 0; e < n; e++)
            put_inverse(&triangle[e], work.out[h + e].near[it->i]);
        __syncwarp();
    }
}

static __device__ __forceinline__ struct prepare_work
work_of(const struct delta_many &many)
{
    const struct delta_shape shape = many.args.shape;
    const size_t slot = (size_t)blockIdx.z * many.n_chunk + blockIdx.y;
    struct prepare_work it;

    it.span = &many.args.span[blockIdx.z];
    it.at = delta_chunk(it.span, many.chunk + blockIdx.y);
    it.n_each = shape.n_v_head / shape.n_k_head;
    it.head = blockIdx.x * it.n_each;
    it.out = many.head + slot * shape.n_v_head + it.head;
    return it;
}

template <uint32_t D_K>
static __global__ void __launch_bounds__(N_WARP * 32)
    prepare(const __grid_constant__ struct delta_many many)
{
    extern __shared__ __align__(TILE_ALIGN) char raw[];
    struct prepare_shared<D_K> *shared = (struct prepare_shared<D_K> *)raw;
    const uint32_t warp = threadIdx.x / 32;

    if (threadIdx.x == 0) {
        mbarrier_init(&shared->full, N_BLOCK);
        mbarrier_init_fence();
    }
    __syncthreads();
    launch_begin();

    const struct prepare_work work = work_of(many);
    if (work.at.first >= work.at.end)
        return;
    if (warp < N_BLOCK)
        fill_tiles<D_K>(many, work.span, work.at, shared);
    else
        fill_decays<D_K>(many, work, shared);
    mbarrier_wait(&shared->full, 0);
    if (!tile_is_unit(work.at))
        leave_tiles<D_K>(many, shared);
#pragma unroll
    for (uint32_t turn = 0; turn < 2; turn++) {
        struct pairs it = pairs_of(turn, warp);

        multiply<D_K>(shared_address(shared->tile), &it);
        if (turn == 0) {
            __syncthreads(); /* decays are there */
            fill_vectors<D_K>(work, shared);
        }
        if (turn == 0 && warp < N_BLOCK)
            finish_diagonal(many, work, &it, shared->g, shared->beta,
                            shared->triangle[warp]);
        else
            for (uint32_t h = 0; h < work.n_each; h++)
                weigh<false>(&it, work.at, shared->g[h], shared->beta[h], NULL,
                             &work.out[h]);
    }
    if (threadIdx.x == 0)
        bulk_store_wait();
}

template <uint32_t D_K>
static void launch(struct gpu *gpu, const struct delta_many *many)
{
    const struct delta_args *a = &many->args;
    const dim3 grid(a->shape.n_k_head, many->n_chunk, a->n_span);

    launch_early_with(gpu_stream(gpu), prepare<D_K>, grid, N_WARP * 32,
                      sizeof(struct prepare_shared<D_K>), *many);
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
