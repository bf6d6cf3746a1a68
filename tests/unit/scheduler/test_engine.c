/*
 * One node on stores in memory, driven step by step with a clock that stands.
 * Judged by what a client hears and what READ_TOKENS says afterwards; the
 * oracle for every run that is disturbed is the same run left alone.
 */
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

Test(engine, a_prompt_is_answered_and_logged)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *reply, *log;

    node_start(node);
    command = generate(node, "one", "r1", 100, 1);
    reply = node_call(node, command);
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->n_accepted, 1);
    cr_assert_eq(reply->accepted_position, 0);
    cr_assert_eq(reply->seed, 1001);
    cr_assert_eq(reply->n_token, 12);
    cr_assert_eq(reply->first_position, 100);
    cr_assert_eq(reply->end->complete.n_prompt, 100);
    cr_assert_eq(reply->end->complete.n_completion, 12);
    cr_assert_eq(reply->end->complete.committed_position, 112);
    log = node_read(node, "one");
    cr_assert_eq(log->n_token, 112);
    cr_assert_eq(memcmp(log->token + 100, reply->token, 48), 0);
    node_destroy(node);
}
