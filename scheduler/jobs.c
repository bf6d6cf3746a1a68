#include "scheduler/errand_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct store_job *jobs_create(enum store_job_kind kind, struct uid uid,
                              void *owner)
{
    struct store_job *job = engine_need(calloc(1, sizeof(*job)));

    job->kind = kind;
    job->uid = uid;
    job->owner = owner;
    return job;
}

bool jobs_push(struct engine *engine, struct store_job *job)
{
    if (engine->n_job == ENGINE_JOB_MAX ||
        !store_thread_push(engine->options.store_thread, job)) {
        engine->cost.backlog_us -= job->expected_us;
        free(job);
        return false;
    }
    engine->n_job++;
    return true;
}

void jobs_delete(struct engine *engine, struct uid uid)
{
    if (engine->n_deleted == engine->deleted_capacity) {
        engine->deleted_capacity = 2 * engine->deleted_capacity + 16;
        engine->deleted =
            engine_need(realloc(engine->deleted, engine->deleted_capacity *
                                                     sizeof(*engine->deleted)));
    }
    engine->deleted[engine->n_deleted++] = uid;
}

/* A snapshot must never be ahead of the journal, and a restore needs one more
 * token to make logits from. A loose one has no log. */
static bool is_due(const struct resident *resident)
{
    const struct session *session = resident->session;

    return !uid_equal(resident->image_uid, session_log(session)) ||
           (!session->is_upgrading &&
            session->n_committed > resident->image_position);
}

/* Whoever would miss it has the journal; other prompts, a checkpoint's caller
 * and who needs the room have not. */
static bool can_wait(const struct resident *resident)
{
    return !resident->image_label.is_shared && resident->n_checkpoint == 0 &&
           !resident->leaves && !resident->is_short;
}

/* One at a time, and with rests while replies run that want the CPU. */
static bool is_time(const struct engine *engine)
{
    if (engine->next_save_us == UINT64_MAX)
        return false;
    return engine->n_running == 0 ||
           engine_now_us(engine) >= engine->next_save_us;
}

/* False while the store thread takes no more. */
static bool send_image(struct engine *engine, struct resident **at)
{
    struct resident *resident = *at;
    struct store_job *job =
        jobs_create(STORE_SAVE, resident->image_uid, resident);

    job->image = resident->image;
    prefix_job_sent(engine, job, image_bytes(resident->image));
    if (!jobs_push(engine, job))
        return false;
    resident->is_saving = true;
    *at = resident->next_image;
    resident->next_image = NULL;
    engine->n_image--;
    return true;
}

/* Those that can wait go one by one, the oldest first. */
static void send_images(struct engine *engine)
{
    struct resident **at = &engine->images, **oldest = NULL;
    const bool may_send = is_time(engine);

    while (*at) {
        const bool waits = can_wait(*at);

        if (!waits && is_due(*at)) {
            if (!send_image(engine, at))
                return;
            continue;
        }
        if (waits && may_send && is_due(*at))
            oldest = at;
        at = &(*at)->next_image;
    }
    if (oldest && send_image(engine, oldest))
        engine->next_save_us = UINT64_MAX;
}

/* False while there is no room for it. */
static bool send_load(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    size_t bytes = resident_bytes(engine, session, session->n_token);
    struct store_job *job;
    enum status st;

    if (!resident_room(engine, session, bytes))
        return false;
    job = jobs_create(STORE_LOAD, session_log(session), session);
    session_path(session, &job->path);
    job->keep_back = 1;
    st = resident_memory(engine, session, &job->memory);
    if (st) {
        free(job);
        resident_no_memory();
        request_fail(engine, request, FINISH_ERROR, status_cause());
        return true;
    }
    struct memory *memory = job->memory;
    prefix_job_sent(engine, job, bytes);
    if (!jobs_push(engine, job)) {
        memory_destroy(memory);
        return false;
    }
    charge_bytes(engine, session, bytes);
    request->is_load_sent = true;
    session->is_loading = true;
    session->n_hold++;
    return true;
}

/* False while the store thread takes no more. */
static bool send_delete(struct engine *engine, struct uid uid)
{
    uint64_t need = lineage_need(&engine->lineage, uid);
    struct store_job *job;

    if (need < UINT64_MAX) { /* else its deletion was taken back */
        job = jobs_create(STORE_DELETE, uid, NULL);
        job->n_needed = need;
        if (!jobs_push(engine, job))
            return false;
    }
    engine->n_deleted--;
    return true;
}

void jobs_send(struct engine *engine)
{
    for (struct request *r = engine->first, *after; r; r = after) {
        after = r->after;
        /* Room goes to the first, as in the batch. */
        if (r->phase == REQUEST_LOADING && !r->is_load_sent &&
            !send_load(engine, r))
            break;
    }
    keep_within(engine);
    errands_send(engine);
    /* Behind all that may take one to make room: nothing else would wake this
     * thread to send it. */
    send_images(engine);
    while (engine->n_deleted > 0)
        if (!send_delete(engine, engine->deleted[engine->n_deleted - 1]))
            return;
}

/* The journal may have lost the rewind whose log it read, and then the session
 * has its old one again. */
