#include "scheduler/engine_calls.h"

#include <string.h>

static enum status out_of_range(uint64_t position, uint64_t n_token,
                                const char *field)
{
    status_fail(STATUS_OUT_OF_RANGE,
                "position is %lu, the log has %lu committed tokens", position,
                n_token);
    status_because("POSITION_OUT_OF_RANGE");
    return status_field(field);
}

static bool is_kept(const struct session *session)
{
    return session->durability != DURABILITY_NONE;
}

/* --- what a fork has in memory --- */

/* What its parent has stored of it, or its parent's ancestors. */
static void inherit_stored(struct engine *engine, const struct resident *from,
                           struct uid log, struct session *fork)
{
    struct resident *resident = fork->resident;
    uint64_t stored = from->snapshot_position;
    struct log_path path;

    session_path(fork, &path);
    if (stored > resident_position(resident))
        stored = resident_position(resident) / KV_BLOCK * KV_BLOCK;
    resident->base = from->base;
    log_pieces_cut(&resident->base, stored / KV_BLOCK * KV_BLOCK);
    log_pieces_add(&resident->base, log, stored / KV_BLOCK * KV_BLOCK);
    if (log_path_keeps(&path, &resident->base) <
        log_pieces_end(&resident->base)) {
        log_pieces_cut(&resident->base, log_path_keeps(&path, &resident->base) /
                                            KV_BLOCK * KV_BLOCK);
        stored = log_pieces_end(&resident->base);
    }
    resident->snapshot_position = stored;
    resident->snapshot_chain =
        stored == from->snapshot_position
            ? from->snapshot_chain
            : digest_tokens(engine->empty_chain, resident->tokens.id, stored);
}

/* Its parent's memory, if that has not gone further than the fork. */
static enum status inherit_memory(struct engine *engine,
                                  struct session *session, struct session *fork)
{
    struct resident *from = session->resident, *resident = fork->resident;
    uint64_t position = resident_position(from);
    size_t holds = charge_holds(session);
    enum status st;

    if (position == 0 || position >= fork->n_token ||
        session_is_in_pass(session) || !paged_may_fork(from) ||
        swap_is_aside(from))
        return STATUS_OK;
    st = memory_fork(from->memory, &engine->shared_bytes, &resident->memory);
    if (st)
        return st;
    resident->memory_chain = from->memory_chain;
    resident->reuse = REUSE_RESIDENT;
    charge_bytes(engine, session, holds); /* less what it shares now */
    if (is_kept(fork))
        inherit_stored(engine, from, session_log(session), fork);
    if (!paged_has(resident, resident->snapshot_position)) {
        memory_destroy(resident->memory); /* it would read what it may lose */
        resident->memory = NULL;
    }
    return STATUS_OK;
}

static enum status inherit_tokens(struct engine *engine,
                                  const struct resident *from,
                                  struct session *fork)
{
    struct resident *resident = fork->resident;
    enum status st =
        tokens_append(&resident->tokens, from->tokens.id, fork->n_token);

    if (st)
        return st;
    resident->chain = fork->n_token == from->tokens.n
                          ? from->chain
                          : digest_tokens(engine->empty_chain, from->tokens.id,
                                          fork->n_token);
    return STATUS_OK;
}

/*
 * A durable fork can do without: it is parked then, and is read from what its
 * ancestors have stored. Another one has its log nowhere else.
 */
static enum status inherit(struct engine *engine, struct session *session,
                           struct session *fork)
{
    const struct resident *from = session->resident;
    enum status st;

    if (!from || fork->n_token == 0 ||
        (is_kept(fork) && resident_position(from) >= fork->n_token))
        return STATUS_OK;
    resident_make(engine, fork);
    st = inherit_tokens(engine, from, fork);
    if (!st)
        st = inherit_memory(engine, session, fork);
    charge_settle(engine, fork);
    if (is_kept(fork) &&
        (st || !resident_trim(engine) || !fork->resident->memory)) {
        resident_drop(engine, fork);
        return STATUS_OK;
    }
    if (st)
        resident_drop(engine, fork);
    else
        resident_touch(engine, fork);
    return st;
}

/* --- the fork itself --- */

static enum status take_position(const struct session *session,
                                 const struct fork_command *f, uint64_t *out)
{
    *out = session->n_committed;
    if (!f->has_position)
        return STATUS_OK;
    if (f->position > session->n_committed)
        return out_of_range(f->position, session->n_committed, "position");
    *out = f->position;
    return STATUS_OK;
}

static enum status make_path(const struct session *session, uint64_t position,
                             struct session_meta *meta)
{
    struct log_path path;

    session_path(session, &path);
    if (!is_kept(session)) /* its log is copied */
        meta->path = log_path_alone(meta->uid);
    else if (!log_path_fork(&path, position, meta->uid, &meta->path))
        return status_fail(STATUS_INTERNAL,
                           "the lineage of session %s has %u pieces, limit %u",
                           session->name, path.n, LOG_PATH_MAX);
    return STATUS_OK;
}

enum status fork_session(struct engine *engine, const struct command *command)
{
    const struct fork_command *f = &command->fork;
    struct session *session, *fork;
    struct session_meta meta;
    uint64_t position;
    enum status st = control_check_draining(engine);

