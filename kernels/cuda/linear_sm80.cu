/*
 * y = x W^T by mma.sync and cp.async, for GPUs that have no wgmma (way.h): the
 * steps and the order of linear_product.cuh and linear_f8.cuh, whose tiles and
 * results it has.
 *
 * A CTA has one tile of ROWS rows by N outputs. All its threads bring tiles of
 * 64 inputs (a block of 128 of weights of eight bits) into a ring of stages,
 * rows of 128 bytes whose 16-byte units are swizzled, and multiply what came
 * N_STAGE - 1 rounds ago. Weights of eight bits are widened in registers.
 * Shapes need at most 99 KiB of shared memory, which every capability from 8.0
 * on has.
 *
 * Bound: weights once at the rate of memory for few rows, 2 operations a weight
 * and row at the rate of mma.sync for many.
 */
#include "kernels/cuda/linear_f8_word.cuh"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/mma.cuh"

#include <assert.h>

#define ROW_BYTES 128u
#define FEW_ROWS 16u /* of a shape without groups */

struct sm80_product {
    struct product p; /* its maps are not used */
    const unsigned char *x, *w[2];
    size_t x_stride, w_stride; /* bytes */
    uint32_t x_bytes;          /* of a row that are there */
    uint32_t w_rows;
    size_t scales_at;
};

/* N_ROW by N_OUT warps, each with M tiles of 16 rows and WIDE outputs. */
template <int ROWS, int N, bool IS_F8> struct sm80 {
    static const int N_ROW = ROWS > 16 ? 2 : 1;
    static const int N_OUT = ROWS > 64 ? 4 : ROWS > 16 ? 2 : N / 16;
    static const int M = ROWS / N_ROW / 16, WIDE = N / N_OUT;
    static const int N_THREAD = N_ROW * N_OUT * 32;
    static const int X_TILES = IS_F8 ? F8_BLOCK / TILE_K : 1;
    static const int STAGE = (X_TILES * ROWS + N) * ROW_BYTES;
    static const int N_STAGE = ROWS > 64   ? 96 * 1024 / STAGE
                               : ROWS > 16 ? 4
                                           : 6;
};

/* ---------------------------------------------------------------- copying */

/* Of ROWS rows from `from` on those that are there, unit u of row r at place
 * u ^ r % 8, or u ^ r % 2 * 4 (where eight lanes read two rows). */
template <int ROWS, int N_THREAD, int BY>
static __device__ __forceinline__ void
copy_rows(uint32_t to, const unsigned char *from, size_t stride, uint32_t n_row)
{
    const uint32_t u = threadIdx.x % 8;

#pragma unroll
    for (int i = 0; i < ROWS; i += N_THREAD / 8) {
        const uint32_t r = i + threadIdx.x / 8;

        if (ROWS % (N_THREAD / 8) == 0 || r < ROWS)
            ptx_cp_async_16_or_zeros(
                to + r * ROW_BYTES + (u ^ r % BY * (8 / BY)) * 16,
                from + (r < n_row ? r : 0) * stride + u * 16, r < n_row);
    }
}

static __device__ __forceinline__ uint32_t rows_left(uint32_t end, uint32_t at)
{
    return end > at ? end - at : 0;
}

/* What stands for no row at all is still read by no one. */
template <int ROWS, int N, bool IS_F8, enum product_end END>
static __device__ __forceinline__ void
copy_stage(const struct sm80_product *s, const struct product_tile *tile,
           uint32_t to, uint32_t block)
{
    typedef sm80<ROWS, N, IS_F8> shape;
    const int PARTS = END == PRODUCT_SWIGLU ? 2 : 1, EACH = N / PARTS;
    const unsigned char *x = s->x + tile->row * s->x_stride;

#pragma unroll
    for (uint32_t i = 0; i < shape::X_TILES; i++, to += ROWS * ROW_BYTES) {
        const uint32_t at = (block * shape::X_TILES + i) * ROW_BYTES;
        const bool is_there = at < s->x_bytes;

        copy_rows<ROWS, shape::N_THREAD, 8>(
            to, x + (is_there ? at : 0), s->x_stride,
            is_there ? rows_left(tile->row_end, tile->row) : 0);
    }
#pragma unroll
    for (uint32_t i = 0; i < PARTS; i++, to += EACH * ROW_BYTES) {
        const uint32_t n = rows_left(s->w_rows, tile->out);
        const uint32_t matrix = i ? tile->matrix_2 : tile->matrix;
        const unsigned char *w = s->w[i] + (size_t)matrix * MATRIX_STEP +
                                 (n ? tile->out : 0) * s->w_stride +
                                 block * ROW_BYTES;

        copy_rows<EACH, shape::N_THREAD, IS_F8 ? 2 : 8>(to, w, s->w_stride, n);
    }
}

