#ifndef KERNELS_CUDA_LINEAR_PRODUCT_CUH
#define KERNELS_CUDA_LINEAR_PRODUCT_CUH
/*
 * y = x W^T of bf16 rows x and bf16 weights W by wgmma, for one row as for
 * thousands. Each output is one chain of k = 16 steps over the inner dimension,
 * ascending, from zero; tiles split rows and outputs only, so their shapes
 * never show in a bit.
 *
 * A CTA works on a tile of 64 GROUPS rows by N outputs: one warp issues copies
 * of tiles of 64 inputs into a ring of stages, GROUPS warpgroups multiply. A
 * stage holds BOX times [x: x_rows][weights: N] rows of 128 bytes. Where there
 * are fewer than 64 rows, fewer are copied (x_rows), and the instruction reads
 * whatever lies behind them: that goes into rows which nobody stores.
 *
 * A cluster of X_BY CTAs works on neighbouring tiles of outputs of the same
 * rows, which are copied to all of them at once. (Sharing weights among tiles
 * of rows in the same way gained nothing.)
 */
#include "kernels/cuda/linear_copy.cuh"
#include "kernels/cuda/linear_wgmma.cuh"
#include "kernels/cuda/scalar.cuh"

#include <stddef.h>

#define GROUP_ROWS 64u     /* rows of a warpgroup */
#define GROUP_THREADS 128u /* threads of a warpgroup */
#define STAGE_MAX 32u
#define STAGE_AT 1024u /* bytes: barriers lie before the stages */
/* Behind the last stage: what an instruction may read of rows not copied. */
#define STAGE_BEHIND (2 * GROUP_ROWS * TILE_ROW_BYTES)

/* Matrix number i of w lies this times i bytes behind the first one. */
#define MATRIX_STEP 256u

enum product_end {
    PRODUCT_STORE, /* float y */
    PRODUCT_ADD,   /* float y += */
    /* bf16 y = silu(gate) * up. The first half of a tile's outputs are those of
     * w[0], the gate, the second half the same ones of w[1]. */
    PRODUCT_SWIGLU
};

/* A tile's rows of x and y, all of one expert. */
struct product_rows {
    uint32_t expert;
    uint32_t first, end; /* end: of the expert's rows */
};

struct product {
    CUtensorMap x, w[2];
    void *y;
    size_t y_stride;
    uint32_t n_row, n_out; /* that are stored; n_out of y */
    uint32_t n_block;      /* of TILE_K inputs; a multiple of BOX */
    uint32_t n_stage;      /* of the ring */
    uint32_t x_rows;       /* that are copied for a tile */
    uint32_t n_m, n_n;     /* tiles of rows and of outputs, for clusters */
    uint32_t n_m_group;    /* neighbours in time: see product_tile() */
    bool is_even;          /* y may be written four floats at a time */
    /* Of experts: the tiles of rows, made on the device, and which matrix of w
     * is an expert's. Or NULL. */
    const struct product_rows *rows;
    const uint32_t *n_rows;
    const uint32_t *matrix; /* [n_expert] */
};

struct product_tile {
    uint32_t row, row_end; /* of x and y */
    uint32_t out;          /* first output */
    uint32_t matrix;       /* of w */
};

