#ifndef KERNELS_CUDA_LINEAR_F8_CUH
#define KERNELS_CUDA_LINEAR_F8_CUH
/*
 * y = x W^T with weights of kernels/linear_f8.h: as linear_product.cuh, whose
 * tiles, ring and results it has, but a stage comes as BOX times [x: two tiles
 * of 64 inputs][q: N rows of 128 bytes]. Two warpgroups widen q to bf16 (exact)
 * in one of two buffers while another one multiplies 64 rows by what is in the
 * other buffer; then all meet at a barrier. Rows by the hundred are those of
 * linear_f8_many.cuh. A block of 128 inputs is a sum of
 * its own from zero, which goes into the result by one fma with the block's
 * scale. The BOX sums of a stage take steps in turn: a step need not wait for
 * the one before it.
 */
#include "kernels/cuda/linear_f8_word.cuh"
#include "kernels/cuda/linear_product.cuh"

#define F8_TILES (F8_BLOCK / TILE_K) /* tiles of x in a block */

/* Warpgroups: one that multiplies, those that widen, one that copies. */
#define F8_WIDENERS 2
#define F8_THREADS ((1 + F8_WIDENERS + 1) * GROUP_THREADS)

struct f8_product {
    struct product p; /* n_block counts blocks of F8_BLOCK inputs */
    const unsigned char *w[2];
    size_t scales_at; /* from a matrix of w to its scales */
};

/*
 * N rows of q into two tiles of 64 columns, swizzled as the copy engine does
 * it: 16 bytes number c of row r lie at c ^ r % 8. Piece i of 16 bytes: the 32
 * lanes of a warp have those of lane t = i % 4 of half of a block of 8 rows, so
 * that no two of them write to the same bank.
 */
static __device__ __forceinline__ uint32_t f8_piece_at(uint32_t i)
{
    return (i / 64 * 8 + i / 4 % 8) * F8_BLOCK + i / 32 % 2 * 64 + i % 4 * 16;
}

template <int N>
static __device__ __forceinline__ void f8_widen_piece(unsigned char *to,
                                                      uint32_t i, uint4 v)
{
    const uint32_t row = i / 64 * 8 + i / 4 % 8, half = i / 32 % 2, t = i % 4;
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
    unsigned char *at = to + (half * N + row) * TILE_ROW_BYTES + t * 4;

#pragma unroll
    for (uint32_t s = 0; s < 4; s++) {
        *(uint32_t *)(at + ((2 * s) ^ row % 8) * 16) = f8_first(word[s]);
        *(uint32_t *)(at + ((2 * s + 1) ^ row % 8) * 16) = f8_last(word[s]);
    }
}

/* The q of a stage, box_bytes apart. Four loads at a time are under way. */
template <int WIDENERS, int N, int BOX>
static __device__ __forceinline__ void
f8_widen_stage(unsigned char *to, const unsigned char *q, uint32_t box_bytes)
{
    const int EACH = N * 8, THREADS = WIDENERS * GROUP_THREADS;
    const uint32_t thread = threadIdx.x % THREADS;

#pragma unroll
    for (int first = 0; first < BOX * EACH; first += 4 * THREADS) {
        uint4 v[4];

#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t i = first + k * THREADS + thread;

            if (first + k * THREADS < BOX * EACH)
                v[k] = *(const uint4 *)(q + i / EACH * box_bytes +
                                        f8_piece_at(i % EACH));
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t i = first + k * THREADS + thread;

            if (first + k * THREADS < BOX * EACH)
                f8_widen_piece<N>(to + i / EACH * N * F8_BLOCK * 2, i % EACH,
                                  v[k]);
        }
    }
    bulk_fence();
}

/* All warpgroups but the one that copies. */
static __device__ __forceinline__ void f8_sync(void)
{
    asm volatile("barrier.sync 1, %0;" ::"n"((1 + F8_WIDENERS) * GROUP_THREADS)
                 : "memory");
}

/* Of one block in a stage. */
template <int N>
static __device__ __forceinline__ uint32_t f8_box_bytes(const struct product *p)
{
    return (F8_TILES * p->x_rows + N) * TILE_ROW_BYTES;
}

/* ---------------------------------------------------------------- copying */

