#include "scheduler/errand_parts.h"

#include <stdlib.h>
#include <string.h>

/* Behind those of its priority, or before them. */
static void link_request(struct engine *engine, struct request *request,
                         bool is_first)
{
    struct request *after = engine->first;

    while (after && (is_first ? after->priority > request->priority
                              : after->priority >= request->priority))
        after = after->after;
    request->after = after;
    request->before = after ? after->before : engine->last;
    if (request->before)
        request->before->after = request;
    else
        engine->first = request;
    if (after)
        after->before = request;
    else
        engine->last = request;
}

static void unlink_request(struct engine *engine, struct request *request)
{
    if (request->before)
        request->before->after = request->after;
    else
        engine->first = request->after;
    if (request->after)
        request->after->before = request->before;
    else
        engine->last = request->before;
}

struct request *request_create(struct engine *engine,
                               const struct request *asked)
{
    struct request *request = engine_need(malloc(sizeof(*request)));
    struct session *session = asked->session;

    *request = *asked;
    request->phase = REQUEST_LOADING;
    request->is_load_sent = session->is_loading;
    session->request = request;
    resident_touch(engine, session);
    link_request(engine, request, false);
    engine->n_request++;
    return request;
}

void request_free(struct engine *engine, struct request *request)
{
    struct session *session = request_asker(request);

    if (request->errand)
        verify_left(engine, request);
    excerpt_leave(engine, request);
    schedule_leave(engine, request);
    unlink_request(engine, request);
    engine->n_request--;
    if (request->phase == REQUEST_RUNNING)
        engine->n_running--;
    if (request->command)
        arena_destroy(request->command->arena);
    free(request);
    session->request = NULL;
    if (session->is_listed)
        resident_touch(engine, session);
    else
        resident_drop(engine, session);
    session_put(session);
}

/* Of a log of n_token tokens with max_tokens more. */
static uint64_t most_tokens(const struct engine *engine, uint64_t n_token,
                            uint64_t max_tokens)
{
    const uint64_t n =
        n_token < engine->n_context ? n_token : engine->n_context;

    return n + (max_tokens < engine->n_context - n ? max_tokens
                                                   : engine->n_context - n);
}

size_t request_promise(const struct engine *engine,
                       const struct session *session, uint64_t n_token,
                       uint64_t max_tokens)
{
    return resident_bytes(engine, session,
                          most_tokens(engine, n_token, max_tokens));
}

static void promise(const struct engine *engine, struct request *request,
                    uint64_t max_tokens)
{
    const struct session *session = request->session;

    request->n_most = most_tokens(engine, session->n_token, max_tokens);
    request->promise = resident_bytes(engine, session, request->n_most);
}

uint64_t request_target(const struct request *request)
{
    uint64_t n = request->session->n_token;

    if (request->stage == EXCERPT_READ)
        return request->output_start - 1;
    return request->kind == REQUEST_GENERATE || n == 0 ? n : n - 1;
}

void request_begin(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    const struct turn *turn = &session->resident->turn;
    const struct sampling *sampling = &turn->sampling;
    uint64_t n_output;

    request->phase = REQUEST_WAITING;
    request->reuse = session->resident->reuse;
    if (!request_is_turn(request)) {
        promise(engine, request, 0);
        return;
    }
    request->kind = turn->is_append ? REQUEST_APPEND : REQUEST_GENERATE;
    request->output_start = turn->position + turn->n_input;
    n_output = session->n_token - request->output_start;
    promise(engine, request,
            turn->is_append || n_output > sampling->max_tokens
                ? 0
                : sampling->max_tokens - n_output);
    text_init(&request->text, engine->options.tokenizer, sampling);
    request->n_end = 0;
    if (!sampling->ignore_eos)
        for (uint32_t i = 0; i < engine->config->n_eos; i++)
            if (engine->config->eos[i] < engine->n_vocab)
                request->end[request->n_end++] = engine->config->eos[i];
    for (uint32_t i = 0; i < sampling->n_stop_id; i++)
        request->end[request->n_end++] = sampling->stop_id[i];
}

static void tell(struct engine *engine, struct request *request,
                 struct event *event)
{
    flight_event(engine, event);
    request->message_step = engine->commit_step;
}

