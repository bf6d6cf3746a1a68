#include "scheduler/errand_parts.h"

#include <stdlib.h>
#include <string.h>

static void delete_session(struct engine *engine, struct session *session)
{
    if (session->request && (session->request->phase == REQUEST_LOADING ||
                             session->request->kind == REQUEST_CHECKPOINT)) {
        status_fail(STATUS_ABORTED, "session %s was deleted", session->name);
        status_because("OPERATION_ABORTED");
        request_fail(engine, session->request, FINISH_CANCELLED,
                     status_cause());
    } else if (session->request) {
        request_finish(engine, session->request, FINISH_CANCELLED);
    }
    flight_delete(engine, session);
    prefix_deleted(engine, session);
    table_remove(engine, session);
    resident_drop(engine, session);
    session_put(session);
}

void control_expire(struct engine *engine, struct session *session)
{
    if (!session->expire_ms || session->expire_ms > engine_wall_ms(engine) ||
        session->request)
        return;
    metric_add(engine->metrics.expired, 1);
    delete_session(engine, session);
}

static bool may_see(const struct command *command,
                    const struct session *session)
{
    const char *tenant = session->tenant ? session->tenant : "";

    return command->is_operator || strcmp(tenant, command->tenant) == 0;
}

/* Whoever's; NULL: there is none, or it has expired. */
static struct session *find_any(struct engine *engine, const char *name)
{
    struct session *session = table_find(engine, name);

    if (!session)
        return NULL;
    control_expire(engine, session);
    return table_find(engine, name);
}

enum status control_find(struct engine *engine, const struct command *command,
                         const char *name, struct session **out)
{
    struct session *session = find_any(engine, name);

    if (!session || !may_see(command, session)) {
        status_fail(STATUS_NOT_FOUND, "session %s does not exist", name);
        return status_because("SESSION_NOT_FOUND");
    }
    *out = session;
    return STATUS_OK;
}

enum status control_check_etag(const struct session *session, const char *etag)
{
    char now[24];

    session_etag(session, now);
    if (!etag[0] || strcmp(etag, now) == 0)
        return STATUS_OK;
    status_fail(STATUS_ABORTED, "etag is %s, the session's is %s", etag, now);
    return status_because("ETAG_MISMATCH");
}

enum status control_check_draining(const struct engine *engine)
{
    if (!engine->is_draining)
        return STATUS_OK;
    status_fail(STATUS_UNAVAILABLE, "node is draining");
    status_because("NODE_DRAINING");
    return status_retry(1000);
}

void control_send(struct engine *engine, const struct session *session,
                  uint64_t reply)
{
    struct event *event =
        engine_need(event_create(EVENT_SESSION, reply, 0, NULL));

    event->is_last = true;
    session_info_get(engine, session, &event->session);
    flight_event(engine, event);
}

enum status control_check_new(struct engine *engine, const char *name)
{
    if (name[0] && find_any(engine, name)) {
        status_fail(STATUS_ALREADY_EXISTS, "session %s exists", name);
        return status_because("SESSION_EXISTS");
    }
    if (engine->n_session >= engine->options.max_sessions) {
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "node keeps %lu sessions, limit %lu", engine->n_session,
                    engine->options.max_sessions);
        return status_because("STATE_SLOTS");
    }
    return STATUS_OK;
}

static enum status create(struct engine *engine, const struct command *command)
{
    struct session_meta meta = command->create;
    struct session *session;
    enum status st = control_check_draining(engine);

    memcpy(meta.tenant, command->tenant, sizeof(meta.tenant));
    policy_end_turns(&meta.policy, engine->config->eos, engine->config->n_eos);
    if (!st)
        st = control_check_new(engine, meta.name);
    if (!st && (policy_check_end(&meta.policy) ||
                model_check_policy(engine->options.model, &meta.policy)))
        return status_field("session.policy");
    if (!st)
        st = keep_quota(engine, meta.tenant, 1, 0);
    if (!st)
        st = generate_meta(engine, &meta);
    if (st)
        return st;
    session = session_create(&meta);
    table_add(engine, session);
    flight_create(engine, session);
    control_send(engine, session, command->reply);
    return STATUS_OK;
}

