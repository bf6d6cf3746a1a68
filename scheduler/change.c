/*
 * A session goes on under another memory policy. It is then the session that it
 * would be had it had that policy from its first token: the same log, and
 * states of all of it under the new policy. So what a token depends on is still
 * the log and one policy, never when or how often that was changed. The price
 * is that its log is computed once more.
 *
 * Blocks and snapshots of a log are of one policy, and forks may read them. A
 * durable session therefore goes on in a new log, into which its tokens are
 * copied; the old one goes when nobody reads it any more.
 */
#include "scheduler/engine_calls.h"

#include <string.h>

bool change_is(const struct session *session, const struct policy *policy)
{
    return policy && !policy_is_asked(policy, &session->policy);
}

size_t change_promise(const struct engine *engine,
                      const struct session *session,
                      const struct policy *policy, uint64_t n_token,
                      uint64_t max_tokens)
{
    struct session then;

    if (!change_is(session, policy))
        return request_promise(engine, session, n_token, max_tokens);
    then = *session;
    then.policy = *policy;
    then.resident = NULL;
    return request_promise(engine, &then, n_token, max_tokens);
}

enum status change_check(const struct engine *engine,
                         const struct session *session,
                         const struct policy *policy)
{
    if (policy_check_end(policy) ||
        model_check_policy(engine->options.model, policy))
        return status_field("policy");
    if (!session->is_upgrading)
        return STATUS_OK;
    status_fail(STATUS_ABORTED, "session %s is just becoming durable",
                session->name);
    status_because("OPERATION_IN_PROGRESS");
    return status_retry(100);
}

/* Everything but the log and its last turn. */
static void drop_states(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;
    struct ids tokens = resident->tokens;
    struct digest chain = resident->chain;
    struct turn turn = resident->turn;
    bool has_turn = resident->has_turn;

    memset(&resident->tokens, 0, sizeof(resident->tokens));
    resident_drop(engine, session);
    resident_make(engine, session);
    resident = session->resident;
    resident->tokens = tokens;
    resident->chain = chain;
    resident->turn = turn;
    resident->has_turn = has_turn;
    if (tokens.n)
        resident->reuse = REUSE_POLICY_CHANGED;
    charge_settle(engine, session);
    if (session->request)
        session->request->has_sought = session->request->has_fetched = false;
}

static void write_log(struct engine *engine, struct session *session,
                      const struct session_meta *earlier)
{
    flight_lineage(engine, session, earlier, session->n_committed);
    flight_tokens(engine, session, 0, engine->empty_chain);
    if (session->resident->has_turn)
        flight_turn(engine, session);
}

enum status change_policy(struct engine *engine, struct session *session,
                          const struct policy *policy)
{
    const bool is_durable = session->durability != DURABILITY_NONE;
    struct session_meta earlier, meta;
    struct uid log;
    enum status st = change_check(engine, session, policy);

    if (!st)
        st = uid_make(engine_wall_ms(engine), &log);
    if (st)
        return st;
    session_meta_get(session, &earlier);
    meta = earlier;
    meta.policy = *policy;
    policy_end_turns(&meta.policy, engine->config->eos, engine->config->n_eos);
    meta.update_ms = engine_wall_ms(engine);
    if (is_durable) {
        meta.path = log_path_alone(log);
        prefix_deleted(engine, session);
    }
    drop_states(engine, session);
    session_meta_set(session, &meta);
    session->scope =
        prefix_scope(engine, session, session->tenant ? session->tenant : "");
    if (is_durable)
        write_log(engine, session, &earlier);
    return STATUS_OK;
}