void request_accepted(struct engine *engine, struct request *request)
{
    const struct turn *turn = &request_asker(request)->resident->turn;
    struct event *event =
        engine_need(event_create(EVENT_ACCEPTED, request->reply, 0, NULL));

    memcpy(event->accepted.session, request_asker(request)->name,
           SESSION_NAME_SIZE);
    memcpy(event->accepted.request_id, turn->request_id, REQUEST_ID_SIZE);
    event->accepted.position = turn->position;
    event->accepted.seed = turn->sampling.seed;
    event->accepted.predicted_us = request->predicted_us;
    for (struct request *r = request->before; r; r = r->before)
        event->accepted.n_ahead += r->phase != REQUEST_RUNNING && !r->is_paused;
    tell(engine, request, event);
}

static void send_tokens(struct engine *engine, struct request *request,
                        uint64_t position, uint32_t n_token,
                        const struct text_buffer *text,
                        const struct logprobs *logprobs)
{
    size_t token_bytes = n_token * sizeof(uint32_t);
    size_t logprob_bytes = logprobs ? n_token * sizeof(*logprobs) : 0;
    struct event *event;
    char *extra;

    if (request->reply == 0 || (n_token == 0 && text->n == 0))
        return;
    event = engine_need(event_create(EVENT_TOKENS, request->reply,
                                     token_bytes + logprob_bytes + text->n + 1,
                                     (void **)&extra));
    if (n_token)
        memcpy(extra, request_asker(request)->resident->tokens.id + position,
               token_bytes);
    event->tokens.position = position;
    event->tokens.n_token = n_token;
    event->tokens.token = (const uint32_t *)extra;
    extra += token_bytes;
    if (logprobs) {
        memcpy(extra, logprobs, logprob_bytes);
        event->tokens.n_logprobs = n_token;
        event->tokens.logprobs = (const struct logprobs *)extra;
        extra += logprob_bytes;
    }
    if (text->n)
        memcpy(extra, text->byte, text->n);
    event->tokens.text_bytes = (uint32_t)text->n;
    event->tokens.text = extra;
    tell(engine, request, event);
}

static bool is_end(const struct request *request, uint32_t token)
{
    for (uint32_t i = 0; i < request->n_end; i++)
        if (request->end[i] == token)
            return true;
    return false;
}

/* Text is a courtesy beside the token ids, so a reply goes on without it. */
static void text_lost(struct engine *engine, enum status st)
{
    if (st)
        log_limited(&engine->store_log, LOG_WARN, "engine", "",
                    "a piece of text is left out: %s", status_reason());
}

void request_replay(struct engine *engine, struct request *request,
                    uint64_t from)
{
    const struct resident *resident = request_asker(request)->resident;
    struct text_buffer text = {0};
    uint64_t first = from, end = resident->tokens.n;

    text_init(&request->text, engine->options.tokenizer,
              &resident->turn.sampling);
    for (uint64_t t = request->output_start; t < end; t++) {
        uint32_t id = resident->tokens.id[t];
        text_lost(engine,
                  text_push(&request->text, id, is_end(request, id), &text));
        if (t < from) {
            text.n = 0;
        } else if (t + 1 - first == LOG_PIECE_MAX && t + 1 < end) {
            send_tokens(engine, request, first, LOG_PIECE_MAX, &text, NULL);
            text.n = 0;
            first = t + 1;
        }
    }
    if (resident->turn.finish != FINISH_NONE)
        text_lost(engine, text_finish(&request->text, &text));
    if (first < end)
        send_tokens(engine, request, first, (uint32_t)(end - first), &text,
                    NULL);
    text_buffer_release(&text);
}

void request_progress(struct engine *engine, struct request *request,
                      uint32_t n_token)
{
    uint64_t total = request_target(request);
    uint64_t done = resident_position(request->session->resident);
    uint64_t now_us = engine_now_us(engine);
    struct event *event;

    if (!request->wants_progress || request->reply == 0 ||
        request->stage == EXCERPT_ANSWER)
        return;
    if (n_token < PROGRESS_TOKENS && done < total &&
        now_us - request->progress_us < PROGRESS_US)
        return;
    request->progress_us = now_us;
    event = engine_need(event_create(EVENT_PROGRESS, request->reply, 0, NULL));
    event->progress.n_total = total;
    event->progress.n_cached = request->n_cached;
    event->progress.n_processed = done;
    event->progress.elapsed_us = now_us - request->start_us;
    if (done > request->n_cached)
        event->progress.remaining_us =
            (uint64_t)((double)event->progress.elapsed_us *
                       (double)(total - done) /
                       (double)(done - request->n_cached));
    tell(engine, request, event);
}

