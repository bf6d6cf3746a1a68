#include "model/piece.h"

#include "model/pass.h"

uint32_t half_rows(const struct workspace *workspace, uint32_t half)
{
    const struct batch *batch = &workspace->pass.batch;

    if (batch->n_layer && half + 1 >= 2 * batch->n_layer)
        return 0;
    if (half == n_half(workspace->model))
        return head_rows(&workspace->head);
    return half + 1 == n_half(workspace->model) ? workspace->head.n_kept
                                                : batch->n_row;
}

/* Multiply-adds of one of its rows, without its past. */
static double half_row_fma(const struct model *model, uint32_t half)
{
    const struct config *c = &model->config;

    if (half == n_half(model))
        return (double)c->hidden * (double)c->n_vocab;
    return half % 2 ? mlp_row_flops(c, half / 2) / 2
                    : model->layer[half / 2].plan[INDEX_NONE].row_flops / 2;
}

/* Multiply-adds of rows [first, end) with their pasts. */
static double past_fma(const struct workspace *workspace, uint32_t half,
                       uint32_t first, uint32_t end)
{
    const struct model *model = workspace->model;
    double n_key = 0.0;

    if (half % 2 || half == n_half(model))
        return 0.0;
    for (uint32_t r = first; r < end; r++)
        n_key += (double)workspace->position[r] + 1.0;
    return n_key * model->layer[half / 2].plan[INDEX_NONE].past_flops / 2;
}

double piece_fma(const struct workspace *workspace, uint32_t half,
                 uint32_t first, uint32_t end)
{
    return (double)(end - first) * half_row_fma(workspace->model, half) +
           past_fma(workspace, half, first, end);
}

/* Rows that max_fma multiply-adds bring through a half, by whole chunks of the
 * grid, where the delta rule likes to be cut. */
static uint32_t fit_rows(const struct workspace *workspace, uint32_t half,
                         uint64_t max_fma)
{
    const double fit = (double)max_fma / half_row_fma(workspace->model, half);
    const uint32_t n =
        fit < (double)workspace->max_row ? (uint32_t)fit : workspace->max_row;

    return n / GRID * GRID;
}

/*
 * Rows of a piece, of `left` rows. Each piece reads the half's weights anew, so
 * it has rows enough to be worth that; of experts each meets only some rows.
 */
static uint32_t piece_rows(const struct workspace *workspace, uint32_t left,
                           uint64_t max_fma)
{
    const uint32_t half = workspace->pass.half;
    const uint32_t least = half_has_experts(workspace->model, half)
                               ? PASS_ROWS_EXPERTS
                               : PASS_ROWS;
    const uint32_t fit = fit_rows(workspace, half, max_fma);
    const uint32_t n = fit > least ? fit : least;

    if (left < 2 * n)
        return left;
    return left / (left / n) / GRID * GRID;
}

/* A piece of a mixer has rows of one group at most. So have the others, but
 * for those of experts, whose rows are put in another order anyhow. */
uint32_t piece_end(const struct workspace *workspace, uint64_t max_fma)
{
    const struct pass *pass = &workspace->pass;
    uint32_t limit = half_rows(workspace, pass->half);

    if (limit == pass->batch.n_row &&
        !half_has_experts(workspace->model, pass->half))
        limit = strips_end(&workspace->strips, pass->row, limit);
    return pass->row + piece_rows(workspace, limit - pass->row, max_fma);
}

bool piece_arrange(struct workspace *workspace, uint64_t max_fma)
{
    const struct model *model = workspace->model;
    uint32_t n_row = workspace->max_row;

    for (uint32_t half = 0; half < n_half(model); half++) {
        const uint32_t fit = fit_rows(workspace, half, max_fma);

        if (fit < n_row && !half_has_experts(model, half))
            n_row = fit;
    }
    return strips_arrange(&workspace->strips, n_row, &workspace->pass.batch);
}
