#include "model/view.h"
#include "scheduler/errand_parts.h"

#include <stdlib.h>
#include <string.h>

enum status batch_init(struct engine *engine)
{
    const struct engine_options *o = &engine->options;
    uint32_t n = o->max_running;
    enum status st;

    engine->draw = calloc(n, sizeof(*engine->draw));
    engine->held = calloc(HELD_MAX, sizeof(struct command *));
    engine->n_sampler = o->pool ? pool_n_thread(o->pool) : 1;
    engine->sampler = calloc(engine->n_sampler, sizeof(struct sampler *));
    if (!engine->draw || !engine->held || !engine->sampler)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for batches of %u requests", n);
    st = lane_init(&engine->decode, o->model, n, n);
    if (!st)
        st = lane_init(&engine->prompt, o->model, n, SCHEDULE_ROWS);
    for (uint32_t i = 0; !st && i < engine->n_sampler; i++)
        st = sampler_create(model_backend(o->model), engine->n_vocab,
                            &engine->sampler[i]);
    return st;
}

void batch_release(struct engine *engine)
{
    lane_release(&engine->decode);
    lane_release(&engine->prompt);
    free(engine->draw);
    for (uint32_t i = 0; engine->sampler && i < engine->n_sampler; i++)
        sampler_destroy(engine->sampler[i]);
    free(engine->sampler);
}

/* First place in the batch: what of its tokens need not be computed. */
static void note_start(struct engine *engine, struct request *request)
{
    const struct engine_metrics *m = &engine->metrics;

    request->is_started = true;
    request->start_us = engine_now_us(engine);
    request->progress_us = request->start_us;
    prefix_started(engine, request);
    metric_observe(m->queue_time,
                   (double)(request->start_us - request->arrive_us) * 1e-6);
}

/* Counts room for some tokens more, at most what it may ever need. */
static bool claim(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    uint64_t n = session->n_token;
    size_t least = resident_bytes(engine, session, n + 1);
    size_t bytes = resident_bytes(engine, session, n + engine->room_tokens);

    if (request->phase == REQUEST_RUNNING &&
        (least <= charge_holds(session) ||
         request->promise <= charge_holds(session)))
        return true;
    if (bytes > request->promise)
        bytes = request->promise;
    if (!resident_room(engine, session, bytes))
        return false;
    if (bytes > charge_holds(session))
        charge_bytes(engine, session, bytes);
    return true;
}

/* False while there is no room for it. */
static bool start(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    struct resident *resident = session->resident;

    if (resident->memory && memory_paging(resident->memory) &&
        paging_is_lost(memory_paging(resident->memory))) {
        resident_forget(engine, session);
        resident = session->resident;
    }
    paged_begin_turn(engine, request);
    if (!claim(engine, request))
        return false;
    if (prefix_seek(engine, request) || swap_back(engine, request))
        return true;
    if (!resident->memory &&
        resident_memory(engine, session, &resident->memory)) {
        resident_no_memory();
        request_fail(engine, request, FINISH_ERROR, status_cause());
        return true;
    }
    resident_stay(engine, session);
    request->phase = REQUEST_RUNNING;
    request->has_fetched = false;
    engine->n_running++;
    schedule_started(engine);
    if (!request->is_started)
        note_start(engine, request);
    return true;
}

bool request_may_start(const struct request *request)
{
    return request->phase == REQUEST_WAITING && !request->is_paused &&
           !request->session->is_fetching &&
           !swap_comes_back(request->session->resident);
}

bool request_comes_first(const struct request *request)
{
    return request->is_started || request->has_fetched;
}

static struct request *most_important(const struct engine *engine)
{
    struct request *r = engine->first;

    while (r && !request_may_start(r))
        r = r->after;
    return r;
}

/* There is no free place, but a lower one may have to make one. */
static bool start_by_preemption(struct engine *engine)
{
    struct request *next = most_important(engine);

    if (!next || !preempt_finds(engine, next) || !claim(engine, next))
        return false;
    /* It needs no place before that is read, or back. */
    if (prefix_seek(engine, next) || swap_back(engine, next))
        return true;
    return (engine->n_running < engine->options.max_running ||
            preempt_one(engine, next)) &&
           start(engine, next);
}

