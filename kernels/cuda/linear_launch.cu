#include "kernels/cuda/linear_launch.h"

#include "kernels/cuda/linear_f8.cuh"
#include "kernels/cuda/tensor_map.h"

#include <assert.h>
#include <math.h>

#define M_GROUP 16u /* tiles of rows that are neighbours in time */

/*
 * The shapes that are compiled: n_group, n, n_box, by. Few rows want tiles of
 * few outputs, so that all SMs read weights; many rows want large tiles. Those
 * with an n_box of 1 do any job. No cost is lower with clusters that share
 * weights (by 2): where there are rows for it, multiplying is the bound.
 */
#define PRODUCT_SHAPES(X)                                                      \
    X(1, 16, 1, 1)                                                             \
    X(1, 16, 4, 1)                                                             \
    X(1, 16, 8, 1)                                                             \
    X(1, 32, 1, 1)                                                             \
    X(1, 32, 4, 1)                                                             \
    X(1, 64, 1, 1)                                                             \
    X(1, 64, 2, 1)                                                             \
    X(1, 96, 1, 1)                                                             \
    X(1, 96, 2, 1)                                                             \
    X(1, 64, 4, 1)                                                             \
    X(1, 128, 1, 1)                                                            \
    X(1, 128, 2, 1)                                                            \
    X(1, 192, 1, 1)                                                            \
    X(1, 256, 1, 1)                                                            \
    X(2, 64, 1, 1)                                                             \
    X(2, 64, 2, 1)                                                             \
    X(2, 128, 1, 1)                                                            \
    X(2, 192, 1, 1)                                                            \
    X(2, 256, 1, 1)

static const struct product_shape SHAPE[] = {
#define ENTRY(...) {__VA_ARGS__},
    PRODUCT_SHAPES(ENTRY)
#undef ENTRY
};
#define N_SHAPE (sizeof(SHAPE) / sizeof(*SHAPE))

/* ------------------------------------------------------------------ choice */

uint32_t product_x_rows(const struct product_job *job, uint32_t n_group)
{
    const uint32_t most = n_group * GROUP_ROWS;
    const uint32_t n_row =
        div_up(job->n_each ? job->n_each : job->n_row, 8) * 8;

    return n_row < most ? n_row : most;
}

/*
 * What a shape costs in cycles of an SM, roughly; fitted to an H100. Per 64
 * inputs: four steps, of N / 2 cycles for each warpgroup and of 45 at least,
 * since each waits for the one before; 520 a stage at least; copies at 45
 * bytes a cycle to an SM and 35 on average when all are at it, from the L2
 * cache, or 50 where several tiles of rows ask for the same weights; 13 from
 * memory. Then the results go out.
 */
static double cost(const struct product_job *job, struct product_shape s,
                   uint32_t n_sm)
{
    const uint32_t n_out = job->end == PRODUCT_SWIGLU ? s.n / 2 : s.n;
    const uint32_t n_n = div_up(job->n_out, n_out);
    const uint32_t n_m = div_up(product_rows_max(job, s), s.by) * s.by;
    const double n_tile = (double)n_m * n_n;
    const double n_busy = n_tile < n_sm ? n_tile : n_sm;
    const double n_wave = div_up((size_t)n_tile, n_sm);
    const double n_block = div_up(job->n_in, TILE_K);
    const double n_matrix =
        job->n_expert < job->n_row ? job->n_expert : job->n_row;
    const double step = s.n_group * s.n / 2 < 45 ? 45 : s.n_group * s.n / 2;
    const double multiply = fmax(4 * step + 100.0 / s.n_box, 520.0 / s.n_box);
    const double bytes =
        128.0 * ((double)s.n / s.by + product_x_rows(job, s.n_group));
    const double all = job->n_row > GROUP_ROWS && !job->n_expert ? 50 : 35;
    const double rate = fmin(all * n_sm / n_busy, fmax(all, 45));
    const double copy = bytes / rate;
    const double tiles =
        n_wave * (n_block * (multiply > copy ? multiply : copy) + 2000 +
                  s.n_group * s.n * 8);
    const double memory = 128.0 * (job->n_expert ? n_matrix : 1) * n_n * s.n *
                          n_block / 13 / n_sm;

    /* Of those that memory bounds, the one with the least work besides. */
    return (tiles > memory ? tiles : memory) + tiles / 16;
}

