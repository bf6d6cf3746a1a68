#include "scheduler/engine_calls.h"

#include <assert.h>
#include <string.h>
#include <sys/random.h>

static struct digest add(struct digest d, const void *bytes, size_t n_bytes)
{
    return digest_chain(d, bytes, n_bytes);
}

/* Of what the client said, in an order of its own: padding never counts. */
static struct digest digest_of(const struct generate_command *g)
{
    const struct sampling *s = &g->sampling;
    float real[] = {s->temperature,
                    s->top_p,
                    s->min_p,
                    s->repetition_penalty,
                    s->presence_penalty,
                    s->frequency_penalty};
    uint64_t whole[] = {(uint64_t)s->top_k,
                        s->max_tokens,
                        s->min_tokens,
                        (uint64_t)s->n_logprob,
                        s->ignore_eos,
                        s->skip_special,
                        s->n_stop,
                        s->n_stop_id,
                        s->n_bias,
                        g->is_append,
                        g->has_seed,
                        g->has_seed ? s->seed : 0,
                        g->n_token - g->n_opening};
    struct digest d = digest_bytes(whole, sizeof(whole));

    /* Turns of before they were known stay what they are. */
    if (g->excerpt.n_keep)
        d = add(d, &g->excerpt, sizeof(g->excerpt));
    if (g->rereads)
        d = add(d, &g->reread_limit, sizeof(g->reread_limit));
    d = add(d, real, sizeof(real));
    for (uint32_t i = 0; i < s->n_stop; i++)
        d = add(d, s->stop[i], strlen(s->stop[i]) + 1);
    d = add(d, s->stop_id, s->n_stop_id * sizeof(*s->stop_id));
    for (uint32_t i = 0; i < s->n_bias; i++) {
        d = add(d, &s->bias[i].token, sizeof(s->bias[i].token));
        d = add(d, &s->bias[i].bias, sizeof(s->bias[i].bias));
    }
    return add(d, g->token + g->n_opening,
               (g->n_token - g->n_opening) * sizeof(*g->token));
}

/* Only the first turn has the opening; no digest counts it. */
static void drop_opening(struct generate_command *g)
{
    g->token += g->n_opening;
    g->n_token -= g->n_opening;
    g->n_shared = 0;
    g->n_opening = 0;
}

enum status generate_meta(struct engine *engine, struct session_meta *meta)
{
    enum status st;

    meta->create_ms = meta->update_ms = engine_wall_ms(engine);
    st = uid_make(meta->create_ms, &meta->uid);
    meta->path = log_path_alone(meta->uid);
    if (!st && !meta->name[0])
        uid_format(meta->uid, meta->name);
    return st;
}

static enum status fail_because(enum status st, const char *reason)
{
    status_because(reason);
    return st;
}

/* What can be said without the session. */
static enum status check_command(struct engine *engine,
                                 const struct command *command)
{
    const struct generate_command *g = &command->generate;
    enum status st;

    if (engine->is_draining) {
        status_fail(STATUS_UNAVAILABLE, "node is draining");
        status_because("NODE_DRAINING");
        return status_retry(1000 + (uint32_t)(command->reply % 10) * 100);
    }
    if (command->deadline_us && command->deadline_us <= engine_now_us(engine))
        return fail_because(status_fail(STATUS_DEADLINE_EXCEEDED,
                                        "deadline passed before the request "
                                        "was read"),
                            "DEADLINE_PASSED");
    st = sampling_check(&g->sampling, engine->n_vocab);
    if (st)
        return st;
    for (uint64_t i = 0; i < g->n_token; i++)
        if (g->token[i] >= engine->n_vocab) {
            status_fail(STATUS_INVALID_ARGUMENT,
                        "token %lu of the input is %u, limit %u", i,
                        g->token[i], engine->n_vocab - 1);
            status_because("TOKEN_OUT_OF_RANGE");
            return status_field("tokenized.input_ids");
        }
    if (g->has_resume && !g->request_id[0])
        return fail_because(status_fail(STATUS_NOT_FOUND,
                                        "resume_from_position needs the "
                                        "request_id of a known request"),
                            "REQUEST_UNKNOWN");
    return STATUS_OK;
}

