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
 * A cluster of W_BY CTAs works on neighbouring tiles of rows and the same
 * outputs; each copies a part of the weights to all of them. (Sharing rows
 * gained less; both at once, clusters of four, took twice the time and more.)
 */
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_silu.cuh"
#include "kernels/cuda/scalar.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <stddef.h>

#define TILE_K 64u          /* columns of a tile (wgmma.cuh) */
#define TILE_ROW_BYTES 128u /* of one row */
#define GROUP_ROWS 64u      /* rows of a warpgroup */
#define GROUP_THREADS 128u  /* threads of a warpgroup */
#define STAGE_MAX 32u
#define STAGE_AT 1024u /* bytes: barriers lie before the stages */
#define STAGE_WARPS_AT                                                         \
    (2 * STAGE_MAX * 8) /* a number of each warp behind them */
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

/*
 * The places of a step's experts, each of which has a tile of rows at most. The
 * tiles are found by each CTA, in its own memory, and only rows that there are
 * are copied, in boxes of x_box.
 */
struct product_places {
    const uint32_t *first; /* [n_expert + 1] as struct routing; or NULL */
    const uint32_t *row;   /* of x, for each place; NULL: the place's number */
    uint32_t n_expert, n_place;
    uint32_t n_shared; /* rows behind the places, for one more expert */
    uint32_t x_box;
    /* Of w, for each part: the first expert's matrix, how far the next one's
     * is, and the one more's. */
    uint32_t matrix[2], step, shared[2];
    uint32_t list_at; /* in shared memory, bytes */
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
    struct product_places places;
};

struct product_list {
    const struct product_rows *rows; /* or NULL */
    uint32_t n;                      /* tiles of rows */
};

struct product_tile {
    uint32_t row, row_end;     /* of x and y */
    uint32_t out;              /* first output */
    uint32_t matrix, matrix_2; /* of w[0] and w[1] */
};

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

/* Behind launch_wait(). */
static __device__ __forceinline__ struct product_list
product_list(const struct product *p)
{
    const struct product_list list = {p->rows, product_n_m(p)};

    return list;
}

static __device__ __forceinline__ void
product_set_matrix(const struct product *p, uint32_t expert,
                   struct product_tile *tile)
{
    const struct product_places *at = &p->places;

    if (p->matrix) {
        tile->matrix = tile->matrix_2 = p->matrix[expert];
        return;
    }
    const bool is_shared = expert == at->n_expert;
    tile->matrix =
        is_shared ? at->shared[0] : at->matrix[0] + expert * at->step;
    tile->matrix_2 =
        is_shared ? at->shared[1] : at->matrix[1] + expert * at->step;
}

/*
 * Tile number i of this CTA's cluster. Tiles go by groups of n_m_group tiles of
 * rows, within a group by outputs, then rows: what runs at the same time then
 * reads few rows and few weights, and finds them in the L2 cache.
 */
template <int GROUPS, int N, int X_BY, int W_BY, enum product_end END>
static __device__ __forceinline__ struct product_tile
product_tile_of(const struct product *p, const struct product_list *list,
                uint32_t i, uint32_t rank)
{
    const uint32_t n_out = END == PRODUCT_SWIGLU ? N / 2 : N;
    const uint32_t per_group = p->n_m_group * p->n_n;
    const uint32_t first = i / per_group * p->n_m_group;
    const uint32_t n_left = list->n - first;
    const uint32_t n = n_left < p->n_m_group ? n_left : p->n_m_group;
    const uint32_t m_at = (first + i % per_group % n) * W_BY + rank % W_BY;
    const uint32_t n_at = i % per_group / n * X_BY + rank % X_BY;
    struct product_tile tile;

    tile.out = n_at * n_out;
    tile.row = m_at * GROUPS * GROUP_ROWS;
    tile.row_end = p->n_row;
    tile.matrix = tile.matrix_2 = 0;
    if (list->rows) {
        tile.row = list->rows[m_at].first;
        tile.row_end = list->rows[m_at].end;
        product_set_matrix(p, list->rows[m_at].expert, &tile);
    }
    return tile;
}

