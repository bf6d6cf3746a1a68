#include "kernels/cpu/product.h"

#include "kernels/cpu/cut.h"

#include <assert.h>
#include <string.h>

/* Elements that every thread brings into form for itself, because that takes
 * less than another start of the pool. */
#define OWN_ELEMENTS 16384u
#define OWN_BYTES (POOL_SCRATCH_BYTES - PRODUCT_SCRATCH_BYTES)

/* Fetching a panel costs about as much as this many rows of arithmetic. */
#define PANEL_ROWS 4u

/* Of y, above which it is written past the caches: reading its lines first
 * would cost more than whoever reads them next gains. */
#define STREAM_BYTES ((uint64_t)4 << 20)

/* A task is worth its start from so many multiply-adds on. */
#define TASK_FMAS (UINT64_C(1) << 24)

/* Waking and joining workers costs about a microsecond. Fewer vector fused
 * multiply-adds than this stay on the caller. */
#define FMAS_MIN 4096u

/* Weights that each thread may read for itself: its caches hold them. Larger
 * ones are read once for all threads. */
#define CACHED_BYTES ((size_t)4 << 20)

/* One pass over rows [first, end) of y, all of which fit where they go. */
struct pass {
    const struct product *product;
    const struct product_kernel *kernel;
    const struct linear *shape; /* any of the weights */
    struct product_form form;
    uint32_t first, end;
    bool is_own;   /* every thread makes its own rows */
    bool is_first; /* the calling thread makes them before there are others */
    void *made;    /* rows in the kernel's form; NULL: x as it is */
    uint32_t n_task, n_panel;
    uint32_t n_run; /* of consecutive tasks, one for each thread; or n_task */
    uint64_t cost;  /* of all units */
};

/* What one part has to do in a pass. */
struct share {
    const struct product_part *part;
    uint32_t first, end;              /* rows of y */
    uint32_t n_block;                 /* of rows */
    uint32_t n_group, panels_a_group; /* of panels */
    uint64_t cost;                    /* of all its units */
};

static void copy_floats(void *to, const float *x, uint32_t n, uint32_t n_step)
{
    memcpy(to, x, n * sizeof(*x));
    memset((float *)to + n, 0, (n_step - n) * sizeof(*x));
}

/* Whole cache lines become an odd number of them, or rows of 1,024 inputs would
 * all meet in the same few cache sets. */
struct product_form product_form_of(const struct product_kernel *kernel,
                                    const struct linear *w)
{
    struct product_form form = {kernel->take, kernel->element_bytes, 0};

    if (!form.take)
        form = (struct product_form){copy_floats, sizeof(float), 0};
    form.row_bytes = linear_n_step(w) * form.element_bytes;
    if (kernel->group_bytes) {
        form.row_bytes += linear_n_step(w) / LINEAR_GROUP * kernel->group_bytes;
        form.row_bytes = (form.row_bytes + 63) / 64 * 64;
    }
    if (form.row_bytes % 64 == 0)
        form.row_bytes |= 64;
    return form;
}

/* ------------------------------------------------------------------- rows */

static void make_row(const struct pass *pass, uint32_t row, void *made)
{
    const struct product *p = pass->product;
    const size_t from = p->row ? p->row[row] : row;

    pass->form.take((unsigned char *)made +
                        (row - pass->first) * pass->form.row_bytes,
                    p->x + from * p->x_stride, pass->shape->n_in,
                    (uint32_t)linear_n_step(pass->shape));
}

static void make_rows(void *arg, uint32_t task, void *scratch)
{
    const struct pass *pass = arg;
    const uint64_t n = pass->end - pass->first;

    (void)scratch;
    for (uint64_t i = n * task / pass->n_task;
         i < n * (task + 1) / pass->n_task; i++)
        make_row(pass, pass->first + (uint32_t)i, pass->made);
}

/* ------------------------------------------------------------------ units */

