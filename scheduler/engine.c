#include "scheduler/engine_calls.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The journal thread's patience with a full outbox, per lost message. */
#define DROP_WAIT_MS 100

void *engine_need(void *block)
{
    if (!block) {
        log_line(LOG_ERROR, "engine", "",
                 "out of memory, stopping; the journal has every session");
        abort();
    }
    return block;
}

uint64_t engine_now_us(const struct engine *engine)
{
    return engine->options.clock->now_us(engine->options.clock);
}

uint64_t engine_wall_ms(const struct engine *engine)
{
    return engine->options.clock->wall_ms(engine->options.clock);
}

static enum status read_session(void *context, const struct session_meta *meta,
                                uint64_t n_token)
{
    struct engine *engine = context;
    struct session *session = session_create(meta);

    session->n_token = session->n_committed = n_token;
    logs_hold(engine, &meta->path);
    table_load(engine, session);
    return STATUS_OK;
}

static enum status check_options(const struct engine_options *o)
{
    if (o->max_running == 0 || o->max_running > ENGINE_RUNNING_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "max_running is %u, expected 1 to %u",
                           o->max_running, ENGINE_RUNNING_MAX);
    if (o->max_queue > ENGINE_QUEUE_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "max_queue is %u, expected 0 to %u", o->max_queue,
                           ENGINE_QUEUE_MAX);
    if (o->default_max_tokens == 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "default_max_tokens is 0, expected 1 or more");
    return STATUS_OK;
}

size_t engine_state_least(const struct model *model)
{
    size_t most = 0;

    for (int i = 0; i < N_INDEX; i++) {
        const struct policy policy = {.index = (enum index_kind)i};
        const size_t n = memory_bytes_for(model, &policy, 0);

        most = n > most ? n : most;
    }
    return most;
}

static enum status check_states(const struct engine_options *options)
{
    const size_t least = engine_state_least(options->model);

    if (options->state_bytes == 0 || options->state_bytes >= least)
        return STATUS_OK;
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "%zu bytes for states of sessions hold none: one takes "
                       "%zu, so give at least %zu MiB",
                       options->state_bytes, least, (least >> 20) + 1);
}

enum status engine_create(const struct engine_options *options,
                          struct engine **out)
{
    struct engine *engine;
    uint64_t n_bad = 0;
    enum status st = check_options(options);

    if (!st)
        st = check_states(options);
    if (st)
        return st;
    engine = calloc(1, sizeof(*engine));
    if (!engine)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for an engine");
    engine->options = *options;
    engine->config = model_config(options->model);
    engine->n_vocab = engine->config->n_vocab;
    engine->n_context = model_n_context(options->model);
    engine->fixed_bytes = memory_bytes_for(options->model, NULL, 0);
    engine->empty_chain = model_fingerprint(options->model);
    engine->next_expire_ms = UINT64_MAX;
    engine->room_tokens = ROOM_TOKENS;
    engine->start_ms = engine_wall_ms(engine);
    gauges_init(engine);
    st = swap_open(engine);
    if (!st)
        st = image_pool_create(options->model, &engine->image_pool);
    if (!st)
        st = batch_init(engine);
    if (!st)
        st = schedule_init(engine);
    if (!st)
        st = journal_each_session(options->journal, read_session, engine,
                                  &n_bad);
    if (st) {
        engine_destroy(engine);
        return st;
    }
    table_sort(engine);
    st = prefix_open(engine);
    /* A session that cannot be read now may be again: its log stays. */
    if (!st && n_bad == 0)
        st = logs_sweep(engine);
    if (st) {
        engine_destroy(engine);
        return st;
    }
    log_line(LOG_INFO, "engine", "", "%lu sessions, %lu unreadable records",
             engine->n_session, n_bad);
    *out = engine;
    return STATUS_OK;
}

