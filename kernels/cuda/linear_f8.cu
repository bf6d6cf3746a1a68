#include "kernels/cuda/linear_f8.cuh"

#include "kernels/cuda/linear_launch.h"

#include <assert.h>

/* n_group, n: a tile's outputs lie in one block of weights. */
#define F8_SHAPES(X)                                                           \
    X(1, 32)                                                                   \
    X(1, 64)                                                                   \
    X(1, 128)                                                                  \
    X(2, 128)

static const struct product_shape SHAPE[] = {
#define ENTRY(GROUPS, N) {GROUPS, N, 1, 1},
    F8_SHAPES(ENTRY)
#undef ENTRY
};
#define N_SHAPE (sizeof(SHAPE) / sizeof(*SHAPE))

static double up(double n, double by)
{
    return (double)(((uint64_t)n + (uint64_t)by - 1) / (uint64_t)by);
}

/* As cost() of linear_launch.cu; widening takes some 5 cycles an output and
 * block of 128 inputs for a warpgroup, what follows one after the other 150. */
static double cost(const struct product_job *job, struct product_shape s,
                   uint32_t n_sm)
{
    const double n_out = job->end == PRODUCT_SWIGLU ? s.n / 2.0 : s.n;
    const double high = s.n_group * (double)GROUP_ROWS;
    const double n_n = up(job->n_out, n_out);
    const double n_tile = product_rows_max(job, s) * n_n;
    const double n_block = up(job->n_in, F8_BLOCK);
    const double x_rows = job->n_row < high ? job->n_row : high;
    const double widen = 5.0 * s.n / s.n_group;
    const double step = s.n_group * s.n / 2 < 45 ? 45 : s.n_group * s.n / 2;
    const double multiply = F8_BLOCK / 16 * step;
    const double copy = F8_BLOCK * (s.n + 2 * x_rows) / 35;
    const double work = widen > multiply ? widen : multiply;
    const double tiles =
        up(n_tile, n_sm) *
        (n_block * ((work > copy ? work : copy) + 150) + 2000);
    const double memory = F8_BLOCK * n_n * s.n * n_block / 13 / n_sm;

    return (tiles > memory ? tiles : memory) + tiles / 16;
}

const struct product_shape *f8_shapes(size_t *out_n)
{
    *out_n = N_SHAPE;
    return SHAPE;
}

struct product_shape f8_choose(const struct product_job *job, uint32_t n_sm)
{
    size_t best = 0;

    for (size_t i = 1; i < N_SHAPE; i++)
        if (cost(job, SHAPE[i], n_sm) < cost(job, SHAPE[best], n_sm))
            best = i;
    return SHAPE[best];
}

template <int GROUPS, int N, enum product_end END>
static void launch_as(struct gpu *gpu, struct f8_product *f, uint32_t n_m_max)
{
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu), n_tile = n_m_max * f->p.n_n;
    const uint32_t stage = (F8_TILES * f->p.x_rows + N) * TILE_ROW_BYTES;
    const uint32_t fixed =
        STAGE_AT + STAGE_BEHIND + 2 * N * F8_BLOCK * (uint32_t)sizeof(uint16_t);
    const uint32_t n_stage = (SHARED_BYTES - fixed) / stage;
    struct early_launch launch;

    f->p.n_stage = n_stage < STAGE_MAX ? n_stage : STAGE_MAX;
    early_launch_init(&launch, gpu, dim3(n_tile < n_sm ? n_tile : n_sm),
                      PRODUCT_THREADS(GROUPS));
    launch.config.dynamicSmemBytes = fixed + f->p.n_stage * stage;
    /* Errors of both are found where the step is waited for. */
    (void)cudaFuncSetAttribute(f8_kernel<GROUPS, N, END>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               (int)launch.config.dynamicSmemBytes);
    (void)cudaLaunchKernelEx(&launch.config, f8_kernel<GROUPS, N, END>, *f);
}

void f8_launch(struct gpu *gpu, const struct product_job *job,
               struct product_shape s)
{
    const uint32_t n_m = product_rows_max(job, s);
    struct f8_product f = {};

    f.p = product_parameters(job, s);
    f.w[0] = (const unsigned char *)job->w[0].at;
    f.w[1] = (const unsigned char *)job->w[1].at;
    f.scales_at = job->scales_at;
#define CASE(GROUPS, N)                                                        \
    if (s.n_group == GROUPS && s.n == N) {                                     \
        if (job->end == PRODUCT_STORE)                                         \
            launch_as<GROUPS, N, PRODUCT_STORE>(gpu, &f, n_m);                 \
        else if (job->end == PRODUCT_ADD)                                      \
            launch_as<GROUPS, N, PRODUCT_ADD>(gpu, &f, n_m);                   \
        else                                                                   \
            launch_as<GROUPS, N, PRODUCT_SWIGLU>(gpu, &f, n_m);                \
        return;                                                                \
    }
    F8_SHAPES(CASE)
#undef CASE
    assert(!"a shape of the table");
}