/* An expert's last tile may be any part of one. */
uint32_t product_rows_max(const struct product_job *job, struct product_shape s)
{
    const uint32_t height = product_height(s);
    const uint32_t n_part =
        job->n_expert < job->n_row ? job->n_expert : job->n_row;

    if (job->n_each)
        return n_part;
    return job->n_expert ? n_part + job->n_row / height
                         : div_up(job->n_row, height);
}

const struct product_shape *product_shapes(size_t *out_n)
{
    *out_n = N_SHAPE;
    return SHAPE;
}

bool product_fits(const struct product_job *job, struct product_shape shape)
{
    return div_up(job->n_in, TILE_K) % shape.n_box == 0 &&
           (!job->n_expert || shape.by == 1) &&
           (!job->n_each || (shape.n_group == 1 && shape.by == 1));
}

struct product_shape product_choose(const struct product_job *job,
                                    uint32_t n_sm)
{
    struct product_shape best = {};
    double least = INFINITY;

    for (size_t i = 0; i < N_SHAPE; i++) {
        const double here = cost(job, SHAPE[i], n_sm);

        if (product_fits(job, SHAPE[i]) && here < least) {
            best = SHAPE[i];
            least = here;
        }
    }
    return best;
}

/* ------------------------------------------------------------------ launch */

/* Rows of bf16 are tiles of wgmma.cuh where they arrive; bytes are read by
 * threads first, which widen them. */
static void encode(CUtensorMap *map, const struct product_matrix *m,
                   enum tensor_element element, size_t n_column,
                   uint32_t box_rows)
{
    struct tensor tensor = {};

    static_assert(TILE_ROW_BYTES == TENSOR_BOX_BYTES &&
                      F8_BLOCK == TENSOR_BOX_BYTES,
                  "a box is as wide as a tile");
    tensor.at = m->at;
    tensor.element = element;
    tensor.n_column = n_column;
    tensor.n_row = m->n_row;
    tensor.row_bytes = m->stride * element;
    tensor.n_matrix = m->n_matrix;
    tensor.matrix_bytes = MATRIX_STEP;
    tensor.box_rows = box_rows;
    tensor.is_swizzled = element == TENSOR_BF16;
    tensor_map_encode(&tensor, map);
}

struct product product_fields(const struct product_job *job,
                              struct product_shape s)
{
    const uint32_t n_out = job->end == PRODUCT_SWIGLU ? s.n / 2 : s.n;
    const uint32_t w_by = job->is_f8 ? 1 : s.by;
    struct product p = {};

    p.y = job->y;
    p.y_stride = job->y_stride;
    p.n_row = job->n_row;
    p.n_out = job->n_out;
    p.n_block = div_up(job->n_in, job->is_f8 ? F8_BLOCK : TILE_K);
    p.x_rows = product_x_rows(job, s.n_group);
    p.n_m = div_up(div_up(job->n_row, product_height(s)), w_by);
    p.n_n = div_up(div_up(job->n_out, n_out), job->is_f8 ? s.by : 1);
    p.n_m_group = M_GROUP / w_by;
    p.is_even = (uintptr_t)job->y % 16 == 0 && job->y_stride % 4 == 0 &&
                job->n_out % 4 == 0;
    p.rows = job->rows;
    p.n_rows = job->n_rows;
    p.matrix = job->matrix;
    p.places = job->places;
    return p;
}

struct product product_parameters(const struct product_job *job,
                                  struct product_shape s)
{
    const uint32_t n_out = job->end == PRODUCT_SWIGLU ? s.n / 2 : s.n;
    /* Outputs of a box: a part of the gate's and of up's is one of them. */
    const uint32_t n_box =
        job->end == PRODUCT_SWIGLU || job->is_f8 ? n_out : n_out / s.by;
    struct product p = product_fields(job, s);

    encode(&p.x, &job->x, TENSOR_BF16, linear_padded(job->n_in),
           job->n_each ? p.places.x_box : p.x_rows);
    for (int i = 0; i < (job->end == PRODUCT_SWIGLU ? 2 : 1); i++)
        if (job->is_f8)
            encode(&p.w[i], &job->w[i], TENSOR_U8, job->w[i].stride, n_box);
        else
            encode(&p.w[i], &job->w[i], TENSOR_BF16, linear_padded(job->n_in),
                   n_box);
    return p;
}