static bool is_of_its_log(const struct store_job *job,
                          const struct session *session)
{
    struct log_path path;

    session_path(session, &path);
    return log_path_equal(&path, &job->path);
}

static void receive_load(struct engine *engine, struct store_job *job)
{
    struct session *session = job->owner;
    struct request *request = session->request;
    const bool is_its = is_of_its_log(job, session);

    session->is_loading = false;
    charge_bytes(engine, session, 0);
    if (job->status == STATUS_OK && is_its && session->is_listed &&
        !session->resident)
        resident_install(engine, session, job);
    memory_destroy(job->memory);
    ids_release(&job->tokens);
    if (job->status == STATUS_DATA_LOSS && is_its)
        session->is_failed = true;
    if (request && request->phase == REQUEST_LOADING) {
        if (!is_its)
            request->is_load_sent = false;
        else if (job->status)
            request_fail(engine, request, FINISH_ERROR, &job->cause);
        else
            generate_admit(engine, request);
    } else {
        resident_touch(engine, session);
    }
    session->n_hold--;
    session_put(session);
}

struct listener { /* a READ_TOKENS whose session is parked */
    struct session *session;
    uint64_t reply, from, limit;
};

enum status jobs_read(struct engine *engine, struct session *session,
                      uint64_t reply, uint64_t from, uint64_t limit)
{
    struct listener *listener = engine_need(malloc(sizeof(*listener)));
    struct store_job *job =
        jobs_create(STORE_TOKENS, session_log(session), listener);

    *listener = (struct listener){session, reply, from, limit};
    session_path(session, &job->path);
    if (!jobs_push(engine, job)) {
        free(listener);
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "%u reads and saves wait already", ENGINE_JOB_MAX);
        status_because("QUEUE_FULL");
        return status_retry(200);
    }
    session->n_hold++;
    return STATUS_OK;
}

/* Deleted, rewound or moved to another log while it was read; or back from a
 * rewind that was lost. */
static const struct cause *has_changed(void)
{
    status_fail(STATUS_ABORTED, "the log changed while it was read");
    status_because("OPERATION_ABORTED");
    status_retry(100);
    return status_cause();
}

static void receive_tokens(struct engine *engine, struct store_job *job)
{
    struct listener *listener = job->owner;

    if (job->status)
        flight_error(engine, listener->reply, &job->cause);
    else if (!is_of_its_log(job, listener->session) ||
             job->tokens.n < listener->from)
        flight_error(engine, listener->reply, has_changed());
    else
        jobs_log(engine, listener->reply, job->tokens.id, job->tokens.n,
                 listener->from, listener->limit);
    ids_release(&job->tokens);
    listener->session->n_hold--;
    session_put(listener->session);
    free(listener);
}

void jobs_log(struct engine *engine, uint64_t reply, const uint32_t *token,
              uint64_t n_token, uint64_t from, uint64_t limit)
{
    uint64_t end = n_token;

    assert(from <= n_token);
    if (limit && limit < end - from)
        end = from + limit;
    do {
        uint64_t n = end - from < LOG_PIECE_MAX ? end - from : LOG_PIECE_MAX;
        void *extra;
        struct event *event = engine_need(
            event_create(EVENT_LOG, reply, n * sizeof(*token), &extra));
        if (n)
            memcpy(extra, token + from, n * sizeof(*token));
        event->tokens.position = from;
        event->tokens.n_token = (uint32_t)n;
        event->tokens.token = extra;
        event->tokens.text = "";
        from += n;
        event->is_last = from == end;
        flight_event(engine, event);
    } while (from < end);
}

/* Of the CPUs it leaves most to the replies; of the disk, which is the
 * journal's, too, half. */
static uint64_t rest_us(const struct store_job *job)
{
    const uint64_t us = SAVE_REST * job->cpu_us;

    return us > job->elapsed_us ? us : job->elapsed_us;
}

void jobs_receive(struct engine *engine)
{
    struct store_job *job;

    while (ring_pop(engine->options.done, &job)) {
        engine->n_job--;
        prefix_job_done(engine, job);
        switch (job->kind) {
        case STORE_SAVE:
            engine->next_save_us = engine_now_us(engine) + rest_us(job);
            resident_saved(engine, job);
            break;
        case STORE_LOAD:
            receive_load(engine, job);
            break;
        case STORE_FETCH:
            prefix_fetched(engine, job);
            break;
        case STORE_TOKENS:
            receive_tokens(engine, job);
            break;
        case STORE_DELETE:
            if (job->status)
                log_limited(&engine->store_log, LOG_WARN, "engine", "",
                            "snapshots that nobody needs stay: %s",
                            job->cause.text);
            prefix_trimmed(engine, job);
            break;
        case STORE_EVICT:
            keep_evicted(engine, job);
            break;
        case STORE_SCRUB:
        case STORE_COMPARE:
        case STORE_HEAL:
            verify_received(engine, job);
            break;
        case STORE_INSPECT:
            inspect_received(engine, job);
            break;
        case STORE_EXPORT:
        case STORE_IMPORT:
            transfer_received(engine, job);
            break;
        }
        free(job);
    }
}