static struct share share_of(const struct pass *pass,
                             const struct product_part *part)
{
    const uint32_t end = part->first_row + part->n_row;
    struct share s = {.part = part,
                      .first = part->first_row > pass->first ? part->first_row
                                                             : pass->first,
                      .end = end < pass->end ? end : pass->end};
    struct product_shape shape;
    uint32_t n_row;

    if (s.first >= s.end)
        return (struct share){.part = part};
    n_row = s.end - s.first;
    shape = pass->kernel->shape(n_row, (uint32_t)linear_n_step(pass->shape));
    s.n_block = (n_row + shape.n_row - 1) / shape.n_row;
    s.panels_a_group = shape.n_panel;
    /* Few rows: give every thread something. */
    while (s.panels_a_group > 1 && (uint64_t)pass->n_panel / s.panels_a_group *
                                           s.n_block * pass->product->n_part <
                                       pass->n_task)
        s.panels_a_group /= 2;
    s.n_group = (pass->n_panel + s.panels_a_group - 1) / s.panels_a_group;
    s.cost = (uint64_t)s.n_group * s.panels_a_group *
             (n_row + (uint64_t)s.n_block * PANEL_ROWS);
    return s;
}

static bool is_streamed(const struct product *p, const struct linear *w)
{
    return !p->is_add &&
           (uint64_t)p->n_row * w->n_out * sizeof(*p->y) >= STREAM_BYTES &&
           (uintptr_t)p->y % 64 == 0 && p->y_stride % LINEAR_PANEL == 0;
}

static void run_unit(const struct pass *pass, const struct share *s,
                     uint32_t group, uint32_t block, const void *made,
                     void *scratch)
{
    const struct product *p = pass->product;
    const struct linear *w = s->part->w;
    const uint64_t n_row = s->end - s->first;
    const uint32_t row = s->first + (uint32_t)(n_row * block / s->n_block);
    const uint32_t end =
        s->first + (uint32_t)(n_row * (block + 1) / s->n_block);
    const uint32_t width = s->panels_a_group * LINEAR_PANEL;
    const size_t column = (size_t)group * width;
    struct product_tile tile = {
        .c = p->y + row * p->y_stride + column,
        .c_stride = p->y_stride,
        .a = made,
        .b_stride = linear_panel_bytes(w),
        .n_row = end - row,
        .n_in = w->n_in,
        .n_step = (uint32_t)linear_n_step(w),
        .is_add = p->is_add,
        .is_streamed = is_streamed(p, w),
        .scratch = scratch,
    };

    if (made) {
        tile.a = (const unsigned char *)made +
                 (row - pass->first) * pass->form.row_bytes;
        tile.a_stride = pass->form.row_bytes / pass->form.element_bytes;
    } else {
        tile.a = p->x + row * p->x_stride;
        tile.a_stride = p->x_stride;
    }
    tile.b = (const unsigned char *)w->panel +
             (size_t)group * s->panels_a_group * tile.b_stride;
    tile.n_col = w->n_out - (uint32_t)column < width
                     ? w->n_out - (uint32_t)column
                     : width;
    pass->kernel->work(&tile);
}

/* Of a share's units the first that begins at or behind `cost`. */
static uint64_t unit_at(const struct share *s, uint64_t n_unit, uint64_t cost)
{
    return cost >= s->cost ? n_unit : (cost * n_unit + s->cost - 1) / s->cost;
}

/*
 * Thread i takes the units that begin in its part of the cost, one run of
 * them, so that a group of panels is fetched by few threads.
 */
static void run_units(const struct pass *pass, uint32_t task, const void *made,
                      void *scratch)
{
    const uint64_t turn = cut_turn(task, pass->n_task, pass->n_run);
    const uint64_t from = pass->cost * turn / pass->n_task;
    const uint64_t to = pass->cost * (turn + 1) / pass->n_task;
    uint64_t at = 0;

    for (uint32_t i = 0; i < pass->product->n_part && at < to; i++) {
        const struct share s = share_of(pass, &pass->product->part[i]);
        const uint64_t n_unit = (uint64_t)s.n_group * s.n_block;
        const uint64_t end = unit_at(&s, n_unit, to - at);

        for (uint64_t u = unit_at(&s, n_unit, from > at ? from - at : 0);
             u < end; u++)
            run_unit(pass, &s, (uint32_t)(u / s.n_block),
                     (uint32_t)(u % s.n_block), made, scratch);
        at += s.cost;
    }
}

