#include "scheduler/errand_parts.h"

#include <stdlib.h>
#include <string.h>

enum status verify_session(struct engine *engine, const struct command *command)
{
    struct session *session;
    struct scrub_source source;
    struct errand *errand;
    struct scrub *scrub;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (!st)
        st = control_check_draining(engine);
    if (st)
        return st;
    if (session->durability == DURABILITY_NONE || session->is_upgrading) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "session %s is not durable, so nothing of it is stored",
                    session->name);
        return status_because("SESSION_NOT_DURABLE");
    }
    source = (struct scrub_source){.journal = engine->options.journal,
                                   .snapshots = engine->options.snapshots,
                                   .session = session->uid,
                                   .policy = session->policy,
                                   .n_token = session->n_committed};
    session_path(session, &source.path);
    st = scrub_create(&source, &scrub);
    if (st)
        return st;
    st = errand_create(engine, ERRAND_VERIFY, session, command->reply, &errand);
    if (st) {
        scrub_destroy(scrub);
        return st;
    }
    errand->scrub = scrub;
    errand->wants_replay = command->target.replays;
    errand->compared_chain = engine->empty_chain;
    return STATUS_OK;
}

void verify_release(struct engine *engine, struct errand *errand)
{
    if (errand->compared)
        resident_compared(engine, errand->compared);
    scrub_destroy(errand->scrub);
}

bool verify_send(struct engine *engine, struct errand *errand)
{
    static const enum store_job_kind kind[] = {[VERIFY_SCRUB] = STORE_SCRUB,
                                               [VERIFY_COMPARE] = STORE_COMPARE,
                                               [VERIFY_HEAL] = STORE_HEAL};
    struct store_job *job;

    if (errand->stage == VERIFY_REPLAY)
        return true;
    job = jobs_create(kind[errand->stage], log_path_own(&errand->path), errand);
    job->scrub = errand->scrub;
    if (errand->stage == VERIFY_COMPARE)
        job->image = errand->compared->image;
    errand->is_out = jobs_push(engine, job);
    return errand->is_out;
}

/* --- the replay --- */

/* A session of nobody's that has the same tokens and policy. */
static enum status make_double(struct engine *engine, const struct ids *tokens,
                               const struct policy *policy,
                               struct session **out)
{
    struct session_meta meta = {.durability = DURABILITY_NONE,
                                .policy = *policy,
                                .path = log_path_alone((struct uid){0, 0})};
    struct session *session = session_create(&meta);
    enum status st;

    resident_make(engine, session);
    st = tokens_append(&session->resident->tokens, tokens->id, tokens->n);
    if (st) {
        resident_drop(engine, session);
        session_put(session);
        return st;
    }
    session->n_token = session->n_committed = tokens->n;
    session->resident->chain =
        digest_tokens(engine->empty_chain, tokens->id, tokens->n);
    *out = session;
    return STATUS_OK;
}

static enum status begin_replay(struct engine *engine, struct errand *errand)
{
    const struct ids *tokens = scrub_tokens(errand->scrub);
    struct request asked = {.kind = REQUEST_REPLAY, .errand = errand};
    enum status st = make_double(engine, tokens, scrub_policy(errand->scrub),
                                 &asked.session);

    if (st)
        return st;
    asked.promise = request_promise(engine, asked.session, tokens->n, 0);
    asked.shared_stop = scrub_stop(errand->scrub, 0);
    st = schedule_admit(engine, &asked, "");
    if (st) {
        resident_drop(engine, asked.session);
        session_put(asked.session);
        return st;
    }
    errand->stage = VERIFY_REPLAY;
    errand->replay = request_create(engine, &asked);
    request_begin(engine, errand->replay);
    return STATUS_OK;
}

