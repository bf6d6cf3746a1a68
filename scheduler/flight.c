#include "scheduler/engine_calls.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

static struct flight *flight_open(struct engine *engine)
{
    struct flight *flight = engine->flight;

    if (flight)
        return flight;
    flight = engine_need(calloc(1, sizeof(*flight)));
    flight->commit = engine_need(calloc(1, sizeof(*flight->commit)));
    flight->commit->batch =
        engine_need(journal_batch_create(engine->options.journal));
    flight->step = ++engine->commit_step;
    flight->commit->step = flight->step;
    flight->epoch = flight->commit->epoch = engine->epoch;
    engine->flight = flight;
    return flight;
}

/* Behind the others; from here on nothing is added to it. */
static void flight_close(struct engine *engine)
{
    struct flight *flight = engine->flight;

    if (!flight)
        return;
    engine->flight = NULL;
    if (engine->newest_flight)
        engine->newest_flight->next = flight;
    else
        engine->oldest_flight = flight;
    engine->newest_flight = flight;
}

static struct effect *effect_add(struct engine *engine, enum effect_kind kind,
                                 struct session *session)
{
    struct flight *flight = flight_open(engine);
    struct effect *effect;

    if (flight->n_effect == flight->effect_capacity) {
        flight->effect_capacity = 2 * flight->effect_capacity + 4;
        flight->effect = engine_need(realloc(
            flight->effect, flight->effect_capacity * sizeof(*flight->effect)));
    }
    effect = &flight->effect[flight->n_effect++];
    memset(effect, 0, sizeof(*effect));
    effect->kind = kind;
    effect->session = session;
    effect->n_token = session->n_token;
    effect->log = session_log(session);
    session->n_flight++;
    session->n_hold++;
    flight->commit->needs_sync = true;
    return effect;
}

void flight_event(struct engine *engine, struct event *event)
{
    struct flight *flight;
    struct commit *commit;

    if (event->reply == 0) {
        event_destroy(event);
        return;
    }
    if (engine->flight &&
        engine->flight->commit->n_message == COMMIT_MESSAGE_MAX)
        flight_close(engine);
    flight = flight_open(engine);
    commit = flight->commit;
    if (commit->n_message == flight->message_capacity) {
        flight->message_capacity = 2 * flight->message_capacity + 8;
        commit->message =
            engine_need(realloc(commit->message, flight->message_capacity *
                                                     sizeof(*commit->message)));
    }
    commit->message[commit->n_message++] = event;
}

void flight_error(struct engine *engine, uint64_t reply,
                  const struct cause *cause)
{
    struct event *event =
        engine_need(event_create(EVENT_ERROR, reply, 0, NULL));

    event->is_last = true;
    event->cause = *cause;
    flight_event(engine, event);
}

void flight_done(struct engine *engine, uint64_t reply)
{
    struct event *event = engine_need(event_create(EVENT_DONE, reply, 0, NULL));

    event->is_last = true;
    flight_event(engine, event);
}

static bool is_durable(const struct session *session)
{
    return session->durability != DURABILITY_NONE;
}

static void put_meta(struct engine *engine, const struct session *session)
{
    struct session_meta meta;

    session_meta_get(session, &meta);
    journal_put_session(engine->flight->commit->batch, &meta);
}

static void put_tokens(struct engine *engine, const struct session *session,
                       uint64_t from, struct digest chain)
{
    for (uint64_t n; from < session->n_token; from += n) {
        const uint32_t *token = session->resident->tokens.id + from;
        n = session->n_token - from;
        if (n > LOG_PIECE_MAX)
            n = LOG_PIECE_MAX;
        chain = digest_tokens(chain, token, n);
        journal_put_tokens(engine->flight->commit->batch, session_log(session),
                           from, token, (uint32_t)n, chain);
    }
}

static void hold_path(struct engine *engine, const struct session *session)
{
    struct log_path path;

    session_path(session, &path);
    logs_hold(engine, &path);
}

static void release_path(struct engine *engine, const struct session *session)
{
    struct log_path path;

    session_path(session, &path);
    logs_release(engine, &path);
}

void flight_create(struct engine *engine, struct session *session)
{
    if (!is_durable(session))
        return;
    effect_add(engine, EFFECT_CREATE, session);
    hold_path(engine, session);
    put_meta(engine, session);
}

void flight_update(struct engine *engine, struct session *session,
                   const struct session_meta *earlier)
{
    struct effect *effect;

    if (!is_durable(session))
        return;
    effect = effect_add(engine, EFFECT_UPDATE, session);
    effect->earlier = engine_need(malloc(sizeof(*effect->earlier)));
    *effect->earlier = *earlier;
    put_meta(engine, session);
}