static void run_task(void *arg, uint32_t task, void *scratch)
{
    const struct pass *pass = arg;
    unsigned char *own = scratch;
    void *made = pass->made;

    if (pass->is_own) {
        made = own;
        for (uint32_t row = pass->first; row < pass->end; row++)
            make_row(pass, row, made);
    }
    run_units(pass, task, made, own + OWN_BYTES);
}

static uint64_t cost_of(const struct pass *pass)
{
    uint64_t cost = 0;

    for (uint32_t i = 0; i < pass->product->n_part; i++)
        cost += share_of(pass, &pass->product->part[i]).cost;
    return cost;
}

/* Rows [first, end) from beginning to end, on this thread. */
static void run_rows(const struct pass *pass, struct cut_part rows,
                     void *scratch)
{
    struct pass own = *pass;

    own.first = rows.first;
    own.end = rows.end;
    own.n_task = own.n_run = 1;
    own.cost = cost_of(&own);
    if (own.made)
        own.made = (unsigned char *)own.made + rows.first * own.form.row_bytes;
    run_task(&own, 0, scratch);
}

struct by_rows {
    const struct pass *pass;
    struct cut cut;
};

static void rows_task(void *arg, uint32_t task, void *scratch)
{
    const struct by_rows *by = arg;

    run_rows(by->pass, cut_part(by->cut, task), scratch);
}

/* ----------------------------------------------------------------- passes */

static void run_pass(struct pool *pool, struct pass *pass)
{
    pass->cost = cost_of(pass);
    if (pass->made && !pass->product->made)
        pool_run(pass->is_first ? NULL : pool, pass->n_task, make_rows, pass);
    pool_run(pool, pass->n_task, run_task, pass);
}

const struct product_kernel *
product_kernel_of(const struct product_kernels *kernels, const struct linear *w)
{
    while (!kernels->of[w->arithmetic][w->type].work) {
        kernels = kernels->base;
        assert(kernels);
    }
    return &kernels->of[w->arithmetic][w->type];
}

struct pool *product_pool(struct pool *pool, const struct linear *w,
                          uint32_t n_row)
{
    const uint64_t n_panel = (w->n_out + LINEAR_PANEL - 1) / LINEAR_PANEL;

    return n_row * linear_n_step(w) * n_panel < FMAS_MIN ? NULL : pool;
}

uint32_t product_n_task(const struct pool *pool,
                        const struct product_kernel *kernel,
                        const struct linear *w, uint32_t n_row)
{
    const uint32_t n_thread = pool_n_thread(pool);
    const uint64_t n = n_row * linear_n_step(w) * w->n_out / TASK_FMAS;
    const uint64_t n_max = (uint64_t)n_thread * kernel->tasks_a_thread;

    if (n_thread == 1 || n <= n_thread || n_max <= n_thread)
        return n_thread;
    return (uint32_t)(n < n_max ? n - n % n_thread : n_max);
}

uint32_t product_in_runs(const struct product_kernel *kernel, uint32_t n_run,
                         size_t bytes)
{
    const size_t each = (size_t)n_run * kernel->task_bytes;

    return each && bytes > each ? n_run * (uint32_t)(bytes / each) : n_run;
}

bool product_is_by_rows(const struct pool *pool,
                        const struct product_kernel *kernel, size_t bytes,
                        uint32_t n_row)
{
    const uint32_t n_thread = pool_n_thread(pool);

    if (kernel->tasks_a_thread && n_thread == 1) /* nobody to wait for */
        return false;
    return bytes <= CACHED_BYTES && n_row / n_thread >= PRODUCT_ROWS;
}

/* Where the rows come from; returns how many fit there at a time. */
static uint32_t choose_room(struct pass *pass, struct pool *pool)
{
    const struct product *p = pass->product;
    const size_t bytes = pass->form.row_bytes;

    pass->made = (void *)(uintptr_t)p->made; /* read only, then */
    if (p->made || (!pass->kernel->take && !p->row))
        return p->n_row;
    assert(bytes <= POOL_SHARED_BYTES);
    pass->is_own =
        (uint64_t)p->n_row * linear_n_step(pass->shape) <= OWN_ELEMENTS &&
        p->n_row * bytes <= OWN_BYTES;
    pass->is_first = pass->is_own && pass->kernel->task_bytes;
    pass->is_own = pass->is_own && !pass->is_first;
    if (pass->is_own)
        return p->n_row;
    pass->made = pool_shared(pool);
    return p->n_row < POOL_SHARED_BYTES / bytes
               ? p->n_row
               : (uint32_t)(POOL_SHARED_BYTES / bytes);
}

