#include "kernels/cuda/linear_launch.h"

#include <assert.h>

#define SHARED_BYTES 232448u /* that a CTA of sm_90 may have */

/*
 * The shapes that are compiled: n_group, n, n_box, w_by, x_by. Few rows want
 * tiles of few outputs, so that all SMs read weights; many rows want large
 * tiles.
 */
#define PRODUCT_SHAPES(X)                                                      \
    X(1, 16, 1, 1, 1)                                                          \
    X(1, 16, 4, 1, 1)                                                          \
    X(1, 32, 4, 1, 1)                                                          \
    X(1, 32, 2, 1, 2)                                                          \
    X(1, 32, 2, 1, 4)                                                          \
    X(1, 32, 1, 1, 1)                                                          \
    X(1, 64, 1, 1, 1)                                                          \
    X(1, 64, 2, 1, 1)                                                          \
    X(1, 96, 2, 1, 1)                                                          \
    X(1, 64, 2, 1, 2)                                                          \
    X(1, 96, 2, 1, 2)                                                          \
    X(1, 128, 1, 1, 1)                                                         \
    X(1, 192, 1, 1, 1)                                                         \
    X(2, 32, 1, 1, 2)                                                          \
    X(2, 64, 1, 1, 1)                                                          \
    X(2, 128, 1, 1, 1)                                                         \
    X(2, 256, 1, 1, 1)                                                         \
    X(2, 128, 1, 2, 1)                                                         \
    X(2, 192, 1, 1, 1)                                                         \
    X(2, 256, 1, 2, 1)                                                         \
    X(2, 256, 1, 2, 2)

static const struct product_shape SHAPE[] = {
#define ENTRY(...) {__VA_ARGS__},
    PRODUCT_SHAPES(ENTRY)
#undef ENTRY
};
#define N_SHAPE (sizeof(SHAPE) / sizeof(*SHAPE))

static uint32_t up(size_t n, size_t by)
{
    return (uint32_t)((n + by - 1) / by);
}

/* ------------------------------------------------------------------ choice */

/* Rows of x that a tile copies: whole groups of 8, as the swizzle has them. */
static uint32_t x_rows(const struct product_job *job, uint32_t n_group)
{
    const uint32_t most = n_group * GROUP_ROWS;
    const uint32_t n_row = up(job->n_row, 8) * 8;

    return n_row < most ? n_row : most;
}

/*
 * Cycles of an SM, roughly. Per 64 inputs a warpgroup's product of N outputs
 * takes N / 2 cycles a step, but 16 at least to read its rows; an SM takes in
 * some 32 bytes a cycle from the L2 cache, the L2 cache 13 a cycle and SM from
 * memory (H100, measured: docs/PERFORMANCE.md).
 */
static double cost(const struct product_job *job, struct product_shape s,
                   uint32_t n_sm)
{
    const uint32_t n_out = job->end == PRODUCT_SWIGLU ? s.n / 2 : s.n;
    const uint32_t n_m = product_rows_max(job, s);
    const double n_block = up(job->n_in, TILE_K);
    const double n_tile =
        (double)up(n_m, s.w_by) * s.w_by * up(up(job->n_out, n_out), s.x_by) *
        s.x_by;
    const double waves = up((size_t)n_tile, n_sm);
    const double multiply = 4.0 * s.n_group * (s.n < 32 ? 16 : s.n / 2);
    const double copy = 128.0 *
                        ((double)x_rows(job, s.n_group) / s.x_by +
                         (double)s.n / s.w_by) /
                        32;
    const double n_matrix = job->n_expert < job->n_row ? job->n_expert : n_m;
    const double memory = 128.0 * (job->n_expert ? n_matrix : 1) * n_tile /
                          n_m * s.n * n_block / 13 / n_sm;
    const double tiles = waves * n_block * (multiply > copy ? multiply : copy);

    return (tiles > memory ? tiles : memory) + 0.05 * tiles;
}

/* An expert's last tile may be any part of one. */
uint32_t product_rows_max(const struct product_job *job,
                          struct product_shape s)
{
    const uint32_t height = s.n_group * GROUP_ROWS;
    const uint32_t n_part =
        job->n_expert < job->n_row ? job->n_expert : job->n_row;

    return job->n_expert ? n_part + job->n_row / height
                         : up(job->n_row, height);
}

const struct product_shape *product_shapes(size_t *out_n)
{
    *out_n = N_SHAPE;
    return SHAPE;
}

bool product_fits(const struct product_job *job, struct product_shape shape)
{
    return up(job->n_in, TILE_K) % shape.n_box == 0 &&
           (!job->n_expert || shape.w_by == 1) &&
           (job->end != PRODUCT_SWIGLU || shape.n >= 32);
}

struct product_shape product_choose(const struct product_job *job,
                                    uint32_t n_sm)
{
    size_t best = 0;

    for (size_t i = 1; i < N_SHAPE; i++)
        if (product_fits(job, SHAPE[i]) &&
            cost(job, SHAPE[i], n_sm) < cost(job, SHAPE[best], n_sm))
            best = i;
    return SHAPE[best];
}

/* ------------------------------------------------------------------ launch */