static void destroy_sessions(struct engine *engine)
{
    while (engine->first) {
        struct request *request = engine->first;
        request->reply = 0; /* nobody listens any more */
        request_free(engine, request);
    }
    for (uint64_t i = 0; i < engine->n_session; i++) {
        struct session *session = engine->table[i];
        resident_drop(engine, session);
        session->is_listed = false;
        session_put(session);
    }
    engine->n_session = 0;
}

/* Jobs and commits of a loop that was left in the middle (tests do). */
static void take_jobs(struct engine *engine)
{
    if (engine->options.done)
        jobs_receive(engine);
}

void engine_destroy(struct engine *engine)
{
    if (!engine)
        return;
    take_jobs(engine);
    flight_destroy_all(engine);
    batch_release(engine);
    errands_destroy(engine);
    keep_release(engine);
    destroy_sessions(engine);
    flight_destroy_all(engine);
    schedule_release(engine);
    while (engine->n_held > 0)
        arena_destroy(engine->held[--engine->n_held]->arena);
    image_pool_destroy(engine->image_pool);
    swap_close(engine);
    prefix_destroy(engine->prefix);
    lineage_release(&engine->lineage);
    ledger_release(&engine->stored);
    free(engine->table);
    free(engine->deleted);
    free(engine->held);
    free(engine);
}

static void drain_inbox(struct engine *engine)
{
    struct command *command;

    for (uint32_t i = 0; i < COMMAND_STEP_MAX; i++) {
        if (!ring_pop(engine->options.inbox, &command))
            return;
        control_command(engine, command);
    }
}

/* As when its reader is gone: the client's own clock may say so first. */
static void check_deadlines(struct engine *engine)
{
    uint64_t now_us = engine_now_us(engine);

    for (struct request *r = engine->first, *after; r; r = after) {
        after = r->after;
        if (!r->deadline_us || now_us < r->deadline_us || r->is_in_pass)
            continue;
        status_fail(
            STATUS_DEADLINE_EXCEEDED, "deadline passed after %lu of %lu tokens",
            resident_position(r->session->resident), r->session->n_token);
        status_because("DEADLINE_PASSED");
        if (request_stays_open(r)) {
            flight_error(engine, r->reply, status_cause());
            request_interrupt(engine, r, FINISH_NONE);
        } else {
            request_fail(engine, r, FINISH_CANCELLED, status_cause());
        }
    }
}

static void sweep(struct engine *engine)
{
    uint64_t now_us = engine_now_us(engine), wall_ms = engine_wall_ms(engine);

    if (wall_ms < engine->next_expire_ms ||
        (engine->swept_us && now_us < engine->swept_us + SWEEP_US))
        return;
    engine->swept_us = now_us;
    engine->next_expire_ms = UINT64_MAX;
    for (uint64_t i = engine->n_session; i-- > 0;) {
        uint64_t expire_ms = engine->table[i]->expire_ms;
        if (!expire_ms)
            continue;
        if (expire_ms <= wall_ms) {
            bool is_busy = engine->table[i]->request != NULL;
            control_expire(engine, engine->table[i]);
            if (!is_busy)
                continue;
            expire_ms = wall_ms + SWEEP_US / 1000;
        }
        if (expire_ms < engine->next_expire_ms)
            engine->next_expire_ms = expire_ms;
    }
}

/* Running turns end here and stay open; what is in memory is saved. */
static void park_all(struct engine *engine)
{
    errands_drain(engine);
    while (engine->first) {
        struct request *request = engine->first;
        if (request->phase == REQUEST_LOADING || !request_is_turn(request)) {
            status_fail(STATUS_UNAVAILABLE, "node is draining");
            status_because("NODE_DRAINING");
            status_retry(1000);
            request_fail(engine, request, FINISH_ERROR, status_cause());
        } else {
            request_interrupt(engine, request, FINISH_DRAINED);
        }
    }
    for (struct session *s = engine->oldest; s; s = s->newer)
        if (resident_is_worth(s->resident))
            (void)resident_save(engine, s, true);
    engine->is_parked = true;
}

