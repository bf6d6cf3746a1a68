#include "scheduler/errand_parts.h"

#include <stdlib.h>

static bool is_kept(const struct session *session)
{
    return session && session->durability != DURABILITY_NONE;
}

enum status errand_create(struct engine *engine, enum errand_kind kind,
                          struct session *session, uint64_t reply,
                          struct errand **out)
{
    struct errand *errand;

    if (engine->n_errand == ERRAND_MAX) {
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "%u sessions are verified or moved already", ERRAND_MAX);
        status_because("QUEUE_FULL");
        return status_retry(1000);
    }
    errand = engine_need(calloc(1, sizeof(*errand)));
    errand->kind = kind;
    errand->reply = reply;
    errand->session = session;
    if (session)
        session->n_hold++;
    if (is_kept(session)) {
        session_path(session, &errand->path);
        logs_hold(engine, &errand->path);
    }
    errand->next = engine->errands;
    engine->errands = errand;
    engine->n_errand++;
    *out = errand;
    return STATUS_OK;
}

static void release(struct engine *engine, struct errand *errand)
{
    verify_release(engine, errand);
    transfer_release(engine, errand);
    free(errand->stored);
    free(errand->norm);
    if (errand->path.n > 0)
        logs_release(engine, &errand->path);
    if (errand->session) {
        errand->session->n_hold--;
        session_put(errand->session);
    }
    free(errand);
}

struct errand *errand_by_reply(const struct engine *engine, uint64_t reply)
{
    struct errand *errand = reply ? engine->errands : NULL;

    while (errand && errand->reply != reply)
        errand = errand->next;
    return errand;
}

void errand_end(struct errand *errand)
{
    errand->reply = 0;
    errand->is_over = true;
    errand->wait_us = 0;
}

void errand_fail(struct engine *engine, struct errand *errand,
                 const struct cause *cause)
{
    flight_error(engine, errand->reply, cause);
    errand_end(errand);
}

void errand_rest(struct engine *engine, struct errand *errand,
                 const struct store_job *job)
{
    errand->is_out = false;
    errand->next_us = engine_now_us(engine) + ERRAND_REST * job->elapsed_us;
}

void errand_wait(struct engine *engine, struct errand *errand)
{
    if (errand->wait_us == 0)
        errand->wait_us = engine_now_us(engine);
}

uint64_t errands_deadline_us(const struct engine *engine)
{
    uint64_t least_us = UINT64_MAX;

    for (const struct errand *e = engine->errands; e; e = e->next)
        if (e->wait_us && e->wait_us + ERRAND_WAIT_US < least_us)
            least_us = e->wait_us + ERRAND_WAIT_US;
    return least_us;
}

/* There is room for so few that a client that stands still must not keep it. */
static void check_wait(struct engine *engine, struct errand *errand)
{
    if (errand->is_over || errand->wait_us == 0 ||
        engine_now_us(engine) < errand->wait_us + ERRAND_WAIT_US)
        return;
    status_fail(STATUS_DEADLINE_EXCEEDED,
                "the client has not gone on with its bundle for %u s",
                ERRAND_WAIT_US / 1000000);
    status_because("SLOW_READER");
    errand_fail(engine, errand, status_cause());
}

/* It has left, or somebody wants it again. */
static bool send_park(struct engine *engine, struct errand *errand)
{
    struct session *session = errand->session;

    if (session->resident && !session->request && session->is_listed)
        return true;
    if (session->resident || !session->is_listed) {
        status_fail(STATUS_ABORTED, "session %s is in use", session->name);
        status_because("OPERATION_ABORTED");
        errand_fail(engine, errand, status_cause());
        return true;
    }
    control_send(engine, session, errand->reply);
    errand_end(errand);
    return true;
}

/* False while the store thread takes no more. */
static bool send(struct engine *engine, struct errand *errand)
{
    switch (errand->kind) {
    case ERRAND_VERIFY:
        return verify_send(engine, errand);
    case ERRAND_EXPORT:
        return transfer_send_export(engine, errand);
    case ERRAND_IMPORT:
        return transfer_send_import(engine, errand);
    case ERRAND_INSPECT:
        return inspect_send(engine, errand);
    case ERRAND_PARK:
        return send_park(engine, errand);
    }
    return true;
}

/* What it computes nobody waits for; but not in the middle of a pass. */
static void stop_replay(struct engine *engine, const struct errand *errand)
{
    if (!errand->replay || errand->replay->is_in_pass)
        return;
    status_fail(STATUS_CANCELLED, "nobody waits for it any more");
    request_fail(engine, errand->replay, FINISH_CANCELLED, status_cause());
}

void errands_send(struct engine *engine)
{
    struct errand **at = &engine->errands;

    while (*at) {
        struct errand *errand = *at;
        const bool rests =
            engine->n_running > 0 && engine_now_us(engine) < errand->next_us;

        check_wait(engine, errand);
        if (errand->is_over)
            stop_replay(engine, errand);
        if (errand->is_over && !errand->is_out && !errand->replay) {
            *at = errand->next;
            engine->n_errand--;
            release(engine, errand);
            continue;
        }
        if (!errand->is_over && !errand->is_out && !rests &&
            !send(engine, errand))
            return;
        at = &errand->next;
    }
}

void errands_drain(struct engine *engine)
{
    for (struct errand *e = engine->errands; e; e = e->next) {
        status_fail(STATUS_UNAVAILABLE, "node is draining");
        status_because("NODE_DRAINING");
        status_retry(1000);
        errand_fail(engine, e, status_cause());
    }
}

void errands_destroy(struct engine *engine)
{
    while (engine->errands) {
        struct errand *errand = engine->errands;

        engine->errands = errand->next;
        if (errand->replay)
            errand->replay->errand = NULL;
        release(engine, errand);
    }
    engine->n_errand = 0;
}
