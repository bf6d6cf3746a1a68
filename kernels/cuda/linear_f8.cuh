#ifndef KERNELS_CUDA_LINEAR_F8_CUH
#define KERNELS_CUDA_LINEAR_F8_CUH
/*
 * y = x W^T with weights of kernels/linear_f8.h: as linear_product.cuh, whose
 * tiles, ring and results it has, but a stage comes as BOX times [x: two tiles
 * of 64 inputs][q: N rows of 128 bytes], and the warpgroups first widen q to
 * bf16 (exact) in one of two buffers. While the tensor cores multiply one, the
 * next one is widened. A block of 128 inputs is a sum of its own from zero,
 * which goes into the result by one fma with the block's scale. The BOX sums of
 * a stage take steps in turn: a step need not wait for the one before it.
 */
#include "kernels/cuda/linear_product.cuh"

#define F8_BLOCK 128u
#define F8_TILES (F8_BLOCK / TILE_K) /* tiles of x in a stage */

struct f8_product {
    struct product p; /* n_block counts blocks of F8_BLOCK inputs */
    const unsigned char *w[2];
    size_t scales_at; /* from a matrix of w to its scales */
};

/* Four e4m3, of which `half` has two in the high bytes of its halves, to bf16:
 * exponent and mantissa to their places, then the exponents' biases apart. */
static __device__ __forceinline__ uint32_t f8_widen_pair(uint32_t half)
{
    const uint32_t bits = (half >> 4 & 0x07f007f0) | (half & 0x80008000);
    uint32_t pair;

    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(bits), "r"(0x7b807b80));
    return pair;
}

static __device__ __forceinline__ uint4 f8_widen(uint32_t a, uint32_t b)
{
    return make_uint4(f8_widen_pair(__byte_perm(a, 0, 0x1404)),
                      f8_widen_pair(__byte_perm(a, 0, 0x3424)),
                      f8_widen_pair(__byte_perm(b, 0, 0x1404)),
                      f8_widen_pair(__byte_perm(b, 0, 0x3424)));
}

/*
 * N rows of q into two tiles of 64 columns, swizzled as the copy engine does
 * it: 16 bytes number c of row r lie at c ^ r % 8. The upper half of the lanes
 * of a row writes its two pieces the other way round, so that the banks differ.
 */
template <int N>
static __device__ __forceinline__ void f8_widen_piece(unsigned char *to,
                                                      uint32_t i, uint4 v)
{
    const uint32_t row = i / 8, piece = i % 8, first = piece / 4;
    const uint4 low = f8_widen(v.x, v.y), high = f8_widen(v.z, v.w);
    unsigned char *at = to + (first * N + row) * TILE_ROW_BYTES;
    const uint32_t slot = (piece % 4 * 2 + first) ^ row % 8;

    *(uint4 *)(at + slot * 16) = first ? high : low;
    *(uint4 *)(at + (slot ^ 1) * 16) = first ? low : high;
}

/* The q of a stage, box_bytes apart. Four loads at a time are under way. */
template <int GROUPS, int N, int BOX>
static __device__ __forceinline__ void
f8_widen_stage(unsigned char *to, const unsigned char *q, uint32_t box_bytes)
{
    const int EACH = N * 8, THREADS = GROUPS * GROUP_THREADS;

#pragma unroll
    for (int first = 0; first < BOX * EACH; first += 4 * THREADS) {
        uint4 v[4];

#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t i = first + k * THREADS + threadIdx.x;

            if (first + k * THREADS < BOX * EACH)
                v[k] =
                    *(const uint4 *)(q + i / EACH * box_bytes + i % EACH * 16);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t i = first + k * THREADS + threadIdx.x;

            if (first + k * THREADS < BOX * EACH)
                f8_widen_piece<N>(to + i / EACH * N * F8_BLOCK * 2, i % EACH,
                                  v[k]);
        }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* All warpgroups that multiply. */
template <int GROUPS> static __device__ __forceinline__ void f8_sync(void)
{
    asm volatile("barrier.sync 1, %0;" ::"n"(GROUPS * GROUP_THREADS)
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

            copy_box(stage->at + b * f8_box_bytes<N>(p) + row * TILE_ROW_BYTES,
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

        copy_box(stage->at + i / F8_TILES * f8_box_bytes<N>(p) +
                     row * TILE_ROW_BYTES,
                 &p->x, at, stage->full, KEEP_NORMALLY);
    }
}

template <int GROUPS, int N, int BOX, enum product_end END>
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
            product_tile<GROUPS, N, 1, END>(p, blockIdx.x, 0);
        const struct product_stage stage = {shared + STAGE_AT + s * stage_bytes,
                                            &full[s], s * BOX};

        barrier_expect(stage.full, stage_bytes);
        f8_copy_w<N, BOX, END>(p, &tile, &stage);
    }
    previous_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = blockIdx.x; i < n_tile; i += gridDim.x) {
        const struct product_tile tile =
            product_tile<GROUPS, N, 1, END>(p, i, 0);

        for (uint32_t s = 0; s < n_step; s++) {
            const struct product_stage stage = {shared + STAGE_AT +
                                                    ring.stage * stage_bytes,
                                                &full[ring.stage], s * BOX};

            if (n_early) {
                n_early--;
            } else {
                barrier_wait(&empty[ring.stage], ring.parity ^ 1);
                barrier_expect(stage.full, stage_bytes);
                f8_copy_w<N, BOX, END>(p, &tile, &stage);
            }
            f8_copy_x<N, BOX>(p, &tile, &stage);
            product_advance(&ring, p->n_stage);
        }
    }
}

/* ------------------------------------------------------------ multiplying */

