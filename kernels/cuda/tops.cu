/*
 * The best of each row of logits. The largest of every few neighbours (their
 * peak) leave a threshold: the TOPS_MAX-th largest peak, above which there are
 * TOPS_MAX logits at least and seldom many more, so that sorting these few is
 * all that one block has to do.
 *
 * Bound: the logits, read three times from the L2 cache, where the head's
 * product has left them.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>

#define THREADS 256u
#define PEAKS 8u       /* of a warp, each */
#define EACH 64u       /* logits of a peak, ... */
#define FEW_MAX 16384u /* ... or one, where they are no more than this */
#define SLICE 2048u    /* logits whose mass a block sums */
#define LIST_THREADS 1024u
#define LIST_MAX 2048u /* logits that are sorted; many more are a flat row */
#define HELD (FEW_MAX / LIST_THREADS) /* peaks of a thread, at most */
#define DIGIT 256u

struct best {
    struct tops_args args;
    uint32_t each, n_peak, n_slice;
    uint32_t *peak; /* [n_row][n_peak] keys */
    double *mass;   /* [n_row][n_slice] */
};

/* In the order of whole numbers; 0: takes no part. Both zeros are one. */
static __device__ __forceinline__ uint32_t key_of(float x)
{
    const uint32_t bits = x == 0.0f ? 0 : __float_as_uint(x);

    if (isnan(x) || bits == 0xff800000u)
        return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* A warp for PEAKS peaks of EACH, or for 32 of one logit. */
static __global__ void find_peaks(const __grid_constant__ struct best b)
{
    const uint32_t lane = threadIdx.x % 32, n = b.each == 1 ? 32 : PEAKS;
    const uint32_t warp = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const uint32_t first = warp * n;
    const float *x = b.args.logit + blockIdx.y * b.args.logit_stride;
    uint32_t mine = 0;

    launch_begin();
    if (b.each == 1) {
        mine = first + lane < b.args.n ? key_of(x[first + lane]) : 0;
    } else {
        float v[2 * PEAKS];

#pragma unroll
        for (uint32_t i = 0; i < 2 * PEAKS; i++) {
            const uint32_t at = first * EACH + i * 32 + lane;

            v[i] = at < b.args.n ? x[at] : __int_as_float(0x7fffffff);
        }
#pragma unroll
        for (uint32_t p = 0; p < PEAKS; p++) {
            const uint32_t most = __reduce_max_sync(
                0xffffffffu, max(key_of(v[2 * p]), key_of(v[2 * p + 1])));

            mine = p == lane ? most : mine;
        }
    }
    if (lane < n && first + lane < b.n_peak)
        b.peak[blockIdx.y * b.n_peak + first + lane] = mine;
}

/* The largest key of a row, to all threads. */
static __device__ uint32_t largest(const struct best &b, uint32_t row)
{
    __shared__ uint32_t of_warp[THREADS / 32];
    uint32_t most = 0;

#pragma unroll 16 /* loads on their way at once */
    for (uint32_t p = threadIdx.x; p < b.n_peak; p += THREADS)
        most = max(most, b.peak[row * b.n_peak + p]);
    most = __reduce_max_sync(0xffffffffu, most);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = most;
    __syncthreads();
    for (uint32_t w = 0; w < THREADS / 32; w++)
        most = max(most, of_warp[w]);
    return most;
}

static __global__ void sum_mass(const __grid_constant__ struct best b)
{
    __shared__ double of_warp[THREADS / 32];
    const float *x = b.args.logit + blockIdx.y * b.args.logit_stride;
    double sum = 0.0;

    launch_begin();
    const uint32_t most = largest(b, blockIdx.y);
    const float best = value_of(most);

#pragma unroll
    for (uint32_t n = 0; n < SLICE / THREADS; n++) {
        const uint32_t i = blockIdx.x * SLICE + n * THREADS + threadIdx.x;

        if (i < b.args.n && key_of(x[i]))
            sum += (double)scalar_exp(x[i] - best);
    }
    for (int step = 16; step; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x)
        return;
    for (uint32_t w = 1; w < THREADS / 32; w++)
        sum += of_warp[w];
    b.mass[blockIdx.y * b.n_slice + blockIdx.x] = most ? sum : 0.0;
}

/* How many of `count` digits, from the largest down, make up `left`; that one,
 * and what is left within it. A warp. */
static __device__ void find_digit(const uint32_t *count, uint32_t *digit,
                                  uint32_t *left)
{
    const uint32_t lane = threadIdx.x, high = DIGIT - 1 - lane * 8;
    uint32_t sum = 0, before;

    for (uint32_t i = 0; i < 8; i++)
        sum += count[high - i];
    before = sum;
    for (uint32_t by = 1; by < 32; by *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, before, by);

        before += lane >= by ? other : 0;
    }
    before -= sum;
    const uint32_t want = *left;
    __syncwarp();
    if (before >= want || before + sum < want)
        return;
    for (uint32_t i = 0; i < 8; i++) {
        if (before + count[high - i] >= want) {
            *digit = high - i;
            *left = want - before;
            return;
        }
        before += count[high - i];
    }
}

