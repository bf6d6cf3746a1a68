/*
 * The operators ffn and ffn_add: a block of rows goes through gate, up, swiglu
 * and down before the next one, and what lies between never leaves the caches:
 * a unit computes some panels of gate and the same of up into its scratch and
 * leaves their swiglu in the form in which down's kernel reads rows. On one
 * core of a machine with 28 GB/s from its last cache, the floats of gate and up
 * alone would take longer to write and read than AMX takes to compute them.
 */
#include "kernels/cpu/product.h"

#include "kernels/cpu/cut.h"

#include <assert.h>

#define ROWS 256u /* of a block: weights are read once for so many */
/* Elements that every thread brings into form for itself, because that takes
 * less than another start of the pool. */
#define OWN_ELEMENTS 16384u
/* Panels of gate, then of up, where few rows wait for them: each turn from one
 * to the other costs as much as some hundred bytes each of a panel. */
#define UNIT_PANELS 16u
#define UNIT_ROWS 24u
/* Where tasks are to be small: bytes of both in a unit, in those of a task. */
#define UNIT_TASKS 2u
/* In the part of a thread's scratch that micro-kernels leave alone. */
#define OWN_BYTES ((size_t)1 << 20)
#define PIECE_BYTES                                                            \
    ((POOL_SCRATCH_BYTES - PRODUCT_SCRATCH_BYTES - OWN_BYTES) / 2)

struct ffn {
    const struct ffn_args *args;
    const struct product_kernel *in;  /* of gate and up */
    const struct product_kernel *out; /* of down, for which swiglu makes rows */
    struct product_form x_form, act_form;
    uint32_t first, n_row; /* the block */
    bool is_own;           /* every thread makes rows of x for itself */
    unsigned char *x;      /* [n_row] made; NULL: the kernel reads floats */
    unsigned char *act;    /* [n_row] rows for down */
    uint32_t n_task, panels_a_unit, n_block, n_group; /* blocks of rows */
    uint32_t n_run; /* of consecutive tasks, one for each thread; or n_task */
};

/* One unit: some rows of the block, some columns of gate and up. */
struct unit {
    uint32_t row, n_row, column, n_col;
    float *gate, *up; /* [n_row] rows of `width` floats */
    size_t width;
};

/* -------------------------------------------------------------------- rows */

static void make_row(const struct ffn *f, uint32_t row, unsigned char *x)
{
    const struct ffn_args *a = f->args;

    f->x_form.take(x + row * f->x_form.row_bytes,
                   a->x + (f->first + row) * a->x_stride, a->gate->n_in,
                   (uint32_t)linear_n_step(a->gate));
}

static void make_rows(void *arg, uint32_t task, void *scratch)
{
    const struct ffn *f = arg;
    const uint64_t n = f->n_row;

    (void)scratch;
    for (uint64_t i = n * task / f->n_task; i < n * (task + 1) / f->n_task; i++)
        make_row(f, (uint32_t)i, f->x);
}

/* ------------------------------------------------------------------- units */

static void multiply(const struct ffn *f, const struct unit *u,
                     const struct linear *w, const unsigned char *x, float *c,
                     void *scratch)
{
    const struct ffn_args *a = f->args;
    struct product_tile tile = {
        .c = c,
        .c_stride = u->width,
        .a = a->x + (f->first + u->row) * a->x_stride,
        .a_stride = a->x_stride,
        .b_stride = linear_panel_bytes(w),
        .n_row = u->n_row,
        .n_col = u->n_col,
        .n_in = w->n_in,
        .n_step = (uint32_t)linear_n_step(w),
        .scratch = scratch,
    };

    if (x) {
        tile.a = x + u->row * f->x_form.row_bytes;
        tile.a_stride = f->x_form.row_bytes / f->x_form.element_bytes;
    }
    tile.b = (const unsigned char *)w->panel +
             u->column / LINEAR_PANEL * tile.b_stride;
    f->in->work(&tile);
}

/* The unit's part of the rows for down; the last columns bring the padding. */
static void put(const struct ffn *f, const struct unit *u)
{
    const struct linear *down = f->args->down;
    const bool is_last = u->column + u->n_col == down->n_in;
    unsigned char *to = f->act + u->row * f->act_form.row_bytes;

    f->out->swiglu(&(struct product_swiglu){
        .to = to + (size_t)u->column * f->act_form.element_bytes,
        .to_group = to + linear_n_step(down) * f->act_form.element_bytes +
                    u->column / LINEAR_GROUP * f->out->group_bytes,
        .to_bytes = f->act_form.row_bytes,
        .gate = u->gate,
        .up = u->up,
        .stride = u->width,
        .n_row = u->n_row,
        .n_col = u->n_col,
        .n_step =
            is_last ? (uint32_t)linear_n_step(down) - u->column : u->n_col});
}

