#include "model/view.h"

#include "kernels/device.h"
#include "model/view_parts.h"
#include "model/weights.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------- room */

/* Of all spans together: as many as make calls long enough, and as a session's
 * row may see. */
#define SEEN_LEAST 16384u
/* On a device rounds cost more than room does: those of a long prompt, whose
 * views are of a few rows, shall be few. */
#define SEEN_OF_A_ROW 32u

static size_t most_seen(const struct view_extent *extent)
{
    const uint64_t n = extent->n_context / KV_BLOCK + 1;
    const size_t least =
        extent->device && extent->max_row * SEEN_OF_A_ROW > SEEN_LEAST
            ? (size_t)extent->max_row * SEEN_OF_A_ROW
            : SEEN_LEAST;

    static_assert(SEEN_LEAST >= POLICY_SEEN_MAX, "a bounded view fits");
    return n > least ? n : least;
}

static size_t score_floats(const struct view_extent *extent)
{
    return (size_t)(extent->n_context / KV_BLOCK + 1);
}

static size_t query_floats_of(const struct view_extent *extent)
{
    return (size_t)VIEW_QUERIES * extent->n_head * extent->d_head;
}

static size_t stat_floats(const struct view_extent *extent)
{
    return (size_t)VIEW_QUERIES * extent->n_head * 2;
}

/* What only the host wants that looks up itself, or that asks for it. */
static size_t host_bytes(const struct view_extent *extent)
{
    return extent->device
               ? extent->max_row * sizeof(struct kv_view)
               : most_seen(extent) * sizeof(struct policy_view) +
                     (score_floats(extent) + query_floats_of(extent) +
                      stat_floats(extent)) *
                         sizeof(float);
}

size_t view_room_bytes(const struct view_extent *extent)
{
    return extent->max_row * sizeof(struct attend_span) +
           most_seen(extent) * (sizeof(void *) + sizeof(struct key_place)) +
           host_bytes(extent);
}

static enum status take_lists(struct view_room *room)
{
    void *block = NULL, *place = NULL;
    enum status st =
        device_take(room->device, room->max_seen * sizeof(void *), &block);

    if (!st)
        st = device_take(room->device,
                         room->max_seen * sizeof(struct key_place), &place);
    room->block = block;
    room->place = place;
    return st;
}

static bool take_rest(struct view_room *room, const struct view_extent *extent)
{
    const size_t max_row = extent->max_row;

    if (!(room->span = weights_room(max_row * sizeof(*room->span))))
        return false;
    if (room->device)
        return (room->view = weights_room(max_row * sizeof(*room->view)));
    room->seen = weights_room(room->max_seen * sizeof(*room->seen));
    room->score = weights_room(score_floats(extent) * sizeof(float));
    room->query = weights_room(query_floats_of(extent) * sizeof(float));
    room->stat = weights_room(stat_floats(extent) * sizeof(float));
    return room->seen && room->score && room->query && room->stat;
}