template <int N, int BOX, enum product_end END>
static __device__ __forceinline__ void
f8_copy_w(const struct product *p, const struct product_tile *tile,
          const struct product_stage *stage)
{
    const uint32_t n_part = END == PRODUCT_SWIGLU ? 2 : 1;

    for (uint32_t b = 0; b < BOX; b++)
        for (uint32_t part = 0; part < n_part; part++) {
            const uint32_t row = F8_TILES * p->x_rows + part * (N / 2);
            const struct box_at at = {(int32_t)((stage->block + b) * F8_BLOCK),
                                      (int32_t)tile->out,
                                      (int32_t)tile->matrix};

            tensor_copy_3d(stage->at + b * f8_box_bytes<N>(p) +
                               row * TILE_ROW_BYTES,
                           &p->w[part], at, stage->full, KEEP_SHORTLY);
        }
}

template <int N, int BOX>
static __device__ __forceinline__ void
f8_copy_x(const struct product *p, const struct product_tile *tile,
          const struct product_stage *stage)
{
    for (uint32_t i = 0; i < BOX * F8_TILES; i++) {
        const uint32_t row = i % F8_TILES * p->x_rows;
        const struct box_at at = {
            (int32_t)(stage->block * F8_BLOCK + i * TILE_K), (int32_t)tile->row,
            0};

        tensor_copy_3d(stage->at + i / F8_TILES * f8_box_bytes<N>(p) +
                           row * TILE_ROW_BYTES,
                       &p->x, at, stage->full, KEEP_NORMALLY);
    }
}

template <int N, int BOX, enum product_end END>
static __device__ __forceinline__ void f8_produce(const struct product *p,
                                                  unsigned char *shared)
{
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = BOX * f8_box_bytes<N>(p);
    const uint32_t n_step = p->n_block / BOX;
    uint32_t n_early = n_step < p->n_stage ? n_step : p->n_stage;
    struct product_ring ring = {0, 0};

    n_early = p->rows ? 0 : n_early;
    for (uint32_t s = 0; s < n_early; s++) {
        const struct product_tile tile =
            product_tile<1, N, 1, 1, END>(p, blockIdx.x, 0);
        const struct product_stage stage = {shared + STAGE_AT + s * stage_bytes,
                                            &full[s], s * BOX};

        mbarrier_expect(stage.full, stage_bytes);
        f8_copy_w<N, BOX, END>(p, &tile, &stage);
    }
    launch_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = blockIdx.x; i < n_tile; i += gridDim.x) {
        const struct product_tile tile = product_tile<1, N, 1, 1, END>(p, i, 0);

        for (uint32_t s = 0; s < n_step; s++) {
            const struct product_stage stage = {shared + STAGE_AT +
                                                    ring.stage * stage_bytes,
                                                &full[ring.stage], s * BOX};

            if (n_early) {
                n_early--;
            } else {
                mbarrier_wait_or_trap(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_expect(stage.full, stage_bytes);
                f8_copy_w<N, BOX, END>(p, &tile, &stage);
            }
            f8_copy_x<N, BOX>(p, &tile, &stage);
            product_advance(&ring, p->n_stage);
        }
    }
}

/* --------------------------------------------------------------- widening */

template <int N, int BOX, enum product_end END>
static __device__ __forceinline__ void f8_widen_all(const struct product *p,
                                                    unsigned char *shared)
{
    uint64_t *full = (uint64_t *)shared;
    const uint32_t box_bytes = f8_box_bytes<N>(p);
    const uint32_t q_at = STAGE_AT + F8_TILES * p->x_rows * TILE_ROW_BYTES;
    unsigned char *buffer = shared + STAGE_AT + p->n_stage * BOX * box_bytes;
    struct product_ring ring = {0, 0};

    launch_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    const uint32_t n_step = p->n_block / BOX;
    uint32_t n_widened = 0;
    for (uint32_t i = blockIdx.x; i < n_tile; i += gridDim.x)
        for (uint32_t s = 0; s < n_step; s++) {
            mbarrier_wait_or_trap(&full[ring.stage], ring.parity);
            f8_widen_stage<F8_WIDENERS, N, BOX>(
                buffer + n_widened % 2 * BOX * N * F8_BLOCK * 2,
                shared + q_at + ring.stage * BOX * box_bytes, box_bytes);
            f8_sync();
            n_widened++;
            product_advance(&ring, p->n_stage);
        }
}

/* ------------------------------------------------------------ multiplying */