/* Does the retry say what the turn was begun with? */
static enum status check_retry(const struct generate_command *g,
                               const struct turn *turn)
{
    if (g->has_resume && g->n_token == 0)
        return STATUS_OK;
    if (digest_equal(digest_of(g), turn->input))
        return STATUS_OK;
    status_fail(STATUS_INVALID_ARGUMENT,
                "request_id %s was used with other input or parameters",
                g->request_id);
    status_because("REQUEST_ID_REUSED");
    return status_field("request_id");
}

static enum status check_resume(const struct generate_command *g,
                                const struct session *session,
                                uint64_t output_start, uint64_t *out_from)
{
    *out_from = output_start;
    if (!g->has_resume || g->resume_position <= output_start)
        return STATUS_OK;
    if (g->resume_position > session->n_token) {
        status_fail(STATUS_OUT_OF_RANGE,
                    "resume_from_position is %lu, the log has %lu tokens",
                    g->resume_position, session->n_token);
        status_because("POSITION_OUT_OF_RANGE");
        return status_field("resume_from_position");
    }
    *out_from = g->resume_position;
    return STATUS_OK;
}

static uint64_t max_tokens_of(const struct engine *engine,
                              const struct generate_command *g)
{
    if (g->is_append)
        return 0;
    return g->sampling.max_tokens ? g->sampling.max_tokens
                                  : engine->options.default_max_tokens;
}

static const struct policy *policy_of(const struct generate_command *g)
{
    return g->has_policy ? &g->policy : NULL;
}

static enum status check_policy(struct engine *engine,
                                const struct session *session,
                                const struct generate_command *g)
{
    if (change_is(session, policy_of(g)))
        return change_check(engine, session, &g->policy);
    return (g->is_append && policy_check_end(&session->policy)) ||
                   model_check_policy(engine->options.model, &session->policy)
               ? status_field("policy")
               : STATUS_OK;
}

/* An excerpt is chosen by what a layer that sees everything would attend to. */
static enum status check_excerpt(const struct session *session,
                                 const struct generate_command *g)
{
    const struct policy *policy = g->has_policy ? &g->policy : &session->policy;

    if (g->excerpt.n_keep == 0 || policy->kind == POLICY_FULL)
        return STATUS_OK;
    status_fail(STATUS_FAILED_PRECONDITION,
                "gemfilter needs the memory policy full, the session has "
                "another one");
    status_because("GEMFILTER_UNSUPPORTED");
    return status_field("gemfilter");
}

/* What a new turn must meet. */
static enum status check_turn(struct engine *engine,
                              const struct session *session,
                              const struct generate_command *g)
{
    uint64_t n = session->n_token, room;
    const uint64_t n_input = reread_input(engine, session, g);

    if (g->has_resume)
        return fail_because(
            status_fail(STATUS_NOT_FOUND,
                        "request_id %s is not the session's last request",
                        g->request_id),
            "REQUEST_UNKNOWN");
    if (g->has_expected && g->expected_position != n)
        return fail_because(
            status_fail(STATUS_ABORTED,
                        "expected position %lu, committed position is %lu",
                        g->expected_position, n),
            "POSITION_MISMATCH");
    if (session->is_listed && g->has_durability &&
        g->durability == DURABILITY_NONE &&
        session->durability != DURABILITY_NONE) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "a durable session stays durable");
        status_because("DURABILITY_LOWERED");
        return status_field("durability");
    }
    if (check_policy(engine, session, g) || check_excerpt(session, g))
        return status_cause()->code;
    if (g->n_token == 0 && (n == 0 || g->is_append)) {
        status_fail(STATUS_INVALID_ARGUMENT, "input has no tokens");
        return fail_because(STATUS_INVALID_ARGUMENT, "EMPTY_INPUT");
    }
    if (reread_check(engine, session, g))
        return status_cause()->code;
    room = engine->n_context - (g->is_append ? 0 : 1);
    if (n > room || n_input > room - n) {
        status_fail(STATUS_INVALID_ARGUMENT,
                    "session has %lu tokens and the input %lu%s, limit %lu%s",
                    n, n_input, g->rereads ? " with what is read again" : "",
                    engine->n_context,
                    g->is_append ? "" : " with one to generate");
        return fail_because(STATUS_INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED");
    }
    if (!session->name[0])
        return STATUS_OK; /* nothing of it is kept */
    return keep_quota(engine, session->tenant ? session->tenant : "", 0,
                      n_input + max_tokens_of(engine, g));
}

