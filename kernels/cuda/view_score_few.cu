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
#define QUADS 8u /* of a warp */
#define KV_MAX 64u
#define WAYS_MAX VIEW_WARPS /* in which KV heads are divided */

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

template <int R>
static __device__ __forceinline__ void multiply_bounds(const float *const *row,
                                                       const float *low,
                                                       uint32_t d, float4 *sum)
{
#pragma unroll(R > 4 ? 2 : 4)
    for (uint32_t e = threadIdx.x % 4 * 4; e < d; e += 16) {
        const float4 x = load4(low + e), y = load4(low + d + e);

#pragma unroll
        for (int r = 0; r < R; r++) {
            const float4 q = load4(row[r] + e);

            sum[r].x += bounded(q.x, x.x, y.x);
            sum[r].y += bounded(q.y, x.y, y.y);
            sum[r].z += bounded(q.z, x.z, y.z);
            sum[r].w += bounded(q.w, x.w, y.w);
        }
    }
}

/* Four words: dims e .. e + 3 in their low halves, those 16 further on in the
 * high ones. Behind the last dim keys are zeros. */
template <int R>
static __device__ __forceinline__ void multiply_key(const float *const *row,
                                                    const uint32_t *key,
                                                    uint32_t d, float4 *sum)
{
    const uint32_t t = threadIdx.x % 4 * 4;

#pragma unroll(R > 4 ? 2 : 4)
    for (uint32_t e = t; e < d; e += 32) {
        const uint4 word = __ldg((const uint4 *)(key + (e - t) / 2 + t));
        const bool has_more = e + 16 < d;

#pragma unroll
        for (int r = 0; r < R; r++) {
            const float4 q = load4(row[r] + e);

            sum[r].x += q.x * __uint_as_float(word.x << 16);
            sum[r].y += q.y * __uint_as_float(word.y << 16);
            sum[r].z += q.z * __uint_as_float(word.z << 16);
            sum[r].w += q.w * __uint_as_float(word.w << 16);
        }
#pragma unroll
        for (int r = 0; r < R && has_more; r++) {
            const float4 q = load4(row[r] + e + 16);

            sum[r].x += q.x * __uint_as_float(word.x & 0xffff0000u);
            sum[r].y += q.y * __uint_as_float(word.y & 0xffff0000u);
            sum[r].z += q.z * __uint_as_float(word.z & 0xffff0000u);
            sum[r].w += q.w * __uint_as_float(word.w & 0xffff0000u);
        }
    }
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
score_head(const float *const *row, const void *index, enum index_kind kind,
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

/* All heads of this warp against this quad's block: result[kv][R][width]. */
template <int R>
static __device__ void
score_heads(const struct view_frame &f, const struct view_group &group,
            enum index_kind kind, const void *block, float *result)
{
    const uint32_t heads = f.n_head / f.n_kv_head, d = f.d_head;
    const uint32_t n_way = ways_of(f.n_kv_head), warp = threadIdx.x / 32;
    const uint32_t column = warp / n_way * QUADS + threadIdx.x % 32 / 4;
    const size_t n_q = (size_t)f.n_head * d;
    const float *query = f.query + f.part->record[group.query].query.row * n_q;

    for (uint32_t kv = warp % n_way; kv < f.n_kv_head; kv += n_way) {
        const unsigned char *index = (const unsigned char *)block +
                                     f.block_bytes +
                                     kv * view_head_bytes(d, kind);
        const float *row[R];
        float out[R / 4];

#pragma unroll
        for (uint32_t r = 0; r < R; r++) { /* those behind the last: any */
            const uint32_t at = r < heads * group.n ? r : 0;

            row[r] =
                query + at % group.n * n_q + (kv * heads + at / group.n) * d;
        }
        score_head<R>(row, index, kind, d, out);
#pragma unroll
        for (uint32_t r = 0; r < R / 4; r++)
            result[(kv * R + threadIdx.x % 4 * (R / 4) + r) * group.width +
                   column] = out[r];
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
    __shared__ float result[KV_MAX * R * QUADS];

    launch_begin();
    const struct view_part *part = f.part;
    const uint32_t set = threadIdx.x / 32 / ways_of(f.n_kv_head);
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
        const uint64_t mine = first + set * QUADS + threadIdx.x % 32 / 4;

        score_heads<R>(f, group, v.index,
                       v.block[mine < group.end ? mine : group.end - 1],
                       result);
        __syncthreads();
        add_heads<R>(f, group, first, result);
        __syncthreads();
    }
}

uint32_t view_few_width(uint32_t n_kv_head)
{
    return VIEW_WARPS / ways_of(n_kv_head) * QUADS;
}

void view_score_few(cudaStream_t stream, const struct view_frame *frame,
                    uint32_t n_row, uint32_t n_sm)
{
    assert(frame->n_kv_head <= KV_MAX && n_row <= VIEW_FEW_ROWS_MAX);
    if (n_row > 4)
        launch_early_on(stream, score_few<8>, 2 * n_sm, THREADS, *frame);
    else
        launch_early_on(stream, score_few<4>, 2 * n_sm, THREADS, *frame);
}
