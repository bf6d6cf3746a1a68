#include "scheduler/engine_parts.h"

#include <stdlib.h>
#include <string.h>

enum status batch_init(struct engine *engine)
{
    uint32_t n = engine->options.max_running;
    enum status st;

    engine->row_max = plan_row_max(n, engine->options.step_tokens);
    engine->entry = calloc(n, sizeof(*engine->entry));
    engine->entrant = calloc(n, sizeof(struct request *));
    engine->order = calloc(n, sizeof(*engine->order));
    engine->chunk = calloc(n, sizeof(*engine->chunk));
    engine->span = calloc(n, sizeof(*engine->span));
    engine->logit_row = calloc(n, sizeof(*engine->logit_row));
    engine->row_token = calloc(engine->row_max, sizeof(*engine->row_token));
    if (!engine->entry || !engine->entrant || !engine->order ||
        !engine->chunk || !engine->span || !engine->logit_row ||
        !engine->row_token)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for batches of %u rows", engine->row_max);
    st = workspace_create(engine->options.model, engine->row_max, n, n,
                          &engine->workspace);
    if (!st)
        st = sampler_create(model_backend(engine->options.model),
                            engine->n_vocab, &engine->sampler);
    return st;
}

void batch_release(struct engine *engine)
{
    free(engine->entry);
    free(engine->entrant);
    free(engine->order);
    free(engine->chunk);
    free(engine->span);
    free(engine->logit_row);
    free(engine->row_token);
    workspace_destroy(engine->workspace);
    sampler_destroy(engine->sampler);
}

/* First place in the batch: what of its tokens need not be computed. */
static void note_start(struct engine *engine, struct request *request)
{
    const struct engine_metrics *m = &engine->metrics;

    request->is_started = true;
    request->start_us = engine_now_us(engine);
    request->progress_us = request->start_us;
    request->n_cached = resident_position(request->session->resident);
    if (request->n_cached == 0) /* it may have been let go in the queue */
        request->reuse = REUSE_NONE;
    request->session->resident->reuse = REUSE_RESIDENT; /* of the next one */
    metric_observe(m->queue_time,
                   (double)(request->start_us - request->arrive_us) * 1e-6);
    metric_add(m->cache_queries, request_target(request));
    metric_add(m->cache_hits, request->n_cached);
}

/* Counts room for some tokens more, at most what it may ever need. */
static bool claim(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    uint64_t n = session->n_token;
    size_t least = resident_bytes(engine, n + 1);
    size_t bytes = resident_bytes(engine, n + engine->room_tokens);

    if (request->phase == REQUEST_RUNNING &&
        (least <= session->charge || request->promise <= session->charge))
        return true;
    if (bytes > request->promise)
        bytes = request->promise;
    if (!resident_room(engine, session, bytes))
        return false;
    if (bytes > session->charge)
        resident_charge(engine, session, bytes);
    return true;
}

/* False while there is no room for it. */
static bool start(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    struct resident *resident = session->resident;

    if (!claim(engine, request))
        return false;
    if (!resident->memory &&
        memory_create(engine->options.model, &resident->memory)) {
        status_because("KV_MEMORY");
        request_fail(engine, request, FINISH_ERROR, status_cause());
        return true;
    }
    request->phase = REQUEST_RUNNING;
    engine->n_running++;
    if (!request->is_started)
        note_start(engine, request);
    return true;
}

static void start_waiting(struct engine *engine)
{
    for (struct request *r = engine->first, *after; r; r = after) {
        after = r->after;
        if (engine->n_running == engine->options.max_running)
            return;
        /* Room goes to the first, or small ones would pass it for ever. */
        if (r->phase == REQUEST_WAITING && !r->is_paused && !start(engine, r))
            return;
    }
}

/* Nothing is to be sampled and memory is where it should be. */
static void end_prefill(struct engine *engine, struct request *request)
{
    struct session *session = request->session;

    if (request->kind == REQUEST_APPEND) {
        request->prefilled_us = engine_now_us(engine);
        request_finish(engine, request, FINISH_STOP);
        return;
    }
    resident_checkpoint(engine, session, request->reply);
    request_free(engine, request);
}

static uint32_t gather(struct engine *engine)
{
    uint32_t n = 0;

    for (struct request *r = engine->first, *after; r; r = after) {
        uint64_t position, target;
        after = r->after;
        if (r->phase != REQUEST_RUNNING)
            continue;
        position = resident_position(r->session->resident);
        target = request_target(r);
        if (position >= target) { /* only where nothing is sampled */
            end_prefill(engine, r);
            continue;
        }
        if (!claim(engine, r)) {
            request_step_back(engine, r);
            continue;
        }
        engine->entrant[n] = r;
        engine->entry[n++] =
            (struct plan_entry){position, target - position, r->served_step};
    }
    return n;
}