static enum status get(struct engine *engine, const struct command *command)
{
    struct session *session;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (!st)
        control_send(engine, session, command->reply);
    return st;
}

/* The next one from table[at] on that a list shows; n_session: none. */
static uint64_t next_listed(const struct engine *engine,
                            const struct command *command, uint64_t at)
{
    const char *prefix = command->list.prefix;

    for (; at < engine->n_session; at++) {
        if (strncmp(engine->table[at]->name, prefix, strlen(prefix)) != 0)
            return engine->n_session;
        if (may_see(command, engine->table[at]))
            return at;
    }
    return at;
}

static enum status list(struct engine *engine, const struct command *command)
{
    const struct list_command *l = &command->list;
    uint64_t first = engine->n_session, n_total = 0, n = 0, at;
    struct event *event;
    struct session_info *info;

    for (at = next_listed(engine, command, table_seek(engine, l->prefix));
         at < engine->n_session; at = next_listed(engine, command, at + 1)) {
        n_total++;
        if (strcmp(engine->table[at]->name, l->after) <= 0)
            continue;
        first = n++ == 0 ? at : first;
    }
    event = event_create(EVENT_SESSIONS, command->reply,
                         (n < l->page_size ? n : l->page_size) * sizeof(*info),
                         (void **)&info);
    if (!event)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a list of %u sessions", l->page_size);
    event->is_last = true;
    event->sessions.n_session = (uint32_t)(n < l->page_size ? n : l->page_size);
    event->sessions.n_total = n_total;
    event->sessions.has_more = n > l->page_size;
    event->sessions.session = info;
    for (uint32_t i = 0; i < event->sessions.n_session; i++) {
        session_info_get(engine, engine->table[first], &info[i]);
        first = next_listed(engine, command, first + 1);
    }
    flight_event(engine, event);
    return STATUS_OK;
}

static enum status check_update(const struct engine *engine,
                                const struct session *session,
                                const struct update_command *u)
{
    enum status st = control_check_draining(engine);

    if (!st)
        st = control_check_etag(session, u->etag);
    if (st || !u->sets_durability || u->durability == session->durability)
        return st;
    if (u->durability == DURABILITY_NONE) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "a durable session stays durable");
        status_because("DURABILITY_LOWERED");
        return status_field("session.durability");
    }
    if (session->request) {
        status_fail(STATUS_ABORTED, "session %s is busy", session->name);
        return status_because("OPERATION_IN_PROGRESS");
    }
    return STATUS_OK;
}

static enum status update(struct engine *engine, const struct command *command)
{
    const struct update_command *u = &command->update;
    struct session_meta earlier, meta;
    struct session *session;
    enum status st = control_find(engine, command, u->session, &session);

    if (!st)
        st = check_update(engine, session, u);
    if (st)
        return st;
    session_meta_get(session, &earlier);
    meta = earlier;
    meta.update_ms = engine_wall_ms(engine);
    if (u->sets_labels) {
        meta.n_label = u->n_label;
        memcpy(meta.label, u->label, u->n_label * sizeof(*u->label));
    }
    if (u->sets_expire)
        meta.expire_ms = u->expire_ms;
    if (u->sets_durability)
        meta.durability = u->durability;
    if (u->sets_pinned)
        meta.is_pinned = u->is_pinned;
    session_meta_set(session, &meta);
    if (meta.expire_ms && meta.expire_ms < engine->next_expire_ms)
        engine->next_expire_ms = meta.expire_ms;
    if (earlier.durability == DURABILITY_NONE &&
        meta.durability != DURABILITY_NONE)
        flight_upgrade(engine, session, &earlier);
    else
        flight_update(engine, session, &earlier);
    control_send(engine, session, command->reply);
    return STATUS_OK;
}

static enum status remove_session(struct engine *engine,
                                  const struct command *command)
{
    struct session *session;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (st == STATUS_NOT_FOUND && command->target.allows_missing) {
        flight_done(engine, command->reply);
        return STATUS_OK;
    }
    if (!st)
        st = control_check_etag(session, command->target.etag);
    if (st)
        return st;
    delete_session(engine, session);
    flight_done(engine, command->reply);
    return STATUS_OK;
}