void flight_upgrade(struct engine *engine, struct session *session,
                    const struct session_meta *earlier)
{
    const struct resident *resident = session->resident;
    struct digest chain = engine->empty_chain;
    struct effect *effect = effect_add(engine, EFFECT_UPGRADE, session);

    effect->earlier = engine_need(malloc(sizeof(*effect->earlier)));
    *effect->earlier = *earlier;
    if (resident && resident->has_turn) {
        effect->turn = engine_need(malloc(sizeof(*effect->turn)));
        *effect->turn = resident->turn;
    }
    session->is_upgrading = true;
    hold_path(engine, session);
    put_meta(engine, session);
    put_tokens(engine, session, 0, chain);
    if (resident && resident->has_turn)
        journal_put_turn(engine->flight->commit->batch, session_log(session),
                         &resident->turn);
}

void flight_delete(struct engine *engine, struct session *session)
{
    if (!is_durable(session))
        return;
    effect_add(engine, EFFECT_DELETE, session);
    journal_delete_session(engine->flight->commit->batch, session->uid);
}

void flight_lineage(struct engine *engine, struct session *session,
                    const struct session_meta *earlier, uint64_t n_committed)
{
    struct effect *effect = effect_add(engine, EFFECT_LINEAGE, session);

    effect->n_committed = n_committed;
    effect->earlier = engine_need(malloc(sizeof(*effect->earlier)));
    *effect->earlier = *earlier;
    hold_path(engine, session);
    put_meta(engine, session);
}

void flight_trim(struct engine *engine, struct uid log, uint64_t n_token)
{
    journal_trim_log(flight_open(engine)->commit->batch, log, n_token);
}

void flight_tokens(struct engine *engine, struct session *session,
                   uint64_t from, struct digest chain)
{
    if (!is_durable(session)) {
        session->n_committed = session->n_token;
        return;
    }
    effect_add(engine, EFFECT_TOKENS, session);
    put_tokens(engine, session, from, chain);
}

void flight_turn(struct engine *engine, struct session *session)
{
    if (!is_durable(session))
        return;
    effect_add(engine, EFFECT_TOKENS, session);
    journal_put_turn(engine->flight->commit->batch, session_log(session),
                     &session->resident->turn);
}

void flight_past_turn(struct engine *engine, const struct session *session,
                      const struct turn *turn)
{
    journal_put_turn(engine->flight->commit->batch, session_log(session), turn);
}

bool flight_send(struct engine *engine)
{
    flight_close(engine);
    for (struct flight *f = engine->oldest_flight; f; f = f->next) {
        if (!f->commit)
            continue;
        if (!journal_thread_push(engine->options.journal_thread, f->commit))
            return false;
        f->commit = NULL;
    }
    return true;
}

static void effect_release(struct engine *engine, struct effect *effect)
{
    effect->session->n_flight--;
    if (effect->session->parks && effect->session->n_flight == 0)
        resident_park(engine, effect->session);
    effect->session->n_hold--;
    session_put(effect->session);
    free(effect->earlier);
    free(effect->turn);
}

/* Tokens of a log that the session has left already: were that lost, it would
 * be the session's log again, with them. */
static void keep_left(struct engine *engine, const struct effect *tokens)
{
    for (struct flight *f = engine->oldest_flight; f; f = f->next)
        for (uint32_t i = 0; i < f->n_effect; i++) {
            struct effect *effect = &f->effect[i];

            if (effect->kind == EFFECT_LINEAGE &&
                effect->session == tokens->session &&
                uid_equal(log_path_own(&effect->earlier->path), tokens->log) &&
                effect->n_committed < tokens->n_token)
                effect->n_committed = tokens->n_token;
        }
}

static void keep(struct engine *engine, struct effect *effect)
{
    struct session *session = effect->session;

    switch (effect->kind) {
    case EFFECT_TOKENS:
        if (!uid_equal(effect->log, session_log(session)))
            keep_left(engine, effect);
        else if (session->n_committed < effect->n_token)
            session->n_committed = effect->n_token;
        break;
    case EFFECT_UPGRADE:
        session->is_upgrading = false;
        break;
    case EFFECT_DELETE:
        release_path(engine, session);
        break;
    case EFFECT_LINEAGE:
        logs_release(engine, &effect->earlier->path);
        break;
    case EFFECT_CREATE:
    case EFFECT_UPDATE:
        break;
    }
}

