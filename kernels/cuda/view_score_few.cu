/*
 * Scores of kv_view (view.cuh) where a KV head has at most FEW_ROWS_MAX rows in
 * each group, as in a decode step: bound by reading each session's indices.
 *
 * A quad of threads has a block and a KV head; each thread four neighbouring
 * dims of 16, so four lanes of the sums, and all rows. So an index is read in
 * pieces of 64 bytes by 16 a thread. The warps of a CTA divide its tile among
 * them by KV heads first, so that even one session's candidates make enough
 * tiles; what heads score meets in shared memory and is added there, in order.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/view.cuh"

#include <assert.h>

#define THREADS (32 * VIEW_WARPS)
#define QUADS 8u            /* of a warp */
#define SETS 4u             /* of QUADS blocks that a warp takes of a tile */
#define WAYS_MAX VIEW_WARPS /* in which KV heads are divided */
#define RESULTS (VIEW_WARPS * QUADS * SETS)

static __host__ __device__ uint32_t ways_of(uint32_t n_kv_head)
{
    uint32_t n = 1;

    while (n < n_kv_head && n < WAYS_MAX)
        n *= 2;
    return n;
}

static __device__ __forceinline__ float4 load4(const float *x)
{
    return __ldg((const float4 *)x);
}

/* The larger product, whatever the zeros: view_score.cu. */
static __device__ __forceinline__ float bounded(float q, float low, float high)
{
    return q * (q < 0.0f ? low : high);
}

/* R rows of a KV head: where they are behind that of its first head. */
template <int R> struct rows {
    const float *query;
    uint32_t at[R];
};

/* N steps of 16 dims from e on: all that is read comes first. */
template <int R, int N>
static __device__ __forceinline__ void add_bounds(struct rows<R> row,
                                                  const float *low, uint32_t d,
                                                  uint32_t e, float4 *sum)
{
    float4 x[N], y[N];

#pragma unroll
    for (int n = 0; n < N; n++) {
        x[n] = load4(low + e + 16 * n);
        y[n] = load4(low + d + e + 16 * n);
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float4 q = load4(row.query + row.at[r] + e + 16 * n);

            sum[r].x += bounded(q.x, x[n].x, y[n].x);
            sum[r].y += bounded(q.y, x[n].y, y[n].y);
            sum[r].z += bounded(q.z, x[n].z, y[n].z);
            sum[r].w += bounded(q.w, x[n].w, y[n].w);
        }
}

template <int R>
static __device__ __forceinline__ void
multiply_bounds(struct rows<R> row, const float *low, uint32_t d, float4 *sum)
{
    uint32_t e = threadIdx.x % 4 * 4;

    if (R == 4)
        for (; e + 16 * 7 < d; e += 16 * 8)
            add_bounds<R, 8>(row, low, d, e, sum);
    for (; e + 16 * 3 < d; e += 16 * 4)
        add_bounds<R, 4>(row, low, d, e, sum);
    for (; e < d; e += 16)
        add_bounds<R, 1>(row, low, d, e, sum);
}

static __device__ __forceinline__ float4 low_halves(uint4 x)
{
    return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.y << 16),
                       __uint_as_float(x.z << 16), __uint_as_float(x.w << 16));
}

static __device__ __forceinline__ float4 high_halves(uint4 x)
{
    return make_float4(
        __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y & 0xffff0000u),
        __uint_as_float(x.z & 0xffff0000u), __uint_as_float(x.w & 0xffff0000u));
}

static __device__ __forceinline__ void add_products(float4 q, float4 k,
                                                    float4 *sum)
{
    sum->x += q.x * k.x;
    sum->y += q.y * k.y;
    sum->z += q.z * k.z;
    sum->w += q.w * k.w;
}

/* The same of N words of a key, each of 32 dims: those from e on in its low
 * half, those 16 further on in the high one. Behind the last dim are zeros. */