/* A resumed turn finds output, too, which is nobody's prompt. */
static void reuse_of(const struct request *request, struct event *event)
{
    const struct turn *turn = &request_asker(request)->resident->turn;
    uint64_t n_cached = request->n_cached, n_restored = request->n_restored;
    uint64_t before = turn->position, end = before + turn->n_input;

    if (!request->is_started) /* reuse is REUSE_NOT_NEEDED */
        return;
    event->complete.reuse = request->reuse;
    event->complete.n_cached = n_cached < end ? n_cached : end;
    event->complete.n_restored = n_restored < end ? n_restored : end;
    event->complete.n_replayed = n_cached < before ? before - n_cached : 0;
}

void request_complete(struct engine *engine, struct request *request,
                      enum finish_reason finish)
{
    const struct session *session = request_asker(request);
    const struct turn *turn = &session->resident->turn;
    uint64_t now_us = engine_now_us(engine);
    struct event *event =
        engine_need(event_create(EVENT_COMPLETE, request->reply, 0, NULL));

    event->is_last = true;
    event->complete.finish = finish;
    event->complete.n_prompt = turn->n_input;
    event->complete.n_completion = session->n_token - request->output_start;
    event->complete.n_excerpt = excerpt_count(turn);
    reuse_of(request, event);
    event->complete.committed_position = session->n_token;
    if (request->start_us) {
        uint64_t prefilled_us =
            request->prefilled_us ? request->prefilled_us : now_us;
        event->complete.timing.queued_us =
            request->start_us - request->arrive_us;
        event->complete.timing.prefill_us = prefilled_us - request->start_us;
        event->complete.timing.decode_us = now_us - prefilled_us;
    } else {
        event->complete.timing.queued_us = now_us - request->arrive_us;
    }
    if (request->first_us)
        event->complete.timing.first_token_us =
            request->first_us - request->arrive_us;
    tell(engine, request, event);
}

static void measure(struct engine *engine, const struct request *request,
                    enum finish_reason finish)
{
    const struct engine_metrics *m = &engine->metrics;
    uint64_t now_us = engine_now_us(engine);

    metric_add(m->success[finish], 1);
    metric_observe(m->latency, (double)(now_us - request->arrive_us) * 1e-6);
    if (request->prefilled_us)
        metric_observe(m->decode_time,
                       (double)(now_us - request->prefilled_us) * 1e-6);
}

static void close_turn(struct engine *engine, struct session *session,
                       enum finish_reason finish)
{
    session->resident->turn.finish = finish;
    flight_turn(engine, session);
}

/* Behind the records and events of its end. */
static void leave(struct engine *engine, struct request *request,
                  enum finish_reason finish)
{
    struct session *session = request_asker(request);
    struct resident *resident = session->resident;

    request_complete(engine, request, finish);
    measure(engine, request, finish);
    if (resident_position(resident) >=
        resident->snapshot_position + SNAPSHOT_TURN_MIN)
        resident_later(engine, session);
    request_free(engine, request);
}

static enum finish_reason finish_of(const struct engine *engine,
                                    const struct request *request,
                                    uint32_t token)
{
    const struct session *session = request_asker(request);
    uint64_t n_output = session->n_token - request->output_start;

    if (is_end(request, token))
        return FINISH_STOP;
    if (request->text.is_stopped)
        return FINISH_STOP_SEQUENCE;
    if (n_output >= session->resident->turn.sampling.max_tokens ||
        session->n_token >= engine->n_context)
        return FINISH_LENGTH;
    return FINISH_NONE;
}

static void time_token(struct engine *engine, struct request *request)
{
    uint64_t now_us = engine_now_us(engine);

    if (!request->prefilled_us) {
        schedule_prefilled(engine, request);
        prefix_measure(engine, request);
        metric_observe(engine->metrics.prefill_time,
                       (double)(now_us - request->start_us) * 1e-6);
    }
    if (!request->first_us) {
        request->first_us = now_us;
        metric_observe(engine->metrics.first_token,
                       (double)(now_us - request->arrive_us) * 1e-6);
    } else {
        metric_observe(engine->metrics.inter_token,
                       (double)(now_us - request->last_us) * 1e-6);
    }
    request->last_us = now_us;
    metric_add(engine->metrics.generation_tokens, 1);
    engine->generated_tokens++;
}