void generate_close(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    if (!resident->has_turn || resident->turn.finish != FINISH_NONE)
        return;
    resident->turn.finish = FINISH_CANCELLED;
    flight_turn(engine, session);
}

static enum status draw_seed(uint64_t *out)
{
    if (getrandom(out, sizeof(*out), 0) != (ssize_t)sizeof(*out))
        return status_fail(STATUS_INTERNAL, "system gives no random bytes");
    return STATUS_OK;
}

static enum status make_turn(struct engine *engine,
                             const struct session *session,
                             const struct generate_command *g,
                             struct turn *turn)
{
    const uint64_t n_input = reread_input(engine, session, g);
    uint64_t left = engine->n_context - session->n_token - n_input;
    struct sampling *s = &turn->sampling;

    memset(turn, 0, sizeof(*turn));
    turn->position = session->n_token;
    turn->n_input = n_input;
    memcpy(turn->request_id, g->request_id, REQUEST_ID_SIZE);
    turn->input = digest_of(g);
    turn->is_append = g->is_append;
    turn->excerpt = g->excerpt;
    *s = g->sampling;
    if (s->max_tokens == 0)
        s->max_tokens = engine->options.default_max_tokens;
    if (s->max_tokens > left)
        s->max_tokens = (uint32_t)left;
    return g->has_seed ? STATUS_OK : draw_seed(&s->seed);
}

/* Durability of a turn is that of its session, which may only rise. */
static void raise_durability(struct engine *engine, struct session *session,
                             const struct generate_command *g)
{
    struct session_meta earlier;

    if (!session->is_listed || !g->has_durability ||
        session->durability != DURABILITY_NONE ||
        g->durability == DURABILITY_NONE)
        return;
    session_meta_get(session, &earlier);
    session->durability = g->durability;
    session->update_ms = engine_wall_ms(engine);
    flight_upgrade(engine, session, &earlier);
}

/* Before its turn begins. */
static enum status take_policy(struct engine *engine, struct request *request)
{
    const struct generate_command *g = &request->command->generate;
    struct session *session = request->session;
    enum status st;

    if (!change_is(session, policy_of(g)))
        return STATUS_OK;
    st = change_policy(engine, session, &g->policy);
    session->scope = prefix_scope(engine, session, request->command->tenant);
    return st;
}

/* Everything was checked: from here on the turn exists. */
static enum status accept(struct engine *engine, struct request *request)
{
    const struct generate_command *g = &request->command->generate;
    struct session *session = request->session;
    struct digest before = session->resident->chain;
    uint64_t from = session->n_token;
    struct resident *resident;
    struct turn turn;
    enum status st = make_turn(engine, session, g, &turn);

    if (!st)
        st = take_policy(engine, request);
    if (!st)
        st = reread_append(engine, session, g);
    resident = session->resident;
    if (st)
        return st;
    raise_durability(engine, session, g);
    if (!session->is_listed && session->name[0]) {
        table_add(engine, session);
        flight_create(engine, session);
    }
    generate_close(engine, session);
    fork_flatten(engine, session);
    resident->turn = turn;
    resident->has_turn = true;
    session->n_token += turn.n_input;
    resident->chain =
        digest_tokens(before, resident->tokens.id + from, turn.n_input);
    flight_tokens(engine, session, from, before);
    flight_turn(engine, session);
    if (from == 0)
        request->n_shared = g->n_shared;
    metric_add(engine->metrics.prompt_tokens, turn.n_input);
    engine->prompt_tokens += turn.n_input;
    request_begin(engine, request);
    request_accepted(engine, request);
    return excerpt_begin(engine, request);
}