/* Two floats as bf16 in one word, as scalar_to_bf16(): subnormals are zeros. */
static __device__ __forceinline__ uint32_t round_pair(float low, float high)
{
    uint32_t pair;

    asm("{\n"
        ".reg .f32 low, high;\n"
        "mul.rn.ftz.f32 low, %1, 0f3f800000;\n"
        "mul.rn.ftz.f32 high, %2, 0f3f800000;\n"
        "cvt.rn.bf16x2.f32 %0, high, low;\n"
        "}"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
}

/* Where in the ring, and in which phase its barriers are. */
struct product_ring {
    uint32_t stage, parity;
};

static __device__ __forceinline__ void
product_advance(struct product_ring *ring, uint32_t n_stage)
{
    if (++ring->stage == n_stage) {
        ring->stage = 0;
        ring->parity ^= 1;
    }
}

static __device__ __forceinline__ uint32_t product_n_m(const struct product *p)
{
    return p->rows ? *p->n_rows : p->n_m;
}

/*
 * Tile number i of this CTA's cluster. Tiles go by groups of n_m_group tiles of
 * rows, within a group by outputs, then rows: what runs at the same time then
 * reads few rows and few weights, and finds them in the L2 cache.
 */
template <int GROUPS, int N, int X_BY, enum product_end END>
static __device__ __forceinline__ struct product_tile
product_tile(const struct product *p, uint32_t i, uint32_t rank)
{
    const uint32_t n_out = END == PRODUCT_SWIGLU ? N / 2 : N;
    const uint32_t per_group = p->n_m_group * p->n_n;
    const uint32_t first = i / per_group * p->n_m_group;
    const uint32_t n_left = product_n_m(p) - first;
    const uint32_t n = n_left < p->n_m_group ? n_left : p->n_m_group;
    const uint32_t m_at = first + i % per_group % n;
    const uint32_t n_at = i % per_group / n * X_BY + rank;
    struct product_tile tile;

    tile.out = n_at * n_out;
    tile.row = m_at * GROUPS * GROUP_ROWS;
    tile.row_end = p->n_row;
    tile.matrix = 0;
    if (p->rows) {
        tile.row = p->rows[m_at].first;
        tile.row_end = p->rows[m_at].end;
        tile.matrix = p->matrix[p->rows[m_at].expert];
    }
    return tile;
}

/* ---------------------------------------------------------------- copying */

struct product_stage {
    unsigned char *at;
    uint64_t *full;
    uint32_t block; /* the first one of BOX */
};

template <int N, int BOX>
static __device__ __forceinline__ uint32_t
product_stage_bytes(const struct product *p)
{
    return BOX * (p->x_rows + N) * TILE_ROW_BYTES;
}

/* As one box, or for swiglu as two. Where there are few rows, nobody else will
 * ask for these weights. */
template <int GROUPS, int N, int BOX, enum product_end END>
static __device__ __forceinline__ void
product_copy_w(const struct product *p, const struct product_tile *tile,
               const struct product_stage *stage)
{
    const uint32_t n_part = END == PRODUCT_SWIGLU ? 2 : 1;
    const uint32_t box_bytes = (p->x_rows + N) * TILE_ROW_BYTES;

    for (uint32_t b = 0; b < BOX; b++)
        for (uint32_t part = 0; part < n_part; part++) {
            const uint32_t row = p->x_rows + part * (N / 2);
            const struct box_at at = {(int32_t)((stage->block + b) * TILE_K),
                                      (int32_t)tile->out,
                                      (int32_t)tile->matrix};

            copy_box(stage->at + b * box_bytes + row * TILE_ROW_BYTES,
                     &p->w[part], at, stage->full,
                     GROUPS == 1 ? KEEP_SHORTLY : KEEP_NORMALLY);
        }
}

/* The CTAs of a cluster take turns in copying to all. */
template <int N, int BOX, int X_BY>
static __device__ __forceinline__ void
product_copy_x(const struct product *p, const struct product_tile *tile,
               const struct product_stage *stage, uint32_t rank)
{
    const uint32_t box_bytes = (p->x_rows + N) * TILE_ROW_BYTES;

    if (stage->block / BOX % X_BY != rank)
        return;
    for (uint32_t b = 0; b < BOX; b++) {
        const struct box_at at = {(int32_t)((stage->block + b) * TILE_K),
                                  (int32_t)tile->row, 0};

        if (X_BY == 1)
            copy_box(stage->at + b * box_bytes, &p->x, at, stage->full,
                     KEEP_NORMALLY);
        else
            copy_box_to(stage->at + b * box_bytes, &p->x, at, stage->full,
                        (1u << X_BY) - 1, KEEP_NORMALLY);
    }
}

/* One thread: all copies of all tiles of this CTA. The weights of the first
 * stages come while the kernel before this one still makes x. */
template <int GROUPS, int N, int BOX, int X_BY, enum product_end END>
static __device__ __forceinline__ void
product_produce(const struct product *p, unsigned char *shared, uint32_t rank)
{
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = product_stage_bytes<N, BOX>(p);
    const uint32_t n_step = p->n_block / BOX;
    const uint32_t n_first = n_step < p->n_stage ? n_step : p->n_stage;
    const uint32_t first = blockIdx.x / X_BY, by = gridDim.x / X_BY;
    struct product_ring ring = {0, 0};
    uint32_t n_early = p->rows ? 0 : n_first;

    for (uint32_t s = 0; s < n_early; s++) {
        const struct product_tile tile =
            product_tile<GROUPS, N, X_BY, END>(p, first, rank);
        const struct product_stage stage = {shared + STAGE_AT + s * stage_bytes,
                                            &full[s], s * BOX};

        barrier_expect(stage.full, stage_bytes);
        product_copy_w<GROUPS, N, BOX, END>(p, &tile, &stage);
    }
    previous_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = first; i < n_tile; i += by) {
        const struct product_tile tile =
            product_tile<GROUPS, N, X_BY, END>(p, i, rank);

        for (uint32_t s = 0; s < n_step; s++) {
            const struct product_stage stage = {shared + STAGE_AT +
                                                    ring.stage * stage_bytes,
                                                &full[ring.stage], s * BOX};

            if (n_early) {
                n_early--;
            } else {
                barrier_wait(&empty[ring.stage], ring.parity ^ 1);
                barrier_expect(stage.full, stage_bytes);
                product_copy_w<GROUPS, N, BOX, END>(p, &tile, &stage);
            }
            product_copy_x<N, BOX, X_BY>(p, &tile, &stage, rank);
            product_advance(&ring, p->n_stage);
        }
    }
    /* Nobody leaves while others still report to its barriers. */
    for (uint32_t s = 0; X_BY > 1 && s < p->n_stage; s++) {
        barrier_wait(&empty[ring.stage], ring.parity ^ 1);
        product_advance(&ring, p->n_stage);
    }
}