enum status view_room_init(struct view_room *room,
                           const struct view_extent *extent)
{
    struct view_room it = {.device = extent->device,
                           .max_seen = (uint32_t)most_seen(extent)};

    if (take_lists(&it) || !take_rest(&it, extent)) {
        view_room_release(&it);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *room = it;
    return STATUS_OK;
}

void view_room_release(struct view_room *room)
{
    device_give(room->device, room->block);
    device_give(room->device, room->place);
    free(room->span);
    free(room->view);
    free(room->seen);
    free(room->score);
    free(room->query);
    free(room->stat);
    memset(room, 0, sizeof(*room));
}

/* ------------------------------------------------------------------ state */

enum { FIELD_QUERIES, FIELD_PICK, N_LOOK_FIELD };

static void look_fields(struct attend_shape shape, struct mixer_field *field)
{
    const struct mixer_field all[N_LOOK_FIELD] = {
        {.name = "queries",
         .type = FIELD_F32,
         .n_dim = 3,
         .dim = {VIEW_QUERIES, shape.n_head, shape.d_head}},
        {.name = "pick",
         .type = FIELD_U32,
         .n_dim = 1,
         .dim = {1 + POLICY_BLOCK_MAX}},
    };
    size_t offset = 0;

    for (uint32_t i = 0; i < N_LOOK_FIELD; i++) {
        size_t n = field_element_bytes(all[i].type);

        field[i] = all[i];
        field[i].offset = offset;
        for (uint32_t d = 0; d < all[i].n_dim; d++)
            n *= all[i].dim[d];
        offset += (n + 63) / 64 * 64;
    }
    field[N_LOOK_FIELD] = (struct mixer_field){.offset = offset};
}

void view_plan(struct attend_shape shape, enum index_kind kind,
               struct mixer_plan *plan)
{
    struct mixer_field field[N_LOOK_FIELD + 1];

    if (kind == INDEX_NONE || kind == INDEX_SURPRISE)
        return;
    look_fields(shape, field);
    plan->n_field = N_LOOK_FIELD;
    memcpy(plan->field, field, N_LOOK_FIELD * sizeof(*field));
    plan->state_bytes = field[N_LOOK_FIELD].offset;
    plan->index_bytes = kv_index_bytes(shape, kind);
    plan->block_bytes += plan->index_bytes;
    plan->shape = shape;
    if (kind == INDEX_BOUNDS && shape.arithmetic != ARITHMETIC_FP32)
        plan->short_bytes = kv_short_bounds_bytes(shape);
}

void view_shorten(const struct mixer_plan *plan, const void *index, void *out)
{
    kv_shorten_bounds(plan->shape, index, out);
}

const uint32_t *view_pick(const struct mixer_plan *plan, const void *state)
{
    for (uint32_t i = 0; i < plan->n_field; i++)
        if (strcmp(plan->field[i].name, "pick") == 0)
            return (const uint32_t *)(const void *)((const char *)state +
                                                    plan->field[i].offset);
    return NULL;
}

static struct look look_of(struct attend_shape shape, void *state)
{
    struct mixer_field field[N_LOOK_FIELD + 1];
    char *at = state;

    look_fields(shape, field);
    return (struct look){
        .queries = (float *)(void *)(at + field[FIELD_QUERIES].offset),
        .pick = (uint32_t *)(void *)(at + field[FIELD_PICK].offset)};
}

static struct viewed viewed_of(const struct view_args *args,
                               const struct span *span)
{
    struct viewed viewed = {.args = args,
                            .policy = span->policy,
                            .memory = &span->layer[args->batch->layer],
                            .source = span->source};

    if (viewed.policy)
        viewed.index = viewed.policy->index;
    if (viewed.index && viewed.index != INDEX_SURPRISE)
        viewed.look = look_of(args->shape, viewed.memory->state);
    return viewed;
}

uint32_t view_n_sum(const struct policy *policy)
{
    return policy->step < VIEW_QUERIES ? VIEW_QUERIES / policy->step : 1;
}

bool view_counts(const struct viewed *it, uint64_t position)
{
    switch (it->index) {
    case INDEX_KEYS:
    case INDEX_BOUNDS:
        return true;
    case INDEX_MASS:
        return policy_sees_all(it->policy, position);
    case INDEX_NONE:
    case INDEX_SURPRISE:
    case N_INDEX:
        break;
    }
    return false;
}

/* ------------------------------------------------------------------- spans */

void view_add_all(const struct viewed *it, const struct view_run *run)
{
    struct view_room *room = it->args->batch->views;

    room->span[room->n_span++] =
        (struct attend_span){.first_row = run->row,
                             .n_row = run->n,
                             .position = run->position,
                             .block = it->memory->block};
}

void view_add_seen(const struct viewed *it, const struct view_run *run,
                   uint32_t n_seen)
{
    struct view_room *room = it->args->batch->views;

    room->span[room->n_span++] =
        (struct attend_span){.first_row = run->row,
                             .n_row = run->n,
                             .position = (uint64_t)(n_seen - 1) * KV_BLOCK +
                                         run->position % KV_BLOCK,
                             .block = room->block + room->n_seen,
                             .place = room->place + room->n_seen};
    room->n_seen += n_seen;
}

static bool add_run(const struct viewed *it, const struct view_run *run)
{
    return it->args->batch->views->device ? view_far_run(it, run)
                                          : view_host_run(it, run);
}

static void add_full(const struct viewed *it, const struct view_run *run)
{
    const struct mixer_batch *batch = it->args->batch;

    view_add_all(it, run);
    if (batch->views->device)
        view_far_skip(batch);
}

/* Rows [from, to) of one session; returns behind the last that fits. */
static uint32_t add_rows(const struct viewed *it, const struct span *span,
                         uint32_t from, uint32_t to)
{
    struct view_run run = {.row = from,
                           .n = to - from,
                           .position =
                               span->position + (from - span->first_row)};

    if (!it->policy) {
        add_full(it, &run);
        return to;
    }
    for (; run.row < to; run.row += run.n, run.position += run.n) {
        const uint64_t left =
            policy_view_end(it->policy, run.position) - run.position;

        run.n = left < to - run.row ? (uint32_t)left : to - run.row;
        run.sees_all = policy_sees_all(it->policy, run.position);
        if (!add_run(it, &run))
            break;
    }
    return run.row;
}

bool view_is_partial(const struct mixer_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_span; i++)
        if (batch->span[i].policy)
            return true;
    return false;
}