static uint32_t list_bytes(const struct product_places *places)
{
    return places->first
               ? (places->n_expert + 1) * (uint32_t)sizeof(struct product_rows)
               : 0;
}

/* The ring has what a CTA's memory has room for. */
static struct product with_stages(const struct product_job *job,
                                  struct product_shape s)
{
    struct product p = product_parameters(job, s);
    const uint32_t bytes = s.n_box * (p.x_rows + s.n) * TILE_ROW_BYTES;
    const uint32_t n =
        (SHARED_BYTES - STAGE_AT - STAGE_BEHIND - list_bytes(&job->places)) /
        bytes;

    p.n_stage = n < STAGE_MAX ? n : STAGE_MAX;
    p.places.list_at = STAGE_AT + p.n_stage * bytes + STAGE_BEHIND;
    return p;
}

template <int GROUPS, int N, int BOX, int W_BY, enum product_end END>
static void launch_as(struct gpu *gpu, const struct product *p,
                      uint32_t n_m_max)
{
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu) / W_BY * W_BY;
    const uint32_t n_tile = n_m_max * p->n_n * W_BY;
    struct launch_config how = {};

    how.stream = gpu_stream(gpu);
    how.grid = dim3(n_tile < n_sm ? n_tile : n_sm);
    how.n_thread = PRODUCT_THREADS(GROUPS);
    how.shared_bytes = p->places.list_at + list_bytes(&p->places);
    how.n_cluster = W_BY > 1 ? W_BY : 0;
    launch_allow(product_kernel<GROUPS, N, BOX, W_BY, END>, how.shared_bytes);
    launch_kernel(how, product_kernel<GROUPS, N, BOX, W_BY, END>, *p);
}

void product_launch(struct gpu *gpu, const struct product_job *job,
                    struct product_shape s)
{
    assert(product_fits(job, s));
    const struct product p = with_stages(job, s);
    const uint32_t n_m = job->n_expert ? product_rows_max(job, s) : p.n_m;

#define CASE(GROUPS, N, BOX, W_BY)                                             \
    if (s.n_group == GROUPS && s.n == N && s.n_box == BOX && s.by == W_BY) {   \
        if (job->end == PRODUCT_STORE)                                         \
            launch_as<GROUPS, N, BOX, W_BY, PRODUCT_STORE>(gpu, &p, n_m);      \
        else if (job->end == PRODUCT_ADD)                                      \
            launch_as<GROUPS, N, BOX, W_BY, PRODUCT_ADD>(gpu, &p, n_m);        \
        else                                                                   \
            launch_as<GROUPS, N, BOX, W_BY, PRODUCT_SWIGLU>(gpu, &p, n_m);     \
        return;                                                                \
    }
    PRODUCT_SHAPES(CASE)
#undef CASE
    assert(!"a shape of the table");
}

/* ----------------------------------------------------------- kinds of weights
 */

void product_set_weights(struct product_job *job, uint32_t part,
                         const struct linear *w)
{
    const struct linear_f8_shape shape = {w->n_in, w->n_out};
    struct product_matrix *m = &job->w[part];

    assert(w->type == LINEAR_BF16 || w->type == LINEAR_F8);
    job->is_f8 = w->type == LINEAR_F8;
    job->scales_at = job->is_f8 ? linear_f8_scales_at(shape) : 0;
    m->at = w->panel;
    m->n_row = job->is_f8 ? div_up(w->n_out, F8_BLOCK) * F8_BLOCK
                          : linear_padded(w->n_out);
    m->stride = job->is_f8 ? div_up(w->n_in, F8_BLOCK) * F8_BLOCK
                           : linear_padded(w->n_in);
    m->n_matrix = 1;
}

struct product_shape product_shape_of(struct gpu *gpu,
                                      const struct product_job *job)
{
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu);

    if (way_is_sm80())
        return sm80_shape_of(job, n_sm);
    return job->is_f8 ? f8_choose(job, n_sm) : product_choose(job, n_sm);
}

void product_run(struct gpu *gpu, const struct product_job *job,
                 struct product_shape shape)
{
    if (way_is_sm80())
        sm80_launch(gpu, job, shape);
    else if (job->is_f8)
        f8_launch(gpu, job, shape);
    else
        product_launch(gpu, job, shape);
}
