#include "scheduler/errand_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES (256u << 10) /* of a bundle in one event */

/* --- export --- */

/* Its tenant's; only what is nobody's is sealed for whoever is named. */
static enum status find_key(const struct engine *engine,
                            const struct session *session,
                            const struct export_command *e,
                            const struct seal_key **out)
{
    const char *tenant = session->tenant ? session->tenant : e->tenant;

    *out = e->tenant[0] && strcmp(e->tenant, tenant) != 0
               ? NULL
               : keyring_find(engine->options.keys, tenant);
    if (*out)
        return STATUS_OK;
    status_fail(STATUS_FAILED_PRECONDITION,
                "this node has no key of tenant \"%s\" for this session",
                e->tenant[0] ? e->tenant : tenant);
    return status_because("KEY_MISSING");
}

static enum status check_export(const struct session *session,
                                const struct export_command *e)
{
    if (session->durability == DURABILITY_NONE || session->is_upgrading) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "session %s is not durable, so there is no log to export",
                    session->name);
        return status_because("SESSION_NOT_DURABLE");
    }
    if (e->position <= session->n_committed)
        return STATUS_OK;
    status_fail(STATUS_OUT_OF_RANGE,
                "position is %lu, the log has %lu committed tokens",
                e->position, session->n_committed);
    status_because("POSITION_OUT_OF_RANGE");
    return status_field("position");
}

/* Turns belong to a whole log alone. The last one may be ahead of what is
 * committed, then it is open for whoever has no more than that. */
static void take_turns(const struct session *session,
                       struct export_source *source)
{
    const struct resident *resident = session->resident;

    source->has_turns = source->n_token == session->n_committed;
    if (!source->has_turns || !resident || !resident->has_turn)
        return;
    source->has_last = true;
    source->last = resident->turn;
    if (session->n_token > session->n_committed)
        source->last.finish = FINISH_NONE;
}

enum status transfer_export(struct engine *engine,
                            const struct command *command)
{
    const struct export_command *e = &command->export;
    struct export_source source = {.journal = engine->options.journal,
                                   .snapshots = engine->options.snapshots,
                                   .has_state = e->has_state};
    struct exporter *exporter;
    struct session *session;
    struct errand *errand;
    enum status st = control_find(engine, command, e->session, &session);

    if (!st)
        st = control_check_draining(engine);
    if (!st)
        st = check_export(session, e);
    if (!st && e->is_sealed)
        st = find_key(engine, session, e, &source.key);
    if (st)
        return st;
    session_meta_get(session, &source.meta);
    source.n_token = e->position ? e->position : session->n_committed;
    take_turns(session, &source);
    st = exporter_create(&source, &exporter);
    if (st)
        return st;
    st = errand_create(engine, ERRAND_EXPORT, session, command->reply, &errand);
    if (st) {
        exporter_destroy(exporter);
        return st;
    }
    errand->exporter = exporter;
    errand->is_taken = true;
    errand->n_token = source.n_token;
    errand->is_loose = source.has_turns && !source.has_last;
    return STATUS_OK;
}

static void send_piece(struct engine *engine, struct errand *errand,
                       const void *bytes, size_t n)
{
    void *copy;
    struct event *event =
        engine_need(event_create(EVENT_BYTES, errand->reply, n, &copy));

    memcpy(copy, bytes, n);
    event->bytes.at = copy;
    event->bytes.n = n;
    errand->is_taken = false;
    flight_event(engine, event);
}

static void end_export(struct engine *engine, struct errand *errand)
{
    if (errand->is_loose && errand->session->n_committed != errand->n_token) {
        status_fail(STATUS_ABORTED,
                    "session went on while its turns were exported");
        status_because("OPERATION_ABORTED");
        status_retry(100);
        errand_fail(engine, errand, status_cause());
        return;
    }
    flight_done(engine, errand->reply);
    errand_end(errand);
}

bool transfer_send_export(struct engine *engine, struct errand *errand)
{
    struct store_job *job;
    const void *bytes;
    size_t n;

    if (!errand->is_taken) {
        errand_wait(engine, errand);
        return true;
    }
    errand->wait_us = 0;
    bytes = exporter_take(errand->exporter, PIECE_BYTES, &n);
    if (n > 0) {
        send_piece(engine, errand, bytes, n);
        return true;
    }
    if (exporter_is_done(errand->exporter)) {
        end_export(engine, errand);
        return true;
    }
    job = jobs_create(STORE_EXPORT, log_path_own(&errand->path), errand);
    job->exporter = errand->exporter;
    errand->is_out = jobs_push(engine, job);
    return errand->is_out;
}

/* --- import --- */

static enum status begin_import(struct engine *engine,
                                const struct command *command,
                                struct errand **out)
{
    const struct import_command *i = &command->import;
    struct import_source source = {
        .snapshots = engine->options.snapshots,
        .n_vocab = engine->n_vocab,
        .n_context = engine->n_context,
        .key = keyring_find(engine->options.keys, command->tenant),
        .create_ms = engine_wall_ms(engine),
        .skips_state = i->skips_state};
    struct session_meta meta = {0};
    struct session shell = {0};
    struct importer *importer;
    enum status st = control_check_draining(engine);

    if (!st)
        st = control_check_new(engine, i->name);
    if (!st)
        st = generate_meta(engine, &meta);
    if (st)
        return st;
    shell.uid = source.log = meta.uid;
    source.scope = prefix_scope(engine, &shell, command->tenant);
    st = importer_create(&source, &importer);
    if (st)
        return st;
    st = errand_create(engine, ERRAND_IMPORT, NULL, command->reply, out);
    if (st) {
        importer_destroy(importer);
        return st;
    }
    (*out)->importer = importer;
    (*out)->log = meta.uid;
    memcpy((*out)->name, i->name, sizeof((*out)->name));
    memcpy((*out)->tenant, command->tenant, sizeof((*out)->tenant));
    return STATUS_OK;
}