/* A thread's peaks: numbers threadIdx.x + i LIST_THREADS. */
struct held {
    uint32_t peak[HELD];
};

/* The TOPS_MAX-th largest peak of a row, at least 1, digit by digit. */
static __device__ uint32_t find_threshold(const struct held *held, uint32_t n)
{
    __shared__ uint32_t count[DIGIT], digit, left;
    uint32_t threshold = 0;

    if (n < TOPS_MAX)
        return 1;
    if (threadIdx.x == 0)
        left = TOPS_MAX;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < DIGIT)
            count[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++)
            if (threadIdx.x + i * LIST_THREADS < n &&
                (shift == 24 || held->peak[i] >> (shift + 8) == threshold))
                atomicAdd(&count[held->peak[i] >> shift & (DIGIT - 1)], 1);
        __syncthreads();
        if (threadIdx.x < 32)
            find_digit(count, &digit, &left);
        __syncthreads();
        threshold = threshold << 8 | digit;
    }
    return threshold ? threshold : 1;
}

/* Whose turn it is to be listed, in no order; n counts them all. */
struct found {
    uint64_t list[LIST_MAX]; /* keys and ids */
    uint32_t peak[LIST_MAX]; /* those with logits that are to be listed */
    uint32_t n, n_peak;
};

static __device__ __forceinline__ void list_logit(struct found *to, uint32_t i,
                                                  uint32_t key)
{
    const uint32_t at = atomicAdd(&to->n, 1);

    if (at < LIST_MAX)
        to->list[at] = (uint64_t)key << 32 | ~i;
}

/* All logits from the threshold on. */
static __device__ void collect(const struct best &b, uint32_t row,
                               uint32_t threshold, const struct held *held,
                               struct found *to)
{
    const float *x = b.args.logit + row * b.args.logit_stride;

#pragma unroll
    for (uint32_t i = 0; i < HELD; i++) {
        const uint32_t p = threadIdx.x + i * LIST_THREADS;

        if (p >= b.n_peak || held->peak[i] < threshold)
            continue;
        if (b.each == 1) {
            list_logit(to, p, held->peak[i]);
            continue;
        }
        const uint32_t at = atomicAdd(&to->n_peak, 1);
        if (at < LIST_MAX)
            to->peak[at] = p;
    }
    __syncthreads();
    const uint32_t n = min(to->n_peak, LIST_MAX) * EACH;
#pragma unroll 8 /* loads on their way at once */
    for (uint32_t i = threadIdx.x; i < n; i += LIST_THREADS) {
        const uint32_t id = to->peak[i / EACH] * EACH + i % EACH;
        const uint32_t key = id < b.args.n ? key_of(x[id]) : 0;

        if (key >= threshold)
            list_logit(to, id, key);
    }
}