static void start_waiting(struct engine *engine)
{
    for (;;) {
        bool is_full = engine->n_running == engine->options.max_running;
        struct request *next = is_full ? NULL : schedule_next(engine);
        if (!next && !is_full)
            break;
        /* Room goes to the first, or small ones would pass it for ever. */
        if (!(is_full ? start_by_preemption(engine) : start(engine, next)))
            break;
    }
    schedule_blocked(engine);
}

/* Nothing is to be sampled and memory is where it should be. */
static void end_prefill(struct engine *engine, struct request *request)
{
    struct session *session = request->session;

    if (request->stage) {
        excerpt_next(engine, request);
        return;
    }
    if (request->kind == REQUEST_APPEND) {
        schedule_prefilled(engine, request);
        request_finish(engine, request, FINISH_STOP);
        return;
    }
    if (request->errand) {
        verify_replayed(engine, request);
        return;
    }
    resident_checkpoint(engine, session, request->reply);
    request_free(engine, request);
}

/* Its next tokens go into the lane, or it fails. */
static void enter(struct engine *engine, struct lane *lane,
                  struct request *request, uint32_t n_token)
{
    if (lane_add(lane, request, n_token)) {
        resident_no_memory();
        request_fail(engine, request, FINISH_ERROR, status_cause());
    }
}

/* One row each of those that have one token to consume; the others are what
 * the next pass of prompts is planned from. True if one had none, whose end may
 * have put it, or let another one, into the queue. */
static bool gather(struct engine *engine)
{
    bool has_ended = false;

    engine->n_entrant = 0;
    for (struct request *r = engine->first, *after; r; r = after) {
        uint64_t position, target;
        after = r->after;
        if (r->phase != REQUEST_RUNNING || r->is_in_pass)
            continue;
        position = resident_position(r->session->resident);
        target = request_target(r);
        if (position >= target) { /* only where nothing is sampled */
            end_prefill(engine, r);
            has_ended = true;
        } else if (!claim(engine, r)) {
            request_step_back(engine, r);
        } else if (target - position == 1) {
            if (paged_ready(engine, r))
                enter(engine, &engine->decode, r, 1);
        } else if (paged_room(engine, r) > 0) {
            schedule_entrant(engine, r);
        }
    }
    return has_ended;
}

static struct sampler_history history_of(const struct request *request)
{
    const struct resident *resident = request->session->resident;

    return (struct sampler_history){.token = resident->tokens.id,
                                    .n_token = resident->tokens.n,
                                    .output_start = request->output_start -
                                                    request->n_left_out,
                                    .end = request->end,
                                    .n_end = request->n_end};
}

static void pick(struct sampler *sampler, struct draw *draw)
{
    const struct request *request = draw->request;
    const struct sampling *sampling =
        &request->session->resident->turn.sampling;
    const struct sampler_history history = history_of(request);

    if (draw->is_picked)
        return;
    draw->has_logprobs = sampling->n_logprob >= 0;
    draw->token = sampler_pick(sampler, sampling, draw->logits, &history,
                               draw->has_logprobs ? &draw->logprobs : NULL);
}

/* Every so many draws are one thread's, so each has a sampler of its own. */
static void pick_some(void *arg, uint32_t task, void *scratch)
{
    const struct engine *engine = arg;

    (void)scratch;
    for (uint32_t i = task; i < engine->n_draw; i += engine->n_sampler)
        pick(engine->sampler[task], &engine->draw[i]);
}

static void pick_all(struct engine *engine)
{
    uint32_t n_task =
        engine->n_draw < engine->n_sampler ? engine->n_draw : engine->n_sampler;

    if (n_task == 1)
        pick_some(engine, 0, NULL);
    else if (n_task > 1)
        pool_run(engine->options.pool, n_task, pick_some, engine);
}

/*
 * Where logits lie on a device: the tokens that its best logits decide, and the
 * logits of the others.
 *   UNAVAILABLE  the device failed
 */