/* ---------------------------------------------------------------- results */

/* One addition to an element in a launch, so its order is no question. */
template <enum product_end END>
static __device__ __forceinline__ void product_put(float *y, float v)
{
    if (END == PRODUCT_ADD)
        atomicAdd(y, v);
    else
        *y = v;
}

template <enum product_end END>
static __device__ __forceinline__ void product_put_quad(float *y, float4 v)
{
    if (END == PRODUCT_ADD)
        atomicAdd((float4 *)y, v);
    else
        __stcs((float4 *)y, v);
}

/* Of two neighbours, the even lane gets both of their a, the odd one both of
 * their b; the even lane's first. */
static __device__ __forceinline__ void product_swap(float a, float b,
                                                    float *out_0, float *out_1)
{
    const bool is_odd = threadIdx.x % 2;
    const float other = __shfl_xor_sync(0xffffffff, is_odd ? a : b, 1);

    *out_0 = is_odd ? other : a;
    *out_1 = is_odd ? b : other;
}

/*
 * The first column of what a lane writes of 16 columns from 8 j on: the even
 * lanes have those of the first 8, the odd ones of the others.
 */
static __device__ __forceinline__ uint32_t product_column(uint32_t j)
{
    const uint32_t t = threadIdx.x % 4;

    return 8 * (j + t % 2) + t / 2 * 4;
}

template <int N, enum product_end END>
static __device__ __forceinline__ void
product_put_row(const struct product *p, const struct product_tile *tile,
                uint32_t row, const float *acc)
{
    float *y = (float *)p->y + row * p->y_stride + tile->out;

#pragma unroll
    for (int j = 0; j < N / 8; j += 2) {
        const uint32_t c = product_column(j);
        const float *a = acc + 4 * j, *b = a + 4;
        float4 v;

        product_swap(a[0], b[0], &v.x, &v.z);
        product_swap(a[1], b[1], &v.y, &v.w);
        if (row < tile->row_end && tile->out + c < p->n_out)
            product_put_quad<END>(y + c, v);
    }
}

/* Rows that lie anywhere and end anywhere. */
template <int N, enum product_end END>
static __device__ __forceinline__ void
product_put_odd_row(const struct product *p, const struct product_tile *tile,
                    uint32_t row, const float *acc)
{
    float *y = (float *)p->y + row * p->y_stride + tile->out;

#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const uint32_t c = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;

        if (row < tile->row_end && tile->out + c < p->n_out)
            product_put<END>(y + c, acc[i / 2 * 4 + i % 2]);
    }
}

template <int N>
static __device__ __forceinline__ void
product_put_swiglu(const struct product *p, const struct product_tile *tile,
                   uint32_t row, const float *acc)
{
    const uint32_t t = threadIdx.x % 4 * 2;
    uint16_t *y = (uint16_t *)p->y + row * p->y_stride + tile->out + t;

    if (row >= tile->row_end)
        return;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
        const float *gate = acc + 4 * j, *up = gate + N / 4;

        if (tile->out + 8 * j + t < p->n_out)
            *(uint32_t *)(y + 8 * j) = round_pair(scalar_silu(gate[0]) * up[0],
                                                  scalar_silu(gate[1]) * up[1]);
    }
}