/* ------------------------------------------------------------ multiplying */

/* First row of weights in a stage of a warp's tile j of 8 outputs: for swiglu
 * the first half of them are the gate's, the others those of up. */
template <int N, int WIDE, enum product_end END>
static __device__ __forceinline__ uint32_t w_row(uint32_t warp, uint32_t j)
{
    if (END != PRODUCT_SWIGLU)
        return warp * WIDE + j * 8;
    return (j < WIDE / 16 ? 0 : N / 2) + warp * (WIDE / 2) +
           j % (WIDE / 16) * 8;
}

template <int M>
static __device__ __forceinline__ void load_x(uint32_t a[M][4], uint32_t x,
                                              uint32_t k)
{
    const uint32_t lane = threadIdx.x % 32, r = lane % 16;

#pragma unroll
    for (uint32_t m = 0; m < M; m++)
        load_matrices(a[m], x + (m * 16 + r) * ROW_BYTES +
                                ((2 * k + lane / 16) ^ r % 8) * 16);
}

template <int N, int M, int WIDE, enum product_end END>
static __device__ __forceinline__ void
multiply(float acc[M][WIDE / 2], uint32_t x, uint32_t w, uint32_t warp)
{
    const uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (uint32_t k = 0; k < TILE_K / 16; k++) {
        uint32_t a[M][4];

        load_x<M>(a, x, k);
#pragma unroll
        for (uint32_t j = 0; j < WIDE / 8; j += 2) {
            const uint32_t at = lane / 16 ? w_row<N, WIDE, END>(warp, j + 1)
                                          : w_row<N, WIDE, END>(warp, j);
            uint32_t b[4];

            load_matrices(b, w + (at + lane % 8) * ROW_BYTES +
                                 ((2 * k + lane / 8 % 2) ^ lane % 8) * 16);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                mma(acc[m] + 4 * j, a[m], b[0], b[1]);
                mma(acc[m] + 4 * j + 4, a[m], b[2], b[3]);
            }
        }
    }
}

/* sum = a block of 128 inputs, half by half. */
template <int ROWS, int N, int M, int WIDE, enum product_end END>
static __device__ __forceinline__ void
multiply_f8(float sum[M][WIDE / 2], uint32_t x, const unsigned char *w,
            uint32_t warp)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        uint4 q[WIDE / 8];

#pragma unroll
        for (uint32_t j = 0; j < WIDE / 8; j++)
            q[j] = *(const uint4 *)(w +
                                    (w_row<N, WIDE, END>(warp, j) + g) *
                                        ROW_BYTES +
                                    ((half * 4 + t) ^ g % 2 * 4) * 16);
#pragma unroll
        for (uint32_t k = 0; k < TILE_K / 16; k++) {
            uint32_t a[M][4];

            load_x<M>(a, x + half * ROWS * ROW_BYTES, k);
#pragma unroll
            for (uint32_t j = 0; j < WIDE / 8; j++) {
                const uint32_t word = k == 0   ? q[j].x
                                      : k == 1 ? q[j].y
                                      : k == 2 ? q[j].z
                                               : q[j].w;
#pragma unroll
                for (uint32_t m = 0; m < M; m++)
                    mma(sum[m] + 4 * j, a[m], f8_first(word), f8_last(word));
            }
        }
    }
}

/* The block's sum joins, times its scale. */
template <int M, int WIDE, enum product_end END>
static __device__ __forceinline__ void
add_f8(float acc[M][WIDE / 2], const float sum[M][WIDE / 2],
       const struct sm80_product *s, const struct product_tile *tile,
       uint32_t block)
{
    const uint32_t at = tile->out / F8_BLOCK * s->p.n_block + block;
    float scale[2];

#pragma unroll
    for (uint32_t i = 0; i < 2; i++)
        scale[i] = __ldg((const float *)(s->w[END == PRODUCT_SWIGLU ? i : 0] +
                                         (size_t)tile->matrix * MATRIX_STEP +
                                         s->scales_at) +
                         at);
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t i = 0; i < WIDE / 2; i++)
            acc[m][i] = __fmaf_rn(sum[m][i], scale[i >= WIDE / 4], acc[m][i]);
}