static enum status read_tokens(struct engine *engine,
                               const struct command *command)
{
    struct session *session;
    uint64_t from = command->target.from, limit = command->target.limit;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (st)
        return st;
    if (from > session->n_token) {
        status_fail(STATUS_OUT_OF_RANGE, "position is %lu, log has %lu tokens",
                    from, session->n_token);
        status_because("POSITION_OUT_OF_RANGE");
        return status_field("from_position");
    }
    if (session->n_token && !session->resident)
        return jobs_read(engine, session, command->reply, from, limit);
    jobs_log(engine, command->reply,
             session->resident ? session->resident->tokens.id : NULL,
             session->n_token, from, limit);
    return STATUS_OK;
}

enum status control_checkpoint(struct engine *engine, struct session *session,
                               const struct policy *policy, uint64_t reply,
                               uint64_t deadline_us)
{
    const bool changes = policy && change_is(session, policy);
    struct request asked = {.kind = REQUEST_CHECKPOINT,
                            .reply = reply,
                            .deadline_us = deadline_us,
                            .session = session,
                            .has_policy = changes};
    struct request *request;
    enum status st = changes ? change_check(engine, session, policy) : 0;

    if (st)
        return st;

    if (session->durability == DURABILITY_NONE) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "session %s is not durable, so it has no snapshots",
                    session->name);
        return status_because("SESSION_NOT_DURABLE");
    }
    if (session->n_token == 0 && !session->resident)
        resident_make(engine, session);
    if (session->resident && !changes &&
        (session->request || session->n_token < 2 ||
         resident_position(session->resident) + 1 >= session->n_token)) {
        resident_checkpoint(engine, session, reply);
        if (!session->request)
            resident_touch(engine, session);
        return STATUS_OK;
    }
    if (session->request) { /* still loading, or it would change under it */
        status_fail(STATUS_ABORTED, "session %s is busy", session->name);
        return status_because("OPERATION_IN_PROGRESS");
    }
    if (changes)
        asked.policy = *policy;
    asked.promise =
        change_promise(engine, session, policy, session->n_token, 0);
    st = schedule_admit(engine, &asked, "");
    if (st)
        return st;
    request = request_create(engine, &asked);
    if (session->resident)
        generate_admit(engine, request);
    return STATUS_OK;
}

static enum status checkpoint(struct engine *engine,
                              const struct command *command)
{
    struct session *session;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (!st)
        st = control_check_draining(engine);
    return st ? st
              : control_checkpoint(
                    engine, session,
                    command->target.has_policy ? &command->target.policy : NULL,
                    command->reply, command->deadline_us);
}

static enum status park(struct engine *engine, const struct command *command)
{
    struct session *session;
    struct errand *errand;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (!st)
        st = control_check_draining(engine);
    if (st)
        return st;
    if (session->durability == DURABILITY_NONE) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "session %s is nowhere but in memory", session->name);
        return status_because("SESSION_NOT_DURABLE");
    }
    if (session->request) {
        status_fail(STATUS_ABORTED, "session %s is busy", session->name);
        return status_because("OPERATION_IN_PROGRESS");
    }
    st = errand_create(engine, ERRAND_PARK, session, command->reply, &errand);
    if (!st)
        resident_park(engine, session);
    return st;
}

static struct request *find_request(const struct engine *engine,
                                    const struct command *command)
{
    const char *id = command->target.request_id;

    for (struct request *r = engine->first; r; r = r->after) {
        const struct session *session = request_asker(r);
        const char *own;
        if (!request_is_turn(r) || !may_see(command, session))
            continue;
        own = r->command ? r->command->generate.request_id
                         : session->resident->turn.request_id;
        if (command->target.session[0] &&
            strcmp(session->name, command->target.session) != 0)
            continue;
        if (!id[0] || strcmp(id, own) == 0)
            return r;
    }
    return NULL;
}