void request_sampled(struct engine *engine, struct request *request,
                     uint32_t token, const struct logprobs *logprobs)
{
    struct session *session = request_asker(request);
    struct resident *resident = session->resident;
    struct digest before = resident->chain;
    struct text_buffer text = {0};
    enum finish_reason finish;
    enum status st = tokens_append(&resident->tokens, &token, 1);

    if (!st && (st = excerpt_sampled(request, token)))
        resident->tokens.n--;
    if (st) {
        request_fail(engine, request, FINISH_ERROR, status_cause());
        return;
    }
    session->n_token++;
    resident->chain = digest_tokens(before, &token, 1);
    text_lost(engine,
              text_push(&request->text, token, is_end(request, token), &text));
    finish = finish_of(engine, request, token);
    time_token(engine, request);
    /* The token and the end of its turn go into one commit: were they torn
     * apart by a crash, the turn would go on behind its end. */
    flight_tokens(engine, session, session->n_token - 1, before);
    if (finish) {
        schedule_replied(engine, request,
                         session->n_token - request->output_start);
        close_turn(engine, session, finish);
        text_lost(engine, text_finish(&request->text, &text));
    }
    send_tokens(engine, request, session->n_token - 1, 1, &text, logprobs);
    text_buffer_release(&text);
    if (finish)
        leave(engine, request, finish);
}

void request_finish(struct engine *engine, struct request *request,
                    enum finish_reason finish)
{
    struct session *session = request_asker(request);
    struct text_buffer text = {0};

    close_turn(engine, session, finish);
    text_lost(engine, text_finish(&request->text, &text));
    send_tokens(engine, request, session->n_token, 0, &text, NULL);
    text_buffer_release(&text);
    leave(engine, request, finish);
}

bool request_is_turn(const struct request *request)
{
    return request->kind == REQUEST_GENERATE || request->kind == REQUEST_APPEND;
}

static bool has_turn(const struct request *request)
{
    return request->phase != REQUEST_LOADING && request_is_turn(request);
}

/* Can a client name its turn to go on with it? */
static bool has_retry(const struct request *request)
{
    const struct session *session = request_asker(request);

    return session->name[0] && session->resident->turn.request_id[0];
}

bool request_stays_open(const struct request *request)
{
    return !has_turn(request) || has_retry(request);
}

void request_fail(struct engine *engine, struct request *request,
                  enum finish_reason finish, const struct cause *cause)
{
    struct cause copy = *cause; /* it may be this thread's, which changes */

    if (has_turn(request)) {
        if (finish != FINISH_ERROR || !has_retry(request))
            close_turn(engine, request_asker(request), finish);
        measure(engine, request, finish);
    }
    flight_error(engine, request->reply, &copy);
    if (request->errand)
        errand_fail(engine, request->errand, &copy);
    request_free(engine, request);
}

void request_lose(struct engine *engine, struct request *request,
                  const struct cause *cause)
{
    struct session *session = request_asker(request);
    struct cause lost = *cause;

    lost.code = STATUS_FAILED_PRECONDITION;
    memcpy(lost.reason, "STORE_READ_ONLY", sizeof("STORE_READ_ONLY"));
    /* In the journal the turn of a durable session is open, so that a retry
     * goes on with it; of another there is no more than this. */
    if (has_turn(request) && session->durability == DURABILITY_NONE)
        session->resident->turn.finish = FINISH_ERROR;
    flight_error(engine, request->reply, &lost);
    request_free(engine, request);
}

void request_interrupt(struct engine *engine, struct request *request,
                       enum finish_reason finish)
{
    if (finish && has_turn(request))
        request_complete(engine, request, finish);
    resident_save(engine, request_asker(request), false);
    request_free(engine, request);
}

void request_step_back(struct engine *engine, struct request *request)
{
    request->phase = REQUEST_WAITING;
    engine->n_running--;
    charge_settle(engine, request->session);
}

void request_pause(struct request *request, struct engine *engine)
{
    request->is_paused = true;
    if (request->phase == REQUEST_RUNNING)
        request_step_back(engine, request);
}

void request_resume(struct request *request, struct engine *engine)
{
    if (!request->is_paused)
        return;
    request->is_paused = false;
    unlink_request(engine, request);
    link_request(engine, request, true);
}

struct request *request_by_reply(const struct engine *engine, uint64_t reply)
{
    for (struct request *r = engine->first; r && reply; r = r->after)
        if (r->reply == reply)
            return r;
    return NULL;
}
