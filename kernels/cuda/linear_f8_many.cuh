#ifndef KERNELS_CUDA_LINEAR_F8_MANY_CUH
#define KERNELS_CUDA_LINEAR_F8_MANY_CUH
/*
 * y = x W^T with weights of kernels/linear_f8.h for many rows, the bits of
 * linear_f8.cuh. Weights are the left side of wgmma, from registers: a thread
 * widens the words that it multiplies by, and none of them goes back to shared
 * memory. So a tile's outputs are the instruction's rows and its rows the
 * instruction's columns.
 *
 * A tile is as many rows as outputs, 64 for each of two warpgroups. A stage is
 * a block of 128 inputs, [x: two tiles of 64 inputs][q: a row of 128 bytes for
 * each output]. A block is a sum of its own from zero, which goes into the
 * result by one fma with the block's scale; one warpgroup may widen and add
 * while the other one multiplies.
 *
 * A cluster of X_BY CTAs works on neighbouring outputs of the same rows; each
 * copies one of the two tiles of x to both.
 *
 * Bound: the operations. Of 128 bytes a cycle that shared memory has, x takes
 * 64, twice, as each warpgroup reads it, in half the time each.
 */
#include "kernels/cuda/linear_f8.cuh"

#define F8_MANY_GROUPS 2
#define F8_MANY 128 /* outputs and rows of a tile */
#define F8_MANY_THREADS ((F8_MANY_GROUPS + 1) * GROUP_THREADS)
#define F8_STEPS (F8_BLOCK / 16) /* of a block */

/* For swiglu a warpgroup has sums of the gate and the other one those of up;
 * each gives the other half of them, through this. */
#define F8_MANY_EXCHANGE (F8_MANY_GROUPS * 32u * GROUP_THREADS * 4u)

/* ---------------------------------------------------------------- copying */

template <int X_BY>
static __device__ __forceinline__ void
f8_many_copy_x(const struct product *p, const struct product_tile *tile,
               const struct product_stage *stage, uint32_t rank)
{
    for (uint32_t i = 0; i < F8_TILES; i++) {
        const struct box_at at = {
            (int32_t)(stage->block * F8_BLOCK + i * TILE_K), (int32_t)tile->row,
            0};
        unsigned char *to = stage->at + i * p->x_rows * TILE_ROW_BYTES;

        if (X_BY == 1)
            tensor_copy_3d(to, &p->x, at, stage->full, KEEP_NORMALLY);
        else if (i == rank)
            tensor_copy_3d_multicast(to, &p->x, at, stage->full,
                                     (1u << X_BY) - 1, KEEP_NORMALLY);
    }
}

template <int X_BY, enum product_end END>
static __device__ __forceinline__ void
f8_many_produce(const struct product *p, unsigned char *shared, uint32_t rank)
{
    const int GROUPS = F8_MANY_GROUPS, N = F8_MANY;
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = f8_box_bytes<N>(p);
    const uint32_t first = blockIdx.x / X_BY, by = gridDim.x / X_BY;
    uint32_t n_early = p->n_block < p->n_stage ? p->n_block : p->n_stage;
    struct product_ring ring = {0, 0};

    n_early = p->rows ? 0 : n_early;
    for (uint32_t s = 0; s < n_early; s++) {
        const struct product_tile tile =
            product_tile<GROUPS, N, X_BY, 1, END>(p, first, rank);
        const struct product_stage stage = {shared + STAGE_AT + s * stage_bytes,
                                            &full[s], s};

        mbarrier_expect(stage.full, stage_bytes);
        f8_copy_w<N, 1, END>(p, &tile, &stage);
    }
    launch_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = first; i < n_tile; i += by) {
        const struct product_tile tile =
            product_tile<GROUPS, N, X_BY, 1, END>(p, i, rank);

        for (uint32_t s = 0; s < p->n_block; s++) {
            const struct product_stage stage = {shared + STAGE_AT +
                                                    ring.stage * stage_bytes,
                                                &full[ring.stage], s};

            if (n_early) {
                n_early--;
            } else {
                mbarrier_wait_or_trap(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_expect(stage.full, stage_bytes);
                f8_copy_w<N, 1, END>(p, &tile, &stage);
            }
            f8_many_copy_x<X_BY>(p, &tile, &stage, rank);
            product_advance(&ring, p->n_stage);
        }
    }
    /* Nobody leaves while others still report to its barriers. */
    for (uint32_t s = 0; X_BY > 1 && s < p->n_stage; s++) {
        mbarrier_wait_or_trap(&empty[ring.stage], ring.parity ^ 1);
        product_advance(&ring, p->n_stage);
    }
}