/* ----------------------------------------------------------------- kernel */

template <int M, int WIDE, enum product_end END>
static __device__ __forceinline__ void
put(const struct product *p, struct product_tile tile, uint32_t row,
    uint32_t warp, const float acc[M][WIDE / 2])
{
    tile.out += warp * (END == PRODUCT_SWIGLU ? WIDE / 2 : WIDE);
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t r = row + m * 16 + half * 8;
            const float *a = acc[m] + half * 2;

            if (END == PRODUCT_SWIGLU)
                product_put_swiglu<WIDE>(p, &tile, r, a);
            else if (p->is_even)
                product_put_row<WIDE, END>(p, &tile, r, a);
            else
                product_put_odd_row<WIDE, END>(p, &tile, r, a);
        }
}

template <int ROWS, int N, bool IS_F8, enum product_end END>
static __device__ __forceinline__ void
multiply_tile(const struct sm80_product *s, const struct product_tile *tile,
              unsigned char *shared)
{
    typedef sm80<ROWS, N, IS_F8> shape;
    const int M = shape::M, WIDE = shape::WIDE, N_STAGE = shape::N_STAGE;
    const uint32_t by_row = threadIdx.x / 32 / shape::N_OUT;
    const uint32_t warp = threadIdx.x / 32 % shape::N_OUT;
    const uint32_t base = shared_address(shared), n_block = s->p.n_block;
    float acc[M][WIDE / 2] = {};

#pragma unroll
    for (int i = 0; i < N_STAGE - 1; i++) {
        if (i < n_block)
            copy_stage<ROWS, N, IS_F8, END>(s, tile, base + i * shape::STAGE,
                                            i);
        cp_async_commit();
    }
    for (uint32_t block = 0; block < n_block; block++) {
        const uint32_t next = block + N_STAGE - 1;
        const uint32_t stage = block % N_STAGE * shape::STAGE;
        const uint32_t x = base + stage + by_row * M * 16 * ROW_BYTES;
        const uint32_t w_at = stage + shape::X_TILES * ROWS * ROW_BYTES;

        cp_async_wait<N_STAGE - 2>();
        __syncthreads(); /* it has come, and the one before is done with */
        if (next < n_block)
            copy_stage<ROWS, N, IS_F8, END>(
                s, tile, base + next % N_STAGE * shape::STAGE, next);
        cp_async_commit();
        if (IS_F8) {
            float sum[M][WIDE / 2] = {};

            multiply_f8<ROWS, N, M, WIDE, END>(sum, x, shared + w_at, warp);
            add_f8<M, WIDE, END>(acc, sum, s, tile, block);
        } else {
            multiply<N, M, WIDE, END>(acc, x, base + w_at, warp);
        }
    }
    put<M, WIDE, END>(&s->p, *tile,
                      tile->row + by_row * M * 16 + threadIdx.x % 32 / 4, warp,
                      acc);
}

template <int ROWS, int N, bool IS_F8, enum product_end END>
static __global__ void __launch_bounds__(sm80<ROWS, N, IS_F8>::N_THREAD)
    sm80_kernel(const __grid_constant__ struct sm80_product s)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    const struct product_list list = product_list(&s.p);

    if (blockIdx.x >= list.n * s.p.n_n)
        return;
    const int GROUPS = ROWS / 64 ? ROWS / 64 : 1;
    const struct product_tile tile =
        product_tile_of<GROUPS, N, 1, 1, END>(&s.p, &list, blockIdx.x, 0);
    multiply_tile<ROWS, N, IS_F8, END>(&s, &tile, shared);
}

/* ------------------------------------------------------------------- host */

static const struct product_shape THIN = {0, 16, 1, 1}, FLAT = {0, 64, 1, 1},
                                  SMALL = {1, 64, 1, 1}, LARGE = {2, 128, 1, 1};

const struct product_shape *sm80_shapes(bool is_f8, size_t *out_n)
{
    static const struct product_shape ALL[] = {THIN, FLAT, SMALL, LARGE};

    *out_n = is_f8 ? 2 : 4;
    return is_f8 ? ALL + 2 : ALL;
}