/* Its tokens were never anywhere but in memory, unless a delete dropped it. */
static void take_back_upgrade(struct engine *engine,
                              const struct effect *effect)
{
    struct session *session = effect->session;
    struct resident *resident = session->resident;

    session->is_upgrading = false;
    release_path(engine, session);
    session_meta_set(session, effect->earlier);
    if (resident) {
        resident_truncate(engine, session, effect->n_token);
        resident->has_turn = effect->turn != NULL;
        if (effect->turn)
            resident->turn = *effect->turn;
    } else if (effect->n_token == 0) {
        session->n_token = session->n_committed = 0;
    } else if (session->is_listed) {
        table_remove(engine, session);
    }
}

/* What the reader was told is an error, so nothing of it may have happened. */
static void take_back(struct engine *engine, struct effect *effect,
                      const struct cause *cause)
{
    struct session *session = effect->session;

    if (effect->kind == EFFECT_UPDATE) {
        session_meta_set(session, effect->earlier);
        return;
    }
    if (session->request)
        request_lose(engine, session->request, cause);
    if (effect->kind == EFFECT_UPGRADE) {
        take_back_upgrade(engine, effect);
        return;
    }
    if (effect->kind == EFFECT_TOKENS && session->is_upgrading)
        return; /* the upgrade, older, takes them back */
    resident_drop(engine, session);
    if (effect->kind == EFFECT_LINEAGE) {
        release_path(engine, session);
        session_meta_set(session, effect->earlier);
        session->n_committed = effect->n_committed;
    }
    session->n_token = session->n_committed;
    if (effect->kind == EFFECT_CREATE)
        release_path(engine, session);
    if (effect->kind == EFFECT_CREATE && session->is_listed)
        table_remove(engine, session);
    if (effect->kind == EFFECT_DELETE && !table_find(engine, session->name))
        table_add(engine, session);
}

/*
 * Everything of an older epoch under way was made before we knew, so all of it
 * is lost; newest first, so that a name that was deleted and made again is
 * free again. What was made since then may well be durable: the journal thread
 * reports stale commits later than the failure, when we are on already.
 */
static void lose_older(struct engine *engine, const struct cause *cause)
{
    uint64_t first_step = UINT64_MAX;

    for (;;) {
        struct flight *newest = NULL;
        for (struct flight *f = engine->oldest_flight; f; f = f->next)
            if (!f->is_lost && f->epoch < engine->epoch)
                newest = f;
        if (!newest)
            break;
        for (uint32_t i = newest->n_effect; i-- > 0;)
            take_back(engine, &newest->effect[i], cause);
        newest->is_lost = true;
        first_step = newest->step;
    }
    for (struct request *r = engine->first, *after; r; r = after) {
        after = r->after;
        if (r->message_step >= first_step)
            request_lose(engine, r, cause);
    }
}

static void land(struct engine *engine, uint64_t step)
{
    while (engine->oldest_flight && engine->oldest_flight->step <= step) {
        struct flight *flight = engine->oldest_flight;
        for (uint32_t i = 0; i < flight->n_effect; i++) {
            if (!flight->is_lost)
                keep(engine, &flight->effect[i]);
            effect_release(engine, &flight->effect[i]);
        }
        engine->oldest_flight = flight->next;
        if (!engine->oldest_flight)
            engine->newest_flight = NULL;
        free(flight->effect);
        free(flight);
    }
}

void flight_receive(struct engine *engine)
{
    struct journal_report report;

    while (ring_pop(engine->options.reports, &report)) {
        if (report.cause.code) { /* what it computes now is lost as well */
            batch_finish(engine);
            flight_close(engine);
        }
        engine->epoch = report.epoch;
        metric_observe(engine->metrics.commit_lag,
                       (double)report.write_us * 1e-6);
        if (report.cause.code) {
            log_limited(&engine->journal_log, LOG_ERROR, "engine", "",
                        "steps up to %lu are lost, their turns end: %s",
                        report.step, report.cause.text);
            lose_older(engine, &report.cause);
        }
        land(engine, report.step);
    }
}

void flight_destroy_all(struct engine *engine)
{
    flight_close(engine);
    while (engine->oldest_flight) {
        struct flight *flight = engine->oldest_flight;
        engine->oldest_flight = flight->next;
        for (uint32_t i = 0; i < flight->n_effect; i++)
            effect_release(engine, &flight->effect[i]);
        if (flight->commit)
            for (uint32_t i = 0; i < flight->commit->n_message; i++)
                event_destroy(flight->commit->message[i]);
        commit_destroy(flight->commit);
        free(flight->effect);
        free(flight);
    }
    engine->newest_flight = NULL;
}