static enum status pick_tops(struct engine *engine, const struct lane *lane)
{
    const struct tops *tops = pass_tops(lane->workspace);
    bool is_fetching = false;

    for (uint32_t i = 0; i < engine->n_draw && tops; i++) {
        struct draw *draw = &engine->draw[i];
        const struct sampling *sampling =
            &draw->request->session->resident->turn.sampling;
        const struct sampler_history history = history_of(draw->request);

        draw->has_logprobs = sampling->n_logprob >= 0;
        draw->is_picked = sampler_pick_tops(
            engine->sampler[0], sampling, &tops[i], &history,
            draw->has_logprobs ? &draw->logprobs : NULL, &draw->token);
        if (!draw->is_picked)
            pass_fetch(lane->workspace, i);
        is_fetching |= !draw->is_picked;
    }
    return is_fetching ? pass_fetched(lane->workspace) : STATUS_OK;
}

/* The memories of a lane whose pass is done stand behind its rows. */
static void advance(struct engine *engine, const struct lane *lane)
{
    const float *logits = pass_logits(lane->workspace);

    engine->n_draw = 0;
    for (uint32_t i = 0; i < lane->batch.n_span; i++) {
        struct request *request = lane->request[i];
        struct resident *resident = request->session->resident;
        const struct span *span = &lane->span[i];
        resident->memory_chain =
            digest_tokens(resident->memory_chain,
                          resident->tokens.id + span->position, span->n_row);
        memory_advance(resident->memory, span->n_row);
        schedule_charge(engine, request, lane, span->n_row);
        if (!lane_samples(request, span->position + span->n_row))
            continue;
        engine->draw[engine->n_draw++] =
            (struct draw){.request = request, .logits = logits};
        logits += engine->n_vocab;
    }
}

/* What is to be done between two tokens; then the token, if there is one. */
static void settle(struct engine *engine, struct request *request,
                   uint32_t n_token, const struct draw *draw)
{
    struct session *session = request->session;
    uint64_t position = resident_position(session->resident);

    prefix_passed(engine, request, position);
    if (position % SNAPSHOT_GRID == 0)
        resident_save(engine, session, false);
    resident_answer(engine, session->resident);
    if (!request->prefilled_us)
        request_progress(engine, request, n_token);
    if (draw)
        request_sampled(engine, request, draw->token,
                        draw->has_logprobs ? &draw->logprobs : NULL);
    else if (position == request_target(request))
        end_prefill(engine, request);
}

/* The device is lost, and all memories with it: what was committed lies in the
 * journal, and whoever asks again is told to ask elsewhere. */
static void lose(struct engine *engine, struct lane *lane)
{
    struct cause cause;

    status_because("DEVICE_LOST");
    cause = *status_cause();
    for (uint32_t i = 0; i < lane->batch.n_span; i++)
        request_fail(engine, lane->request[i], FINISH_ERROR, &cause);
    lane_clear(lane);
}

/* The one whose last row sees most: it wants most in between. Of equals the
 * longest. */
static const struct request *largest(const struct lane *lane)
{
    uint64_t most = 0, longest = 0;
    uint32_t it = 0;

    for (uint32_t i = 0; i < lane->batch.n_span; i++) {
        const struct span *span = &lane->span[i];
        const uint64_t end = span->position + span->n_row;
        const uint64_t n = view_n_block(span->policy, end - 1);

        if (n > most || (n == most && end > longest)) {
            it = i;
            most = n;
            longest = end;
        }
    }
    return lane->request[it];
}

/* The device is whole but had no room for what the pass needs in between, and
 * its sessions' memories are half moved on: they go back to their logs. One
 * reply ends by it, so that this has an end; the others are computed again. */
static void shed(struct engine *engine, struct lane *lane)
{
    const struct request *one = largest(lane);
    struct cause cause;

    status_because("KV_MEMORY");
    cause = *status_cause();
    for (uint32_t i = 0; i < lane->batch.n_span; i++) {
        struct request *request = lane->request[i];

        resident_forget(engine, request->session);
        if (request == one)
            request_fail(engine, request, FINISH_ERROR, &cause);
        else
            request_step_back(engine, request);
    }
    lane_clear(lane);
}

