#include "kernels/cuda/linear_f8_many.cuh"

#include "kernels/cuda/linear_launch.h"

#include <assert.h>
#include <math.h>

/* n, n_box; one group. A tile's outputs lie in one block of weights. Those with
 * an n_box of 1 do any job; those without groups are for few rows. */
#define F8_SHAPES(X)                                                           \
    X(32, 1)                                                                   \
    X(32, 4)                                                                   \
    X(64, 2)                                                                   \
    X(128, 1)

/* by: those of linear_f8_many.cuh, which have two groups. */
#define F8_MANY_SHAPES(X) X(1) X(2)

static const struct product_shape SHAPE[] = {
#define ENTRY(N, BOX) {1, N, BOX, 1},
    F8_SHAPES(ENTRY)
#undef ENTRY
#define ENTRY(BY) {F8_MANY_GROUPS, F8_MANY, 1, BY},
        F8_MANY_SHAPES(ENTRY)
#undef ENTRY
#define ENTRY(TILES, DEPTH, CTAS) {0, TILES * 16, DEPTH, CTAS},
            F8_FEW_SHAPES(ENTRY)
#undef ENTRY
};
#define N_SHAPE (sizeof(SHAPE) / sizeof(*SHAPE))

static double up(double n, double by)
{
    return (double)(((uint64_t)n + (uint64_t)by - 1) / (uint64_t)by);
}

static bool is_many(struct product_shape s)
{
    return s.n_group == F8_MANY_GROUPS;
}

/* As cost() of linear_launch.cu: per block of 128 inputs a warpgroup widens an
 * output in some 5 cycles, beside which the steps run, those of n_box sums
 * between each other; then a stage's end, 200. */
static double cost(const struct product_job *job, struct product_shape s,
                   uint32_t n_sm)
{
    const double n_out = job->end == PRODUCT_SWIGLU ? s.n / 2.0 : s.n;
    const double high = s.n_group * (double)GROUP_ROWS;
    const double n_n = up(up(job->n_out, n_out), s.by) * s.by;
    const double n_tile = product_rows_max(job, s) * n_n;
    const double n_block = up(job->n_in, F8_BLOCK);
    const double x_rows = job->n_row < high ? job->n_row : high;
    const double widen = is_many(s) ? 0 : 5.0 * s.n / F8_WIDENERS;
    const double step = fmax(s.n_group * s.n / 2.0, 55.0 / s.n_box);
    const double copy = F8_BLOCK * (s.n + 2 * x_rows / s.by) / 35;
    const double block = fmax(fmax(widen, F8_BLOCK / 16 * step), copy);
    const double tiles =
        up(n_tile, n_sm) * (n_block * (block + 200.0 / s.n_box) + 2000);
    const double memory = F8_BLOCK * n_n * s.n * n_block / 13 / n_sm;

    return fmax(tiles, memory) + tiles / 16;
}

const struct product_shape *f8_shapes(size_t *out_n)
{
    *out_n = N_SHAPE;
    return SHAPE;
}

/* Bytes beside the stages, and of one. */
static uint32_t fixed_bytes(struct product_shape s)
{
    return is_many(s)
               ? STAGE_AT + F8_MANY_EXCHANGE
               : STAGE_AT + STAGE_BEHIND + 2 * s.n_box * s.n * F8_BLOCK * 2;
}

static uint32_t stage_bytes(struct product_shape s, uint32_t x_rows)
{
    return s.n_box * (F8_TILES * x_rows + s.n) * TILE_ROW_BYTES;
}

static uint32_t n_stage(struct product_shape s, uint32_t x_rows)
{
    const uint32_t n = (SHARED_BYTES - fixed_bytes(s)) / stage_bytes(s, x_rows);

    return n < STAGE_MAX ? n : STAGE_MAX;
}

/* One stage is widened while the one before is multiplied. */
bool f8_fits(const struct product_job *job, struct product_shape s)
{
    if (!s.n_group || job->is_placed)
        return !s.n_group && job->is_placed && f8_few_fits(job) &&
               (job->end != PRODUCT_SWIGLU || s.n == 16);
    return (uint32_t)up(job->n_in, F8_BLOCK) % s.n_box == 0 &&
           n_stage(s, product_x_rows(job, s.n_group)) > 1;
}