static void encode(CUtensorMap *map, const struct product_matrix *m,
                   uint32_t n_in, uint32_t box_rows)
{
    const cuuint64_t size[3] = {linear_padded(n_in), m->n_row, m->n_matrix};
    const cuuint64_t stride[2] = {m->stride * sizeof(uint16_t), MATRIX_STEP};
    const cuuint32_t box[3] = {TILE_K, box_rows, 1}, each[3] = {1, 1, 1};
    const CUresult result = cuTensorMapEncodeTiled(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)m->at, size, stride,
        box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    assert(result == CUDA_SUCCESS); /* our own shapes */
    (void)result;
}

static struct product parameters(const struct product_job *job,
                                 struct product_shape s)
{
    const uint32_t n_out = job->end == PRODUCT_SWIGLU ? s.n / 2 : s.n;
    struct product p = {};
    uint32_t stage;

    p.y = job->y;
    p.y_stride = job->y_stride;
    p.n_row = job->n_row;
    p.n_out = job->n_out;
    p.n_block = up(job->n_in, TILE_K);
    p.x_rows = x_rows(job, s.n_group);
    p.n_m = up(up(job->n_row, s.n_group * GROUP_ROWS), s.w_by);
    p.n_n = up(up(job->n_out, n_out), s.x_by);
    p.n_m_group = 16 / s.w_by;
    p.is_even = (uintptr_t)job->y % 16 == 0 && job->y_stride % 4 == 0 &&
                job->n_out % 4 == 0;
    p.rows = job->rows;
    p.n_rows = job->n_rows;
    p.matrix = job->matrix;
    stage = s.n_box * (p.x_rows + s.n) * TILE_ROW_BYTES;
    p.n_stage = (SHARED_BYTES - STAGE_AT - STAGE_BEHIND) / stage;
    p.n_stage = p.n_stage < STAGE_MAX ? p.n_stage : STAGE_MAX;
    encode(&p.x, &job->x, job->n_in, p.x_rows);
    if (job->end == PRODUCT_SWIGLU) {
        encode(&p.w[0], &job->w[0], job->n_in, n_out);
        encode(&p.w[1], &job->w[1], job->n_in, n_out);
    } else {
        encode(&p.w[0], &job->w[0], job->n_in, n_out / s.w_by);
    }
    return p;
}

template <int GROUPS, int N, int BOX, int W_BY, int X_BY, enum product_end END>
static void launch_as(struct gpu *gpu, const struct product *p,
                      uint32_t n_m_max)
{
    const uint32_t by = W_BY * X_BY, n_sm = (uint32_t)gpu_n_sm(gpu) / by * by;
    const uint32_t n_tile = n_m_max * p->n_n * by;
    const uint32_t bytes =
        STAGE_AT + STAGE_BEHIND +
        p->n_stage * BOX * (p->x_rows + N) * TILE_ROW_BYTES;
    struct early_launch launch;

    early_launch_init(&launch, gpu, dim3(n_tile < n_sm ? n_tile : n_sm),
                      PRODUCT_THREADS(GROUPS));
    launch.config.dynamicSmemBytes = bytes;
    if (by > 1) {
        launch.attribute[1].id = cudaLaunchAttributeClusterDimension;
        launch.attribute[1].val.clusterDim.x = by;
        launch.attribute[1].val.clusterDim.y = 1;
        launch.attribute[1].val.clusterDim.z = 1;
        launch.config.numAttrs = 2;
    }
    /* Errors of both are found where the step is waited for. */
    (void)cudaFuncSetAttribute(
        product_kernel<GROUPS, N, BOX, W_BY, X_BY, END>,
        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    (void)cudaLaunchKernelEx(
        &launch.config, product_kernel<GROUPS, N, BOX, W_BY, X_BY, END>, *p);
}

/* Half a tile's outputs are written in pieces of 16. */
#define SWIGLU_OF(N) ((N) < 32 ? PRODUCT_STORE : PRODUCT_SWIGLU)

void product_launch(struct gpu *gpu, const struct product_job *job,
                    struct product_shape s)
{
    const struct product p = parameters(job, s);
    const uint32_t n_m = job->n_expert ? product_rows_max(job, s) : p.n_m;

#define CASE(GROUPS, N, BOX, W_BY, X_BY)                                       \
    if (s.n_group == GROUPS && s.n == N && s.n_box == BOX && s.w_by == W_BY && \
        s.x_by == X_BY) {                                                      \
        if (job->end == PRODUCT_STORE)                                         \
            launch_as<GROUPS, N, BOX, W_BY, X_BY, PRODUCT_STORE>(gpu, &p,      \
                                                                 n_m);         \
        else if (job->end == PRODUCT_ADD)                                      \
            launch_as<GROUPS, N, BOX, W_BY, X_BY, PRODUCT_ADD>(gpu, &p, n_m);  \
        else                                                                   \
            launch_as<GROUPS, N, BOX, W_BY, X_BY, SWIGLU_OF(N)>(gpu, &p, n_m); \
        return;                                                                \
    }
    PRODUCT_SHAPES(CASE)
#undef CASE
    assert(!"a shape of the table");
}
