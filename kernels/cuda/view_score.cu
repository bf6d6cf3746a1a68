/*
 * Scores of kv_view (view.cuh): kv_score for many queries at once.
 *
 * A tile is some blocks of a session against the queries of a group, whose rows
 * are those queries' heads of one KV head; its warps have blocks of their own.
 * In a warp, thread t of each half has lane t of the sums: dims t, t + 16, ...,
 * so that it reads indices as they lie, and no product is ever moved. It has
 * R of the rows, of 2 R the halves share, and C columns: as many blocks, with
 * INDEX_KEYS the keys of one. Lanes are then folded for all R C sums at once,
 * half of which change hands at each step, and heads are added in their order.
 *
 * Bounds: the larger product is that of the bound on the side of the query's
 * sign, whatever the zeros, as a sum that began at +0 shows no sign of zero; so
 * a dim takes a selection, a product and a sum.
 *
 * Traffic: each group reads the indices of its candidates once from L2, further
 * heads of a KV head from L1; the next rows come while these are multiplied.
 * Bound: three instructions a dim. Few rows go another way (view_score_few.cu).
 */
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/view.cuh"

#define THREADS (32 * VIEW_WARPS)
#define BLOCKS 4                    /* of a warp, by bounds */
#define HELD 16u                    /* rows in shared memory at a time */
#define STRIDE (VIEW_DIM_MAX + 16u) /* of rows: halves in different banks */
#define SUMS 2u                     /* of a lane */

struct scoring {
    float row[2][HELD][STRIDE];   /* these are read, those come */
    float result[VIEW_WARPS][64]; /* of a tile: [2 R][C] */
};

/* N steps of 16 dims from e on: what comes from afar is read first. */
template <int R, int C, int N>
static __device__ __forceinline__ void
add_bounds(const float *row, const float *const *low, uint32_t d, uint32_t e,
           float *sum)
{
    float x[N][C], y[N][C];

#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int c = 0; c < C; c++) {
            x[n][c] = __ldg(low[c] + e + 16 * n);
            y[n][c] = __ldg(low[c] + d + e + 16 * n);
        }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float q = row[2 * r * STRIDE + e + 16 * n];

#pragma unroll
            for (int c = 0; c < C; c++)
                sum[r * C + c] += q * (q < 0.0f ? x[n][c] : y[n][c]);
        }
}

template <int R, int C>
static __device__ __forceinline__ void multiply_bounds(const float *row,
                                                       const float *const *low,
                                                       uint32_t d, float *sum)
{
    uint32_t e = threadIdx.x % 16;

    for (; e + 16 * 3 < d; e += 16 * 4)
        add_bounds<R, C, 4>(row, low, d, e, sum);
    for (; e < d; e += 16)
        add_bounds<R, C, 1>(row, low, d, e, sum);
}

/* N words of each key from i on, of 32 dims each. Behind the last dim rows and
 * keys are zeros. */
template <int R, int N>
static __device__ __forceinline__ void
add_keys(const float *row, const uint32_t *key, uint32_t n_word, uint32_t i,
         float *sum)
{
    const float *q = row + 2 * i - threadIdx.x % 16;
    uint32_t word[N][INDEX_CHOSEN];

#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (uint32_t c = 0; c < INDEX_CHOSEN; c++)
            word[n][c] = __ldg(key + c * n_word + i + 16 * n);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float low = q[2 * r * STRIDE + 32 * n];
            const float high = q[2 * r * STRIDE + 32 * n + 16];

#pragma unroll
            for (uint32_t c = 0; c < INDEX_CHOSEN; c++) {
                float *to = &sum[r * INDEX_CHOSEN + c];

                *to += low * __uint_as_float(word[n][c] << 16);
                *to += high * __uint_as_float(word[n][c] & 0xffff0000u);
            }
        }
}

template <int R>
static __device__ __forceinline__ void
multiply_keys(const float *row, const uint32_t *key, uint32_t n_word,
              float *sum)
{
    uint32_t i = threadIdx.x % 16;

    for (; i + 16 < n_word; i += 32)
        add_keys<R, 2>(row, key, n_word, i, sum);
    for (; i < n_word; i += 16)
        add_keys<R, 1>(row, key, n_word, i, sum);
}

/* One of N sums from the lanes of 16 threads each: thread t has those from
 * t * N / 16 on, or shares number t / (16 / N). */
