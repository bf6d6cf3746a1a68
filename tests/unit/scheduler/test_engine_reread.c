/*
 * Reading twice: what is fed becomes log. The oracle is a client that sends the
 * same tokens itself, as one input.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define N_CONTEXT 300u /* tokens of the first turn's input */
#define N_QUESTION 20u

/* The first turn, and what the log has then, kept by the node. */
static struct reply *begin(struct node *node, const char *name)
{
    node_completed(node, generate(node, name, "context", N_CONTEXT, 1));
    return node_read(node, name);
}

static struct command *question(struct node *node, const char *name,
                                const char *id, uint32_t n_token)
{
    return generate(node, name, id, n_token, 2);
}

/* The same with the log's last tokens again; limit 0: all. */
static struct command *rereading(struct command *command, uint64_t limit)
{
    command->generate.rereads = true;
    command->generate.reread_limit = limit;
    return command;
}

/* The same, spelt out by the client. */
static struct command *spelt(struct command *command, const struct reply *log,
                             uint32_t limit)
{
    struct generate_command *g = &command->generate;
    const uint32_t n_log = limit && limit < log->n_token ? limit : log->n_token;
    uint32_t *token =
        arena_take(command->arena, (n_log + 2 * g->n_token) * sizeof(*token));

    need(token != NULL);
    memcpy(token, g->token, g->n_token * sizeof(*token));
    memcpy(token + g->n_token, log->token + log->n_token - n_log,
           n_log * sizeof(*token));
    memcpy(token + g->n_token + n_log, g->token, g->n_token * sizeof(*token));
    g->token = token;
    g->n_token = n_log + 2 * g->n_token;
    return command;
}

static void is_as_spelt(uint32_t n_question, uint32_t limit)
{
    struct node *node = node_create(NULL);
    struct reply *log, *want, *got;

    node_start(node);
    log = begin(node, "a");
    begin(node, "b");
    want = node_completed(
        node, spelt(question(node, "a", "q", n_question), log, limit));
    got = node_completed(
        node, rereading(question(node, "b", "q", n_question), limit));
    cr_assert(same_tokens(got, want), "%u, %u", n_question, limit);
    cr_assert_eq(got->end->complete.n_prompt, want->end->complete.n_prompt);
    cr_assert(same_tokens(node_read(node, "b"), node_read(node, "a")));
    node_destroy(node);
}

Test(engine_reread, feeds_what_a_client_could_have_sent)
{
    is_as_spelt(N_QUESTION, 0);
    is_as_spelt(N_QUESTION, 100);
    is_as_spelt(N_QUESTION, 100000);
    is_as_spelt(N_QUESTION, 1);
    is_as_spelt(0, 0); /* the question is the log's end already */
}

Test(engine_reread, changes_the_reply)
{
    struct node *node = node_create(NULL);
    struct reply *once, *twice;

    node_start(node);
    begin(node, "a");
    begin(node, "b");
    once = node_completed(node, question(node, "a", "q", N_QUESTION));
    twice = node_completed(node,
                           rereading(question(node, "b", "q", N_QUESTION), 0));
    cr_assert_not(same_tokens(once, twice));
    node_destroy(node);
}

Test(engine_reread, of_a_session_that_comes_from_the_journal)
{
    struct node *alone = node_create(NULL), *node = node_create(NULL);
    struct reply *want, *got;

    node_start(alone);
    node_start(node);
    begin(alone, "a");
    begin(node, "a");
    want = node_completed(alone,
                          rereading(question(alone, "a", "q", N_QUESTION), 0));
    node_until(node, 0);
    node_kill(node);
    node_start(node);
    got = node_completed(node,
                         rereading(question(node, "a", "q", N_QUESTION), 0));
    cr_assert(same_tokens(got, want));
    node_until(node, 0);
    node_kill(node);
    node_start(node);
    got = node_call(node, rereading(question(node, "a", "q", N_QUESTION), 0));
    cr_assert(same_tokens(got, want), "and is the same turn for a retry");
    cr_assert(same_tokens(node_read(node, "a"), node_read(alone, "a")));
    node_destroy(alone);
    node_destroy(node);
}

Test(engine_reread, is_part_of_what_a_retry_must_say)
{
    struct node *node = node_create(NULL);

    node_start(node);
    begin(node, "a");
    node_completed(node, rereading(question(node, "a", "q", N_QUESTION), 0));
    cr_assert(
        reply_failed(node_call(node, question(node, "a", "q", N_QUESTION)),
                     STATUS_INVALID_ARGUMENT, "REQUEST_ID_REUSED"));
    cr_assert(reply_failed(
        node_call(node, rereading(question(node, "a", "q", N_QUESTION), 5)),
        STATUS_INVALID_ARGUMENT, "REQUEST_ID_REUSED"));
    node_destroy(node);
}

Test(engine_reread, of_nothing_is_refused)
{
    struct node *node = node_create(NULL);
    struct reply *reply;

    node_start(node);
    reply = node_call(node, rereading(question(node, "a", "q", N_QUESTION), 0));
    cr_assert(reply_failed(reply, STATUS_INVALID_ARGUMENT, "REREAD_EMPTY"));
    cr_assert(strstr(reply->end->cause.text, "append"));
    cr_assert_eq(node->engine->n_session, 0);
    node_destroy(node);
}

Test(engine_reread, counts_against_the_context)
{
    struct node *node = node_create(NULL);
    struct reply *log, *reply;

    node_start(node);
    node->engine->n_context = 500;
    log = begin(node, "a");
    reply = node_call(node, rereading(question(node, "a", "q", N_QUESTION), 0));
    cr_assert(reply_failed(reply, STATUS_INVALID_ARGUMENT,
                           "CONTEXT_LENGTH_EXCEEDED"));
    cr_assert(same_tokens(node_read(node, "a"), log), "nothing was fed");
    node_completed(node, rereading(question(node, "a", "q", N_QUESTION), 100));
    node_destroy(node);
}