static void run_by_rows(struct pool *pool, struct pass *pass)
{
    struct by_rows by = {pass,
                         cut_rows(pool, pass->product->n_row, PRODUCT_ROWS)};

    pass->is_own = pass->kernel->take || pass->product->row;
    pool_run(pool, by.cut.n_task, rows_task, &by);
}

static struct pass begin(const struct product *p,
                         const struct product_kernels *kernels)
{
    struct pass pass = {.product = p, .shape = p->part[0].w};

    pass.n_panel = (pass.shape->n_out + LINEAR_PANEL - 1) / LINEAR_PANEL;
    pass.kernel = product_kernel_of(kernels, pass.shape);
    pass.form = product_form_of(pass.kernel, pass.shape);
    return pass;
}

void product_run_alone(const struct product *p,
                       const struct product_kernels *kernels, void *scratch)
{
    struct pass pass = begin(p, kernels);

    assert(p->made);
    pass.made = (void *)(uintptr_t)p->made; /* read only */
    run_rows(&pass, (struct cut_part){0, p->n_row}, scratch);
}

void product_run(struct pool *pool, const struct product *p,
                 const struct product_kernels *kernels)
{
    struct pass pass;
    uint32_t n_fit;

    if (!p->n_row || !p->n_part || !p->part[0].w->n_out)
        return;
    pass = begin(p, kernels);
    pool = product_pool(pool, pass.shape, p->n_row);
    if (p->n_part == 1 && !p->made &&
        PRODUCT_ROWS * pass.form.row_bytes <= OWN_BYTES &&
        product_is_by_rows(pool, pass.kernel, linear_bytes(pass.shape),
                           p->n_row)) {
        run_by_rows(pool, &pass);
        return;
    }
    pass.n_task = pool_n_thread(pool);
    n_fit = choose_room(&pass, pool);
    if (!pass.is_own && !pass.is_first)
        pass.n_task = product_n_task(pool, pass.kernel, pass.shape, p->n_row);
    pass.n_run = pass.n_task;
    if (pass.kernel->task_bytes)
        pass.n_task = product_in_runs(pass.kernel, pass.n_run,
                                      p->n_part * linear_bytes(pass.shape));
    for (pass.first = 0; pass.first < p->n_row; pass.first = pass.end) {
        pass.end =
            p->n_row - pass.first < n_fit ? p->n_row : pass.first + n_fit;
        run_pass(pool, &pass);
    }
}

void product_linear(struct pool *pool, const struct linear_args *args,
                    bool is_add, const struct product_kernels *kernels)
{
    const struct product_part whole = {.w = args->w, .n_row = args->n_row};

    product_run(pool,
                &(struct product){.y = args->y,
                                  .y_stride = args->y_stride,
                                  .x = args->x,
                                  .x_stride = args->x_stride,
                                  .n_row = args->n_row,
                                  .part = &whole,
                                  .n_part = 1,
                                  .is_add = is_add},
                kernels);
}

void product_expert(struct pool *pool, const struct expert_args *args,
                    const struct product_kernels *kernels)
{
    struct product_part part[EXPERT_MAX];
    uint32_t n_part = 0;

    assert(args->n_expert <= EXPERT_MAX);
    for (uint32_t e = 0; e < args->n_expert; e++)
        if (args->first[e] < args->first[e + 1])
            part[n_part++] = (struct product_part){.w = &args->w[e],
                                                   .first_row = args->first[e],
                                                   .n_row = args->first[e + 1] -
                                                            args->first[e]};
    product_run(pool,
                &(struct product){.y = args->y,
                                  .y_stride = args->y_stride,
                                  .x = args->x,
                                  .x_stride = args->x_stride,
                                  .row = args->row,
                                  .n_row = args->first[args->n_expert],
                                  .part = part,
                                  .n_part = n_part},
                kernels);
}
