/*
 * y = x W^T with weights of kernels/linear_f8.h for a few rows, the bits of
 * linear_f8.cuh. Weights are the left side of mma.sync, so that each lane
 * widens in registers what it has loaded, 16 bytes at a time; nothing of them
 * goes through shared memory.
 *
 * A CTA works on TILES times 16 outputs. A block of 128 inputs is a sum of its
 * own from zero, so that the N_WARP warps take blocks in turn; behind each such
 * round their sums go into the results, in order, by one fma with the block's
 * scale. Weights of the next DEPTH rounds are under way meanwhile, and those of
 * the first ones while the kernel before this one still makes x.
 *
 * Traffic: a byte a weight, once; x by each CTA, from the caches. Bound: that
 * byte at the rate of memory.
 */
#include "kernels/cuda/linear_f8_word.cuh"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/mma.cuh"

#include <assert.h>

#define N_WARP 8u
#define N_THREAD (N_WARP * 32u)
#define TILE_OUT 16u   /* outputs of one mma */
#define HIGH_OUT 8192u /* from here on 32 outputs fill all SMs */
#define ROW_GROUP 8u   /* rows of one mma */

struct f8_few {
    const unsigned char *w[2];
    size_t scales_at, w_stride;
    const uint16_t *x; /* placed */
    size_t x_stride;
    void *y;
    size_t y_stride;
    uint32_t n_row, n_out, n_block;
};

/* 16 outputs by 128 inputs: this lane's words of rows g and g + 8. */
struct weight_tile {
    uint4 q[4];
};

static __device__ __forceinline__ void
load_tile(struct weight_tile *tile, const unsigned char *at, size_t stride)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        tile->q[half] = __ldcs((const uint4 *)(at + half * 64));
        tile->q[2 + half] =
            __ldcs((const uint4 *)(at + ROW_GROUP * stride + half * 64));
    }
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* sum = the tiles times one block of x. */
template <int TILES, int GROUPS>
static __device__ __forceinline__ void
multiply(float sum[TILES][GROUPS][4], const struct weight_tile *tile,
         const uint4 *const *x, uint32_t block)
{
#pragma unroll
    for (int i = 0; i < TILES * GROUPS * 4; i++)
        sum[i / 4 / GROUPS][i / 4 % GROUPS][i % 4] = 0.0f;
#pragma unroll
    for (int two = 0; two < (int)F8_BLOCK / 32; two++) {
        uint4 b[GROUPS];

#pragma unroll
        for (int r = 0; r < GROUPS; r++)
            b[r] = x[r][(block * F8_BLOCK / 32 + two) * 4];
#pragma unroll
        for (int s = 2 * two; s < 2 * two + 2; s++)
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const uint32_t above = word_of(tile[i].q[s / 4], s % 4);
                const uint32_t below = word_of(tile[i].q[2 + s / 4], s % 4);
                const uint32_t a[4] = {f8_first(above), f8_first(below),
                                       f8_last(above), f8_last(below)};

#pragma unroll
                for (int r = 0; r < GROUPS; r++)
                    mma(sum[i][r], a, s % 2 ? b[r].z : b[r].x,
                        s % 2 ? b[r].w : b[r].y);
            }
    }
}

/* ---------------------------------------------------------------- results */

/* Element i of the sums of a half of the tiles: which output and which row. */
struct place {
    uint32_t out, row;
};

template <int GROUPS>
static __device__ __forceinline__ struct place place_of(uint32_t i)
{
    const uint32_t lane = i % 128 / 4, c = i % 4;
    struct place p;

    p.out = i / (128 * GROUPS) * TILE_OUT + lane / 4 + c / 2 * 8;
    p.row = i / 128 % GROUPS * ROW_GROUP + lane % 4 * 2 + c % 2;
    return p;
}

template <enum product_end END>
static __device__ __forceinline__ void put(const struct f8_few *f,
                                           struct place p, const float *acc)
{
    const size_t at = p.row * f->y_stride;

    if (p.row >= f->n_row || p.out >= f->n_out)
        return;
    if (END == PRODUCT_SWIGLU)
        ((uint16_t *)f->y)[at + f8_x_place(p.out)] =
            (uint16_t)round_pair(scalar_silu(acc[0]) * acc[1], 0.0f);
    else
        product_put<END>((float *)f->y + at + p.out, acc[0]);
}

/* ----------------------------------------------------------------- kernel */

template <int TILES, int GROUPS, enum product_end END>
struct few_shape {
    static const int PARTS = END == PRODUCT_SWIGLU ? 2 : 1;
    static const int ALL = TILES * PARTS; /* tiles of the gate, then of up */
    static const int EACH =
        TILES * GROUPS * 128; /* sums of a part, of a warp */
    static const int MINE = (EACH + N_THREAD - 1) / N_THREAD;
};

/* One warp's tiles of one block. */
template <int TILES, enum product_end END>
static __device__ __forceinline__ void
load_all(struct weight_tile *tile, const struct f8_few *f, uint32_t block)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

    if (block >= f->n_block)
        return;
