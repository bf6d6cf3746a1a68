/*
 * Memory policies of the device "apart": one view behind the other, by the
 * words of struct kv_view and the CPU backend's operators.
 */
#include "kernels/apart/apart_run.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A view whose addresses are near, but for those that its blocks have. */
struct work {
    const struct backend *backend;
    const struct kv_view_args *args;
    struct kv_view view;
    size_t n_q; /* floats of a row's queries */
};

static void *take(size_t n, size_t size)
{
    void *it = calloc(n + 1, size);

    assert(it);
    return it;
}

/* -------------------------------------------------------------------- lists
 */

static uint64_t n_seen(const struct kv_view *view)
{
    return view->n_sink + view->n_pick + (view->chunk - view->window) + 1;
}

static uint64_t block_of(const struct kv_view *view, uint64_t i)
{
    if (i < view->n_sink)
        return i;
    i -= view->n_sink;
    return i < view->n_pick ? view->pick[1 + i]
                            : view->window + (i - view->n_pick);
}

static struct key_place place_of(const struct kv_view *view, uint64_t i)
{
    const uint64_t b = block_of(view, i), n_behind = n_seen(view) - 1 - i;

    if (view->keys == KEYS_RANK)
        return (struct key_place){(view->chunk - n_behind) * KV_BLOCK, false};
    if (view->keys == KEYS_FAR && b < view->window)
        return (struct key_place){view->window * KV_BLOCK, true};
    return (struct key_place){b * KV_BLOCK, false};
}

static void list(const struct work *it)
{
    const struct kv_view *view = &it->view;

    assert(view->n_pick == 0 || view->pick[0] == view->n_pick);
    for (uint64_t i = 0; i < n_seen(view); i++) {
        it->args->block[view->first_seen + i] = view->block[block_of(view, i)];
        it->args->place[view->first_seen + i] = place_of(view, i);
    }
}

/* ------------------------------------------------------------------ queries
 */

static float *sum_at(const struct work *it, uint64_t position)
{
    return it->view.queries +
           position / it->view.step % it->view.n_sum * it->n_q;
}

static void add_up(const struct work *it)
{
    const struct kv_view *view = &it->view;

    for (uint64_t r = 0; r < view->n_row; r++) {
        const float *q =
            it->args->q + (view->first_row + r) * it->args->q_stride;
        float *sum = sum_at(it, view->position + r);

        if ((view->position + r) % view->step == 0)
            memset(sum, 0, it->n_q * sizeof(*sum));
        for (size_t i = 0; i < it->n_q; i++)
            sum[i] += q[i];
    }
}

static void rotate(const struct work *it, float *q, const uint64_t *position,
                   uint32_t n_row)
{
    const struct attend_shape shape = it->args->shape;

    it->backend->rope(NULL, &(struct rope_args){.x = q,
                                                .x_stride = it->n_q,
                                                .position = position,
                                                .n_row = n_row,
                                                .n_head = shape.n_head,
                                                .d_head = shape.d_head,
                                                .table = it->args->table});
}

/* ------------------------------------------------------------------ indices
 */

/* An index lies behind its block. */
static void *index_at(const struct work *it, uint64_t b)
{
    return (char *)apart_near(it->view.block[b]) +
           kv_block_bytes(it->args->shape);
}

static void seal(const struct work *it)
{
    const struct kv_view *view = &it->view;

    it->backend->kv_seal(NULL,
                         &(struct kv_seal_args){
                             .shape = it->args->shape,
                             .kind = view->index,
                             .table = view->is_placed ? it->args->table : NULL,
                             .block = apart_near(view->block[view->chunk]),
                             .position = view->chunk * KV_BLOCK,
                             .index = index_at(it, view->chunk)});
}

/* ----------------------------------------------------------------- look-ups
 */

