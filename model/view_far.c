/* Look-ups that a device makes: the host knows from positions alone how much
 * rows see, and when something is looked up; never what. */
#include "model/view_parts.h"

/* Rows of one grid chunk, and what is done behind them. */
static struct kv_view view_of(const struct viewed *it,
                              const struct view_run *run)
{
    const struct policy *policy = it->policy;
    const uint64_t end = run->position + run->n;
    struct kv_view view = {.first_row = run->row,
                           .n_row = run->n,
                           .position = run->position,
                           .block = it->memory->block,
                           .pick = it->look.pick,
                           .chunk = run->position / GRID,
                           .keys = policy->keys,
                           .index = it->index};

    if (!view_counts(it, run->position))
        return view;
    view.queries = it->look.queries;
    view.step = policy->step;
    view.n_sum = view_n_sum(policy);
    view.is_placed = policy_looks_at_positions(policy);
    view.is_full = end % GRID == 0 && it->index != INDEX_MASS;
    view.looks_up = policy_looks_up(policy, end);
    if (view.looks_up) {
        const struct block_range among = policy_candidates(policy, end / GRID);

        view.first = among.first;
        view.end = among.end;
        view.n_choose = policy_n_chosen(policy, among);
        view.look_position = policy_look_position(policy, end - 1);
    }
    return view;
}

static void add(struct view_room *room, const struct kv_view *view)
{
    room->view[room->n_view++] = *view;
}

/* They have one span, but a view is of one chunk. */
static void add_chunks(const struct viewed *it, const struct view_run *run)
{
    struct view_run part = *run;

    for (uint32_t left = run->n; left; left -= part.n) {
        const uint32_t fit = GRID - (uint32_t)(part.position % GRID);
        struct kv_view view;

        part.n = fit < left ? fit : left;
        view = view_of(it, &part);
        add(it->args->batch->views, &view);
        part.row += part.n;
        part.position += part.n;
    }
}

bool view_far_run(const struct viewed *it, const struct view_run *run)
{
    struct view_room *room = it->args->batch->views;
    struct policy_sight sight;
    struct kv_view view;

    if (run->sees_all) {
        view_add_all(it, run);
        add_chunks(it, run);
        return true;
    }
    sight = policy_sight(it->policy, run->position / GRID,
                         policy_n_picked(it->policy, run->position));
    if (room->n_seen + sight.n > room->max_seen)
        return false;
    view = view_of(it, run);
    view.is_seen = true;
    view.first_seen = room->n_seen;
    view.window = sight.window;
    view.n_sink = sight.n_sink;
    view.n_pick = sight.n_pick;
    add(room, &view);
    view_add_seen(it, run, sight.n);
    return true;
}

/* So that each step of as many rows asks for as many views. */
void view_far_skip(const struct mixer_batch *batch)
{
    add(batch->views, &(struct kv_view){.n_row = 0});
}

void view_far_ask(const struct view_args *args)
{
    const struct mixer_batch *batch = args->batch;
    const struct view_room *room = batch->views;

    batch->backend->kv_view(batch->pool,
                            &(struct kv_view_args){.shape = args->shape,
                                                   .table = batch->rope,
                                                   .scale = args->scale,
                                                   .q = args->q,
                                                   .q_stride = args->q_stride,
                                                   .view = room->view,
                                                   .n_view = room->n_view,
                                                   .block = room->block,
                                                   .place = room->place});
}