template <int N, enum product_end END>
static __device__ __forceinline__ void
product_finish(const struct product *p, const struct product_tile *tile,
               const float *acc)
{
    const uint32_t row =
        tile->row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;

    if (END == PRODUCT_SWIGLU) {
        product_put_swiglu<N>(p, tile, row, acc);
        product_put_swiglu<N>(p, tile, row + 8, acc + 2);
    } else if (p->is_even) {
        product_put_row<N, END>(p, tile, row, acc);
        product_put_row<N, END>(p, tile, row + 8, acc + 2);
    } else {
        product_put_odd_row<N, END>(p, tile, row, acc);
        product_put_odd_row<N, END>(p, tile, row + 8, acc + 2);
    }
}

/* ------------------------------------------------------------ multiplying */

template <int X_BY>
static __device__ __forceinline__ void product_release(uint64_t *empty)
{
    const uint32_t i = threadIdx.x % GROUP_THREADS;

    if (X_BY == 1 && i == 0)
        barrier_arrive(empty);
    else if (X_BY > 1 && i < X_BY)
        barrier_arrive_at(empty, i);
}

template <int N>
static __device__ __forceinline__ void
product_multiply(float *acc, uint32_t x_at, uint32_t w_at, bool is_sum)
{
    const uint64_t a = tile_descriptor(x_at), b = tile_descriptor(w_at);

#pragma unroll
    for (uint32_t k = 0; k < TILE_K / 16; k++)
        product_step<N>(acc, a + k * TILE_STEP, b + k * TILE_STEP,
                        is_sum || k > 0);
}

template <int GROUPS, int N, int BOX, int X_BY, enum product_end END>
static __device__ __forceinline__ void
product_consume(const struct product *p, unsigned char *shared, uint32_t rank)
{
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t box_bytes = product_stage_bytes<N, BOX>(p) / BOX;
    const uint32_t base =
        shared_address(shared) + STAGE_AT +
        threadIdx.x / GROUP_THREADS * GROUP_ROWS * TILE_ROW_BYTES;
    const uint32_t w_at =
        p->x_rows * TILE_ROW_BYTES -
        threadIdx.x / GROUP_THREADS * GROUP_ROWS * TILE_ROW_BYTES;
    struct product_ring ring = {0, 0};
    float acc[N / 2];

    previous_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = blockIdx.x / X_BY; i < n_tile; i += gridDim.x / X_BY) {
        uint64_t *done = NULL; /* of the stage before */

        for (uint32_t block = 0; block < p->n_block; block += BOX) {
            const uint32_t at = base + ring.stage * BOX * box_bytes;

            barrier_wait(&full[ring.stage], ring.parity);
            product_begin();
#pragma unroll
            for (uint32_t b = 0; b < BOX; b++)
                product_multiply<N>(acc, at + b * box_bytes,
                                    at + b * box_bytes + w_at, block + b > 0);
            product_commit();
            product_wait<1>();
            if (done)
                product_release<X_BY>(done);
            done = &empty[ring.stage];
            product_advance(&ring, p->n_stage);
        }
        product_wait<0>();
        product_pin<N / 2>(acc);
        product_release<X_BY>(done);
        const struct product_tile tile =
            product_tile<GROUPS, N, X_BY, END>(p, i, rank);
        product_finish<N, END>(p, &tile, acc);
    }
}

/* ----------------------------------------------------------------- kernel */

#define PRODUCT_THREADS(GROUPS) (((GROUPS) + 1) * GROUP_THREADS)

template <int GROUPS, int N, int BOX, int X_BY, enum product_end END>
static __global__ void __launch_bounds__(PRODUCT_THREADS(GROUPS), 1)
    product_kernel(const __grid_constant__ struct product p)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t rank = X_BY > 1 ? cluster_rank() : 0;

    next_begin();
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;

        for (uint32_t s = 0; s < p.n_stage; s++) {
            barrier_init(&full[s], 1);
            barrier_init(&empty[s], GROUPS * X_BY);
        }
        barrier_publish();
    }
    if (X_BY > 1)
        cluster_sync();
    else
        __syncthreads();
    if (threadIdx.x >= GROUPS * GROUP_THREADS) {
        if (GROUPS > 1)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == GROUPS * GROUP_THREADS)
            product_produce<GROUPS, N, BOX, X_BY, END>(&p, shared, rank);
        __syncwarp();
    } else {
        if (GROUPS > 1)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        product_consume<GROUPS, N, BOX, X_BY, END>(&p, shared, rank);
    }
}
#endif