/* Falling, n a power of two; all that differ, so that there is one order. */
static __device__ void sort(uint64_t *list, uint32_t n)
{
    for (uint32_t size = 2; size <= n; size *= 2)
        for (uint32_t by = size / 2; by; by /= 2) {
            for (uint32_t i = threadIdx.x; i < n / 2; i += LIST_THREADS) {
                const uint32_t low = i / by * by * 2 + i % by, high = low + by;
                const bool is_up = low & size;
                const uint64_t x = list[low], y = list[high];

                if (x < y != is_up) {
                    list[low] = y;
                    list[high] = x;
                }
            }
            __syncthreads();
        }
}

/* A block for each row. */
static __global__ void __launch_bounds__(LIST_THREADS)
    list_tops(const __grid_constant__ struct best b)
{
    __shared__ struct found found;
    const uint32_t row = blockIdx.x;
    struct tops *to = &b.args.to[row];

    launch_begin();
    if (threadIdx.x == 0)
        found.n = found.n_peak = 0;
    struct held held;
#pragma unroll
    for (uint32_t i = 0; i < HELD; i++) {
        const uint32_t p = threadIdx.x + i * LIST_THREADS;

        held.peak[i] = p < b.n_peak ? b.peak[row * b.n_peak + p] : 0;
    }
    const uint32_t threshold = find_threshold(&held, b.n_peak);
    __syncthreads();
    collect(b, row, threshold, &held, &found);
    __syncthreads();
    const uint32_t n_list = max(found.n, found.n_peak);
    uint64_t *list = found.list;
    uint32_t size = 2;
    while (size < n_list && size < LIST_MAX)
        size *= 2;
    for (uint32_t i = threadIdx.x; i < size; i += LIST_THREADS)
        if (i >= n_list)
            list[i] = 0;
    __syncthreads();
    sort(list, size);
    for (uint32_t i = threadIdx.x; i < TOPS_MAX && i < n_list;
         i += LIST_THREADS) {
        const uint32_t id = ~(uint32_t)list[i];

        to->id[i] = id;
        to->value[i] = b.args.logit[row * b.args.logit_stride + id];
    }
    if (threadIdx.x >= 32)
        return;
    double mass = 0.0;
#pragma unroll 4
    for (uint32_t s = threadIdx.x; s < b.n_slice; s += 32)
        mass += b.mass[row * b.n_slice + s];
    for (int step = 16; step; step /= 2)
        mass += __shfl_xor_sync(0xffffffffu, mass, step);
    if (threadIdx.x)
        return;
    to->mass = mass;
    to->n = n_list > LIST_MAX ? 0 : min(n_list, TOPS_MAX);
    to->is_all = threshold == 1 && n_list < TOPS_MAX;
}

void cuda_tops(struct gpu *gpu, const struct tops_args *args)
{
    const uint32_t n = args->n;
    struct best b;

    b.args = *args;
    b.each = n <= FEW_MAX ? 1 : EACH;
    b.n_peak = (n + b.each - 1) / b.each;
    b.n_slice = (n + SLICE - 1) / SLICE;
    const size_t mass_bytes = (size_t)args->n_row * b.n_slice * sizeof(double);
    b.mass = (double *)gpu_scratch(
        gpu, mass_bytes + (size_t)args->n_row * b.n_peak * sizeof(uint32_t));
    b.peak = (uint32_t *)((char *)b.mass + mass_bytes);
    if (gpu_is_replaying(gpu) || !args->n_row)
        return;
    assert(args->n_row <= 65535 && b.n_peak <= FEW_MAX);
    const uint32_t n_peak = THREADS / 32 * (b.each == 1 ? 32 : PEAKS);
    launch_early(gpu, find_peaks,
                 dim3((b.n_peak + n_peak - 1) / n_peak, args->n_row), THREADS,
                 b);
    launch_early(gpu, sum_mass, dim3(b.n_slice, args->n_row), THREADS, b);
    launch_early(gpu, list_tops, args->n_row, LIST_THREADS, b);
}
