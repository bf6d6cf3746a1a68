#include "kernels/cpu/ops.h"
#include "kernels/cpu/tile.h"

/* Rows that pass by a group of panels before the next group is taken: 48 rows
 * of 256 floats are 48 KiB, which the second-level cache holds beside it. */
#define BLOCK_ROWS 48u

typedef void tile_work(const struct tile *tile);

/*
 * One product, cut into units of one group of panels times one block of rows.
 * Thread i takes one run of consecutive units, so that a group of panels is
 * fetched by few threads; nothing here touches the order of a sum.
 */
struct product {
    struct tile whole;
    tile_work *work;
    uint32_t n_task;
    uint32_t n_block;                 /* blocks of rows */
    uint32_t n_group, panels_a_group; /* groups of panels */
};

static void run_unit(const struct product *p, uint64_t unit)
{
    uint32_t group = (uint32_t)(unit / p->n_block);
    uint64_t block = unit % p->n_block;
    struct tile tile = p->whole;
    uint32_t row = (uint32_t)(block * tile.n_row / p->n_block);
    uint32_t end = (uint32_t)((block + 1) * tile.n_row / p->n_block);
    uint32_t column = group * p->panels_a_group * LANES;
    uint32_t width = p->panels_a_group * LANES;

    tile.n_row = end - row;
    tile.a += row * tile.a_stride;
    tile.c += row * tile.c_stride + column;
    tile.b = (const uint32_t *)tile.b +
             (size_t)group * p->panels_a_group * tile.b_group;
    tile.n_col -= column;
    if (tile.n_col > width)
        tile.n_col = width;
    p->work(&tile);
}

static void run_task(void *arg, uint32_t task, void *scratch)
{
    const struct product *p = arg;
    uint64_t n_unit = (uint64_t)p->n_group * p->n_block;

    (void)scratch;
    for (uint64_t unit = n_unit * task / p->n_task;
         unit < n_unit * (task + 1) / p->n_task; unit++)
        run_unit(p, unit);
}

static void run_product(struct pool *pool, const struct linear_args *a,
                        tile_work *f32, tile_work *bf16)
{
    const struct linear *w = a->w;
    bool is_bf16 = w->type == LINEAR_BF16;
    uint32_t n_panel = (w->n_out + LANES - 1) / LANES;
    struct product p = {
        .whole = {.c = a->y,
                  .c_stride = a->y_stride,
                  .a = a->x,
                  .a_stride = a->x_stride,
                  .b = w->panel,
                  .b_stride = LANES,
                  .b_group = is_bf16 ? ((size_t)w->n_in + 1) / 2 * LANES
                                     : (size_t)w->n_in * LANES,
                  .n_row = a->n_row,
                  .n_col = w->n_out,
                  .n_k = w->n_in},
        .work = is_bf16 ? bf16 : f32,
    };

    if (a->n_row == 0 || w->n_out == 0)
        return;
    pool = pool_for_fmas(pool, (uint64_t)a->n_row * w->n_in * n_panel);
    p.n_task = pool_n_thread(pool);
    p.n_block = (a->n_row + BLOCK_ROWS - 1) / BLOCK_ROWS;
    p.panels_a_group = LANES_NAME(tile_width)(a->n_row);
    /* Few rows: give every thread something. */
    while (p.panels_a_group > 1 && n_panel / p.panels_a_group < p.n_task &&
           p.n_block == 1)
        p.panels_a_group /= 2;
    p.n_group = (n_panel + p.panels_a_group - 1) / p.panels_a_group;
    pool_run(pool, p.n_task, run_task, &p);
}

void LANES_NAME(linear)(struct pool *pool, const struct linear_args *args)
{
    run_product(pool, args, LANES_NAME(tile_set), LANES_NAME(tile_bf16_set));
}

void LANES_NAME(linear_add)(struct pool *pool, const struct linear_args *args)
{
    run_product(pool, args, LANES_NAME(tile_add), LANES_NAME(tile_bf16_add));
}
