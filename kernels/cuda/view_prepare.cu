/*
 * Indices, queries and the first lists of kv_view (view.cuh). Work is small
 * pieces of three kinds, taken in turn by all CTAs: a full block's index for
 * one KV head, a look-up's query for one head, a view's list.
 *
 * Traffic: the keys of full blocks and the rows of the last steps before each
 * look-up, once or twice each. Bound by latency: a chain of as many additions
 * as rows, and for INDEX_KEYS INDEX_CHOSEN chains over all dims.
 */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/view.cuh"

#define THREADS 256u
#define ROW (VIEW_DIM_MAX + 8) /* elements from key to key: no conflicts */

struct sealing {
    uint16_t key[KV_BLOCK][ROW];
    float point[VIEW_DIM_MAX];
    float far[KV_BLOCK];
    uint32_t chosen;
};

static __device__ __forceinline__ float wide(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

/* As scalar_to_bf16() leaves what is a bf16 already: without subnormals. */
static __device__ __forceinline__ uint32_t flushed(uint16_t bits)
{
    const uint32_t size = bits & 0x7fffu;

    if (size > 0x7f80u)
        return bits | 0x40u;
    return size < 0x80u ? bits & 0x8000u : bits;
}

/* ----------------------------------------------------------------- indices */

static __device__ void load_keys(const struct view_frame &f, const void *block,
                                 uint32_t head, struct sealing *s)
{
    const unsigned char *keys =
        (const unsigned char *)block + (size_t)head * f.d_padded * 128;
    const uint32_t n_unit = f.d_padded / 8;

    for (uint32_t i = threadIdx.x; i < KV_BLOCK * n_unit; i += THREADS) {
        const uint32_t j = i / n_unit, e = i % n_unit * 8;

        *(uint4 *)&s->key[j][e] = *(const uint4 *)(keys + tile_at(j, e, 64));
    }
}

/* Of equals the earlier stays, as in a loop over all. */
static __device__ __forceinline__ void widen(float x, uint32_t j, float *low,
                                             float *high)
{
    *low = j == 0 || x < *low ? x : *low;
    *high = j == 0 || x > *high ? x : *high;
}

static __device__ void seal_bounds(const struct view_frame &f,
                                   const struct kv_view &v,
                                   const struct sealing *s, float *index)
{
    const uint32_t d = f.d_head, n_pair = v.is_placed ? f.n_pair : 0;

    for (uint32_t i = threadIdx.x; i < d - n_pair; i += THREADS) {
        const uint32_t x = i < n_pair ? i : i + n_pair, y = i + n_pair;
        const size_t at = (v.chunk * n_pair + i) * KV_BLOCK;
        float low = 0.0f, high = 0.0f, y_low = 0.0f, y_high = 0.0f;

        if (i >= n_pair) {
            for (uint32_t j = 0; j < KV_BLOCK; j++)
                widen(wide(s->key[j][x]), j, &low, &high);
        } else {
            for (uint32_t j = 0; j < KV_BLOCK; j++) {
                const float c = __ldg(f.cosine + at + j);
                const float sine = __ldg(f.sine + at + j);
                const float a = wide(s->key[j][x]), b = wide(s->key[j][y]);

                widen(__fmaf_rn(a, c, -(b * sine)), j, &low, &high);
                widen(__fmaf_rn(b, c, a * sine), j, &y_low, &y_high);
            }
            index[y] = y_low;
            index[d + y] = y_high;
        }
        index[x] = low;
        index[d + x] = high;
    }
}

/* Squared, of a key to the point. */
static __device__ float distance(const struct sealing *s, uint32_t j,
                                 uint32_t d_head)
{
    float sum = 0.0f;

    for (uint32_t e = 0; e < d_head; e += 8) {
        const uint4 unit = *(const uint4 *)&s->key[j][e];
        const uint32_t word[4] = {unit.x, unit.y, unit.z, unit.w};

#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float x = bf16_low(word[i]) - s->point[e + 2 * i];
            const float y = bf16_high(word[i]) - s->point[e + 2 * i + 1];

            sum += x * x;
            sum += y * y;
        }
    }
    return sum;
}

/* Sets s->chosen; of equals the earlier. By the first warp. */
static __device__ void find_farthest(struct sealing *s)
{
    const uint32_t lane = threadIdx.x;
    uint32_t best = s->far[lane + 32] > s->far[lane] ? lane + 32 : lane;
    float far = s->far[best];

    for (int step = 16; step; step /= 2) {
        const float other_far = __shfl_xor_sync(0xffffffffu, far, step);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, best, step);

        if (other_far > far || (other_far == far && other < best)) {
            far = other_far;
            best = other;
        }
    }
    if (lane == 0)
        s->chosen = best;
}

