/*
 * Reading twice (JRT-Prompt, Arora et al. 2024, arXiv:2407.05483). A recurrent
 * state must decide what to keep before it has seen the question. So a turn may
 * feed  question, what came before it, question  instead of the question alone.
 * All of it becomes log, like any input: nothing else has to know.
 */
#include "scheduler/engine_calls.h"

#include <assert.h>
#include <string.h>

/* How many tokens the log begins with that only a beginning has (BOS). */
static uint64_t opening_of(const struct engine *engine,
                           const struct session *session)
{
    const struct tokenizer *tokenizer = engine->options.tokenizer;
    const uint32_t *opening;
    uint32_t n;

    if (!tokenizer || !session->resident)
        return 0;
    opening = tokenizer_opening(tokenizer, &n);
    return n > 0 && session->n_token >= n &&
                   memcmp(opening, session->resident->tokens.id,
                          n * sizeof(*opening)) == 0
               ? n
               : 0;
}

/* From where the log is read again: to its end. */
static uint64_t first_again(const struct engine *engine,
                            const struct session *session,
                            const struct generate_command *g)
{
    const uint64_t n = session->n_token, limit = g->reread_limit;
    const uint64_t opening = opening_of(engine, session);
    const uint64_t first = limit > 0 && limit < n ? n - limit : 0;

    return first < opening ? opening : first;
}

uint64_t reread_input(const struct engine *engine,
                      const struct session *session,
                      const struct generate_command *g)
{
    if (!g->rereads)
        return g->n_token;
    return session->n_token - first_again(engine, session, g) + 2 * g->n_token;
}

enum status reread_check(const struct engine *engine,
                         const struct session *session,
                         const struct generate_command *g)
{
    if (!g->rereads || first_again(engine, session, g) < session->n_token)
        return STATUS_OK;
    status_fail(STATUS_INVALID_ARGUMENT,
                "session has no tokens to read again: append the text first, "
                "then ask with reread");
    status_because("REREAD_EMPTY");
    return status_field("reread");
}

enum status reread_append(const struct engine *engine,
                          const struct session *session,
                          const struct generate_command *g)
{
    struct resident *resident = session->resident;
    struct ids *tokens = &resident->tokens;
    const uint64_t before = session->n_token;
    const uint64_t first = first_again(engine, session, g);
    enum status st;

    assert(resident);
    st = tokens_append(tokens, g->token, g->n_token);
    if (st || !g->rereads)
        return st;
    st = tokens_reserve(tokens, before - first + g->n_token);
    if (st) {
        tokens->n = before;
        return st;
    }
    memcpy(tokens->id + tokens->n, tokens->id + first,
           (before - first) * sizeof(*tokens->id));
    tokens->n += before - first;
    return tokens_append(tokens, g->token, g->n_token); /* there is room */
}