bool sm80_fits(const struct product_job *job, struct product_shape shape)
{
    if (job->is_placed || job->places.first)
        return false;
    return shape.n_group ||
           (!job->is_f8 && (job->n_expert || job->n_row <= FEW_ROWS));
}

/* Few rows want all SMs to read weights; many want large tiles, if these are
 * enough for all SMs. */
struct product_shape sm80_shape_of(const struct product_job *job, uint32_t n_sm)
{
    const uint32_t n_each =
        job->n_expert ? div_up(job->n_row, job->n_expert) : job->n_row;
    const uint32_t n_out =
        job->end == PRODUCT_SWIGLU ? 2 * job->n_out : job->n_out;
    const uint32_t n_part = job->n_expert ? job->n_expert : 1;

    if (job->is_placed)
        return f8_few_choose(job);
    if (n_each <= FEW_ROWS && !job->is_f8)
        return n_part * div_up(n_out, 64) < 2 * n_sm ? THIN : FLAT;
    if (n_each <= GROUP_ROWS ||
        n_part * div_up(n_each, 128) * div_up(n_out, 128) < n_sm)
        return SMALL;
    return LARGE;
}

static struct sm80_product parameters(const struct product_job *job,
                                      struct product_shape shape)
{
    struct sm80_product s = {};

    s.p = product_fields(job, shape);
    s.x = (const unsigned char *)job->x.at;
    s.x_stride = job->x.stride * sizeof(uint16_t);
    s.x_bytes = (uint32_t)(linear_padded(job->n_in) * sizeof(uint16_t));
    s.w[0] = (const unsigned char *)job->w[0].at;
    s.w[1] = (const unsigned char *)job->w[1].at;
    s.w_stride = job->w[0].stride * (job->is_f8 ? 1 : sizeof(uint16_t));
    s.w_rows = (uint32_t)job->w[0].n_row;
    s.scales_at = job->scales_at;
    return s;
}

template <int ROWS, int N, bool IS_F8, enum product_end END>
static void launch_as(struct gpu *gpu, const struct sm80_product *s,
                      uint32_t n_tile)
{
    typedef sm80<ROWS, N, IS_F8> shape;
    const int bytes = shape::N_STAGE * shape::STAGE;

    static_assert(bytes <= WAY_SHARED_LEAST, "on every GPU");

    launch_allow(sm80_kernel<ROWS, N, IS_F8, END>, bytes);
    sm80_kernel<ROWS, N, IS_F8, END>
        <<<n_tile, shape::N_THREAD, bytes, gpu_stream(gpu)>>>(*s);
}

template <int ROWS, int N, bool IS_F8>
static void launch_end(struct gpu *gpu, const struct product_job *job,
                       const struct sm80_product *s, uint32_t n_tile)
{
    if (job->end == PRODUCT_STORE)
        launch_as<ROWS, N, IS_F8, PRODUCT_STORE>(gpu, s, n_tile);
    else if (job->end == PRODUCT_ADD)
        launch_as<ROWS, N, IS_F8, PRODUCT_ADD>(gpu, s, n_tile);
    else
        launch_as<ROWS, N, IS_F8, PRODUCT_SWIGLU>(gpu, s, n_tile);
}

void sm80_launch(struct gpu *gpu, const struct product_job *job,
                 struct product_shape shape)
{
    if (job->is_placed) {
        f8_few_launch(gpu, job, shape);
        return;
    }
    assert(sm80_fits(job, shape));
    const struct sm80_product s = parameters(job, shape);
    const uint32_t n_tile = product_rows_max(job, shape) * s.p.n_n;

    if (shape.n_group == 2 && job->is_f8)
        launch_end<128, 128, true>(gpu, job, &s, n_tile);
    else if (shape.n_group == 2)
        launch_end<128, 128, false>(gpu, job, &s, n_tile);
    else if (shape.n_group == 1 && job->is_f8)
        launch_end<64, 64, true>(gpu, job, &s, n_tile);
    else if (shape.n_group == 1)
        launch_end<64, 64, false>(gpu, job, &s, n_tile);
    else if (shape.n == 64)
        launch_end<16, 64, false>(gpu, job, &s, n_tile);
    else
        launch_end<16, 16, false>(gpu, job, &s, n_tile);
}
