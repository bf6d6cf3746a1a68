/* Look-ups with queries and indices at hand: in the host's memory. */
#include "model/surprise.h"
#include "model/view_parts.h"

#include <string.h>

/* --------------------------------------------------------------- look-ups */

static size_t query_floats(const struct viewed *it)
{
    return (size_t)it->args->shape.n_head * it->args->shape.d_head;
}

/* That of the step in which `position` lies. */
static float *sum_at(const struct viewed *it, uint64_t position)
{
    const uint64_t step = position / it->policy->step;

    return it->look.queries + step % view_n_sum(it->policy) * query_floats(it);
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
    const uint64_t at = policy_look_position(it->policy, position);

    memset(query, 0, n_q * sizeof(float));
    for (uint32_t s = 0; s < view_n_sum(it->policy); s++)
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
        position + 1 < VIEW_QUERIES ? (uint32_t)position + 1 : VIEW_QUERIES;
    uint64_t at[VIEW_QUERIES];

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

    if (!view_counts(it, position))
        return;
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

/* A span for rows with one view, if what they see still fits. */
static bool add_view(const struct viewed *it, const struct view_run *run)
{
    struct view_room *room = it->args->batch->views;
    const uint64_t chunk = run->position / GRID;
    const uint32_t *pick = picked(it, chunk);
    const uint32_t n_new =
        policy_see(it->policy, chunk, pick + 1, pick[0], NULL);

    if (room->n_seen + n_new > room->max_seen)
        return false;
    policy_see(it->policy, chunk, pick + 1, pick[0], room->seen);
    for (uint32_t i = 0; i < n_new; i++) {
        void *block = block_of(it, room->seen[i].block);

        if (!block)
            return false;
        room->block[room->n_seen + i] = block;
        room->place[room->n_seen + i] = room->seen[i].place;
    }
    view_add_seen(it, run, n_new);
    return true;
}

bool view_host_run(const struct viewed *it, const struct view_run *run)
{
    if (run->sees_all)
        view_add_all(it, run);
    else if (!add_view(it, run))
        return false;
    advance(it, run->row, run->n, run->position);
    return true;
}