/* Where a warpgroup is. */
struct f8_place {
    unsigned char *shared;
    unsigned char *buffer; /* the first of two, of a stage's weights as bf16 */
    uint32_t box_bytes, x_tile_bytes;
    struct product_ring ring; /* of the stage to be widened next */
    uint32_t n_widened;
};

template <int GROUPS, int N, int BOX>
static __device__ __forceinline__ void f8_widen_next(const struct product *p,
                                                     struct f8_place *at)
{
    uint64_t *full = (uint64_t *)at->shared;

    barrier_wait(&full[at->ring.stage], at->ring.parity);
    f8_widen_stage<GROUPS, N, BOX>(
        at->buffer + at->n_widened % 2 * BOX * N * F8_BLOCK * 2,
        at->shared + STAGE_AT + at->ring.stage * BOX * at->box_bytes +
            F8_TILES * at->x_tile_bytes,
        at->box_bytes);
    at->n_widened++;
    product_advance(&at->ring, p->n_stage);
}

/* sum = x times the blocks widened last, of a stage. */
template <int N, int BOX>
static __device__ __forceinline__ void
f8_multiply(float sum[BOX][N / 2], const struct f8_place *at, uint32_t stage)
{
    const uint32_t x =
        shared_address(at->shared) + STAGE_AT + stage * BOX * at->box_bytes +
        threadIdx.x / GROUP_THREADS * GROUP_ROWS * TILE_ROW_BYTES;
    const uint32_t w = shared_address(at->buffer) +
                       (at->n_widened - 1) % 2 * BOX * N * F8_BLOCK * 2;

    product_begin();
#pragma unroll
    for (uint32_t k = 0; k < F8_BLOCK / 16; k++)
#pragma unroll
        for (uint32_t b = 0; b < BOX; b++) {
            const uint32_t tile = k / (TILE_K / 16), step = k % (TILE_K / 16);
            const uint64_t x_at = tile_descriptor(x + b * at->box_bytes +
                                                  tile * at->x_tile_bytes);
            const uint64_t w_at =
                tile_descriptor(w + (b * F8_TILES + tile) * N * TILE_ROW_BYTES);

            product_step<N>(sum[b], x_at + step * TILE_STEP,
                            w_at + step * TILE_STEP, k > 0);
        }
    product_commit();
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

/* One tile. Its first stage is widened already; so is the next tile's first one
 * when this returns, if there is one. */
template <int GROUPS, int N, int BOX, enum product_end END>
static __device__ __forceinline__ void
f8_consume_tile(const struct f8_product *f, const struct product_tile *tile,
                struct f8_place *at, bool is_last, float *acc)
{
    uint64_t *empty = (uint64_t *)at->shared + STAGE_MAX;
    float sum[BOX][N / 2], scale[BOX][2];

#pragma unroll
    for (int i = 0; i < N / 2; i++)
        acc[i] = 0.0f;
    for (uint32_t block = 0; block < f->p.n_block; block += BOX) {
        const uint32_t stage =
            (at->ring.stage ? at->ring.stage : f->p.n_stage) - 1;

        f8_multiply<N, BOX>(sum, at, stage);
        f8_scales<BOX, END>(f, tile, block, scale);
        if (block + BOX < f->p.n_block || !is_last)
            f8_widen_next<GROUPS, N, BOX>(&f->p, at);
        product_wait<0>();
        product_release<1>(&empty[stage]);
#pragma unroll
        for (int b = 0; b < BOX; b++) {
            product_pin<N / 2>(sum[b]);
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                acc[i] = __fmaf_rn(sum[b][i], scale[b][i >= N / 4], acc[i]);
        }
        f8_sync<GROUPS>();
    }
}

template <int GROUPS, int N, int BOX, enum product_end END>
static __device__ __forceinline__ void f8_consume(const struct f8_product *f,
                                                  unsigned char *shared)
{
    const struct product *p = &f->p;
    struct f8_place at;
    float acc[N / 2];

    at.shared = shared;
    at.box_bytes = f8_box_bytes<N>(p);
    at.x_tile_bytes = p->x_rows * TILE_ROW_BYTES;
    at.buffer = shared + STAGE_AT + p->n_stage * BOX * at.box_bytes;
    at.ring.stage = at.ring.parity = at.n_widened = 0;
    previous_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    if (blockIdx.x >= n_tile)
        return;
    f8_widen_next<GROUPS, N, BOX>(p, &at);
    f8_sync<GROUPS>();
    for (uint32_t i = blockIdx.x; i < n_tile; i += gridDim.x) {
        const struct product_tile tile =
            product_tile<GROUPS, N, 1, END>(p, i, 0);

        f8_consume_tile<GROUPS, N, BOX, END>(f, &tile, &at,
                                             i + gridDim.x >= n_tile, acc);
        product_finish<N, END>(p, &tile, acc);
    }
}

template <int GROUPS, int N, int BOX, enum product_end END>
static __global__ void __launch_bounds__(PRODUCT_THREADS(GROUPS), 1)
    f8_kernel(const __grid_constant__ struct f8_product f)
{
    extern __shared__ __align__(1024) unsigned char shared[];

    next_begin();
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;

        for (uint32_t s = 0; s < f.p.n_stage; s++) {
            barrier_init(&full[s], 1);
            barrier_init(&empty[s], GROUPS);
        }
        barrier_publish();
    }
    __syncthreads();
    if (threadIdx.x >= GROUPS * GROUP_THREADS) {
        if (GROUPS > 1)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == GROUPS * GROUP_THREADS)
            f8_produce<GROUPS, N, BOX, END>(&f.p, shared);
        __syncwarp();
    } else {
        if (GROUPS > 1)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        f8_consume<GROUPS, N, BOX, END>(&f, shared);
    }
}
#endif
