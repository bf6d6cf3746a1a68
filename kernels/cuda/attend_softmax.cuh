#ifndef KERNELS_CUDA_ATTEND_SOFTMAX_CUH
#define KERNELS_CUDA_ATTEND_SOFTMAX_CUH
/*
 * What a thread of a warpgroup does with the scores of its two rows, which four
 * neighbours share: column 8 i + 2 c + j of row r is s[4 i + 2 r + j] of
 * neighbour c. A function for one row gets s + 2 r.
 *
 * M is raised in one step of many. So the four do not look for their largest
 * score each step, but each warp votes whether any thread has one above M + 8.
 */
#include "kernels/cuda/attend.cuh"

#include <limits.h>

/* One of the two rows of a thread. */
struct row {
    uint32_t n_seen;        /* keys up to its own */
    float max, sum;         /* of this chain: M, and L_c of this thread's c */
    float all_max, all_sum; /* of the chains before */
};

/* Scores of keys behind the row: minus infinity. */
template <int N>
static __device__ __forceinline__ void hide(float *s, int n_seen0, int n_seen1)
{
    int c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            s[4 * i + j] = 8 * i + c + j < n_seen0 ? s[4 * i + j] : -INFINITY;
            s[4 * i + 2 + j] =
                8 * i + c + j < n_seen1 ? s[4 * i + 2 + j] : -INFINITY;
        }
    }
}

/* The largest score of a row that this thread has. */
template <int N> static __device__ __forceinline__ float largest(const float *s)
{
    float max = s[0];
#pragma unroll
    for (int i = 0; i < N / 8; i++)
        max = fmaxf(max, fmaxf(s[4 * i], s[4 * i + 1]));
    return max;
}

/*
 * This thread has a score that raises M, or may have one: floats compare as
 * their words do if one is positive, and the largest of three words is one
 * instruction. In four chains, for its latency counts.
 */
template <int N>
static __device__ __forceinline__ bool may_raise(const float *s, float m)
{
    float least = m + 8.0f; /* as raised() has it */
    int top[4] = {INT_MIN, INT_MIN, INT_MIN, INT_MIN};

#pragma unroll
    for (int i = 0; i < N / 8; i++)
        top[i % 4] = __vimax3_s32(top[i % 4], __float_as_int(s[4 * i]),
                                  __float_as_int(s[4 * i + 1]));
    top[0] = max(__vimax3_s32(top[0], top[1], top[2]), top[3]);
    return least < 0.0f || top[0] > __float_as_int(least);
}

/* M after a step; the factor that O takes on. */
template <int N>
static __device__ __forceinline__ float raise(const float *s, struct row *row)
{
    float max = largest<N>(s);

    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    max = raised(row->max, max);
    float factor = exp2_of(row->max - finite_max(max));
    row->max = max;
    return factor;
}

/* Scores of a row to weights, and their sum; factor: that of O. */
template <int N>
static __device__ __forceinline__ void weigh(float *s, struct row *row,
                                             float factor)
{
    float sum = to_weights<N>(s, finite_max(row->max));

    row->sum = __fmaf_rn(row->sum, factor, sum);
}

/* The weights of a step of N keys that begins with key `first`, and the factors
 * that O takes on; false if they are all 1 in this warp. */
template <int N>
static __device__ __forceinline__ bool softmax(float *s, struct row *row,
                                               float *factor, uint32_t first)
{
    /* Of this step; none if it is not positive. */
    int seen0 = (int)(row[0].n_seen - first);
    int seen1 = (int)(row[1].n_seen - first);

    if (seen0 < N || seen1 < N)
        hide<N>(s, seen0, seen1);
    bool is_raised =
        may_raise<N>(s, row[0].max) || may_raise<N>(s + 2, row[1].max);
    factor[0] = factor[1] = 1.0f;
    is_raised = __any_sync(~0u, is_raised);
    if (is_raised) {
        factor[0] = raise<N>(s, row);
        factor[1] = raise<N>(s + 2, row + 1);
    }
    weigh<N>(s, row, factor[0]);
    weigh<N>(s + 2, row + 1, factor[1]);
    return is_raised;
}

/* What O of a row is to be multiplied by at the end of a chain (now), and what
 * went before (old). */
struct merge {
    float old, now;
};

/* M and L of the rows' chain join those of the chains before; a new one begins.
 */
static __device__ __forceinline__ void
end_chain(struct row *row, struct merge *by, bool is_first)
{
#pragma unroll
    for (int i = 0; i < 2; i++, row++, by++) {
        float sum = row->sum;
        sum = sum + __shfl_xor_sync(~0u, sum, 1);
        sum = sum + __shfl_xor_sync(~0u, sum, 2);
        float max = is_first ? row->max : fmaxf(row->all_max, row->max);
        by->old = exp2_of(row->all_max - max);
        by->now = exp2_of(row->max - max);
        row->all_sum =
            is_first ? sum : __fmaf_rn(row->all_sum, by->old, sum * by->now);
        row->all_max = max;
        row->max = -INFINITY;
        row->sum = 0.0f;
    }
}
#endif