/* A pass is done: what it means to each of its requests, who may go by it. */
static void take(struct engine *engine, struct lane *lane)
{
    const struct draw *draw = engine->draw;

    engine->step++;
    switch (pass_check(lane->workspace)) {
    case STATUS_OK:
        break;
    case STATUS_RESOURCE_EXHAUSTED:
        shed(engine, lane);
        return;
    default:
        lose(engine, lane);
        return;
    }
    metric_observe(engine->metrics.iteration_tokens, lane->batch.n_row);
    schedule_observe(engine, lane);
    advance(engine, lane);
    if (pick_tops(engine, lane)) {
        lose(engine, lane);
        return;
    }
    pick_all(engine);
    for (uint32_t i = 0; i < lane->batch.n_span; i++) {
        struct request *request = lane->request[i];
        bool has_draw =
            draw < engine->draw + engine->n_draw && draw->request == request;
        const struct draw *its = has_draw ? draw++ : NULL;

        if (!paged_is_lost(engine, request))
            settle(engine, request, lane->span[i].n_row, its);
    }
    lane_clear(lane);
}

bool batch_decode(struct engine *engine)
{
    struct lane *lane = &engine->decode;
    bool has_ended;

    start_waiting(engine);
    has_ended = gather(engine);
    if (lane->batch.n_span == 0) {
        engine->schedule.decode_us = 0;
        return has_ended;
    }
    schedule_step(engine, lane);
    lane_begin(lane);
    (void)lane_run(lane, engine->options.pool, engine->options.clock, NULL);
    /* A clock that stands is a pass all the same. */
    engine->schedule.decode_us = lane->busy_us ? lane->busy_us : 1;
    take(engine, lane);
    return true;
}

/* Tokens that a request may bring to a pass. */
static uint64_t most_tokens(struct engine *engine, struct request *request,
                            uint64_t position)
{
    const uint64_t room = paged_room(engine, request);
    const uint64_t n =
        policy_pass_end(&request->session->policy, position) - position;

    return n < room ? n : room;
}

/* The first one's layers are those of the pass; others wait for the next. (A
 * row alone goes through all with the replies', and what that leaves in layers
 * that rows before it have not reached is never read.) */
static bool goes_as_deep(struct lane *lane, const struct request *request)
{
    const uint32_t n_layer = excerpt_layers(request);

    if (lane->batch.n_span == 0)
        lane->batch.n_layer = n_layer;
    return lane->batch.n_layer == n_layer;
}

/* What the next pass of prompts brings. */
static void begin_prompt(struct engine *engine)
{
    const struct schedule *s = &engine->schedule;
    uint32_t n_chunk = schedule_prompt(engine);

    for (uint32_t i = 0; i < n_chunk; i++) {
        struct request *request = s->request[s->chunk[i].entry];
        uint64_t position = resident_position(request->session->resident);
        uint64_t n = s->chunk[i].n_token;
        uint64_t most = most_tokens(engine, request, position);
        uint64_t end =
            prefix_stop(request, position, position + (n < most ? n : most));
        if (end > position && goes_as_deep(&engine->prompt, request))
            enter(engine, &engine->prompt, request, (uint32_t)(end - position));
    }
    engine->n_entrant = 0;
    if (engine->prompt.batch.n_span > 0)
        lane_begin(&engine->prompt);
}

bool batch_prompt(struct engine *engine, bool may_begin)
{
    struct lane *lane = &engine->prompt;
    struct pass_slice slice;

    if (!lane->is_under_way && may_begin)
        begin_prompt(engine);
    if (!lane->is_under_way)
        return false;
    slice = schedule_slice(engine);
    if (lane_run(lane, engine->options.pool, engine->options.clock, &slice))
        take(engine, lane);
    return !pass_is_waiting(lane->workspace);
}

void batch_finish(struct engine *engine)
{
    struct lane *lane = &engine->prompt;

    if (!lane->is_under_way)
        return;
    (void)lane_run(lane, engine->options.pool, engine->options.clock, NULL);
    take(engine, lane);
}