void transfer_import(struct engine *engine, struct command *command)
{
    struct errand *errand = errand_by_reply(engine, command->reply);
    enum status st = STATUS_OK;

    if (!errand && command->import.is_first)
        st = begin_import(engine, command, &errand);
    else if (!errand || errand->kind != ERRAND_IMPORT || errand->command)
        st = status_fail(STATUS_FAILED_PRECONDITION,
                         "a piece of a bundle that nobody waits for");
    if (st) {
        flight_error(engine, command->reply, status_cause());
        arena_destroy(command->arena);
        return;
    }
    errand->command = command;
}

bool transfer_send_import(struct engine *engine, struct errand *errand)
{
    struct store_job *job;

    if (!errand->command) {
        errand_wait(engine, errand);
        return true;
    }
    errand->wait_us = 0;
    job = jobs_create(STORE_IMPORT, errand->log, errand);
    job->importer = errand->importer;
    job->bytes = errand->command->import.bytes;
    job->n_bytes = errand->command->import.n_bytes;
    job->is_last = errand->command->import.is_last;
    errand->is_out = jobs_push(engine, job);
    return errand->is_out;
}

/* A turn that goes on is sampled by what it says. */
static enum status check_turn(void *context, const struct turn *turn)
{
    const struct engine *engine = context;

    if (sampling_check(&turn->sampling, engine->n_vocab) == STATUS_OK)
        return STATUS_OK;
    (void)status_fail(STATUS_DATA_LOSS,
                      "bundle is damaged: a turn's sampling is out of range");
    return status_because("BUNDLE_DAMAGED");
}

struct installing {
    struct engine *engine;
    struct session *session;
};

static enum status put_turn(void *context, const struct turn *turn)
{
    const struct installing *installing = context;
    struct resident *resident = installing->session->resident;

    flight_past_turn(installing->engine, installing->session, turn);
    resident->turn = *turn;
    resident->has_turn = true;
    return STATUS_OK;
}

static enum status take_meta(struct engine *engine, struct errand *errand,
                             struct session_meta *out)
{
    enum status st;

    *out = *importer_meta(errand->importer);
    out->uid = errand->log;
    out->path = log_path_alone(errand->log);
    out->create_ms = out->update_ms = engine_wall_ms(engine);
    memcpy(out->tenant, errand->tenant, sizeof(out->tenant));
    if (errand->name[0])
        memcpy(out->name, errand->name, sizeof(out->name));
    st = control_check_new(engine, out->name);
    return st ? st
              : keep_quota(engine, errand->tenant, 1,
                           importer_tokens(errand->importer)->n);
}

/* Who hears this hears it behind the commit. */
static void answer(struct engine *engine, const struct session *session,
                   uint64_t reply)
{
    struct event *event =
        engine_need(event_create(EVENT_SESSION, reply, 0, NULL));

    event->is_last = true;
    session_info_get(engine, session, &event->session);
    event->session.committed_position = session->n_token;
    flight_event(engine, event);
}

/* One commit makes all of it. */
static enum status install(struct engine *engine, struct errand *errand)
{
    struct ids *tokens = importer_tokens(errand->importer);
    const struct snapshot_entry *entry = importer_entry(errand->importer);
    struct installing installing = {.engine = engine};
    struct session_meta meta;
    struct session *session;
    enum status st = take_meta(engine, errand, &meta);

    if (!st)
        st = importer_each_turn(errand->importer, check_turn, engine);
    if (st)
        return st;
    session = installing.session = session_create(&meta);
    session->scope = prefix_scope(engine, session, errand->tenant);
    resident_make(engine, session);
    session->resident->tokens = *tokens;
    *tokens = (struct ids){0};
    session->n_token = session->resident->tokens.n;
    session->resident->chain = digest_tokens(
        engine->empty_chain, session->resident->tokens.id, session->n_token);
    table_add(engine, session);
    flight_create(engine, session);
    flight_tokens(engine, session, 0, engine->empty_chain);
    st = importer_each_turn(errand->importer, put_turn, &installing);
    assert(st == STATUS_OK); /* it was read before */
    if (entry)
        prefix_imported(engine, session, entry);
    session->parks = true;
    resident_touch(engine, session);
    answer(engine, session, errand->reply);
    errand->is_installed = true;
    errand_end(errand);
    return STATUS_OK;
}

static void imported(struct engine *engine, struct errand *errand, bool is_last)
{
    struct event *event;

    if (is_last) {
        if (install(engine, errand))
            errand_fail(engine, errand, status_cause());
        return;
    }
    event = engine_need(event_create(EVENT_MORE, errand->reply, 0, NULL));
    flight_event(engine, event);
}

void transfer_received(struct engine *engine, const struct store_job *job)
{
    struct errand *errand = job->owner;

    errand_rest(engine, errand, job);
    if (errand->command)
        arena_destroy(errand->command->arena);
    errand->command = NULL;
    if (errand->is_over)
        return;
    if (job->status)
        errand_fail(engine, errand, &job->cause);
    else if (job->kind == STORE_IMPORT)
        imported(engine, errand, job->is_last);
}

void transfer_release(struct engine *engine, struct errand *errand)
{
    if (errand->kind == ERRAND_IMPORT && !errand->is_installed)
        jobs_delete(engine, errand->log);
    if (errand->command)
        arena_destroy(errand->command->arena);
    exporter_destroy(errand->exporter);
    importer_destroy(errand->importer);
}
