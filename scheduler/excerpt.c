/*
 * Answers from an excerpt (model/excerpt.h), one request in three stages:
 *
 *   READ    a session with a name comes up to the last token of its input, as
 *           for any turn. Its next turn would have to read that anyway, so what
 *           this computes is not lost.
 *   MATCH   a session of nobody's goes on from there, from a stored prefix, or
 *           from the start, no deeper than the layer whose keys are looked at
 *   ANSWER  another one reads what was chosen and makes the reply
 *
 * Of the sessions of nobody's nothing is ever stored or shared, and the
 * session itself only ever consumes its log: after the reply it is behind by
 * that, and its next turn computes it. While they work the request is theirs as
 * well, so that places, room and passes see a request like any other; its turn
 * stays the asker's.
 */
#include "scheduler/engine_calls.h"

#include <assert.h>
#include <stdlib.h>

struct session *request_asker(const struct request *request)
{
    return request->asker ? request->asker : request->session;
}

uint32_t excerpt_layers(const struct request *request)
{
    const struct session *session = request->session;

    return request->stage == EXCERPT_MATCH
               ? excerpt_depth(&session->resident->turn.excerpt)
               : 0;
}

uint64_t excerpt_count(const struct turn *turn)
{
    const uint64_t n = turn->position + turn->n_input;

    return n < turn->excerpt.n_keep ? n : turn->excerpt.n_keep;
}

size_t excerpt_promise(const struct engine *engine,
                       const struct excerpt *excerpt, uint64_t n_token,
                       uint64_t max_tokens)
{
    if (excerpt->n_keep == 0)
        return 0;
    return request_promise(
        engine, NULL, n_token < excerpt->n_keep ? n_token : excerpt->n_keep,
        max_tokens);
}

/* --- sessions of nobody's --- */

static void drop_scratch(struct engine *engine, struct session *scratch)
{
    scratch->request = NULL;
    resident_drop(engine, scratch);
    session_put(scratch);
}

/* One with the turn of the asker and room for n_token tokens. */
static enum status make_scratch(struct engine *engine,
                                const struct session *asker, uint64_t n_token,
                                struct session **out)
{
    struct session_meta meta = {.durability = DURABILITY_NONE,
                                .policy = asker->policy,
                                .path = log_path_alone((struct uid){0, 0})};
    struct session *scratch = session_create(&meta);
    enum status st;

    scratch->scope = NO_SCOPE;
    resident_make(engine, scratch);
    scratch->resident->turn = asker->resident->turn;
    scratch->resident->has_turn = true;
    st = tokens_reserve(&scratch->resident->tokens, n_token);
    if (st)
        drop_scratch(engine, scratch);
    else
        *out = scratch;
    return st;
}

/* All of its tokens are there. */
static void count_tokens(const struct engine *engine, struct session *scratch)
{
    struct resident *resident = scratch->resident;

    scratch->n_token = scratch->n_committed = resident->tokens.n;
    resident->chain = digest_tokens(engine->empty_chain, resident->tokens.id,
                                    resident->tokens.n);
}

/* The request goes on in the scratch, from the queue. */
static void switch_to(struct engine *engine, struct request *request,
                      struct session *scratch, enum excerpt_stage stage)
{
    if (request->phase == REQUEST_RUNNING)
        request_step_back(engine, request);
    if (request->asker)
        drop_scratch(engine, request->session);
    else
        request->asker = request->session;
    request->session = scratch;
    request->stage = stage;
    scratch->request = request;
    request->has_sought = request->has_fetched = false;
    request->n_shared = request->shared_stop = 0;
    request->is_preempted = false;
    request->begin = resident_position(scratch->resident);
    request->promise =
        request_promise(engine, scratch, scratch->n_token, request->n_reply);
    charge_settle(engine, scratch);
}

/* --- MATCH --- */