/* sum = x times the blocks of a stage, whose weights lie in a buffer. */
template <int N, int BOX>
static __device__ __forceinline__ void f8_multiply(float sum[BOX][N / 2],
                                                   const struct product *p,
                                                   uint32_t x, uint32_t w)
{
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < F8_BLOCK / 16; k++)
#pragma unroll
        for (uint32_t b = 0; b < BOX; b++) {
            const uint32_t tile = k / (TILE_K / 16), step = k % (TILE_K / 16);
            const uint64_t x_at = wgmma_descriptor(
                x + b * f8_box_bytes<N>(p) + tile * p->x_rows * TILE_ROW_BYTES);
            const uint64_t w_at = wgmma_descriptor(w + (b * F8_TILES + tile) *
                                                           N * TILE_ROW_BYTES);

            wgmma_ss<N>(sum[b], x_at + step * WGMMA_STEP,
                        w_at + step * WGMMA_STEP, k > 0);
        }
    wgmma_commit();
}

/* Of the blocks of a stage, for the gate and for up. */
template <int BOX, enum product_end END>
static __device__ __forceinline__ void
f8_scales(const struct f8_product *f, const struct product_tile *tile,
          uint32_t block, float scale[BOX][2])
{
    const size_t at = (size_t)tile->matrix * MATRIX_STEP + f->scales_at;
    const uint32_t first = tile->out / F8_BLOCK * f->p.n_block + block;

#pragma unroll
    for (int b = 0; b < BOX; b++) {
        scale[b][0] = __ldg((const float *)(f->w[0] + at) + first + b);
        scale[b][1] = END == PRODUCT_SWIGLU
                          ? __ldg((const float *)(f->w[1] + at) + first + b)
                          : scale[b][0];
    }
}

/* One stage: multiply it, then add its sums. */
template <int N, int BOX, enum product_end END>
static __device__ __forceinline__ void
f8_consume_stage(const struct f8_product *f, float *acc, uint32_t x, uint32_t w,
                 float scale[BOX][2])
{
    float sum[BOX][N / 2];

    f8_multiply<N, BOX>(sum, &f->p, x, w);
    wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < BOX; b++) {
        wgmma_pin<N / 2>(sum[b]);
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            acc[i] = __fmaf_rn(sum[b][i], scale[b][i >= N / 4], acc[i]);
    }
}

template <int N, int BOX, enum product_end END>
static __device__ __forceinline__ void f8_consume(const struct f8_product *f,
                                                  unsigned char *shared)
{
    const struct product *p = &f->p;
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = BOX * f8_box_bytes<N>(p);
    const uint32_t stages = shared_address(shared) + STAGE_AT;
    const uint32_t buffers = stages + p->n_stage * stage_bytes;
    struct product_ring ring = {0, 0};
    float acc[N / 2], scale[BOX][2];

    launch_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    uint32_t n_done = 0;
    for (uint32_t i = blockIdx.x; i < n_tile; i += gridDim.x) {
        const struct product_tile tile = product_tile<1, N, 1, 1, END>(p, i, 0);

#pragma unroll
        for (int k = 0; k < N / 2; k++)
            acc[k] = 0.0f;
        for (uint32_t block = 0; block < p->n_block; block += BOX) {
            f8_scales<BOX, END>(f, &tile, block, scale);
            f8_sync();
            mbarrier_wait_or_trap(&full[ring.stage],
                                  ring.parity); /* is over: for x */
            f8_consume_stage<N, BOX, END>(
                f, acc, stages + ring.stage * stage_bytes,
                buffers + n_done % 2 * BOX * N * F8_BLOCK * 2, scale);
            product_release<1>(&empty[ring.stage]);
            n_done++;
            product_advance(&ring, p->n_stage);
        }
        product_finish<N, END>(p, &tile, acc);
    }
}

/* At launch a thread has 128 registers; those that multiply get what the others
 * do not need. */
template <int N, int BOX, enum product_end END>
static __global__ void __launch_bounds__(F8_THREADS, 1)
    f8_kernel(const __grid_constant__ struct f8_product f)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t group = threadIdx.x / GROUP_THREADS;

    launch_next();
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;

        for (uint32_t s = 0; s < f.p.n_stage; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], 1);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (group == 0) {
        registers_take<184>();
        f8_consume<N, BOX, END>(&f, shared);
    } else if (group <= F8_WIDENERS) {
        registers_give<104>();
        f8_widen_all<N, BOX, END>(&f.p, shared);
    } else {
        registers_give<40>();
        if (threadIdx.x % GROUP_THREADS == 0)
            f8_produce<N, BOX, END>(&f.p, shared);
        __syncwarp();
    }
}
#endif