#pragma unroll
    for (int i = 0; i < few_shape<TILES, 1, END>::ALL; i++) {
        const size_t out = (blockIdx.x * TILES + i % TILES) * TILE_OUT + g;

        load_tile(&tile[i],
                  f->w[i / TILES] + out * f->w_stride + block * F8_BLOCK +
                      t * 16,
                  f->w_stride);
    }
}

/* The sums of a round, which all warps have left in shared memory. */
template <int TILES, int GROUPS, enum product_end END>
static __device__ __forceinline__ void
gather(float acc[][few_shape<TILES, GROUPS, END>::PARTS], const float *sums,
       const float *scale, const struct f8_few *f, uint32_t first)
{
    typedef few_shape<TILES, GROUPS, END> shape;
    const uint32_t n_left = f->n_block - first;

#pragma unroll
    for (int k = 0; k < shape::MINE; k++) {
        const uint32_t i = k * N_THREAD + threadIdx.x;

        if (i >= shape::EACH || place_of<GROUPS>(i).row >= f->n_row)
            continue;
#pragma unroll
        for (uint32_t w = 0; w < N_WARP; w++)
#pragma unroll
            for (int part = 0; part < shape::PARTS; part++)
                if (w < n_left)
                    acc[k][part] = __fmaf_rn(
                        sums[(w * shape::PARTS + part) * shape::EACH + i],
                        scale[part * f->n_block + first + w], acc[k][part]);
    }
}

template <int TILES, int GROUPS, enum product_end END, int DEPTH, int CTAS>
static __global__ void __launch_bounds__(N_THREAD, CTAS)
    few_kernel(const __grid_constant__ struct f8_few f)
{
    typedef few_shape<TILES, GROUPS, END> shape;
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t n_sum = N_WARP * shape::PARTS * shape::EACH;
    float *sum_at = (float *)shared,
          *scale = sum_at + 2 * n_sum; /* [PARTS][n_block] */
    struct weight_tile tile[DEPTH][shape::ALL];
    float acc[shape::MINE][shape::PARTS] = {};
    const uint4 *x[GROUPS]; /* where this lane's inputs of its rows begin */

    launch_next();
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        load_all<TILES, END>(tile[d], &f, d * N_WARP + warp);
    for (uint32_t i = threadIdx.x; i < shape::PARTS * f.n_block; i += N_THREAD)
        scale[i] =
            ((const float *)(f.w[i / f.n_block] +
                             f.scales_at))[blockIdx.x * TILES * TILE_OUT /
                                               F8_BLOCK * f.n_block +
                                           i % f.n_block];
        /* Rows that are not there are not stored. */
#pragma unroll
    for (uint32_t r = 0; r < GROUPS; r++) {
        const uint32_t row = r * ROW_GROUP + lane / 4;

        x[r] = (const uint4 *)(f.x + (row < f.n_row ? row : 0) * f.x_stride) +
               lane % 4;
    }
    launch_wait();
    for (uint32_t first = 0; first < f.n_block; first += DEPTH * N_WARP)
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const uint32_t round = first + d * N_WARP, block = round + warp;
            float *sums = sum_at + round / N_WARP % 2 * n_sum;

            if (round >= f.n_block)
                break;
            if (block < f.n_block) {
                float sum[shape::ALL][GROUPS][4];

                multiply<shape::ALL, GROUPS>(sum, tile[d], x, block);
#pragma unroll
                for (int i = 0; i < shape::ALL * GROUPS; i++) {
                    const float *c = sum[i / GROUPS][i % GROUPS];

                    ((float4 *)(sums + warp * shape::PARTS *
                                           shape::EACH))[i * 32 + lane] =
                        make_float4(c[0], c[1], c[2], c[3]);
                }
                load_all<TILES, END>(tile[d], &f, block + DEPTH * N_WARP);
            }
            /* Two buffers in turn: who writes to one again has passed the
             * barrier behind which it was read. */
            __syncthreads();
            gather<TILES, GROUPS, END>(acc, sums, scale, &f, round);
        }
#pragma unroll
    for (int k = 0; k < shape::MINE; k++) {
        const uint32_t i = k * N_THREAD + threadIdx.x;
        struct place p = place_of<GROUPS>(i);

        p.out += blockIdx.x * TILES * TILE_OUT;
        if (i < shape::EACH)
            put<END>(&f, p, acc[k]);
    }
}

/* ----------------------------------------------------------------- launch */

template <int TILES, int GROUPS, enum product_end END, int DEPTH, int CTAS>
static void launch_as(struct gpu *gpu, const struct f8_few *f)
{
    typedef few_shape<TILES, GROUPS, END> shape;
    /* A tile is 16 registers, of which three CTAs leave a thread 80. */
    const int AHEAD = END == PRODUCT_SWIGLU && CTAS > 2 ? 1 : DEPTH;
    const uint32_t bytes =
        (2 * N_WARP * shape::PARTS * shape::EACH + shape::PARTS * f->n_block) *
        sizeof(float);
    const uint32_t n_out = TILES * TILE_OUT;

    launch_allow(few_kernel<TILES, GROUPS, END, AHEAD, CTAS>, bytes);
    launch_early_with(
        gpu_stream(gpu), few_kernel<TILES, GROUPS, END, AHEAD, CTAS>,
        dim3((f->n_out + n_out - 1) / n_out), N_THREAD, bytes, *f);
}