template <int GROUPS, int N, int X_BY, int W_BY, enum product_end END>
static __device__ __forceinline__ struct product_tile
product_tile(const struct product *p, uint32_t i, uint32_t rank)
{
    const struct product_list list = product_list(p);

    return product_tile_of<GROUPS, N, X_BY, W_BY, END>(p, &list, i, rank);
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

/* Each of the CTAs of a cluster copies its part of the weights to all. */
template <int N, int BOX, int W_BY, enum product_end END>
static __device__ __forceinline__ void
product_share_w(const struct product *p, const struct product_tile *tile,
                const struct product_stage *stage, uint32_t rank)
{
    const uint32_t box_bytes = (p->x_rows + N) * TILE_ROW_BYTES;
    const uint32_t first = rank * (N / W_BY); /* row of the tile */
    const bool is_up = END == PRODUCT_SWIGLU && rank;

    static_assert(END != PRODUCT_SWIGLU || W_BY <= 2, "gate and up");
    for (uint32_t b = 0; b < BOX; b++) {
        const struct box_at at = {
            (int32_t)((stage->block + b) * TILE_K),
            (int32_t)(tile->out + (END == PRODUCT_SWIGLU ? 0 : first)),
            (int32_t)(is_up ? tile->matrix_2 : tile->matrix)};

        tensor_copy_3d_multicast(
            stage->at + b * box_bytes + (p->x_rows + first) * TILE_ROW_BYTES,
            &p->w[is_up], at, stage->full, (1u << W_BY) - 1, KEEP_NORMALLY);
    }
}

/* As one box, or for swiglu as two, or the part of a cluster's CTA to all that
 * share it. Where there are few rows, nobody else will ask for these weights.
 */
template <int GROUPS, int N, int BOX, int W_BY, enum product_end END>
static __device__ __forceinline__ void
product_copy_w(const struct product *p, const struct product_tile *tile,
               const struct product_stage *stage, uint32_t rank)
{
    const uint32_t n_part = END == PRODUCT_SWIGLU ? 2 : 1;

    if (W_BY > 1) {
        product_share_w<N, BOX, W_BY, END>(p, tile, stage, rank);
        return;
    }
    const uint32_t box_bytes = (p->x_rows + N) * TILE_ROW_BYTES;

    for (uint32_t b = 0; b < BOX; b++)
        for (uint32_t part = 0; part < n_part; part++) {
            const uint32_t row = p->x_rows + part * (N / 2);
            const struct box_at at = {
                (int32_t)((stage->block + b) * TILE_K), (int32_t)tile->out,
                (int32_t)(part ? tile->matrix_2 : tile->matrix)};

            tensor_copy_3d(stage->at + b * box_bytes + row * TILE_ROW_BYTES,
                           &p->w[part], at, stage->full,
                           GROUPS == 1 ? KEEP_SHORTLY : KEEP_NORMALLY);
        }
}

template <int N, int BOX>
static __device__ __forceinline__ void
product_copy_x(const struct product *p, const struct product_tile *tile,
               const struct product_stage *stage)
{
    const uint32_t box_bytes = (p->x_rows + N) * TILE_ROW_BYTES;

    for (uint32_t b = 0; b < BOX; b++) {
        const struct box_at at = {(int32_t)((stage->block + b) * TILE_K),
                                  (int32_t)tile->row, 0};

        tensor_copy_3d(stage->at + b * box_bytes, &p->x, at, stage->full,
                       KEEP_NORMALLY);
    }
}

/* One thread: all copies of all tiles of this CTA. The weights of the first
 * stages come while the kernel before this one still makes x. */
template <int GROUPS, int N, int BOX, int W_BY, enum product_end END>
static __device__ __forceinline__ void
product_produce(const struct product *p, unsigned char *shared, uint32_t rank)
{
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = product_stage_bytes<N, BOX>(p);
    const uint32_t n_step = p->n_block / BOX;
    const uint32_t n_first = n_step < p->n_stage ? n_step : p->n_stage;
    const uint32_t first = blockIdx.x / W_BY;
    const uint32_t by = gridDim.x / W_BY;
    struct product_ring ring = {0, 0};
    uint32_t n_early = p->rows ? 0 : n_first;

    for (uint32_t s = 0; s < n_early; s++) {
        const struct product_tile tile =
            product_tile<GROUPS, N, 1, W_BY, END>(p, first, rank);
        const struct product_stage stage = {shared + STAGE_AT + s * stage_bytes,
                                            &full[s], s * BOX};

        mbarrier_expect(stage.full, stage_bytes);
        product_copy_w<GROUPS, N, BOX, W_BY, END>(p, &tile, &stage, rank);
    }
    launch_wait();
    const uint32_t n_tile = product_n_m(p) * p->n_n;
    for (uint32_t i = first; i < n_tile; i += by) {
        const struct product_tile tile =
            product_tile<GROUPS, N, 1, W_BY, END>(p, i, rank);

        for (uint32_t s = 0; s < n_step; s++) {
            const struct product_stage stage = {shared + STAGE_AT +
                                                    ring.stage * stage_bytes,
                                                &full[ring.stage], s * BOX};

            if (n_early) {
                n_early--;
            } else {
                mbarrier_wait_or_trap(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_expect(stage.full, stage_bytes);
                product_copy_w<GROUPS, N, BOX, W_BY, END>(p, &tile, &stage,
                                                          rank);
            }
            product_copy_x<N, BOX>(p, &tile, &stage);
            product_advance(&ring, p->n_stage);
        }
    }
    /* Nobody leaves while others still report to its barriers. */
    for (uint32_t s = 0; W_BY > 1 && s < p->n_stage; s++) {
        mbarrier_wait_or_trap(&empty[ring.stage], ring.parity ^ 1);
        product_advance(&ring, p->n_stage);
    }
}

/* ----------------------------------------------------------------- places */

/* Experts that have rows; all threads of the CTA, which get n. The one more has
 * most, so it goes first. */
static __device__ __forceinline__ struct product_list
product_list_places(const struct product *p, unsigned char *shared)
{
    const struct product_places *at = &p->places;
    struct product_rows *rows = (struct product_rows *)(shared + at->list_at);
    uint32_t *of_warp = (uint32_t *)(shared + STAGE_WARPS_AT);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    struct product_list list = {rows, 0};

    for (uint32_t e0 = 0; e0 <= at->n_expert; e0 += blockDim.x) {
        const uint32_t e = e0 + threadIdx.x;
        uint32_t expert = at->n_expert, first = at->n_place;
        uint32_t end = first + at->n_shared;

        if (e > 0) {
            expert = e - 1;
            first = expert < at->n_expert ? at->first[expert] : 0;
            end = expert < at->n_expert ? at->first[e] : 0;
        }
        const bool has = first < end;
        const uint32_t who = __ballot_sync(0xffffffff, has);
        uint32_t to = list.n + __popc(who & ((1u << lane) - 1));

        if (lane == 0)
            of_warp[warp] = __popc(who);
        __syncthreads();
        for (uint32_t w = 0; w < blockDim.x / 32; w++) {
            to += w < warp ? of_warp[w] : 0;
            list.n += of_warp[w];
        }
        if (has) {
            rows[to].expert = expert;
            rows[to].first = first;
            rows[to].end = end;
        }
        __syncthreads();
    }
    return list;
}

static __device__ __forceinline__ int32_t
product_x_row(const struct product_places *at, uint32_t place)
{
    if (!at->row)
        return (int32_t)place;
    return (int32_t)(place < at->n_place ? at->row[place]
                                         : place - at->n_place);
}

/* As product_produce(), by a warp: lane i copies boxes i and i + 32 of x. */
template <int N, int BOX, enum product_end END>
static __device__ __forceinline__ void
product_produce_places(const struct product *p, const struct product_list *list,
                       unsigned char *shared)
{
    uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;
    const uint32_t stage_bytes = product_stage_bytes<N, BOX>(p);
    const uint32_t box_bytes = stage_bytes / BOX, x_box = p->places.x_box;
    const uint32_t lane = threadIdx.x % 32, n_tile = list->n * p->n_n;
    struct product_ring ring = {0, 0};

    for (uint32_t i = blockIdx.x; i < n_tile; i += gridDim.x) {
        const struct product_tile tile =
            product_tile_of<1, N, 1, 1, END>(p, list, i, 0);
        const uint32_t n_box = (tile.row_end - tile.row + x_box - 1) / x_box;
        int32_t row[2] = {0, 0};

        for (uint32_t n = 0; n < 2; n++)
            if (lane + 32 * n < n_box)
                row[n] = product_x_row(&p->places,
                                       tile.row + (lane + 32 * n) * x_box);
        for (uint32_t block = 0; block < p->n_block; block += BOX) {
            const struct product_stage stage = {shared + STAGE_AT +
                                                    ring.stage * stage_bytes,
                                                &full[ring.stage], block};

            mbarrier_wait_or_trap(&empty[ring.stage], ring.parity ^ 1);
            if (lane == 0) {
                mbarrier_expect(stage.full,
                                BOX * (N + n_box * x_box) * TILE_ROW_BYTES);
                product_copy_w<1, N, BOX, 1, END>(p, &tile, &stage, 0);
            }
            __syncwarp();
            for (uint32_t b = 0; b < BOX; b++)
                for (uint32_t n = 0; n < 2; n++)
                    if (lane + 32 * n < n_box) {
                        const struct box_at at = {
                            (int32_t)((block + b) * TILE_K), row[n], 0};

                        tensor_copy_3d(stage.at + b * box_bytes +
                                           (lane + 32 * n) * x_box *
                                               TILE_ROW_BYTES,
                                       &p->x, at, stage.full, KEEP_NORMALLY);
                    }
            product_advance(&ring, p->n_stage);
        }
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
#if __CUDA_ARCH__ >= 900
    if (END == PRODUCT_ADD)
        atomicAdd((float4 *)y, v);
    else
        __stcs((float4 *)y, v);
#else
    product_put<END>(y, v.x);
    product_put<END>(y + 1, v.y);
    product_put<END>(y + 2, v.z);
    product_put<END>(y + 3, v.w);
#endif
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

template <int N, bool IS_PLAIN>
static __device__ __forceinline__ void
product_put_silu(const struct product *p, const struct product_tile *tile,
                 uint16_t *y, const float *acc)
{
    const uint32_t first = tile->out + threadIdx.x % 4 * 2;

#pragma unroll
    for (int j = 0; j < N / 16; j++) {
        const float *gate = acc + 4 * j, *up = gate + N / 4;
        const float a = IS_PLAIN ? silu_plain(gate[0]) : scalar_silu(gate[0]);
        const float b = IS_PLAIN ? silu_plain(gate[1]) : scalar_silu(gate[1]);

        if (first + 8 * j < p->n_out)
            *(uint32_t *)(y + 8 * j) = round_pair(a * up[0], b * up[1]);
    }
}

/* A division that may be any branches, and 64 of them one after the other took
 * an eighth of such a product; nearly all gates are plain. */
template <int N>
static __device__ __forceinline__ void
product_put_swiglu(const struct product *p, const struct product_tile *tile,
                   uint32_t row, const float *acc)
{
    const uint32_t t = threadIdx.x % 4 * 2;
    uint16_t *y = (uint16_t *)p->y + row * p->y_stride + tile->out + t;

    bool is_plain = true;

    if (row >= tile->row_end)
        return;
#pragma unroll
    for (int j = 0; j < N / 16; j++)
        is_plain = is_plain && silu_is_plain(acc[4 * j]) &&
                   silu_is_plain(acc[4 * j + 1]);
    if (is_plain)
        product_put_silu<N, true>(p, tile, y, acc);
    else
        product_put_silu<N, false>(p, tile, y, acc);
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

/* To all who copy into this CTA. */
template <int CTAS>
static __device__ __forceinline__ void product_release(uint64_t *empty)
{
    const uint32_t i = threadIdx.x % GROUP_THREADS;

    if (CTAS == 1 && i == 0)
        mbarrier_arrive(empty);
    else if (CTAS > 1 && i < CTAS)
        mbarrier_arrive_at(empty, i);
}

template <int N>
static __device__ __forceinline__ void
product_multiply(float *acc, uint32_t x_at, uint32_t w_at, bool is_sum)
{
    const uint64_t a = wgmma_descriptor(x_at), b = wgmma_descriptor(w_at);

#pragma unroll
    for (uint32_t k = 0; k < TILE_K / 16; k++)
        wgmma_ss<N>(acc, a + k * WGMMA_STEP, b + k * WGMMA_STEP,
                    is_sum || k > 0);
}

template <int GROUPS, int N, int BOX, int W_BY, enum product_end END>
static __device__ __forceinline__ void
product_consume(const struct product *p, const struct product_list *list,
                unsigned char *shared, uint32_t rank)
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
    const uint32_t n_tile = list->n * p->n_n;

    for (uint32_t i = blockIdx.x / W_BY; i < n_tile; i += gridDim.x / W_BY) {
        uint64_t *done = NULL; /* of the stage before */

        for (uint32_t block = 0; block < p->n_block; block += BOX) {
            const uint32_t at = base + ring.stage * BOX * box_bytes;

            mbarrier_wait_or_trap(&full[ring.stage], ring.parity);
            wgmma_fence();
#pragma unroll
            for (uint32_t b = 0; b < BOX; b++)
                product_multiply<N>(acc, at + b * box_bytes,
                                    at + b * box_bytes + w_at, block + b > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (done)
                product_release<W_BY>(done);
            done = &empty[ring.stage];
            product_advance(&ring, p->n_stage);
        }
        wgmma_wait<0>();
        wgmma_pin<N / 2>(acc);
        product_release<W_BY>(done);
        const struct product_tile tile =
            product_tile_of<GROUPS, N, 1, W_BY, END>(p, list, i, rank);
        product_finish<N, END>(p, &tile, acc);
    }
}

/* ----------------------------------------------------------------- kernel */

#define PRODUCT_THREADS(GROUPS) (((GROUPS) + 1) * GROUP_THREADS)

template <int GROUPS, int N, int BOX, int W_BY, enum product_end END>
static __global__ void __launch_bounds__(PRODUCT_THREADS(GROUPS), 1)
    product_kernel(const __grid_constant__ struct product p)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t rank = W_BY > 1 ? cluster_rank_now() : 0;

    launch_next();
    if (threadIdx.x == 0) {
        uint64_t *full = (uint64_t *)shared, *empty = full + STAGE_MAX;

        for (uint32_t s = 0; s < p.n_stage; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], GROUPS * W_BY);
        }
        mbarrier_init_fence();
    }
    if (W_BY > 1)
        cluster_sync_relaxed();
    else
        __syncthreads();
    const bool has_places = GROUPS == 1 && W_BY == 1 && p.places.first;
    struct product_list list = {NULL, 0};
    if (has_places) {
        launch_wait();
        list = product_list_places(&p, shared);
    }
    if (threadIdx.x >= GROUPS * GROUP_THREADS) {
        if (GROUPS > 1)
            registers_give<40>();
        if (has_places && threadIdx.x < GROUPS * GROUP_THREADS + 32)
            product_produce_places<N, BOX, END>(&p, &list, shared);
        else if (threadIdx.x == GROUPS * GROUP_THREADS)
            product_produce<GROUPS, N, BOX, W_BY, END>(&p, shared, rank);
        __syncwarp();
    } else {
        if (GROUPS > 1)
            registers_take<232>();
        if (!has_places) {
            launch_wait();
            list = product_list(&p);
        }
        product_consume<GROUPS, N, BOX, W_BY, END>(&p, &list, shared, rank);
    }
}
#endif
