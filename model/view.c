#include "model/view.h"

#include "model/surprise.h"
#include "model/weights.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------- room */

/* Of all spans together: as many as make calls long enough, and as a session's
 * row may see. */
#define SEEN_LEAST 16384u

static uint32_t most_seen(const struct view_extent *extent)
{
    const uint64_t n = extent->n_context / KV_BLOCK + 1;

    static_assert(SEEN_LEAST >= POLICY_SEEN_MAX, "a bounded view fits");
    return n > SEEN_LEAST ? (uint32_t)n : SEEN_LEAST;
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

size_t view_room_bytes(const struct view_extent *extent)
{
    return extent->max_row * sizeof(struct attend_span) +
           most_seen(extent) * (sizeof(void *) + sizeof(struct key_place) +
                                sizeof(struct policy_view)) +
           (score_floats(extent) + query_floats_of(extent) +
            stat_floats(extent)) *
               sizeof(float);
}

enum status view_room_init(struct view_room *room,
                           const struct view_extent *extent)
{
    const uint32_t n = most_seen(extent);
    struct view_room it = {.max_seen = n};

    if (!(it.span = weights_room(extent->max_row * sizeof(*it.span))) ||
        !(it.block = weights_room(n * sizeof(*it.block))) ||
        !(it.place = weights_room(n * sizeof(*it.place))) ||
        !(it.seen = weights_room(n * sizeof(*it.seen))) ||
        !(it.score = weights_room(score_floats(extent) * sizeof(float))) ||
        !(it.query = weights_room(query_floats_of(extent) * sizeof(float))) ||
        !(it.stat = weights_room(stat_floats(extent) * sizeof(float)))) {
        view_room_release(&it);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *room = it;
    return STATUS_OK;
}

void view_room_release(struct view_room *room)
{
    free(room->span);
    free(room->block);
    free(room->place);
    free(room->seen);
    free(room->score);
    free(room->query);
    free(room->stat);
    memset(room, 0, sizeof(*room));
}

/* ------------------------------------------------------------------ state */

/* Of one layer and session, between two rows. */
struct look {
    float *queries; /* [LOOK_ROWS][n_head, d_head] ring of sums, each over the
                       queries of one step; with longer steps fewer are used */
    uint32_t *pick; /* [1 + POLICY_BLOCK_MAX] how many, then the blocks */
};

/* Rows whose queries a look-up adds up, at least: those right before the step.
 * A question is rarely shorter; more would drown it. */
#define LOOK_ROWS VIEW_QUERIES

enum { FIELD_QUERIES, FIELD_PICK, N_LOOK_FIELD };

static void look_fields(struct attend_shape shape, struct mixer_field *field)
{
    const struct mixer_field all[N_LOOK_FIELD] = {
        {.name = "queries",
         .type = FIELD_F32,
         .n_dim = 3,
         .dim = {LOOK_ROWS, shape.n_head, shape.d_head}},
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

/* --------------------------------------------------------------- look-ups */

/* One session in this layer. */
struct viewed {
    const struct view_args *args;
    const struct policy *policy;
    const struct layer_memory *memory;
    struct block_source *source; /* NULL: all blocks are there */
    enum index_kind index;
    struct look look; /* with an index that looks at queries */
};

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

static size_t query_floats(const struct viewed *it)
{
    return (size_t)it->args->shape.n_head * it->args->shape.d_head;
}

/* Sums that a look-up adds up. */
static uint32_t n_sum(const struct policy *policy)
{
    return policy->step < LOOK_ROWS ? LOOK_ROWS / policy->step : 1;
}

/* That of the step in which `position` lies. */
static float *sum_at(const struct viewed *it, uint64_t position)
{
    const uint64_t step = position / it->policy->step;

    return it->look.queries + step % n_sum(it->policy) * query_floats(it);
}

/* The queries of rows [row, row + n), all of one step. */
static void add_queries(const struct viewed *it, uint32_t row, uint32_t n,
                        uint64_t position)
{
    const size_t n_q = query_floats(it);
    float *sum = sum_at(it, position);

    if (position % it->policy->step == 0)
        memset(sum, 0, n_q * sizeof(*sum));
    for (uint32_t r = row; r < row + n; r++) {
        const float *q = it->args->q + r * it->args->q_stride;

        for (size_t i = 0; i < n_q; i++)
            sum[i] += q[i];
    }
}

/* The chunk's block is full. Its index lies behind it, where snapshots find
 * it, and may lie elsewhere for look-ups. */
static void seal(const struct viewed *it, uint64_t chunk)
{
    const struct mixer_batch *batch = it->args->batch;
    const struct attend_shape shape = it->args->shape;
    const size_t n = kv_index_bytes(shape, it->index);
    void *behind = (char *)it->memory->block[chunk] + kv_block_bytes(shape);
    void *apart = it->memory->index[chunk];

    batch->backend->kv_seal(
        batch->pool,
        &(struct kv_seal_args){
            .shape = shape,
            .kind = it->index,
            .table = policy_looks_at_positions(it->policy) ? batch->rope : NULL,
            .block = it->memory->block[chunk],
            .position = chunk * KV_BLOCK,
            .index = behind});
    if (it->memory->is_short)
        kv_shorten_bounds(shape, behind, apart);
    else if (apart != behind)
        memcpy(apart, behind, n);
}

/*
 * The last queries as one, as the index wants it: at the step's last
 * position, or at the distance that far blocks have.
 */
static void make_query(const struct viewed *it, uint64_t position, float *query)
{
    const struct attend_shape shape = it->args->shape;
    const struct mixer_batch *batch = it->args->batch;
    const size_t n_q = (size_t)shape.n_head * shape.d_head;
    const uint64_t at = policy_looks_at_positions(it->policy)
                            ? position
                            : policy_far_distance(it->policy);

    memset(query, 0, n_q * sizeof(float));
    for (uint32_t s = 0; s < n_sum(it->policy); s++)
        for (size_t i = 0; i < n_q; i++)
            query[i] += it->look.queries[s * n_q + i];
    batch->backend->rope(batch->pool,
                         &(struct rope_args){.x = query,
                                             .x_stride = n_q,
                                             .position = &at,
                                             .n_row = 1,
                                             .n_head = shape.n_head,
                                             .d_head = shape.d_head,
                                             .table = batch->rope});
}

static void score_blocks(const struct viewed *it, uint64_t position,
                         struct block_range among)
{
    const struct mixer_batch *batch = it->args->batch;
    struct view_room *room = batch->views;

    make_query(it, position, room->query);
    batch->backend->kv_score(
        batch->pool, &(struct kv_score_args){.shape = it->args->shape,
                                             .kind = it->index,
                                             .is_short = it->memory->is_short,
                                             .q = room->query,
                                             .index = it->memory->index,
                                             .first = among.first,
                                             .end = among.end,
                                             .score = room->score});
}

/* By what the last rows up to `position` attend to. */
static void weigh_blocks(const struct viewed *it, uint64_t position,
                         struct block_range among)
{
    const struct mixer_batch *batch = it->args->batch;
    const struct attend_shape shape = it->args->shape;
    struct view_room *room = batch->views;
    const size_t n_q = query_floats(it);
    const uint32_t n_row =
        position + 1 < LOOK_ROWS ? (uint32_t)position + 1 : LOOK_ROWS;
    uint64_t at[LOOK_ROWS];

    for (uint32_t r = 0; r < n_row; r++) {
        at[r] = position + 1 - n_row + r;
        memcpy(room->query + r * n_q, sum_at(it, at[r]), n_q * sizeof(float));
    }
    batch->backend->rope(batch->pool,
                         &(struct rope_args){.x = room->query,
                                             .x_stride = n_q,
                                             .position = at,
                                             .n_row = n_row,
                                             .n_head = shape.n_head,
                                             .d_head = shape.d_head,
                                             .table = batch->rope});
    batch->backend->kv_mass(batch->pool,
                            &(struct kv_mass_args){.shape = shape,
                                                   .table = batch->rope,
                                                   .scale = it->args->scale,
                                                   .q = room->query,
                                                   .n_row = n_row,
                                                   .position = at[0],
                                                   .block = it->memory->block,
                                                   .first = among.first,
                                                   .end = among.end,
                                                   .stat = room->stat,
                                                   .mass = room->score});
}

/* For the steps behind `position`, the last one of its own. */
static void look_up(const struct viewed *it, uint64_t position)
{
    const float *score = it->args->batch->views->score;
    const struct block_range among =
        policy_candidates(it->policy, (position + 1) / KV_BLOCK);

    if (among.end - among.first > it->policy->n_pick) {
        if (it->index == INDEX_MASS)
            weigh_blocks(it, position, among);
        else
            score_blocks(it, position, among);
    }
    it->look.pick[0] =
        policy_choose(it->policy, among, score, it->look.pick + 1);
}

/* Rows [row, row + n) at `position`, all with the same view, have been seen. */
static void advance(const struct viewed *it, uint32_t row, uint32_t n,
                    uint64_t position)
{
    const uint64_t end = position + n;

    if (it->index == INDEX_NONE || it->index == INDEX_SURPRISE ||
        (it->index == INDEX_MASS && !policy_sees_all(it->policy, position)))
        return; /* nothing will be looked up */
    for (uint64_t at = position, behind; at < end; at = behind) {
        behind = (at / it->policy->step + 1) * it->policy->step;
        behind = behind < end ? behind : end;
        add_queries(it, row + (uint32_t)(at - position),
                    (uint32_t)(behind - at), at);
    }
    if (end % GRID == 0 && it->index != INDEX_MASS)
        seal(it, end / GRID - 1);
    if (policy_looks_up(it->policy, end))
        look_up(it, end - 1);
}

/* ------------------------------------------------------------------- spans */

/* Where keys and values of a block are, or will be; NULL: no room for them. */
static void *block_of(const struct viewed *it, uint64_t block)
{
    return it->source
               ? it->source->hold(it->source, it->args->batch->layer, block)
               : it->memory->block[block];
}

/* How many blocks rows of the chunk see beside sinks and window, and which. */
static const uint32_t *picked(const struct viewed *it, uint64_t chunk)
{
    static const uint32_t NONE[] = {0};

    if (it->index == INDEX_SURPRISE)
        return surprise_kept(it->policy, it->memory->state, chunk);
    return it->index ? it->look.pick : NONE;
}

/* A span for rows from `row` on with one view, if what they see still fits. */
static bool add_view(const struct viewed *it, uint32_t row, uint32_t n,
                     uint64_t position, uint32_t *n_seen)
{
    struct view_room *room = it->args->batch->views;
    const uint64_t chunk = position / GRID;
    const uint32_t *pick = picked(it, chunk);
    const uint32_t n_new =
        policy_see(it->policy, chunk, pick + 1, pick[0], NULL);

    if (*n_seen + n_new > room->max_seen)
        return false;
    policy_see(it->policy, chunk, pick + 1, pick[0], room->seen);
    for (uint32_t i = 0; i < n_new; i++) {
        void *block = block_of(it, room->seen[i].block);

        if (!block)
            return false;
        room->block[*n_seen + i] = block;
        room->place[*n_seen + i] = room->seen[i].place;
    }
    room->span[room->n_span++] = (struct attend_span){
        .first_row = row,
        .n_row = n,
        .position = (uint64_t)(n_new - 1) * KV_BLOCK + position % KV_BLOCK,
        .block = room->block + *n_seen,
        .place = room->place + *n_seen};
    *n_seen += n_new;
    return true;
}

/* One for rows that see every block. */
static void add_all(const struct viewed *it, uint32_t row, uint32_t n,
                    uint64_t position)
{
    struct view_room *room = it->args->batch->views;

    room->span[room->n_span++] =
        (struct attend_span){.first_row = row,
                             .n_row = n,
                             .position = position,
                             .block = it->memory->block};
}

/* Rows [from, to) of one session; returns behind the last that fits. */
static uint32_t add_rows(const struct viewed *it, const struct span *span,
                         uint32_t from, uint32_t to, uint32_t *n_seen)
{
    uint64_t position = span->position + (from - span->first_row);

    if (!it->policy) {
        add_all(it, from, to - from, position);
        return to;
    }
    while (from < to) {
        const uint64_t left = policy_view_end(it->policy, position) - position;
        const uint32_t n = left < to - from ? (uint32_t)left : to - from;

        if (policy_sees_all(it->policy, position))
            add_all(it, from, n, position);
        else if (!add_view(it, from, n, position, n_seen))
            break;
        advance(it, from, n, position);
        from += n;
        position += n;
    }
    return from;
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
    uint32_t n_seen = 0, at = first;

    batch->views->n_span = 0;
    for (uint32_t i = 0; i < batch->n_span && at < end; i++) {
        const struct span *span = &batch->span[i];
        const uint32_t behind = span->first_row + span->n_row;
        const uint32_t to = behind < end ? behind : end;
        const struct viewed viewed = viewed_of(args, span);

        if (behind <= at)
            continue;
        at = add_rows(&viewed, span, at, to, &n_seen);
        if (at < to)
            break;
    }
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