/* What the asker's memory holds of these tokens. */
static void take_over(struct engine *engine, struct session *asker,
                      struct session *scratch)
{
    struct resident *from = asker->resident, *resident = scratch->resident;
    const size_t holds = charge_holds(asker);
    const uint64_t position = resident_position(from);

    if (position == 0 || position >= scratch->n_token ||
        memory_fork(from->memory, &engine->shared_bytes, &resident->memory))
        return; /* then it is computed again */
    resident->memory_chain = from->memory_chain;
    charge_bytes(engine, asker, holds); /* less what it shares now */
}

static enum status begin_match(struct engine *engine, struct request *request)
{
    struct session *asker = request->session, *scratch = NULL;
    const uint64_t n = request->output_start;
    enum status st = make_scratch(engine, asker, n, &scratch);

    if (st)
        return st;
    st = tokens_append(&scratch->resident->tokens, asker->resident->tokens.id,
                       n);
    if (!st)
        st = excerpt_match_init(&asker->resident->turn.excerpt,
                                engine->options.model, n, &request->match);
    if (st) {
        drop_scratch(engine, scratch);
        return st;
    }
    count_tokens(engine, scratch);
    scratch->scope = asker->scope;
    take_over(engine, asker, scratch);
    switch_to(engine, request, scratch, EXCERPT_MATCH);
    return STATUS_OK;
}

/* --- ANSWER --- */

static enum status begin_answer(struct engine *engine, struct request *request)
{
    const struct session *asker = request->asker;
    const struct ids *log = &asker->resident->tokens;
    const uint32_t n = (uint32_t)request->output_start;
    uint32_t *index = malloc(n * sizeof(*index)), n_kept;
    struct session *scratch = NULL;
    struct ids *tokens;
    enum status st;

    if (!index)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a choice among %u tokens", n);
    n_kept = excerpt_choose(&asker->resident->turn.excerpt,
                            request->match.match, n, index);
    st = make_scratch(engine, asker, n_kept + log->n - n, &scratch);
    if (!st) {
        tokens = &scratch->resident->tokens;
        for (uint32_t i = 0; i < n_kept; i++)
            tokens->id[tokens->n++] = log->id[index[i]];
        st = tokens_append(tokens, log->id + n, log->n - n); /* there is room */
        count_tokens(engine, scratch);
        request->n_left_out = n - n_kept;
        switch_to(engine, request, scratch, EXCERPT_ANSWER);
    }
    free(index);
    excerpt_match_release(engine->options.model, &request->match);
    return st;
}

/* --- a request on its way --- */

enum status excerpt_begin(struct engine *engine, struct request *request)
{
    const struct session *session = request->session;

    if (session->resident->turn.excerpt.n_keep == 0)
        return STATUS_OK;
    if (!session->name[0]) /* nobody will go on with it */
        return begin_match(engine, request);
    request->stage = EXCERPT_READ;
    return STATUS_OK;
}

void excerpt_next(struct engine *engine, struct request *request)
{
    enum status st = request->stage == EXCERPT_READ
                         ? begin_match(engine, request)
                         : begin_answer(engine, request);

    if (st)
        request_fail(engine, request, FINISH_ERROR, status_cause());
}

enum status excerpt_sampled(struct request *request, uint32_t token)
{
    struct session *scratch = request->session;
    struct resident *resident = scratch->resident;
    enum status st;

    if (!request->asker)
        return STATUS_OK;
    st = tokens_append(&resident->tokens, &token, 1);
    if (st)
        return st;
    resident->chain = digest_tokens(resident->chain, &token, 1);
    scratch->n_token++;
    return STATUS_OK;
}

void excerpt_leave(struct engine *engine, struct request *request)
{
    struct session *scratch = request->session;

    excerpt_match_release(engine->options.model, &request->match);
    if (!request->asker)
        return;
    request->session = request->asker;
    request->asker = NULL;
    drop_scratch(engine, scratch);
}