static void score(const struct work *it, float *out)
{
    const struct kv_view *view = &it->view;
    float *q = take(it->n_q, sizeof(*q));
    void **index = take(view->end, sizeof(*index));

    for (uint32_t s = 0; s < view->n_sum; s++)
        for (size_t i = 0; i < it->n_q; i++)
            q[i] += view->queries[s * it->n_q + i];
    rotate(it, q, &view->look_position, 1);
    for (uint64_t b = view->first; b < view->end; b++)
        index[b] = index_at(it, b);
    it->backend->kv_score(NULL,
                          &(struct kv_score_args){.shape = it->args->shape,
                                                  .kind = view->index,
                                                  .q = q,
                                                  .index = index,
                                                  .first = view->first,
                                                  .end = view->end,
                                                  .score = out});
    free(index);
    free(q);
}

static void weigh(const struct work *it, float *out)
{
    const struct kv_view *view = &it->view;
    const uint64_t end = view->position + view->n_row;
    const uint32_t n_row = end < view->n_sum ? (uint32_t)end : view->n_sum;
    float *q = take(n_row * it->n_q, sizeof(*q));
    float *stat = take((size_t)n_row * it->args->shape.n_head, 2 * sizeof(*q));
    uint64_t *position = take(n_row, sizeof(*position));
    void **block = take(view->chunk + 1, sizeof(*block));

    for (uint32_t r = 0; r < n_row; r++) {
        position[r] = end - n_row + r;
        memcpy(q + r * it->n_q, sum_at(it, position[r]), it->n_q * sizeof(*q));
    }
    rotate(it, q, position, n_row);
    for (uint64_t b = 0; b <= view->chunk; b++)
        block[b] = apart_near(view->block[b]);
    it->backend->kv_mass(NULL, &(struct kv_mass_args){.shape = it->args->shape,
                                                      .table = it->args->table,
                                                      .scale = it->args->scale,
                                                      .q = q,
                                                      .n_row = n_row,
                                                      .position = position[0],
                                                      .block = block,
                                                      .first = view->first,
                                                      .end = view->end,
                                                      .stat = stat,
                                                      .mass = out});
    free(block);
    free(position);
    free(stat);
    free(q);
}

/* How many of n are better: of equals the earlier. */
static uint64_t rank_of(const float *x, uint64_t n, uint64_t i)
{
    uint64_t n_better = 0;

    for (uint64_t j = 0; j < n; j++)
        n_better += x[j] > x[i] || (x[j] == x[i] && j < i);
    return n_better;
}

static void look_up(const struct work *it)
{
    const struct kv_view *view = &it->view;
    const uint64_t n = view->end - view->first;
    float *x = take(n, sizeof(*x));
    uint32_t n_picked = 0;

    assert(view->n_choose <= n);
    if (n > view->n_choose && view->index == INDEX_MASS)
        weigh(it, x);
    else if (n > view->n_choose)
        score(it, x);
    for (uint64_t i = 0; i < n; i++)
        if (n <= view->n_choose || rank_of(x, n, i) < view->n_choose)
            view->pick[1 + n_picked++] = (uint32_t)(view->first + i);
    view->pick[0] = n_picked;
    free(x);
}

void apart_view(const struct backend *backend, const struct kv_view_args *args)
{
    for (uint32_t i = 0; i < args->n_view; i++) {
        struct work it = {.backend = backend,
                          .args = args,
                          .view = args->view[i],
                          .n_q =
                              (size_t)args->shape.n_head * args->shape.d_head};

        if (it.view.n_row == 0)
            continue;
        assert((it.view.position + it.view.n_row - 1) / GRID == it.view.chunk);
        it.view.block = apart_near(it.view.block);
        it.view.queries = apart_near(it.view.queries);
        it.view.pick = apart_near(it.view.pick);
        if (it.view.is_seen)
            list(&it);
        if (!it.view.queries)
            continue;
        add_up(&it);
        if (it.view.is_full)
            seal(&it);
        if (it.view.looks_up)
            look_up(&it);
    }
}