/* The same request once more: replay, then go on where it stopped. */
static enum status again(struct engine *engine, struct request *request)
{
    const struct generate_command *g = &request->command->generate;
    struct session *session = request->session;
    const struct turn *turn = &session->resident->turn;
    uint64_t from;
    enum status st = check_retry(g, turn);

    if (!st)
        st = check_resume(g, session, turn->position + turn->n_input, &from);
    if (st)
        return st;
    request_begin(engine, request);
    request_accepted(engine, request);
    request_replay(engine, request, from);
    if (turn->finish != FINISH_NONE) {
        request_complete(engine, request, turn->finish);
        request_free(engine, request);
        return STATUS_OK;
    }
    return excerpt_begin(engine, request);
}

static void drop_command(struct request *request)
{
    arena_destroy(request->command->arena);
    request->command = NULL;
}

void generate_admit(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    const struct resident *resident = session->resident;
    const struct generate_command *g;
    bool is_again;
    enum status st;

    if (request->kind == REQUEST_CHECKPOINT) {
        if (request->has_policy &&
            change_policy(engine, session, &request->policy))
            request_fail(engine, request, FINISH_ERROR, status_cause());
        else
            request_begin(engine, request);
        return;
    }
    if (session->n_token > 0)
        drop_opening(&request->command->generate);
    g = &request->command->generate;
    session->scope = prefix_scope(engine, session, request->command->tenant);
    is_again = resident->has_turn && g->request_id[0] &&
               strcmp(g->request_id, resident->turn.request_id) == 0;
    if (is_again) {
        bool is_over = resident->turn.finish != FINISH_NONE;
        st = again(engine, request);
        if (!st && is_over)
            return; /* replayed and gone */
    } else {
        st = check_turn(engine, session, g);
        if (!st)
            st = accept(engine, request);
    }
    if (st) {
        gauges_reject(engine, status_cause());
        request_fail(engine, request, FINISH_ERROR, status_cause());
    } else {
        drop_command(request);
    }
}

/* The same request while it runs: its reply gets another reader. */
static enum status attach(struct engine *engine, struct request *request,
                          struct command *command)
{
    const struct generate_command *g = &command->generate;
    const struct session *session = request_asker(request);
    struct cause cause;
    uint64_t from;
    enum status st = check_retry(g, &session->resident->turn);

    if (!st)
        st = check_resume(g, session, request->output_start, &from);
    if (st)
        return st;
    status_fail(STATUS_ABORTED, "the same request_id was sent again");
    status_because("REPLY_TAKEN_OVER");
    cause = *status_cause();
    flight_error(engine, request->reply, &cause);
    request->reply = command->reply;
    request->deadline_us = command->deadline_us;
    request->wants_progress = g->wants_progress;
    request_resume(request, engine);
    request_accepted(engine, request);
    request_replay(engine, request, from);
    arena_destroy(command->arena);
    return STATUS_OK;
}

/* The session has a request; true if the command was one with it. */
static enum status meet(struct engine *engine, struct request *request,
                        struct command *command)
{
    const struct generate_command *g = &command->generate;
    const struct session *session = request_asker(request);
    const char *id = request->kind == REQUEST_CHECKPOINT ? ""
                     : request->command ? request->command->generate.request_id
                                        : session->resident->turn.request_id;

    if (!g->request_id[0] || strcmp(g->request_id, id) != 0) {
        status_fail(STATUS_ABORTED, "session %s is busy with request '%s'",
                    session->name, id);
        return fail_because(STATUS_ABORTED, "OPERATION_IN_PROGRESS");
    }
    if (request->phase != REQUEST_LOADING)
        return attach(engine, request, command);
    if (request->reply) {
        status_fail(STATUS_ABORTED, "the same request_id was sent again");
        status_because("REPLY_TAKEN_OVER");
        flight_error(engine, request->reply, status_cause());
    }
    assert(request->command);
    arena_destroy(request->command->arena); /* checked again when loaded */
    request->command = command;
    request->n_input = reread_input(engine, session, g);
    request->reply = command->reply;
    request->deadline_us = command->deadline_us;
    request->wants_progress = g->wants_progress;
    return STATUS_OK;
}

