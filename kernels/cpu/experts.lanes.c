/*
 * Layers of experts. Choosing and combining pass over rows once; the products
 * are those of linear.lanes.c, shared out over all experts together, because
 * one expert alone has few rows and few outputs.
 */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/tile.h"
#include "kernels/routing.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------ route */

static void softmax(const float *logit, uint32_t n, float *w)
{
    v16 none = v16_set1(-INFINITY), most = none, sum = v16_zero(), shift, total;

    for (uint32_t e = 0; e < n; e += LANES)
        most =
            v16_max(most, v16_first(v16_load_part(logit, e, n), none, n - e));
    shift = v16_set1(v16_largest(most));
    for (uint32_t e = 0; e < n; e += LANES) {
        v16 p = v16_exp(v16_sub(v16_load_part(logit, e, n), shift));

        p = v16_first(p, v16_zero(), n - e); /* adds +0 behind the end */
        sum = v16_add(sum, p);
        v16_store_part(w, p, e, n);
    }
    total = v16_set1(v16_fold(sum));
    for (uint32_t e = 0; e < n; e += LANES)
        v16_store_part(w, v16_div(v16_load_part(w, e, n), total), e, n);
}

static void route_row(void *arg, uint32_t row, void *scratch)
{
    const struct route_args *a = arg;

    softmax(a->logit + row * a->logit_stride, a->to.n_expert, scratch);
    routing_choose(a, row, scratch);
}

void LANES_NAME(route)(struct pool *pool, const struct route_args *args)
{
    const struct routing *to = &args->to;

    assert(to->n_expert <= EXPERT_MAX);
    pool = pool_for_floats(pool, 4 * (uint64_t)to->n_row * to->n_expert);
    pool_run(pool, to->n_row, route_row, (void *)args);
    routing_group(to);
}

/* ---------------------------------------------------------------- combine */

/* Floats of a row that are one task: a single row is shared out as well. */
#define COMBINE_FLOATS 512u

static v16 combined(const struct combine_args *a, size_t row, uint32_t d)
{
    const size_t n = a->by->n_chosen;
    v16 s = v16_zero();

    for (size_t i = row * n; i < (row + 1) * n; i++) {
        const float *x = a->x + a->by->place[i] * a->x_stride;

        s = v16_fma(v16_set1(a->by->weight[i]), v16_load_part(x, d, a->dim), s);
    }
    return s;
}

static void combine_task(void *arg, uint32_t task, void *scratch)
{
    const struct combine_args *a = arg;
    const uint32_t n_block = (a->dim + COMBINE_FLOATS - 1) / COMBINE_FLOATS;
    const uint32_t d = task % n_block * COMBINE_FLOATS;
    const uint32_t end =
        a->dim - d > COMBINE_FLOATS ? d + COMBINE_FLOATS : a->dim;
    const size_t row = task / n_block;
    const float *shared = a->shared ? a->shared + row * a->shared_stride : NULL;
    float *y = a->y + row * a->y_stride;
    v16 gate = v16_zero();

    (void)scratch;
    if (shared)
        gate = v16_set1(scalar_sigmoid(a->shared_gate[row * a->gate_stride]));
    for (uint32_t i = d; i < end; i += LANES) {
        v16 s = combined(a, row, i);

        if (shared)
            s = v16_fma(gate, v16_load_part(shared, i, a->dim), s);
        v16_store_part(y, v16_add(v16_load_part(y, i, a->dim), s), i, a->dim);
    }
}

void LANES_NAME(combine)(struct pool *pool, const struct combine_args *args)
{
    const uint32_t n_row = args->by->n_row;
    const uint32_t n_block = (args->dim + COMBINE_FLOATS - 1) / COMBINE_FLOATS;
    const uint64_t n_float =
        (uint64_t)n_row * args->dim * (args->by->n_chosen + 1);

    pool_run(pool_for_floats(pool, n_float), n_row * n_block, combine_task,
             (void *)args);
}

/* ----------------------------------------------------------------- expert */

/* Rows that pass by a group of panels before the next group is taken. */
#define BLOCK_ROWS 48u
/* A panel for fewer rows than this takes as long: its weights must come. */
#define COST_ROWS 4u

typedef void tile_work(const struct tile *tile);

/*
 * The products of all experts as one line of panels, each as long as its rows
 * are many, of which thread i takes the i-th part: so no expert's panel is
 * read twice, and a thread stays with an expert while it can.
 */
struct grouped {
    const struct expert_args *args;
    tile_work *work;
    uint32_t n_task, n_panel; /* panels of each expert */
    uint64_t length;
};