/* An interrupted turn of a session in memory; false if there is none. */
static bool cancel_open(struct engine *engine, const struct command *command)
{
    struct session *session = table_find(engine, command->target.session);
    const char *id = command->target.request_id;
    const struct resident *resident = session ? session->resident : NULL;

    if (!resident || !may_see(command, session) || session->request ||
        !resident->has_turn || resident->turn.finish != FINISH_NONE ||
        (id[0] && strcmp(id, resident->turn.request_id) != 0))
        return false;
    generate_close(engine, session);
    flight_done(engine, command->reply);
    return true;
}

static enum status cancel(struct engine *engine, const struct command *command)
{
    struct request *request = NULL;

    if (command->target.session[0] || command->target.request_id[0])
        request = find_request(engine, command);
    if (!request && cancel_open(engine, command))
        return STATUS_OK;
    if (!request) {
        status_fail(STATUS_NOT_FOUND, "no such request is running");
        return status_because("REQUEST_UNKNOWN");
    }
    if (request->phase == REQUEST_LOADING) {
        status_fail(STATUS_CANCELLED, "request was cancelled");
        status_because("REQUEST_CANCELLED");
        request_fail(engine, request, FINISH_CANCELLED, status_cause());
    } else {
        request_finish(engine, request, FINISH_CANCELLED);
    }
    flight_done(engine, command->reply);
    return STATUS_OK;
}

/* Its reader is gone: a turn that a retry can name stays open. */
static void detach(struct engine *engine, struct request *request)
{
    request->reply = 0;
    if (request_stays_open(request))
        request_interrupt(engine, request, FINISH_NONE);
    else
        request_finish(engine, request, FINISH_CANCELLED);
}

static void copy_text(char *out, size_t out_bytes, const char *text)
{
    size_t n = strnlen(text, out_bytes - 1);

    memcpy(out, text, n);
    out[n] = '\0';
}

static void node(struct engine *engine, const struct command *command)
{
    const struct engine_options *o = &engine->options;
    struct event *event =
        engine_need(event_create(EVENT_NODE, command->reply, 0, NULL));
    struct node_info *info = &event->node;

    event->is_last = true;
    copy_text(info->name, sizeof(info->name), o->node_name);
    copy_text(info->version, sizeof(info->version), GODWIT_VERSION);
    copy_text(info->model, sizeof(info->model), engine->config->model_type);
    copy_text(info->numerics, sizeof(info->numerics), model_numerics(o->model));
    copy_text(info->backend, sizeof(info->backend),
              model_backend(o->model)->name);
    digest_format(model_fingerprint(o->model), info->fingerprint);
    info->is_draining = engine->is_draining;
    info->n_thread = o->pool ? pool_n_thread(o->pool) : 1;
    info->start_ms = engine->start_ms;
    info->n_context = engine->n_context;
    info->n_session = engine->n_session;
    info->n_running = engine->n_running;
    info->n_waiting = engine->n_request - engine->n_running;
    info->n_resident = engine->n_resident;
    info->weight_bytes = model_weight_bytes(o->model);
    info->session_bytes = charge_total(engine);
    info->session_bytes_max = o->session_bytes;
    info->state_bytes = engine->state_charged;
    info->state_bytes_max = o->state_bytes;
    info->session_fixed_bytes = resident_bytes(engine, NULL, 0);
    info->token_bytes = (resident_bytes(engine, NULL, KV_BLOCK) -
                         resident_bytes(engine, NULL, 0)) /
                        KV_BLOCK;
    info->prompt_tokens = engine->prompt_tokens;
    info->generated_tokens = engine->generated_tokens;
    info->steps = engine->step;
    flight_event(engine, event);
}

static void drain(struct engine *engine, const struct command *command)
{
    if (engine->is_draining) { /* one drain; the earlier deadline counts */
        if (command->deadline_us &&
            (!engine->drain_deadline_us ||
             command->deadline_us < engine->drain_deadline_us))
            engine->drain_deadline_us = command->deadline_us;
        flight_done(engine, command->reply);
        return;
    }
    engine->is_draining = true;
    engine->drain_deadline_us = command->deadline_us;
    engine->drain_reply = command->reply;
    log_line(LOG_INFO, "engine", "", "draining, %u requests to finish",
             engine->n_request);
}