void verify_passed(struct engine *engine, struct request *request)
{
    struct errand *errand = request->errand;
    struct resident *resident = request->session->resident;
    struct image_source source = {.memory = resident->memory,
                                  .token = resident->tokens.id,
                                  .from = errand->compared_position,
                                  .chain = errand->compared_chain};

    if (resident_position(resident) <= errand->compared_position) {
        request->shared_stop =
            scrub_stop(errand->scrub, resident_position(resident));
        return; /* its memory was let go on the way, and came here again */
    }
    if (image_create(engine->options.model, &source, &resident->image)) {
        errand_fail(engine, errand, status_cause());
        return;
    }
    resident->is_saving = true;
    errand->compared = resident;
    errand->compared_position = resident_position(resident);
    errand->compared_chain = resident->memory_chain;
    errand->stage = VERIFY_COMPARE;
    request_pause(request, engine);
}

void verify_replayed(struct engine *engine, struct request *request)
{
    struct errand *errand = request->errand;

    if (errand->stage == VERIFY_REPLAY)
        errand->stage = VERIFY_HEAL;
    request_free(engine, request);
}

void verify_left(struct engine *engine, const struct request *request)
{
    (void)engine;
    request->errand->replay = NULL;
}

static void compared(struct engine *engine, struct errand *errand)
{
    struct request *request = errand->replay;

    resident_compared(engine, errand->compared);
    errand->compared = NULL;
    errand->stage = request ? VERIFY_REPLAY : VERIFY_HEAL;
    if (!request)
        return;
    request->shared_stop = scrub_stop(errand->scrub, errand->compared_position);
    request_resume(request, engine);
}

/* --- the end --- */

static void answer(struct engine *engine, struct errand *errand)
{
    const struct scrub_report *report = scrub_report(errand->scrub);
    void *copy;
    struct event *event = engine_need(
        event_create(EVENT_VERIFIED, errand->reply, sizeof(*report), &copy));

    event->is_last = true;
    memcpy(copy, report, sizeof(*report));
    ((struct scrub_report *)copy)->drop = NULL;
    event->verified.report = copy;
    event->verified.is_replayed = errand->wants_replay;
    flight_event(engine, event);
    errand_end(errand);
}

static void healed(struct engine *engine, struct errand *errand)
{
    const struct scrub_report *report = scrub_report(errand->scrub);
    struct session *session = errand->session;

    for (uint32_t i = 0; i < report->n_drop; i++)
        prefix_refuse(engine->prefix, report->drop[i].log,
                      report->drop[i].position);
    for (uint32_t i = 0; i < report->n_loss; i++)
        logs_lose(engine, &report->loss[i]);
    for (uint32_t i = 0; i < report->n_finding; i++)
        log_line(LOG_WARN, "engine", session->name, "stored %s",
                 report->finding[i]);
    if (report->n_drop > 0)
        log_line(LOG_WARN, "engine", session->name,
                 "%u snapshots are dropped, what they held is computed again",
                 report->n_drop);
    if (report->n_loss > 0 && session->is_listed && !session->request &&
        !engine->is_draining && control_checkpoint(engine, session, NULL, 0, 0))
        log_line(LOG_WARN, "engine", session->name,
                 "it is computed again when it is used: %s", status_reason());
    answer(engine, errand);
}

static void scrubbed(struct engine *engine, struct errand *errand)
{
    errand->wants_replay &= scrub_tokens(errand->scrub)->n > 1;
    if (!errand->wants_replay)
        errand->stage = VERIFY_HEAL;
    else if (begin_replay(engine, errand))
        errand_fail(engine, errand, status_cause());
}

void verify_received(struct engine *engine, const struct store_job *job)
{
    struct errand *errand = job->owner;

    errand_rest(engine, errand, job);
    if (job->kind == STORE_COMPARE)
        compared(engine, errand);
    if (errand->is_over)
        return;
    if (job->status)
        errand_fail(engine, errand, &job->cause);
    else if (job->kind == STORE_HEAL)
        healed(engine, errand);
    else if (job->kind == STORE_SCRUB && job->is_done)
        scrubbed(engine, errand);
}