static uint64_t panel_cost(const struct expert_args *a, uint32_t expert)
{
    const uint32_t n_row = a->first[expert + 1] - a->first[expert];

    return n_row == 0 || n_row >= COST_ROWS ? n_row : COST_ROWS;
}

/* Rows [place, place + n) of x side by side: as they lie, or copied. */
static struct tile gather(const struct expert_args *a, uint32_t place,
                          uint32_t n, float *room)
{
    const size_t n_in = a->w->n_in;
    struct tile tile = {.n_row = n,
                        .n_k = a->w->n_in,
                        .a_stride = a->x_stride,
                        .c = a->y + place * a->y_stride,
                        .c_stride = a->y_stride};

    if (!a->row || n == 1) {
        tile.a = a->x + (a->row ? a->row[place] : place) * a->x_stride;
        return tile;
    }
    for (uint32_t i = 0; i < n; i++)
        memcpy(room + i * n_in, a->x + a->row[place + i] * a->x_stride,
               n_in * sizeof(float));
    tile.a = room;
    tile.a_stride = n_in;
    return tile;
}

/* The rows of `all` by panels [first, end) of w: weights outermost. */
static void multiply(const struct grouped *g, const struct linear *w,
                     const struct tile *all, uint32_t first, uint32_t end)
{
    const uint32_t width = LANES_NAME(tile_width)(all->n_row);
    struct tile tile = *all;

    tile.b_stride = LANES;
    tile.b_group = linear_bytes(w) / g->n_panel / sizeof(float);
    for (uint32_t p = first; p < end; p += width) {
        const uint32_t stop = end - p < width ? end : p + width;

        tile.n_col =
            (stop * LANES < w->n_out ? stop * LANES : w->n_out) - p * LANES;
        tile.b = (const uint32_t *)w->panel + p * tile.b_group;
        for (uint32_t row = 0; row < all->n_row; row += BLOCK_ROWS) {
            tile.n_row =
                all->n_row - row < BLOCK_ROWS ? all->n_row - row : BLOCK_ROWS;
            tile.a = all->a + row * all->a_stride;
            tile.c = all->c + row * all->c_stride + p * LANES;
            g->work(&tile);
        }
    }
}

static void multiply_expert(const struct grouped *g, uint32_t expert,
                            uint32_t first, uint32_t end, float *room)
{
    const struct expert_args *a = g->args;
    const struct linear *w = &a->w[expert];
    const uint32_t most = POOL_SCRATCH_BYTES / sizeof(float) / w->n_in;
    uint32_t place = a->first[expert];

    while (place < a->first[expert + 1]) {
        const uint32_t n = a->first[expert + 1] - place;
        const struct tile tile = gather(a, place, n < most ? n : most, room);

        multiply(g, w, &tile, first, end);
        place += tile.n_row;
    }
}

static void expert_task(void *arg, uint32_t task, void *scratch)
{
    const struct grouped *g = arg;
    const uint64_t from = g->length * task / g->n_task;
    const uint64_t to = g->length * (task + 1) / g->n_task;
    uint64_t at = 0;

    for (uint32_t e = 0; e < g->args->n_expert && at < to; e++) {
        const uint64_t cost = panel_cost(g->args, e);
        const uint64_t next = at + cost * g->n_panel;

        /* Those panels are this thread's that begin in its part. */
        if (cost && next > from) {
            uint64_t first = from > at ? (from - at + cost - 1) / cost : 0;
            uint64_t end = to < next ? (to - at + cost - 1) / cost : g->n_panel;

            if (first < end)
                multiply_expert(g, e, (uint32_t)first, (uint32_t)end, scratch);
        }
        at = next;
    }
}

void LANES_NAME(expert)(struct pool *pool, const struct expert_args *args)
{
    const struct linear *w = args->w;
    const uint64_t n_row = args->first[args->n_expert];
    struct grouped g = {.args = args,
                        .work = w->type == LINEAR_BF16
                                    ? LANES_NAME(tile_bf16_set)
                                    : LANES_NAME(tile_set),
                        .n_panel = (w->n_out + LANES - 1) / LANES};

    assert(w->n_in && w->n_in <= POOL_SCRATCH_BYTES / sizeof(float));
    pool = pool_for_fmas(pool, n_row * w->n_in * g.n_panel);
    g.n_task = pool_n_thread(pool);
    for (uint32_t e = 0; e < args->n_expert; e++)
        g.length += panel_cost(args, e) * g.n_panel;
    pool_run(pool, g.n_task, expert_task, &g);
}