/* ------------------------------------------------------------ multiplying */

/*
 * A thread's left sides of the steps of a block: rows r and r + 8 of 16. The
 * two halves of an odd row are loaded the other way round, so that no eight
 * lanes meet in a bank.
 */
static __device__ __forceinline__ void f8_left(uint32_t a[F8_STEPS][4],
                                               const unsigned char *q)
{
    const uint32_t row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const uint32_t odd = row % 2;
    const unsigned char *at = q + row * F8_BLOCK + threadIdx.x % 4 * 16;

#pragma unroll
    for (uint32_t low = 0; low < 2; low++) {
        const unsigned char *here = at + low * 8 * F8_BLOCK;
        const uint4 u = *(const uint4 *)(here + odd * 64);
        const uint4 v = *(const uint4 *)(here + (odd ^ 1) * 64);
        const uint4 first = odd ? v : u, last = odd ? u : v;
        const uint32_t word[F8_STEPS] = {first.x, first.y, first.z, first.w,
                                         last.x,  last.y,  last.z,  last.w};

#pragma unroll
        for (uint32_t s = 0; s < F8_STEPS; s++) {
            a[s][low] = f8_first(word[s]);
            a[s][2 + low] = f8_last(word[s]);
        }
    }
}

/* sum = one block. */
template <int N>
static __device__ __forceinline__ void
f8_many_multiply(float *sum, const uint32_t a[F8_STEPS][4], uint32_t x,
                 uint32_t x_tile_bytes)
{
    const uint64_t b[F8_TILES] = {wgmma_descriptor(x),
                                  wgmma_descriptor(x + x_tile_bytes)};

    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < F8_STEPS; k++)
        wgmma_rs<N>(sum, a[k],
                    b[k / (TILE_K / 16)] + k % (TILE_K / 16) * WGMMA_STEP,
                    k > 0);
    wgmma_commit();
}

/* ---------------------------------------------------------------- results */

/* Element i of a thread's results, in its warpgroup's outputs. */
static __device__ __forceinline__ uint32_t f8_many_out(int i)
{
    return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + i % 4 / 2 * 8;
}

static __device__ __forceinline__ uint32_t f8_many_row(int i)
{
    return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
}

template <int N, enum product_end END>
static __device__ __forceinline__ void
f8_many_finish(const struct product *p, const struct product_tile *tile,
               const float *acc)
{
    const uint32_t first = tile->out + threadIdx.x / GROUP_THREADS * 64;

#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const uint32_t out = first + f8_many_out(i);
        const uint32_t row = tile->row + f8_many_row(i);

        if (row < tile->row_end && out < p->n_out)
            product_put<END>((float *)p->y + row * p->y_stride + out, acc[i]);
    }
}

/* Two outputs of a row at a time: of neighbouring outputs the even one's thread
 * writes both of the first row, the odd one's both of the second. */
static __device__ __forceinline__ void
f8_many_put_pair(const struct product *p, const struct product_tile *tile,
                 int i, const float *gate, const float *up)
{
    const bool is_odd = threadIdx.x / 4 % 2;
    const bool is_plain = silu_is_plain(gate[0]) && silu_is_plain(gate[1]);
    const float a =
        (is_plain ? silu_plain(gate[0]) : scalar_silu(gate[0])) * up[0];
    const float b =
        (is_plain ? silu_plain(gate[1]) : scalar_silu(gate[1])) * up[1];
    const float other = __shfl_xor_sync(0xffffffff, is_odd ? a : b, 4);
    const uint32_t pair = is_odd ? round_pair(other, b) : round_pair(a, other);
    const uint32_t out = tile->out + f8_many_out(i) - is_odd;
    const uint32_t row = tile->row + f8_many_row(i) + is_odd;

    if (row < tile->row_end && out < p->n_out)
        *(uint32_t *)((uint16_t *)p->y + row * p->y_stride + out) = pair;
}