template <int N> static __device__ __forceinline__ void fold(float *sum)
{
    int n = N;

#pragma unroll
    for (int step = 8; step; step /= 2) {
        const bool is_upper = threadIdx.x & step;

        if (n == 1) {
            sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], step);
            continue;
        }
        n /= 2;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (i >= n)
                break;
            const float mine = is_upper ? sum[i + n] : sum[i];
            const float other = is_upper ? sum[i] : sum[i + n];

            sum[i] = mine + __shfl_xor_sync(0xffffffffu, other, step);
        }
    }
}

/* The folded sums to where the warp reads them: [2 R][C]. */
template <int R, int C>
static __device__ __forceinline__ void put_results(const float *sum, float *to)
{
    constexpr int N = R * C, EACH = N < 16 ? 1 : N / 16;
    const uint32_t t = threadIdx.x % 16, half = threadIdx.x / 16 % 2;

#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t at = N < 16 ? t * N / 16 : t * EACH + i;

        if (N >= 16 || t % (16 / (N < 16 ? N : 16)) == 0)
            to[(2 * (at / C) + half) * C + at % C] = sum[i];
    }
    __syncwarp();
}

/* What a row of results has for a column: with keys the largest of all. */
template <bool IS_KEYS, int C>
static __device__ __forceinline__ float result_of(const float *result,
                                                  uint32_t column)
{
    float best = result[column];

    if (IS_KEYS)
#pragma unroll
        for (int c = 1; c < C; c++)
            best = result[c] > best ? result[c] : best;
    return best;
}

/* Rows `first` on of HELD, of all KV heads one behind the other, each n_row
 * padded to n_padded, begin to come into `to`; a warp brings two. */
static __device__ __forceinline__ void
fetch_rows(const struct view_frame &f, const struct view_group &group,
           uint32_t first, uint32_t n_row, uint32_t n_padded,
           float (*to)[STRIDE])
{
    const uint32_t d = f.d_head, d_stored = (d + 31) / 32 * 32;
    const uint32_t heads = f.n_head / f.n_kv_head;
    const size_t n_q = (size_t)f.n_head * d;
    const float *query = f.query + f.part->record[group.query].query.row * n_q;

    for (uint32_t i = threadIdx.x / 32; i < HELD; i += VIEW_WARPS) {
        const uint32_t kv = (first + i) / n_padded, r = (first + i) % n_padded;
        const bool is_row = kv < f.n_kv_head && r < n_row;
        const float *from = query;

        if (is_row)
            from += r % group.n * n_q + (kv * heads + r / group.n) * d;
        for (uint32_t e = threadIdx.x % 32 * 4; e < d_stored; e += 128)
            cp_async_16_or_zeros_cached(&to[i][e], from + (e < d ? e : 0),
                                        is_row && e < d);
    }
    cp_async_commit();
}

/* The sums of a tile's rows from `first` on, n of them, to the scores of
 * queries and columns that this lane has. */
template <bool IS_KEYS, int C>
static __device__ __forceinline__ void
add_heads(const float *result, uint32_t n_query, uint32_t first, uint32_t n,
          float *score)
{
    constexpr uint32_t COLUMNS = IS_KEYS ? 1 : C;

#pragma unroll
    for (uint32_t i = 0; i < SUMS; i++) {
        const uint32_t at = threadIdx.x % 32 + 32 * i;
        const uint32_t query = at / COLUMNS, column = at % COLUMNS;

        if (query >= n_query)
            continue;
        for (uint32_t r = (query + n_query - first % n_query) % n_query; r < n;
             r += n_query)
            score[i] += result_of<IS_KEYS, C>(result + r * C, column);
    }
    __syncwarp();
}

/* Where it is wanted; a group has blocks that not all of its queries may
 * choose. */
template <uint32_t COLUMNS>
static __device__ __forceinline__ void
put_scores(const struct view_frame &f, const struct view_group &group,
           uint64_t block, const float *score)
{
#pragma unroll
    for (uint32_t i = 0; i < SUMS; i++) {
        const uint32_t at = threadIdx.x % 32 + 32 * i;
        const uint64_t b = block + at % COLUMNS;

        if (at / COLUMNS >= group.n)
            continue;
        const struct view_query &query =
            f.part->record[group.query + at / COLUMNS].query;
        const struct kv_view &v = f.part->record[query.view].viewed.view;

        if (b >= v.first && b < v.end)
            f.score[query.score + (b - v.first)] = score[i];
    }
}