/* A session for this command, not yet listed. */
static enum status provide(struct engine *engine, const struct command *command,
                           struct session **out)
{
    const struct generate_command *g = &command->generate;
    struct session_meta meta = {.durability = DURABILITY_NONE,
                                .policy = g->policy,
                                .path = log_path_alone((struct uid){0, 0})};
    enum status st = STATUS_OK;

    memcpy(meta.tenant, command->tenant, TENANT_SIZE);
    if (!g->is_append)
        policy_end_prompt(&meta.policy, g->n_token);
    policy_end_turns(&meta.policy, engine->config->eos, engine->config->n_eos);
    if (g->session[0]) {
        st = control_check_new(engine, g->session);
        if (!st)
            st = keep_quota(engine, command->tenant, 1, 0);
        if (st)
            return st;
        memcpy(meta.name, g->session, SESSION_NAME_SIZE);
        meta.durability =
            g->has_durability ? g->durability : engine->options.durability;
        st = generate_meta(engine, &meta);
    }
    if (!st)
        *out = session_create(&meta);
    return st;
}

static enum status find_session(struct engine *engine,
                                const struct command *command,
                                struct session **out)
{
    const struct generate_command *g = &command->generate;
    enum status st;

    if (!g->session[0])
        return provide(engine, command, out);
    st = control_find(engine, command, g->session, out);
    if (st != STATUS_NOT_FOUND || !g->creates)
        return st;
    if (g->has_resume)
        return fail_because(status_fail(STATUS_NOT_FOUND,
                                        "session %s does not exist, so there "
                                        "is nothing to resume",
                                        g->session),
                            "REQUEST_UNKNOWN");
    return provide(engine, command, out);
}

/* A snapshot that is computed again for nobody in particular: whoever comes
 * computes the same. */
static bool is_own_errand(const struct request *request)
{
    return request->kind == REQUEST_CHECKPOINT && request->reply == 0;
}

static enum status arrive(struct engine *engine, struct command *command)
{
    struct generate_command *g = &command->generate;
    struct request asked = {.kind = g->is_append ? REQUEST_APPEND
                                                 : REQUEST_GENERATE,
                            .reply = command->reply,
                            .deadline_us = command->deadline_us,
                            .priority = g->priority,
                            .wants_progress = g->wants_progress,
                            .n_reply = max_tokens_of(engine, g),
                            .command = command};
    struct session *session;
    struct request *request;
    enum status st = check_command(engine, command);

    if (!st && g->excerpt.n_keep)
        st = excerpt_check(engine->options.model, &g->excerpt);
    if (!st)
        st = find_session(engine, command, &session);
    if (st)
        return st;
    if (session->request && is_own_errand(session->request))
        request_free(engine, session->request);
    if (session->request)
        return meet(engine, session->request, command);
    asked.session = session;
    asked.n_input = reread_input(engine, session, g);
    asked.promise =
        change_promise(engine, session, policy_of(g),
                       session->n_token + asked.n_input, asked.n_reply) +
        excerpt_promise(engine, &g->excerpt, session->n_token + asked.n_input,
                        asked.n_reply);
    st = schedule_admit(engine, &asked, command->tenant);
    if (st) {
        session_put(session);
        return st;
    }
    request = request_create(engine, &asked);
    if (!session->resident && session->n_token == 0)
        resident_make(engine, session);
    if (session->resident)
        generate_admit(engine, request);
    return STATUS_OK;
}

void generate_arrive(struct engine *engine, struct command *command)
{
    if (arrive(engine, command)) {
        gauges_reject(engine, status_cause());
        flight_error(engine, command->reply, status_cause());
        arena_destroy(command->arena);
    }
}