/* The chosen key into its words, and to the point from which others are far. */
static __device__ void take_chosen(struct sealing *s, uint32_t d_head,
                                   uint32_t *index)
{
    const uint16_t *key = s->key[s->chosen];

    for (uint32_t i = threadIdx.x; i < view_key_words(d_head); i += THREADS) {
        const uint32_t e = i / 16 * 32 + i % 16;
        const uint32_t low = e < d_head ? flushed(key[e]) : 0;
        const uint32_t high = e + 16 < d_head ? flushed(key[e + 16]) : 0;

        index[i] = low | high << 16;
    }
    for (uint32_t e = threadIdx.x; e < d_head; e += THREADS)
        s->point[e] = wide(key[e]);
}

static __device__ void seal_keys(const struct view_frame &f, struct sealing *s,
                                 uint32_t *index)
{
    const uint32_t d = f.d_head, j = threadIdx.x;
    float least = 0.0f;

    for (uint32_t e = threadIdx.x; e < d; e += THREADS) {
        float sum = 0.0f;

        for (uint32_t i = 0; i < KV_BLOCK; i++)
            sum += wide(s->key[i][e]);
        s->point[e] = sum * (1.0f / KV_BLOCK);
    }
    __syncthreads();
    for (uint32_t i = 0; i < INDEX_CHOSEN; i++) {
        if (j < KV_BLOCK) {
            const float far = distance(s, j, d);

            /* The mean itself is not among those to be far from. */
            least = i <= 1 || far < least ? far : least;
            s->far[j] = least;
        }
        __syncthreads();
        if (threadIdx.x < 32)
            find_farthest(s);
        __syncthreads();
        take_chosen(s, d, index + i * view_key_words(d));
        __syncthreads();
    }
}

static __device__ void seal(const struct view_frame &f, const struct kv_view &v,
                            uint32_t head, struct sealing *s)
{
    unsigned char *block = (unsigned char *)v.block[v.chunk];
    void *index =
        block + f.block_bytes + head * view_head_bytes(f.d_head, v.index);

    load_keys(f, block, head, s);
    __syncthreads();
    if (v.index == INDEX_KEYS)
        seal_keys(f, s, (uint32_t *)index);
    else
        seal_bounds(f, v, s, (float *)index);
}

/* ----------------------------------------------------------------- queries */

/* The last queries as one, rotated; with INDEX_MASS each sum by itself, as it
 * is. x: [d_head] shared. */
static __device__ void make_query(const struct view_frame &f,
                                  const struct view_query &of, uint32_t head,
                                  float *x)
{
    const struct viewed &viewed = f.part->record[of.view].viewed;
    const struct kv_view &v = viewed.view;
    const uint64_t end = v.position + v.n_row;
    const uint32_t i = threadIdx.x, e = head * f.d_head + i;
    const size_t n_q = (size_t)f.n_head * f.d_head;
    float *to = f.query + of.row * n_q + e;
    float sum = 0.0f;

    if (i < f.d_head)
        for (uint32_t s = 0; s < v.n_sum; s++) {
            const float one = view_sum(f, viewed, end, s, e);

            if (v.index == INDEX_MASS)
                to[s * n_q] = one;
            sum += one;
        }
    if (v.index == INDEX_MASS)
        return;
    if (i < f.d_head)
        x[i] = sum;
    __syncthreads();
    if (i < 2 * f.n_pair) {
        const uint32_t pair = i < f.n_pair ? i : i - f.n_pair;
        const uint64_t p = v.look_position;
        const size_t at =
            (p / KV_BLOCK * f.n_pair + pair) * KV_BLOCK + p % KV_BLOCK;
        const float a = x[pair], b = x[pair + f.n_pair];
        const float c = f.cosine[at], sine = f.sine[at];

        sum = i < f.n_pair ? __fmaf_rn(a, c, -(b * sine))
                           : __fmaf_rn(b, c, a * sine);
    }
    if (i < f.d_head)
        *to = sum;
}

/* ---------------------------------------------------------------- launches */

static __global__ void __launch_bounds__(THREADS)
    prepare(const __grid_constant__ struct view_frame f)
{
    __shared__ __align__(16) struct sealing shared;

    launch_begin();
    const struct view_part *part = f.part;
    const uint32_t n_seal = part->n_seal * f.n_kv_head;
    const uint32_t n_query = part->n_query * f.n_head;
    const uint32_t n = n_seal + n_query + part->n_list;

    for (uint32_t at = blockIdx.x; at < n; at += gridDim.x) {
        if (at < n_seal) {
            const uint32_t i = part->record[at / f.n_kv_head].seal;

            seal(f, part->record[i].viewed.view, at % f.n_kv_head, &shared);
        } else if (at < n_seal + n_query) {
            const uint32_t i = at - n_seal;

            make_query(f, part->record[i / f.n_head].query, i % f.n_head,
                       shared.point);
        } else {
            const uint32_t i = part->record[at - n_seal - n_query].list;
            const struct kv_view &v = part->record[i].viewed.view;

            view_list(f, v, v.pick + 1);
        }
        __syncthreads();
    }
}

void view_prepare(cudaStream_t stream, const struct view_frame *frame,
                  uint32_t n_cta)
{
    launch_early_on(stream, prepare, n_cta, THREADS, *frame);
}