/* One tile: C blocks of each warp, or one by its keys. */
template <bool IS_KEYS, int R, int C>
static __device__ void score_tile(const struct view_frame &f,
                                  const struct view_group &group,
                                  uint64_t first, struct scoring *s)
{
    constexpr uint32_t ROWS = 2 * R, N_BLOCK = IS_KEYS ? 1 : C;
    const uint32_t warp = threadIdx.x / 32, half = threadIdx.x / 16 % 2;
    const uint32_t n_row = group.n * (f.n_head / f.n_kv_head);
    const uint32_t n_padded = (n_row + ROWS - 1) / ROWS * ROWS;
    const uint32_t n_all = f.n_kv_head * n_padded;
    const uint64_t block = first + warp * N_BLOCK;
    void *const *blocks = f.part->record[f.part->record[group.query].query.view]
                              .viewed.view.block;
    const unsigned char *index[N_BLOCK];
    float score[SUMS] = {0.0f, 0.0f};

#pragma unroll
    for (uint32_t c = 0; c < N_BLOCK; c++) {
        const uint64_t b = block + c < group.end ? block + c : group.end - 1;

        index[c] = (const unsigned char *)blocks[b] + f.block_bytes;
    }
    __syncthreads(); /* all have read the rows of the tile before */
    fetch_rows(f, group, 0, n_row, n_padded, s->row[0]);
    for (uint32_t at = 0; at < n_all; at += ROWS) {
        const uint32_t kv = at / n_padded, from = at % n_padded;
        const uint32_t n = n_row - from < ROWS ? n_row - from : ROWS;
        float sum[R * C] = {};

        if (at % HELD == 0) {
            cp_async_wait_all();
            __syncthreads();
            if (at + HELD < n_all)
                fetch_rows(f, group, at + HELD, n_row, n_padded,
                           s->row[(at / HELD + 1) % 2]);
        }
        const float *row = s->row[at / HELD % 2][at % HELD + half];
        if (IS_KEYS) {
            const uint32_t n_word = view_key_words(f.d_head);

            multiply_keys<R>(
                row, (const uint32_t *)index[0] + kv * INDEX_CHOSEN * n_word,
                n_word, sum);
        } else {
            const float *low[N_BLOCK];

#pragma unroll
            for (uint32_t c = 0; c < N_BLOCK; c++)
                low[c] = (const float *)index[c] + 2 * kv * f.d_head;
            multiply_bounds<R, (int)N_BLOCK>(row, low, f.d_head, sum);
        }
        fold<R * C>(sum);
        put_results<R, C>(sum, s->result[warp]);
        add_heads<IS_KEYS, C>(s->result[warp], group.n, from, n, score);
    }
    put_scores<N_BLOCK>(f, group, block, score);
}

static __global__ void __launch_bounds__(THREADS, 2)
    score(const __grid_constant__ struct view_frame f)
{
    __shared__ __align__(16) struct scoring shared;

    launch_begin();
    const struct view_part *part = f.part;
    const uint64_t n_tile = part->n_tile;
    const uint32_t end = (uint32_t)(n_tile * (blockIdx.x + 1) / gridDim.x);
    uint32_t tile = (uint32_t)(n_tile * blockIdx.x / gridDim.x);

    if (tile == end)
        return;
    for (uint32_t g = view_group_of(part, tile); tile < end; tile++) {
        if (g + 1 < part->n_group &&
            part->record[g + 1].group.first_tile <= tile)
            g++;
        const struct view_group group = part->record[g].group;
        const struct view_query &query = part->record[group.query].query;
        const uint64_t first =
            group.first + (uint64_t)(tile - group.first_tile) * group.width;

        if (part->record[query.view].viewed.view.index == INDEX_KEYS)
            score_tile<true, 4, INDEX_CHOSEN>(f, group, first, &shared);
        else
            score_tile<false, 8, BLOCKS>(f, group, first, &shared);
    }
}

uint32_t view_width(enum index_kind kind)
{
    return VIEW_WARPS * (kind == INDEX_KEYS ? 1 : BLOCKS);
}

void view_score(cudaStream_t stream, const struct view_frame *frame,
                uint32_t n_sm)
{
    launch_early_on(stream, score, 2 * n_sm, THREADS, *frame);
}