template <int TILES, int DEPTH, int CTAS, enum product_end END>
static void launch_rows(struct gpu *gpu, const struct f8_few *f)
{
    if (f->n_row > ROW_GROUP)
        launch_as<TILES, 2, END, DEPTH, CTAS>(gpu, f);
    else
        launch_as<TILES, 1, END, DEPTH, CTAS>(gpu, f);
}

bool f8_few_fits(const struct product_job *job)
{
    return job->is_f8 && job->n_row <= F8_FEW_ROWS && !job->n_expert &&
           job->n_in <= F8_FEW_INPUTS;
}

struct product_shape f8_few_choose(const struct product_job *job)
{
    static const struct product_shape LOW = {0, 16, 2, 2},
                                      PAIRS = {0, 16, 2, 3},
                                      HIGH = {0, 32, 1, 3};

    if (job->end == PRODUCT_SWIGLU)
        return PAIRS;
    return job->n_out < HIGH_OUT ? LOW : HIGH;
}

void f8_few_launch(struct gpu *gpu, const struct product_job *job,
                   struct product_shape s)
{
    struct f8_few f = {};

    assert(f8_few_fits(job) && job->is_placed);
    f.w[0] = (const unsigned char *)job->w[0].at;
    f.w[1] = (const unsigned char *)job->w[1].at;
    f.scales_at = job->scales_at;
    f.w_stride = job->w[0].stride;
    f.x = (const uint16_t *)job->x.at;
    f.x_stride = job->x.stride;
    f.y = job->y;
    f.y_stride = job->y_stride;
    f.n_row = job->n_row;
    f.n_out = job->n_out;
    f.n_block = (uint32_t)linear_f8_n_block(job->n_in);
#define CASE(TILES, DEPTH, CTAS)                                               \
    if (s.n == TILES * TILE_OUT && s.n_box == DEPTH && s.by == CTAS) {         \
        if (job->end == PRODUCT_STORE)                                         \
            launch_rows<TILES, DEPTH, CTAS, PRODUCT_STORE>(gpu, &f);           \
        else if (job->end == PRODUCT_ADD)                                      \
            launch_rows<TILES, DEPTH, CTAS, PRODUCT_ADD>(gpu, &f);             \
        else if (TILES == 1) /* registers */                                   \
            launch_rows<1, DEPTH, CTAS, PRODUCT_SWIGLU>(gpu, &f);              \
        return;                                                                \
    }
    F8_FEW_SHAPES(CASE)
#undef CASE
    assert(!"a shape of the table");
}

/* --------------------------------------------------------------------- rows
 */

#define PLACE_THREADS 256u

static __device__ __forceinline__ uint32_t x_pair(const float *x, uint32_t i,
                                                  uint32_t n_in)
{
    return round_pair(i < n_in ? x[i] : 0.0f, i + 1 < n_in ? x[i + 1] : 0.0f);
}

static __device__ __forceinline__ uint32_t bits_pair(const uint16_t *x,
                                                     uint32_t i, uint32_t n)
{
    return i < n ? *(const uint32_t *)(x + i) : 0;
}

/* A thread makes the 16 bytes that a lane loads: of two steps of 16. */
static __global__ void __launch_bounds__(PLACE_THREADS)
    place_kernel(const struct round_job job, const uint16_t *rounded,
                 uint32_t n_padded)
{
    const uint32_t at = blockIdx.y * PLACE_THREADS + threadIdx.x;
    const uint32_t i = at / 4 * 32 + at % 4 * 2;
    const float *x = job.x + blockIdx.x * job.x_stride;

    launch_begin();
    if (i >= n_padded)
        return;
    uint4 *to = (uint4 *)((uint16_t *)job.to + (size_t)blockIdx.x * n_padded);
    const uint32_t n = (job.n_in + LINEAR_PAD - 1) / LINEAR_PAD * LINEAR_PAD;
    const uint16_t *from = rounded + (size_t)blockIdx.x * n;

    if (rounded)
        to[at] =
            make_uint4(bits_pair(from, i, n), bits_pair(from, i + 8, n),
                       bits_pair(from, i + 16, n), bits_pair(from, i + 24, n));
    else
        to[at] = make_uint4(x_pair(x, i, job.n_in), x_pair(x, i + 8, job.n_in),
                            x_pair(x, i + 16, job.n_in),
                            x_pair(x, i + 24, job.n_in));
}

void f8_place_launch(struct gpu *gpu, const struct round_job *job,
                     const uint16_t *rounded)
{
    const uint32_t n_padded = (uint32_t)linear_f8_n_block(job->n_in) * F8_BLOCK;
    const dim3 grid(job->n_row,
                    (n_padded / 8 + PLACE_THREADS - 1) / PLACE_THREADS);

    launch_early(gpu, place_kernel, grid, PLACE_THREADS, *job, rounded,
                 n_padded);
}