    if (!st)
        st = control_find(engine, command, f->session, &session);
    if (!st)
        st = control_check_new(engine, f->name);
    if (!st)
        st = take_position(session, f, &position);
    if (st)
        return st;
    session_meta_get(session, &meta);
    st = keep_quota(engine, meta.tenant, 1, 0);
    if (st)
        return st;
    memcpy(meta.name, f->name, sizeof(meta.name));
    memcpy(meta.parent_name, session->name, sizeof(meta.parent_name));
    meta.parent = session->uid;
    meta.fork_position = position;
    st = generate_meta(engine, &meta);
    if (!st)
        st = make_path(session, position, &meta);
    if (st)
        return st;
    fork = session_create(&meta);
    fork->scope = session->scope;
    fork->n_token = fork->n_committed = position;
    st = inherit(engine, session, fork);
    if (st) {
        session_put(fork);
        return st;
    }
    resident_use(engine, session); /* the next fork shares with it, too */
    table_add(engine, fork);
    flight_create(engine, fork);
    control_send(engine, fork, command->reply);
    return STATUS_OK;
}

/* --- rewind --- */

static enum status check_rewind(const struct session *session,
                                const struct command *command)
{
    enum status st = control_check_etag(session, command->target.etag);

    if (st)
        return st;
    if (session->request && session->request->kind != REQUEST_CHECKPOINT) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "a turn of session %s is running", session->name);
        return status_because("TURN_RUNNING");
    }
    if (session->request || session->is_loading || session->is_fetching ||
        session->is_upgrading) {
        status_fail(STATUS_ABORTED, "session %s is busy", session->name);
        status_because("OPERATION_IN_PROGRESS");
        return status_retry(100);
    }
    if (command->target.from > session->n_token)
        return out_of_range(command->target.from, session->n_token, "position");
    return STATUS_OK;
}

/* Its log is nowhere but here. */
static void rewind_in_memory(struct engine *engine, struct session *session,
                             uint64_t position)
{
    resident_truncate(engine, session, position);
    session->resident->has_turn = false;
    resident_touch(engine, session);
}

static enum status rewind_log(struct engine *engine, struct session *session,
                              uint64_t position)
{
    struct session_meta earlier, meta;
    uint64_t n_committed = session->n_committed;
    struct uid log;
    enum status st = uid_make(engine_wall_ms(engine), &log);

    if (st)
        return st;
    session_meta_get(session, &earlier);
    meta = earlier;
    meta.update_ms = engine_wall_ms(engine);
    if (meta.fork_position > position)
        meta.fork_position = position;
    if (!log_path_fork(&earlier.path, position, log, &meta.path))
        return status_fail(STATUS_INTERNAL,
                           "the lineage of session %s has %u pieces, limit %u",
                           session->name, earlier.path.n, LOG_PATH_MAX);
    prefix_deleted(engine, session);
    resident_drop(engine, session);
    session_meta_set(session, &meta);
    session->n_token = session->n_committed = position;
    session->is_failed = false;
    flight_lineage(engine, session, &earlier, n_committed);
    return STATUS_OK;
}

enum status fork_rewind(struct engine *engine, const struct command *command)
{
    uint64_t position = command->target.from;
    struct session *session;
    enum status st = control_check_draining(engine);

    if (!st)
        st = control_find(engine, command, command->target.session, &session);
    if (!st)
        st = check_rewind(session, command);
    if (st)
        return st;
    if (position < session->n_token && is_kept(session))
        st = rewind_log(engine, session, position);
    else if (position < session->n_token)
        rewind_in_memory(engine, session, position);
    if (!st)
        control_send(engine, session, command->reply);
    return st;
}

void fork_flatten(struct engine *engine, struct session *session)
{
    struct session_meta earlier, meta;

    if (!is_kept(session) || session->n_piece < LOG_PATH_MAX)
        return;
    session_meta_get(session, &earlier);
    if (log_path_inherited(&earlier.path) != session->n_token)
        return; /* its own log has begun: it was flattened before */
    meta = earlier;
    meta.path = log_path_alone(session_log(session));
    session_meta_set(session, &meta);
    prefix_remove(engine->prefix, session_log(session)); /* until it is saved
                                       without the blocks of its ancestors */
    if (session->resident)
        paged_lose(session->resident); /* it would read those */
    flight_lineage(engine, session, &earlier, session->n_committed);
    flight_tokens(engine, session, 0, engine->empty_chain);
}

/* --- blocks that are in memory twice --- */

static void share_with(struct engine *engine, struct session *session,
                       struct session *other)
{
    struct resident *resident = session->resident, *from = other->resident;
    size_t holds = charge_holds(other);
    struct log_path a, b;
    uint64_t n;

    if (other == session || !from || !from->memory ||
        memory_paging(from->memory) || memory_paging(resident->memory) ||
        swap_is_aside(from) || swap_is_aside(resident))
        return;
    session_path(session, &a);
    session_path(other, &b);
    n = log_path_common(&a, &b);
    n = n < resident_position(resident) ? n : resident_position(resident);
    n = n < resident_position(from) ? n : resident_position(from);
    if (n < KV_BLOCK)
        return;
    memory_share(resident->memory, from->memory, n, &engine->shared_bytes);
    charge_bytes(engine, other, holds);
}

void fork_share(struct engine *engine, struct session *session)
{
    if (session->n_piece == 1 &&
        lineage_lent(&engine->lineage, session_log(session)) == 0)
        return;
    for (struct session *s = engine->oldest; s; s = s->newer)
        share_with(engine, session, s);
    for (struct request *r = engine->first; r; r = r->after)
        share_with(engine, session, r->session);
}