/* Room for the chunks' tokens; chunks whose session gets none are left out. */
static uint32_t reserve(struct engine *engine, uint32_t n_chunk)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_chunk; i++) {
        struct plan_chunk chunk = engine->chunk[i];
        struct request *request = engine->entrant[chunk.entry];
        struct memory *memory = request->session->resident->memory;

        if (memory_reserve(memory, memory_position(memory) + chunk.n_token)) {
            status_because("KV_MEMORY");
            request_fail(engine, request, FINISH_ERROR, status_cause());
            continue;
        }
        engine->chunk[n++] = chunk;
    }
    return n;
}

static const float *forward(struct engine *engine, uint32_t n_chunk)
{
    struct batch batch = {.token = engine->row_token,
                          .span = engine->span,
                          .n_span = n_chunk,
                          .logit_row = engine->logit_row};

    for (uint32_t i = 0; i < n_chunk; i++) {
        const struct plan_chunk *chunk = &engine->chunk[i];
        const struct request *request = engine->entrant[chunk->entry];
        const struct resident *resident = request->session->resident;
        uint64_t position = memory_position(resident->memory);

        memcpy(engine->row_token + batch.n_row, resident->tokens.id + position,
               chunk->n_token * sizeof(uint32_t));
        engine->span[i] =
            (struct span){.first_row = batch.n_row,
                          .n_row = chunk->n_token,
                          .position = position,
                          .layer = memory_layers(resident->memory)};
        batch.n_row += chunk->n_token;
        if (position + chunk->n_token == resident->tokens.n)
            engine->logit_row[batch.n_logit++] = batch.n_row - 1;
    }
    metric_observe(engine->metrics.iteration_tokens, batch.n_row);
    return model_forward(engine->options.model, engine->options.pool,
                         engine->workspace, &batch);
}

static void sample(struct engine *engine, struct request *request,
                   const float *logits)
{
    const struct resident *resident = request->session->resident;
    const struct sampling *sampling = &resident->turn.sampling;
    struct sampler_history history = {.token = resident->tokens.id,
                                      .n_token = resident->tokens.n,
                                      .output_start = request->output_start,
                                      .end = request->end,
                                      .n_end = request->n_end};
    bool has_logprobs = sampling->n_logprob >= 0;
    struct logprobs logprobs;
    uint32_t token = sampler_pick(engine->sampler, sampling, logits, &history,
                                  has_logprobs ? &logprobs : NULL);

    request_sampled(engine, request, token, has_logprobs ? &logprobs : NULL);
}

/* What the step means to one session; the request may be gone behind it. */
static void advance(struct engine *engine, const struct plan_chunk *chunk,
                    const float **logits)
{
    struct request *request = engine->entrant[chunk->entry];
    struct session *session = request->session;
    struct resident *resident = session->resident;
    uint64_t position = memory_position(resident->memory);

    resident->memory_chain = digest_tokens(
        resident->memory_chain, resident->tokens.id + position, chunk->n_token);
    memory_advance(resident->memory, chunk->n_token);
    position += chunk->n_token;
    request->served_step = engine->step;
    if (position % SNAPSHOT_GRID == 0)
        resident_save(engine, session, false);
    if (!request->prefilled_us)
        request_progress(engine, request, chunk->n_token);
    if (position == resident->tokens.n) {
        const float *row = *logits;
        *logits += engine->n_vocab;
        sample(engine, request, row);
    } else if (position == request_target(request)) {
        end_prefill(engine, request);
    }
}

bool batch_run(struct engine *engine)
{
    struct plan_limits limits = {.step_tokens = engine->options.step_tokens,
                                 .cut_grid = SNAPSHOT_GRID};
    uint32_t n_chunk;
    const float *logits;

    start_waiting(engine);
    limits.step = engine->step + 1;
    n_chunk = plan_step(engine->entry, gather(engine), &limits, engine->order,
                        engine->chunk);
    n_chunk = reserve(engine, n_chunk);
    if (n_chunk == 0)
        return false;
    engine->step++;
    logits = forward(engine, n_chunk);
    for (uint32_t i = 0; i < n_chunk; i++)
        advance(engine, &engine->chunk[i], &logits);
    return true;
}