uint32_t view_rows(const struct view_args *args, uint32_t first, uint32_t end)
{
    const struct mixer_batch *batch = args->batch;
    uint32_t at = first;

    batch->views->n_span = batch->views->n_view = batch->views->n_seen = 0;
    for (uint32_t i = 0; i < batch->n_span && at < end; i++) {
        const struct span *span = &batch->span[i];
        const uint32_t behind = span->first_row + span->n_row;
        const uint32_t to = behind < end ? behind : end;
        const struct viewed viewed = viewed_of(args, span);

        if (behind <= at)
            continue;
        at = add_rows(&viewed, span, at, to);
        if (at < to)
            break;
    }
    if (batch->views->device)
        view_far_ask(args);
    return at;
}

bool view_is_ready(const struct mixer_batch *batch)
{
    bool is_ready = true;

    for (uint32_t i = 0; i < batch->n_span; i++) {
        struct block_source *source = batch->span[i].source;

        if (source)
            is_ready &= source->is_ready(source, batch->layer);
    }
    return is_ready;
}

void view_release(const struct mixer_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_span; i++) {
        struct block_source *source = batch->span[i].source;

        if (source)
            source->release(source, batch->layer);
    }
}

/* ------------------------------------------------------------------- steps */

uint64_t view_n_block(const struct policy *policy, uint64_t position)
{
    if (!policy || policy_sees_all(policy, position))
        return position / KV_BLOCK + 1;
    return policy_sight(policy, position / GRID,
                        policy_n_picked(policy, position))
        .n;
}

static void describe_row(const struct policy *policy, uint64_t position,
                         uint64_t *n_seen, struct device_step *step)
{
    const uint64_t n = view_n_block(policy, position);

    step->n_block = n > step->n_block ? n : step->n_block;
    if (!policy)
        return;
    step->has_views = true;
    *n_seen += n;
    if (policy->index == INDEX_MASS && policy_looks_up(policy, position + 1))
        step->is_repeatable = false;
}

void view_describe(const struct view_room *room, const struct span *span,
                   uint32_t n_span, struct device_step *step)
{
    uint64_t n_seen = 0;

    for (uint32_t i = 0; i < n_span; i++) {
        for (uint32_t r = 0; r < span[i].n_row; r++)
            describe_row(span[i].policy, span[i].position + r, &n_seen, step);
        if (span[i].match)
            step->is_repeatable = false;
    }
    if (n_seen > room->max_seen)
        step->is_repeatable = false;
}