static void run_unit(const struct ffn *f, uint32_t i, const unsigned char *x,
                     unsigned char *own, void *scratch)
{
    const uint32_t n_ff = f->args->gate->n_out;
    const uint64_t block = i % f->n_block, n = f->n_row;
    struct unit u = {
        .row = (uint32_t)(n * block / f->n_block),
        .width = (size_t)f->panels_a_unit * LINEAR_PANEL,
        .gate = (float *)(void *)(own + OWN_BYTES),
        .up = (float *)(void *)(own + OWN_BYTES + PIECE_BYTES),
    };

    u.n_row = (uint32_t)(n * (block + 1) / f->n_block) - u.row;
    u.column = i / f->n_block * (uint32_t)u.width;
    u.n_col = n_ff - u.column < u.width ? n_ff - u.column : (uint32_t)u.width;
    multiply(f, &u, f->args->gate, x, u.gate, scratch);
    multiply(f, &u, f->args->up, x, u.up, scratch);
    put(f, &u);
}

/* Consecutive units share panels: each thread takes one run of them. */
static void run_units(void *arg, uint32_t task, void *scratch)
{
    const struct ffn *f = arg;
    const uint64_t n = (uint64_t)f->n_group * f->n_block;
    const uint64_t turn = cut_turn(task, f->n_task, f->n_run);
    unsigned char *own = scratch, *x = f->x;

    if (f->is_own) {
        x = own;
        for (uint32_t row = 0; row < f->n_row; row++)
            make_row(f, row, x);
    }
    for (uint64_t i = n * turn / f->n_task; i < n * (turn + 1) / f->n_task; i++)
        run_unit(f, (uint32_t)i, x, own,
                 own + POOL_SCRATCH_BYTES - PRODUCT_SCRATCH_BYTES);
}

/* ------------------------------------------------------------------ blocks */

/* Would some threads have another unit, and that be more than a sixteenth? */
static bool is_uneven(const struct ffn *f, uint32_t n_panel)
{
    const uint32_t n = n_panel / f->panels_a_unit;

    return n_panel % f->panels_a_unit || (n % f->n_task && n < 16 * f->n_task);
}

static void choose_units(struct ffn *f)
{
    const struct linear *gate = f->args->gate;
    const uint32_t n_panel = (gate->n_out + LINEAR_PANEL - 1) / LINEAR_PANEL;
    const uint32_t least =
        f->out->group_bytes ? LINEAR_GROUP / LINEAR_PANEL : 1;
    const struct product_shape shape =
        f->in->shape(f->n_row, (uint32_t)linear_n_step(gate));

    f->n_block = (f->n_row + shape.n_row - 1) / shape.n_row;
    f->panels_a_unit = UNIT_PANELS;
    while (f->panels_a_unit > shape.n_panel && f->panels_a_unit > least &&
           (f->n_row > UNIT_ROWS || is_uneven(f, n_panel)))
        f->panels_a_unit /= 2;
    while (f->panels_a_unit > least &&
           n_panel / f->panels_a_unit * f->n_block < 2 * f->n_task)
        f->panels_a_unit /= 2;
    while (f->panels_a_unit > shape.n_panel && f->panels_a_unit > least &&
           f->in->task_bytes &&
           2 * f->panels_a_unit * linear_panel_bytes(gate) >
               UNIT_TASKS * (size_t)f->in->task_bytes)
        f->panels_a_unit /= 2;
    f->n_group = (n_panel + f->panels_a_unit - 1) / f->panels_a_unit;
    assert((size_t)f->n_row * f->panels_a_unit * LINEAR_PANEL * sizeof(float) <=
           PIECE_BYTES);
}