template <int R, int N>
static __device__ __forceinline__ void add_key(struct rows<R> row,
                                               const uint32_t *key, uint32_t d,
                                               uint32_t e, float4 *sum)
{
    const uint32_t t = threadIdx.x % 4 * 4;
    uint4 word[N];

#pragma unroll
    for (int n = 0; n < N; n++)
        word[n] = __ldg((const uint4 *)(key + (e - t) / 2 + t + 16 * n));
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < R; r++) {
            add_products(load4(row.query + row.at[r] + e + 32 * n),
                         low_halves(word[n]), &sum[r]);
            if (N > 1 || e + 16 < d)
                add_products(load4(row.query + row.at[r] + e + 32 * n + 16),
                             high_halves(word[n]), &sum[r]);
        }
}

template <int R>
static __device__ __forceinline__ void
multiply_key(struct rows<R> row, const uint32_t *key, uint32_t d, float4 *sum)
{
    uint32_t e = threadIdx.x % 4 * 4;

    if (R == 4)
        for (; e + 32 * 3 + 16 < d; e += 32 * 4)
            add_key<R, 4>(row, key, d, e, sum);
    for (; e + 32 + 16 < d; e += 32 * 2)
        add_key<R, 2>(row, key, d, e, sum);
    for (; e < d; e += 32)
        add_key<R, 1>(row, key, d, e, sum);
}

static __device__ __forceinline__ float4 exchange(float4 mine, float4 other,
                                                  int step)
{
    mine.x += __shfl_xor_sync(0xffffffffu, other.x, step);
    mine.y += __shfl_xor_sync(0xffffffffu, other.y, step);
    mine.z += __shfl_xor_sync(0xffffffffu, other.z, step);
    mine.w += __shfl_xor_sync(0xffffffffu, other.w, step);
    return mine;
}

/* As scalar_sum() folds: lanes 8 apart, then 4, 2, 1. Thread t of the quad gets
 * rows t * R / 4 on. */
template <int R>
static __device__ __forceinline__ void fold(float4 *sum, float *out)
{
    const bool is_third = threadIdx.x & 2, is_odd = threadIdx.x & 1;

#pragma unroll
    for (int i = 0; i < R / 2; i++)
        sum[i] = exchange(is_third ? sum[i + R / 2] : sum[i],
                          is_third ? sum[i] : sum[i + R / 2], 2);
#pragma unroll
    for (int i = 0; i < R / 4; i++) {
        const float4 x = exchange(is_odd ? sum[i + R / 4] : sum[i],
                                  is_odd ? sum[i] : sum[i + R / 4], 1);

        out[i] = (x.x + x.z) + (x.y + x.w);
    }
}

/* What a block's index of one KV head scores against the rows. */
template <int R>
static __device__ __forceinline__ void
score_head(struct rows<R> row, const void *index, enum index_kind kind,
           uint32_t d, float *out)
{
    const uint32_t n = kind == INDEX_KEYS ? INDEX_CHOSEN : 1;

    for (uint32_t i = 0; i < n; i++) {
        float4 sum[R] = {};
        float one[R / 4];

        if (kind == INDEX_KEYS)
            multiply_key<R>(
                row, (const uint32_t *)index + i * view_key_words(d), d, sum);
        else
            multiply_bounds<R>(row, (const float *)index, d, sum);
        fold<R>(sum, one);
#pragma unroll
        for (int r = 0; r < R / 4; r++)
            out[r] = i == 0 || one[r] > out[r] ? one[r] : out[r];
    }
}

/* The rows of KV head 0; those behind the last are any. */
template <int R>
static __device__ __forceinline__ struct rows<R>
rows_of(const struct view_frame &f, const struct view_group &group) {
    const uint32_t n_q = f.n_head * f.d_head, n = group.n;
    struct rows<R> rows;

    rows.query = f.query + (size_t)f.part->record[group.query].query.row * n_q;
#pragma unroll
    for (uint32_t r = 0; r < R; r++)
        rows.at[r] =
            r < f.n_head / f.n_kv_head * n ? r % n * n_q + r / n * f.d_head : 0;
    return rows;
}