static void check_drain(struct engine *engine)
{
    bool is_late;

    if (!engine->is_draining || engine->is_done)
        return;
    is_late = engine->drain_deadline_us &&
              engine_now_us(engine) >= engine->drain_deadline_us;
    if (!engine->is_parked && !engine->prompt.is_under_way &&
        (is_late || !engine->first)) {
        park_all(engine);
        jobs_send(engine); /* or nothing would wake this thread again */
    }
    if (!engine->is_parked || engine->n_job || engine->errands ||
        engine->images || engine->oldest_flight || engine->flight ||
        engine->n_deleted)
        return;
    log_line(LOG_INFO, "engine", "", "drained, all is committed");
    flight_done(engine, engine->drain_reply);
    (void)flight_send(engine);
    engine->is_done = true;
}

bool engine_step(struct engine *engine)
{
    bool has_decoded = false, has_run, may_commit;

    flight_receive(engine);
    jobs_receive(engine);
    swap_step(engine);
    control_release(engine);
    drain_inbox(engine);
    check_deadlines(engine);
    schedule_shed_late(engine);
    sweep(engine);
    /* One step may be computed while the one before it syncs, but not more
     * than the journal's ring can take. A slice of a prompt commits nothing
     * before its pass is done. */
    may_commit = flight_send(engine);
    if (may_commit && !engine->is_parked) {
        has_decoded = batch_decode(engine);
        (void)flight_send(engine); /* nobody's token waits for the slice */
    }
    has_run = batch_prompt(engine, may_commit && !engine->is_parked);
    if (may_commit)
        (void)flight_send(engine); /* nor for the images of turns that ended */
    resident_save_later(engine);
    if (may_commit) {
        check_drain(engine); /* may add images to send */
        jobs_send(engine);
        (void)flight_send(engine);
    }
    gauges_set(engine);
    return has_run || has_decoded || ring_count(engine->options.inbox) > 0;
}

/* Milliseconds that the loop may sleep; negative: until it is woken. */
static int idle_ms(const struct engine *engine)
{
    uint64_t now_us = engine_now_us(engine), wall_ms = engine_wall_ms(engine);
    uint64_t least_us = UINT64_MAX, ms;

    for (const struct request *r = engine->first; r; r = r->after)
        if (r->deadline_us && r->deadline_us < least_us)
            least_us = r->deadline_us;
    if (engine->drain_deadline_us && !engine->is_parked &&
        engine->drain_deadline_us < least_us)
        least_us = engine->drain_deadline_us;
    if (errands_deadline_us(engine) < least_us)
        least_us = errands_deadline_us(engine);
    ms = least_us == UINT64_MAX ? UINT64_MAX
         : least_us > now_us    ? (least_us - now_us) / 1000 + 1
                                : 0;
    if (engine->next_expire_ms != UINT64_MAX) {
        uint64_t until = engine->next_expire_ms > wall_ms
                             ? engine->next_expire_ms - wall_ms
                             : SWEEP_US / 1000;
        if (until < ms)
            ms = until;
    }
    if (engine->swap.first) /* nobody wakes us when they arrive */
        return 1;
    if (ms == UINT64_MAX)
        return -1;
    return ms < 3600000 ? (int)ms : 3600000;
}

void engine_run(struct engine *engine)
{
    while (!engine->is_done)
        if (!engine_step(engine) && !engine->is_done)
            ring_wait(engine->options.inbox, idle_ms(engine));
}

void engine_drop_message(void *message, const struct cause *cause,
                         struct ring *outbox)
{
    struct event *event = message;
    struct event *error;

    error = engine_need(event_create(EVENT_ERROR, event->reply, 0, NULL));
    error->is_last = true;
    error->cause = *cause;
    error->cause.code = STATUS_FAILED_PRECONDITION;
    memcpy(error->cause.reason, "STORE_READ_ONLY", sizeof("STORE_READ_ONLY"));
    event_destroy(event);
    for (int i = 0; i < DROP_WAIT_MS; i++) {
        if (ring_push(outbox, &error))
            return;
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    event_destroy(error); /* its consumer is gone, and the reply with it */
}
