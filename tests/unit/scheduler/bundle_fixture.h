#ifndef TESTS_UNIT_SCHEDULER_BUNDLE_FIXTURE_H
#define TESTS_UNIT_SCHEDULER_BUNDLE_FIXTURE_H
/*
 * Bundles as a client sees them: bytes that come piece by piece, and go back in
 * pieces of any size.
 */
#include "state/seal.h"
#include "tests/unit/scheduler/stored_fixture.h"

struct bytes {
    unsigned char *at; /* free() */
    size_t n;
};

/* Listens for one reply itself, since its events are none that reply_hear()
 * knows; *out_end is the last event, event_destroy() it. */
static inline struct bytes hear_bundle(struct node *node, uint64_t reply,
                                       struct event **out_end)
{
    struct bytes bytes = {0};
    struct event *event;

    for (uint32_t i = 0; i < STEP_LIMIT; i++) {
        bool has_more = engine_step(node->engine);

        while (ring_pop(node->outbox, &event)) {
            if (event->reply != reply) {
                reply_hear(&node->reply[event->reply], event);
                continue;
            }
            if (event->is_last) {
                *out_end = event;
                return bytes;
            }
            need(event->kind == EVENT_BYTES && event->bytes.n > 0);
            bytes.at = realloc(bytes.at, bytes.n + event->bytes.n);
            need(bytes.at != NULL);
            memcpy(bytes.at + bytes.n, event->bytes.at, event->bytes.n);
            bytes.n += event->bytes.n;
            event_destroy(event);
            node_subject(node, COMMAND_RESUME, reply);
            has_more = true;
        }
        if (!has_more)
            ring_wait(node->inbox, 20);
    }
    need(!"within the limit of steps");
    return bytes;
}

struct exporting {
    const char *session, *tenant;
    uint64_t position;
    bool has_state, is_sealed;
};

/* The end is an event that the caller destroys. */
static inline struct bytes export_with(struct node *node,
                                       const struct exporting *e,
                                       struct event **out_end)
{
    struct command *command =
        command_make(COMMAND_EXPORT_SESSION, node_reply(node));
    uint64_t reply = command->reply;

    snprintf(command->export.session, SESSION_NAME_SIZE, "%s", e->session);
    if (e->tenant)
        snprintf(command->export.tenant, TENANT_SIZE, "%s", e->tenant);
    command->export.position = e->position;
    command->export.has_state = e->has_state;
    command->export.is_sealed = e->is_sealed;
    node_send(node, command);
    return hear_bundle(node, reply, out_end);
}

static inline struct bytes export_of(struct node *node, const char *session,
                                     bool has_state)
{
    struct exporting e = {.session = session, .has_state = has_state};
    struct event *end;
    struct bytes bytes = export_with(node, &e, &end);

    need(end->kind == EVENT_DONE);
    event_destroy(end);
    return bytes;
}

struct importing {
    const char *name, *tenant;
    bool skips_state;
    size_t piece; /* bytes of one; 0: all in one */
};

static inline struct command *import_piece(uint64_t reply,
                                           const struct importing *i,
                                           const unsigned char *bytes, size_t n)
{
    struct command *command = command_make(COMMAND_IMPORT_SESSION, reply);
    unsigned char *copy = arena_take(command->arena, n + 1);

    need(copy != NULL);
    if (n)
        memcpy(copy, bytes, n);
    if (i->name)
        snprintf(command->import.name, SESSION_NAME_SIZE, "%s", i->name);
    if (i->tenant)
        snprintf(command->tenant, TENANT_SIZE, "%s", i->tenant);
    command->import.skips_state = i->skips_state;
    command->import.bytes = copy;
    command->import.n_bytes = n;
    return command;
}

/* The last event of it: event_destroy(). */
static inline struct event *
import_with(struct node *node, const struct importing *i, struct bytes bytes)
{
    const uint64_t reply = node_reply(node);
    size_t at = 0, n = i->piece && i->piece < bytes.n ? i->piece : bytes.n;
    struct command *command = import_piece(reply, i, bytes.at, n);
    struct event *event;

    command->import.is_first = true;
    node_send(node, command);
    for (uint32_t step = 0; step < STEP_LIMIT; step++) {
        bool has_more = engine_step(node->engine);

        while (ring_pop(node->outbox, &event)) {
            if (event->reply != reply) {
                reply_hear(&node->reply[event->reply], event);
                continue;
            }
            if (event->is_last)
                return event;
            need(event->kind == EVENT_MORE);
            event_destroy(event);
            at += n;
            n = i->piece && i->piece < bytes.n - at ? i->piece : bytes.n - at;
            command = import_piece(reply, i, bytes.at + at, n);
            command->import.is_last = n == 0;
            node_send(node, command);
            has_more = true;
        }
        if (!has_more)
            ring_wait(node->inbox, 20);
    }
    need(!"within the limit of steps");
    return NULL;
}

static inline void import_as(struct node *node, const char *name,
                             struct bytes bytes)
{
    struct importing i = {.name = name};
    struct event *end = import_with(node, &i, bytes);

    if (end->kind == EVENT_ERROR)
        fprintf(stderr, "import: %s\n", end->cause.text);
    need(end->kind == EVENT_SESSION);
    event_destroy(end);
}

static inline uint32_t count_all(const struct node *node)
{
    uint32_t n = 0;

    for (const char *letter = "sobv"; *letter; letter++)
        n += count_rows(node->bulk_store, *letter);
    for (const char *letter = "mkt"; *letter; letter++)
        n += count_rows(node->journal_store, *letter);
    return n;
}

/* Is it refused so (reason NULL: anyhow), and does nothing of it stay? */
static inline bool import_fails(struct node *node, const struct importing *i,
                                struct bytes bytes, enum status code,
                                const char *reason)
{
    const uint32_t n_row = count_all(node);
    struct event *end = import_with(node, i, bytes);
    bool is_so = end->kind == EVENT_ERROR &&
                 (!reason || (end->cause.code == code &&
                              strcmp(end->cause.reason, reason) == 0));

    if (!is_so && end->kind == EVENT_ERROR)
        fprintf(stderr, "got %s %s: %s\n", status_name(end->cause.code),
                end->cause.reason, end->cause.text);
    event_destroy(end);
    fork_settle(node);
    return is_so && node->engine->n_errand == 0 && n_row == count_all(node);
}

/* All that is stored is sound, is the session's, and a replay gives the same.
 */
static inline void verify_whole(struct node *node, const char *name)
{
    struct command *command = about(node, COMMAND_VERIFY_SESSION, name);
    const struct scrub_report *report;
    const struct reply *reply;

    command->target.replays = true;
    reply = node_call(node, command);
    need(reply->last == EVENT_VERIFIED);
    report = reply->end->verified.report;
    need(report->n_finding == 0);
    need(report->n_different == 0);
    need(report->n_compared > 0);
    need(report->count[SCRUB_STATE].n == count_rows(node->bulk_store, 's'));
    need(report->count[SCRUB_BLOCK].n == count_rows(node->bulk_store, 'b'));
    fork_settle(node);
}
#endif