/* All heads of this warp against this quad's block: result[kv][R][width]. */
template <int R>
static __device__ void score_heads(const struct view_frame &f,
                                   struct rows<R> row, enum index_kind kind,
                                   const void *block, uint32_t width,
                                   float *result)
{
    const uint32_t n_way = ways_of(f.n_kv_head);
    const unsigned char *index = (const unsigned char *)block + f.block_bytes;
    const float *query = row.query;

    for (uint32_t kv = threadIdx.x / 32 % n_way; kv < f.n_kv_head;
         kv += n_way) {
        float out[R / 4];

        row.query = query + kv * (f.n_head / f.n_kv_head) * f.d_head;
        score_head<R>(row, index + kv * view_head_bytes(f.d_head, kind), kind,
                      f.d_head, out);
#pragma unroll
        for (uint32_t r = 0; r < R / 4; r++)
            result[(kv * R + threadIdx.x % 4 * (R / 4) + r) * width] = out[r];
    }
}

/* Heads in their order, to where the scores are wanted. */
template <int R>
static __device__ void add_heads(const struct view_frame &f,
                                 const struct view_group &group, uint64_t first,
                                 const float *result)
{
    const uint32_t heads = f.n_head / f.n_kv_head, width = group.width;

    for (uint32_t i = threadIdx.x; i < group.n * width; i += THREADS) {
        const uint32_t l = i / width, column = i % width;
        const uint64_t b = first + column;
        const struct view_query &query = f.part->record[group.query + l].query;
        const struct kv_view &v = f.part->record[query.view].viewed.view;
        float sum = 0.0f;

        for (uint32_t kv = 0; kv < f.n_kv_head; kv++)
            for (uint32_t h = 0; h < heads; h++)
                sum += result[(kv * R + h * group.n + l) * width + column];
        if (b >= v.first && b < v.end)
            f.score[query.score + (b - v.first)] = sum;
    }
}

template <int R>
static __global__ void __launch_bounds__(THREADS, 2)
    score_few(const __grid_constant__ struct view_frame f)
{
    __shared__ float result[RESULTS * R]; /* [kv][R][width] */

    launch_begin();
    const struct view_part *part = f.part;
    const uint32_t n_set = VIEW_WARPS / ways_of(f.n_kv_head);
    const uint32_t mine =
        threadIdx.x / 32 / ways_of(f.n_kv_head) * QUADS + threadIdx.x % 32 / 4;
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
        const struct kv_view &v =
            part->record[part->record[group.query].query.view].viewed.view;
        const uint64_t first =
            group.first + (uint64_t)(tile - group.first_tile) * group.width;

        const struct rows<R> rows = rows_of<R>(f, group);

        for (uint32_t c = mine; c < group.width; c += n_set * QUADS) {
            const uint64_t at =
                first + c < group.end ? first + c : group.end - 1;

            score_heads<R>(f, rows, v.index, v.block[at], group.width,
                           result + c);
        }
        __syncthreads();
        add_heads<R>(f, group, first, result);
        __syncthreads();
    }
}

uint32_t view_few_width(uint32_t n_kv_head, bool is_wide)
{
    const uint32_t width = VIEW_WARPS / ways_of(n_kv_head) * QUADS;

    return is_wide && n_kv_head <= WAYS_MAX ? SETS * width : width;
}

void view_score_few(cudaStream_t stream, const struct view_frame *frame,
                    uint32_t n_row, uint32_t n_sm)
{
    assert(frame->n_kv_head <= VIEW_FEW_KV_MAX && n_row <= VIEW_FEW_ROWS_MAX);
    static_assert(VIEW_FEW_KV_MAX * QUADS <= RESULTS, "one set of all heads");
    if (n_row > 4)
        launch_early_on(stream, score_few<8>, 2 * n_sm, THREADS, *frame);
    else
        launch_early_on(stream, score_few<4>, 2 * n_sm, THREADS, *frame);
}