struct product_shape f8_choose(const struct product_job *job, uint32_t n_sm)
{
    struct product_shape best = {};
    double least = INFINITY;

    if (job->is_placed)
        return f8_few_choose(job);
    for (size_t i = 0; i < N_SHAPE; i++) {
        const double here =
            SHAPE[i].n_group ? cost(job, SHAPE[i], n_sm) : INFINITY;

        if (f8_fits(job, SHAPE[i]) && here < least) {
            best = SHAPE[i];
            least = here;
        }
    }
    return best;
}

template <int N, int BOX, enum product_end END>
static void launch_as(struct gpu *gpu, const struct f8_product *f,
                      uint32_t n_m_max)
{
    const struct product_shape s = {1, N, BOX, 1};
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu), n_tile = n_m_max * f->p.n_n;
    const uint32_t bytes =
        fixed_bytes(s) + f->p.n_stage * stage_bytes(s, f->p.x_rows);

    launch_allow(f8_kernel<N, BOX, END>, bytes);
    launch_early_with(gpu_stream(gpu), f8_kernel<N, BOX, END>,
                      dim3(n_tile < n_sm ? n_tile : n_sm), F8_THREADS, bytes,
                      *f);
}

template <int X_BY, enum product_end END>
static void launch_many_as(struct gpu *gpu, const struct f8_product *f,
                           uint32_t n_m_max)
{
    const struct product_shape s = {F8_MANY_GROUPS, F8_MANY, 1, X_BY};
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu) / X_BY * X_BY;
    const uint32_t n_tile = n_m_max * f->p.n_n * X_BY;
    struct launch_config how = {};

    how.stream = gpu_stream(gpu);
    how.grid = dim3(n_tile < n_sm ? n_tile : n_sm);
    how.n_thread = F8_MANY_THREADS;
    how.shared_bytes =
        fixed_bytes(s) + f->p.n_stage * stage_bytes(s, f->p.x_rows);
    how.n_cluster = X_BY > 1 ? X_BY : 0;
    launch_allow(f8_many_kernel<X_BY, END>, how.shared_bytes);
    launch_kernel(how, f8_many_kernel<X_BY, END>, *f);
}

static void launch_many(struct gpu *gpu, const struct product_job *job,
                        const struct f8_product *f, uint32_t by)
{
    const struct product_shape s = {F8_MANY_GROUPS, F8_MANY, 1, by};
    const uint32_t n_m = product_rows_max(job, s);

#define CASE(BY)                                                               \
    if (by == BY) {                                                            \
        if (job->end == PRODUCT_STORE)                                         \
            launch_many_as<BY, PRODUCT_STORE>(gpu, f, n_m);                    \
        else if (job->end == PRODUCT_ADD)                                      \
            launch_many_as<BY, PRODUCT_ADD>(gpu, f, n_m);                      \
        else                                                                   \
            launch_many_as<BY, PRODUCT_SWIGLU>(gpu, f, n_m);                   \
    }
    F8_MANY_SHAPES(CASE)
#undef CASE
}

void f8_launch(struct gpu *gpu, const struct product_job *job,
               struct product_shape s)
{
    struct f8_product f = {};

    assert(f8_fits(job, s));
    if (!s.n_group) {
        f8_few_launch(gpu, job, s);
        return;
    }
    const uint32_t n_m = product_rows_max(job, s);
    f.p = product_parameters(job, s);
    f.p.n_stage = n_stage(s, f.p.x_rows);
    f.w[0] = (const unsigned char *)job->w[0].at;
    f.w[1] = (const unsigned char *)job->w[1].at;
    f.scales_at = job->scales_at;
    if (is_many(s)) {
        launch_many(gpu, job, &f, s.by);
        return;
    }
#define CASE(N, BOX)                                                           \
    if (s.n == N && s.n_box == BOX) {                                          \
        if (job->end == PRODUCT_STORE)                                         \
            launch_as<N, BOX, PRODUCT_STORE>(gpu, &f, n_m);                    \
        else if (job->end == PRODUCT_ADD)                                      \
            launch_as<N, BOX, PRODUCT_ADD>(gpu, &f, n_m);                      \
        else                                                                   \
            launch_as<N, BOX, PRODUCT_SWIGLU>(gpu, &f, n_m);                   \
        return;                                                                \
    }
    F8_SHAPES(CASE)
#undef CASE
    assert(!"a shape of the table");
}