/* Warpgroup 0 has the gate's sums and takes the first half of the rows. */
static __device__ __forceinline__ void
f8_many_finish_swiglu(const struct product *p, const struct product_tile *tile,
                      float *acc, float *exchange)
{
    const uint32_t group = threadIdx.x / GROUP_THREADS;
    const uint32_t thread = threadIdx.x % GROUP_THREADS;

#pragma unroll
    for (int i = 0; i < 32; i++)
        exchange[(group * 32 + i) * GROUP_THREADS + thread] =
            group ? acc[i] : acc[32 + i];
    asm volatile("barrier.sync 1, %0;" ::"n"(2 * GROUP_THREADS) : "memory");
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
        const float *there =
            exchange + ((group ^ 1) * 32 + i) * GROUP_THREADS + thread;
        const float other[2] = {there[0], there[GROUP_THREADS]};
        const float mine[2] = {group ? acc[32 + i] : acc[i],
                               group ? acc[33 + i] : acc[i + 1]};

        f8_many_put_pair(p, tile, (int)group * 32 + i, group ? other : mine,
                         group ? mine : other);
    }
    asm volatile("barrier.sync 1, %0;" ::"n"(2 * GROUP_THREADS) : "memory");
}

/* A warpgroup's scale of a block. */
template <enum product_end END>
static __device__ __forceinline__ const float *
f8_many_scales(const struct f8_product *f, const struct product_tile *tile)
{
    const uint32_t group = threadIdx.x / GROUP_THREADS;
    const size_t at = (size_t)tile->matrix * MATRIX_STEP + f->scales_at;
    const unsigned char *w = END == PRODUCT_SWIGLU && group ? f->w[1] : f->w[0];

    return (const float *)(w + at) +
           (size_t)(tile->out / F8_BLOCK) * f->p.n_block;
}

template <int X_BY, enum product_end END>
static __device__ __forceinline__ void
f8_many_consume(const struct f8_product *f, unsigned char *shared,
                uint32_t rank)
{
    const int GROUPS = F8_MANY_GROUPS, N = F8_MANY;
    const struct product *p = &f->p;
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = f8_box_bytes<N>(p);
    const uint32_t x_tile_bytes = p->x_rows * TILE_ROW_BYTES;
    const uint32_t q_at =
        F8_TILES * x_tile_bytes + threadIdx.x / GROUP_THREADS * 64 * F8_BLOCK;
    const uint32_t by = gridDim.x / X_BY;
    struct product_ring ring = {0, 0};
    float acc[N / 2];

    launch_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = blockIdx.x / X_BY; i < n_tile; i += by) {
        const struct product_tile tile =
            product_tile<GROUPS, N, X_BY, 1, END>(p, i, rank);
        const float *scales = f8_many_scales<END>(f, &tile);

#pragma unroll
        for (int k = 0; k < N / 2; k++)
            acc[k] = 0.0f;
        for (uint32_t block = 0; block < p->n_block; block++) {
            unsigned char *stage = shared + STAGE_AT + ring.stage * stage_bytes;
            const float scale = __ldg(scales + block);
            uint32_t a[F8_STEPS][4];
            float sum[N / 2];

            mbarrier_wait_or_trap(&full[ring.stage], ring.parity);
            f8_left(a, stage + q_at);
            f8_many_multiply<N>(sum, a, shared_address(stage), x_tile_bytes);
            wgmma_wait<0>();
            wgmma_pin<N / 2>(sum);
            product_release<X_BY>(&empty[ring.stage]);
#pragma unroll
            for (int k = 0; k < N / 2; k++)
                acc[k] = __fmaf_rn(sum[k], scale, acc[k]);
            product_advance(&ring, p->n_stage);
        }
        if (END == PRODUCT_SWIGLU)
            f8_many_finish_swiglu(
                p, &tile, acc,
                (float *)(shared + STAGE_AT + p->n_stage * stage_bytes));
        else
            f8_many_finish<N, END>(p, &tile, acc);
    }
}

template <int X_BY, enum product_end END>
static __global__ void __launch_bounds__(F8_MANY_THREADS, 1)
    f8_many_kernel(const __grid_constant__ struct f8_product f)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t GROUPS = F8_MANY_GROUPS;
    const uint32_t rank = X_BY > 1 ? cluster_rank_now() : 0;

    launch_next();
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;

        for (uint32_t s = 0; s < f.p.n_stage; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], GROUPS * X_BY);
        }
        mbarrier_init_fence();
    }
    if (X_BY > 1)
        cluster_sync_relaxed();
    else
        __syncthreads();
    if (threadIdx.x < GROUPS * GROUP_THREADS) {
        registers_take<232>();
        f8_many_consume<X_BY, END>(&f, shared, rank);
    } else {
        registers_give<40>();
        if (threadIdx.x == GROUPS * GROUP_THREADS)
            f8_many_produce<X_BY, END>(&f.p, shared, rank);
        __syncwarp();
    }
}
#endif