static void subject(struct engine *engine, const struct command *command)
{
    struct request *request = request_by_reply(engine, command->subject);
    struct errand *errand = errand_by_reply(engine, command->subject);

    if (errand && command->kind == COMMAND_DETACH)
        errand_end(errand);
    else if (errand && command->kind == COMMAND_RESUME)
        errand->is_taken = true;
    if (!request)
        return;
    if (command->kind == COMMAND_PAUSE)
        request_pause(request, engine);
    else if (command->kind == COMMAND_RESUME)
        request_resume(request, engine);
    else
        detach(engine, request);
}

static enum status answer(struct engine *engine, const struct command *command)
{
    switch (command->kind) {
    case COMMAND_READ_TOKENS:
        return read_tokens(engine, command);
    case COMMAND_CANCEL:
        return cancel(engine, command);
    case COMMAND_CREATE_SESSION:
        return create(engine, command);
    case COMMAND_GET_SESSION:
        return get(engine, command);
    case COMMAND_LIST_SESSIONS:
        return list(engine, command);
    case COMMAND_UPDATE_SESSION:
        return update(engine, command);
    case COMMAND_DELETE_SESSION:
        return remove_session(engine, command);
    case COMMAND_FORK_SESSION:
        return fork_session(engine, command);
    case COMMAND_TRUNCATE_SESSION:
        return fork_rewind(engine, command);
    case COMMAND_CHECKPOINT_SESSION:
        return checkpoint(engine, command);
    case COMMAND_VERIFY_SESSION:
        return verify_session(engine, command);
    case COMMAND_INSPECT_SESSION:
        return inspect_session(engine, command);
    case COMMAND_PARK_SESSION:
        return park(engine, command);
    case COMMAND_EXPORT_SESSION:
        return transfer_export(engine, command);
    case COMMAND_GET_NODE:
        node(engine, command);
        return STATUS_OK;
    case COMMAND_PAUSE:
    case COMMAND_RESUME:
    case COMMAND_DETACH:
        subject(engine, command);
        return STATUS_OK;
    case COMMAND_DRAIN:
        drain(engine, command);
        return STATUS_OK;
    case COMMAND_GENERATE:
    case COMMAND_IMPORT_SESSION:
        break; /* generate.c and transfer.c own it */
    }
    return status_fail(STATUS_INTERNAL, "command of unknown kind %d",
                       (int)command->kind);
}

/* Whom a command would touch, if that is in a pass of prompts. */
static bool must_wait(const struct engine *engine,
                      const struct command *command)
{
    const struct session *session = NULL;
    const struct request *request = NULL;

    switch (command->kind) {
    case COMMAND_GENERATE:
        session = table_find(engine, command->generate.session);
        break;
    case COMMAND_DELETE_SESSION:
    case COMMAND_CHECKPOINT_SESSION:
        session = table_find(engine, command->target.session);
        break;
    case COMMAND_CANCEL:
        request = find_request(engine, command);
        break;
    case COMMAND_PAUSE:
    case COMMAND_RESUME:
    case COMMAND_DETACH:
        request = request_by_reply(engine, command->subject);
        break;
    default:
        return false;
    }
    if (session && may_see(command, session))
        request = session->request;
    return request && request->is_in_pass;
}

void control_release(struct engine *engine)
{
    uint32_t n = engine->n_held;

    if (engine->prompt.is_under_way)
        return;
    engine->n_held = 0;
    for (uint32_t i = 0; i < n; i++)
        control_command(engine, engine->held[i]);
}

void control_command(struct engine *engine, struct command *command)
{
    if (engine->prompt.is_under_way && must_wait(engine, command)) {
        if (engine->n_held < HELD_MAX) {
            engine->held[engine->n_held++] = command;
            return;
        }
        batch_finish(engine);
        control_release(engine);
    }
    if (command->kind == COMMAND_GENERATE) {
        generate_arrive(engine, command);
        return;
    }
    if (command->kind == COMMAND_IMPORT_SESSION) {
        transfer_import(engine, command);
        return;
    }
    if (answer(engine, command))
        flight_error(engine, command->reply, status_cause());
    arena_destroy(command->arena);
}