static void run_block(struct ffn *f, struct pool *pool)
{
    const struct linear *gate = f->args->gate;
    const size_t n_element = f->n_row * linear_n_step(gate);
    unsigned char *shared = pool_shared(pool);
    bool is_first; /* as in product.c */

    f->act = shared;
    f->is_own = f->in->take && n_element <= OWN_ELEMENTS &&
                f->n_row * f->x_form.row_bytes <= OWN_BYTES;
    is_first = f->is_own && f->in->task_bytes;
    f->is_own = f->is_own && !is_first;
    f->x = f->in->take && !f->is_own
               ? shared + (f->n_row * f->act_form.row_bytes + 63) / 64 * 64
               : NULL;
    f->n_task = f->is_own || is_first
                    ? pool_n_thread(pool)
                    : product_n_task(pool, f->in, gate, f->n_row);
    choose_units(f);
    if (f->x)
        pool_run(is_first ? NULL : pool, f->n_task, make_rows, f);
    f->n_run = f->n_task;
    f->n_task = product_in_runs(f->in, f->n_run, 2 * linear_bytes(gate));
    pool_run(pool, f->n_task, run_units, f);
}

/* y of the block from what lies in f->act. */
static struct product down_of(const struct ffn *f, bool is_add,
                              const struct product_part *whole)
{
    const struct ffn_args *a = f->args;

    return (struct product){.y = a->y + f->first * a->y_stride,
                            .y_stride = a->y_stride,
                            .n_row = f->n_row,
                            .made = f->act,
                            .part = whole,
                            .n_part = 1,
                            .is_add = is_add};
}

static void run_down(const struct ffn *f, struct pool *pool, bool is_add,
                     const struct product_kernels *kernels)
{
    const struct product_part whole = {.w = f->args->down, .n_row = f->n_row};
    const struct product down = down_of(f, is_add, &whole);

    product_run(pool, &down, kernels);
}

/* -------------------------------------------------------------- many rows */

struct by_rows {
    const struct ffn *ffn;
    const struct product_kernels *kernels;
    struct cut cut;
    bool is_add;
};

/* A block that one thread takes from x to y. */
static void rows_task(void *arg, uint32_t task, void *scratch)
{
    const struct by_rows *by = arg;
    const struct cut_part rows = cut_part(by->cut, task);
    struct ffn f = *by->ffn;
    const struct product_part whole = {.w = f.args->down,
                                       .n_row = rows.end - rows.first};

    f.first = rows.first;
    f.n_row = rows.end - rows.first;
    f.is_own = f.in->take != NULL;
    f.act = (unsigned char *)scratch +
            (f.n_row * f.x_form.row_bytes + 63) / 64 * 64;
    f.n_task = f.n_run = 1;
    choose_units(&f);
    run_units(&f, 0, scratch);

    const struct product down = down_of(&f, by->is_add, &whole);
    product_run_alone(&down, by->kernels, scratch);
}

static bool is_by_rows(const struct ffn *f, const struct pool *pool)
{
    const struct ffn_args *a = f->args;
    const size_t bytes =
        linear_bytes(a->gate) + linear_bytes(a->up) + linear_bytes(a->down);
    const size_t row_bytes = f->x_form.row_bytes + f->act_form.row_bytes;

    return PRODUCT_ROWS * row_bytes + 64 <= OWN_BYTES &&
           product_is_by_rows(pool, f->in, bytes, a->n_row);
}

void product_ffn(struct pool *pool, const struct ffn_args *args, bool is_add,
                 const struct product_kernels *kernels)
{
    struct ffn f = {.args = args, .in = product_kernel_of(kernels, args->gate)};
    size_t fit;

    assert(args->up->n_out == args->gate->n_out &&
           args->up->type == args->gate->type &&
           args->down->n_in == args->gate->n_out);
    f.out = product_kernel_of(kernels, args->down);
    f.x_form = product_form_of(f.in, args->gate);
    f.act_form = product_form_of(f.out, args->down);
    pool = product_pool(pool, args->gate, args->n_row);
    if (is_by_rows(&f, pool)) {
        struct by_rows by = {&f, kernels,
                             cut_rows(pool, args->n_row, PRODUCT_ROWS), is_add};

        pool_run(pool, by.cut.n_task, rows_task, &by);
        return;
    }
    fit =
        (POOL_SHARED_BYTES - 64) / (f.x_form.row_bytes + f.act_form.row_bytes);
    assert(fit);
    fit = fit < ROWS ? fit : ROWS;
    for (; f.first < args->n_row; f.first += f.n_row) {
        const uint32_t left = args->n_row - f.first;
        const size_t n_left = (left + fit - 1) / fit; /* blocks, all alike */

        f.n_row = (uint32_t)((left + n_left - 1) / n_left);
        run_block(&f, pool);
        run_down(&f, pool, is_add, kernels);
    }
}
