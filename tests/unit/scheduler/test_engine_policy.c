/*
 * A session's memory policy: it decides its tokens, and nothing else
 * does: restarts, kills, evictions, forks and other sessions' snapshots. The
 * oracle is the same turns on a node that was left alone.
 */
#include "kernels/apart/apart.h"
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/bundle_fixture.h"

#include <criterion/criterion.h>

static const char *const POLICY[] = {
    "full",
    "window:sink=64:window=64",
    "infllm:sink=0:window=0:pick=64:step=16",
    "quest:sink=64:window=0:pick=64:step=8",
    "recycle:base=infllm:sink=0:window=0:pick=64:step=8:reuse=16",
    "snapkv:window=0:pick=64",
    "sirllm:sink=0:window=64:pick=64:decay=50:turn=11",
};
#define N_POLICY 7u
#define N_TURN 3u

static struct command *turn_of(struct node *node, const char *name,
                               const char *policy, uint32_t t)
{
    static const uint32_t length[N_TURN] = {330, 70, 45};
    char id[16];
    struct command *command;

    snprintf(id, sizeof(id), "turn-%u", t);
    command = generate(node, name, name[0] ? id : "", length[t], 7 + t);
    command->generate.sampling.max_tokens = 30;
    command->generate.sampling.temperature = 1.0f;
    return under(command, policy);
}

/* What `turn` has said; kept by the node. */
static struct reply *turn(struct node *node, const char *name,
                          const char *policy, uint32_t t)
{
    return node_completed(node, turn_of(node, name, policy, t));
}

Test(engine_policy, decides_the_tokens)
{
    struct node *node = node_create(NULL);
    struct reply *reply[N_POLICY];

    node_start(node);
    for (uint32_t p = 0; p < N_POLICY; p++) {
        char name[16];

        struct command *command;

        snprintf(name, sizeof(name), "s%u", p);
        command = turn_of(node, name, POLICY[p], 0);
        command->generate.sampling.max_tokens = 150;
        reply[p] = node_call(node, command);
        cr_assert(reply_completed(reply[p], FINISH_LENGTH));
        for (uint32_t q = 0; q < p; q++)
            cr_assert_not(same_tokens(reply[p], reply[q]), "%s as %s",
                          POLICY[p], POLICY[q]);
    }
    node_destroy(node);
}

static void restarted(const char *policy, bool is_killed)
{
    struct node *alone = node_create(NULL), *node = node_create(NULL);

    node_start(alone);
    node_start(node);
    for (uint32_t t = 0; t < N_TURN; t++) {
        struct reply *want = turn(alone, "a", t ? NULL : policy, t);
        struct reply *got = turn(node, "a", t ? NULL : policy, t);

        cr_assert(same_tokens(got, want), "%s: turn %u", policy, t);
        if (t)
            cr_assert_eq(got->end->complete.reuse, REUSE_RESTORED, "%s: %d",
                         policy, (int)got->end->complete.reuse);
        node_until(node, 0);
        while (node->engine->n_image > 0 || node->engine->n_job > 0)
            if (!node_step(node))
                ring_wait(node->inbox, 1);
        if (is_killed)
            node_kill(node);
        else
            node_stop(node);
        node_start(node);
    }
    node_destroy(alone);
    node_destroy(node);
}

Test(engine_policy, is_kept_over_restarts_and_so_are_snapshots)
{
    for (uint32_t p = 1; p < N_POLICY; p++)
        restarted(POLICY[p], p % 2);
}

Test(engine_policy, is_inherited_by_a_fork)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *want, *got;

    node_start(node);
    turn(node, "a", POLICY[2], 0);
    command = command_make(COMMAND_FORK_SESSION, node_reply(node));
    strcpy(command->fork.session, "a");
    strcpy(command->fork.name, "b");
    got = node_call(node, command);
    cr_assert_eq(got->last, EVENT_SESSION);
    cr_assert_eq(got->end->session.meta.policy.kind, POLICY_INFLLM);
    want = turn(node, "a", NULL, 1);
    got = turn(node, "b", NULL, 1);
    cr_assert(same_tokens(got, want));
    node_destroy(node);
}

/* The same prompt under another policy starts from nothing; under the same one
 * from what the first has left. */
Test(engine_policy, divides_the_prefixes)
{
    struct node *node = node_create(NULL);

    node_start(node);
    for (uint32_t round = 0; round < 4; round++)
        for (uint32_t p = 0; p < N_POLICY; p++) {
            struct command *command = turn_of(node, "", POLICY[p], 0);
            struct reply *reply;

            command->generate.n_shared = 320;
            reply = node_call(node, command);
            cr_assert(reply_completed(reply, FINISH_LENGTH));
            if (round == 0)
                cr_assert_eq(reply->end->complete.n_cached, 0, "%s", POLICY[p]);
            if (round == 3)
                cr_assert_eq(reply->end->complete.reuse, REUSE_PREFIX, "%s: %d",
                             POLICY[p], (int)reply->end->complete.reuse);
            cr_assert(same_tokens(
                reply, &node->reply[1 + p])); /* of the first round */
            node_until(node, 0);
            while (node->engine->n_image > 0 || node->engine->n_job > 0)
                if (!node_step(node))
                    ring_wait(node->inbox, 1);
        }
    node_destroy(node);
}

static void settle(struct node *node)
{
    node_until(node, 0);
    while (node->engine->n_image > 0 || node->engine->n_job > 0)
        if (!node_step(node))
            ring_wait(node->inbox, 1);
}

/* What nameless prompts and sessions under one policy have left serves that
 * policy alone, also in the node's next life: prompts of the others, which are
 * the same tokens, start from nothing. want: of each policy, alone. */
static void restarted_prefix(uint32_t p, const char *name, bool is_killed,
                             struct reply *const *want)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *got;

    node_start(node);
    command = turn_of(node, name, POLICY[p], 0);
    command->generate.n_shared = 320;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    settle(node);
    if (is_killed)
        node_kill(node);
    else
        node_stop(node);
    node_start(node);
    for (uint32_t q = 0; q < N_POLICY; q++) {
        uint32_t r = (p + 1 + q) % N_POLICY; /* its own one is the last */

        got = turn(node, "", POLICY[r], 0);
        cr_assert(same_tokens(got, want[r]), "%s after %s", POLICY[r],
                  POLICY[p]);
        cr_assert_eq(got->end->complete.reuse == REUSE_PREFIX, r == p,
                     "%s after %s: %d", POLICY[r], POLICY[p],
                     (int)got->end->complete.reuse);
        cr_assert_eq(got->end->complete.n_cached, r == p ? 320 : 0);
        settle(node);
    }
    node_destroy(node);
}

Test(engine_policy, divides_the_prefixes_of_an_earlier_life, .timeout = 480)
{
    struct node *alone[N_POLICY];
    struct reply *want[N_POLICY];

    for (uint32_t p = 0; p < N_POLICY; p++) {
        alone[p] = node_create(NULL);
        node_start(alone[p]);
        want[p] = turn(alone[p], "", POLICY[p], 0);
    }
    for (uint32_t p = 0; p < N_POLICY; p++)
        for (uint32_t is_killed = 0; is_killed < 2; is_killed++) {
            bool is_other = p % 2 != is_killed;

            /* Both with each policy, though not both ways: names and deaths
             * know nothing of each other. */
            restarted_prefix(p, is_other ? "kept" : "", is_killed, want);
        }
    for (uint32_t p = 0; p < N_POLICY; p++)
        node_destroy(alone[p]);
}

/* What is stored of it is sound, a replay gives the same, and a bundle of it
 * goes on elsewhere, with its states and without, under the same policy. */
Test(engine_policy, is_verified_exported_and_imported, .timeout = 480)
{
    for (uint32_t p = 1; p < N_POLICY; p++)
        for (uint32_t has_state = 0; has_state < 2; has_state++) {
            struct node *from = fork_node(), *to = fork_node();
            struct bytes bundle;
            struct reply *want, *got;

            turn(from, "a", POLICY[p], 0);
            fork_settle(from);
            verify_whole(from, "a");
            bundle = export_of(from, "a", has_state);
            import_as(to, "b", bundle);
            fork_settle(to);
            cr_assert(policy_equal(&table_find(from->engine, "a")->policy,
                                   &table_find(to->engine, "b")->policy));
            want = turn(from, "a", NULL, 1);
            got = turn(to, "b", POLICY[p], 1);
            cr_assert(same_tokens(got, want), "%s", POLICY[p]);
            cr_assert_eq(got->end->complete.n_restored > 0, has_state);
            fork_settle(to);
            verify_whole(to, "b");
            free(bundle.at);
            node_destroy(from);
            node_destroy(to);
        }
}

/* snapkv's prompt is the first request's, and ends where that does. Where no
 * request brings one, its end must be said. */
Test(engine_policy, learns_where_the_prompt_ends)
{
    struct node *node = node_create(NULL);
    struct command *command;

    node_start(node);
    turn(node, "a", "snapkv:window=0:pick=64", 0);
    cr_assert_eq(table_find(node->engine, "a")->policy.end, 330);
    turn(node, "a", "snapkv:window=0:pick=64", 1);
    cr_assert_eq(table_find(node->engine, "a")->policy.end, 330);
    turn(node, "a", "snapkv:window=0:pick=64:end=9", 2); /* it changes */
    cr_assert_eq(table_find(node->engine, "a")->policy.end, 9);

    command = turn_of(node, "a", "snapkv", 2);
    strcpy(command->generate.request_id, "another");
    cr_assert(
        reply_failed(node_call(node, command), STATUS_INVALID_ARGUMENT, ""));
    cr_assert_eq(table_find(node->engine, "a")->policy.end, 9);
    command = turn_of(node, "b", "snapkv", 0);
    command->generate.is_append = true;
    cr_assert(
        reply_failed(node_call(node, command), STATUS_INVALID_ARGUMENT, ""));
    command = command_make(COMMAND_CREATE_SESSION, node_reply(node));
    strcpy(command->create.name, "b");
    must(policy_parse("snapkv", &command->create.policy));
    cr_assert(
        reply_failed(node_call(node, command), STATUS_INVALID_ARGUMENT, ""));
    cr_assert_eq(node->engine->n_session, 1);
    command = turn_of(node, "b", "snapkv:end=400", 0);
    command->generate.is_append = true;
    cr_assert_eq(node_call(node, command)->last, EVENT_COMPLETE);
    cr_assert_eq(table_find(node->engine, "b")->policy.end, 400);
    node_destroy(node);
}

static int64_t turn_in(struct node *node, const char *name)
{
    return table_find(node->engine, name)->policy.turn;
}

/* sirllm's turns end with the model's token, unless another one is named: the
 * session's policy names it from then on, whatever the model says later. */
Test(engine_policy, learns_which_token_ends_a_turn)
{
    const char *const text = "sirllm:sink=0:window=64:pick=64";
    struct node *node = node_create("assets/models/godwit-tiny");
    const int64_t end = model_config(node->model)->eos[0];
    struct command *command;
    struct reply *reply;

    cr_assert_gt(model_config(node->model)->n_eos, 0);
    node_start(node);
    turn(node, "a", text, 0);
    cr_assert_eq(turn_in(node, "a"), end);
    reply = turn(node, "a", text, 1);
    cr_assert_eq(reply->end->complete.reuse, REUSE_RESIDENT, "%d",
                 (int)reply->end->complete.reuse);
    turn(node, "a", "sirllm:sink=0:window=64:pick=64:turn=9", 2);
    cr_assert_eq(turn_in(node, "a"), 9);
    command = turn_of(node, "a", text, 2);
    strcpy(command->generate.request_id, "another");
    reply = node_completed(node, command);
    cr_assert_eq(turn_in(node, "a"), 9);
    cr_assert_eq(reply->end->complete.reuse, REUSE_RESIDENT);

    command = command_make(COMMAND_CREATE_SESSION, node_reply(node));
    strcpy(command->create.name, "b");
    must(policy_parse("sirllm:turn=none", &command->create.policy));
    cr_assert_eq(node_call(node, command)->last, EVENT_SESSION);
    cr_assert_eq(turn_in(node, "b"), POLICY_TURN_NONE);
    command = command_make(COMMAND_CREATE_SESSION, node_reply(node));
    strcpy(command->create.name, "c");
    must(policy_parse("sirllm", &command->create.policy));
    cr_assert_eq(node_call(node, command)->last, EVENT_SESSION);
    cr_assert_eq(turn_in(node, "c"), end);
    turn(node, "d", "full", 0);
    turn(node, "d", text, 1);
    cr_assert_eq(turn_in(node, "d"), end);
    node_destroy(node);
}

/* Looked at on the host: nobody gets a session that could not go on. */
Test(engine_policy, sirllm_is_refused_where_the_model_is_on_a_device)
{
    const char *const sirllm = POLICY[N_POLICY - 1];
    struct node *from = fork_node(), *node;
    struct importing how = {.name = "b", .skips_state = true};
    struct command *command;
    struct bytes bundle;
    struct event *end;

    turn(from, "a", sirllm, 0);
    bundle = export_of(from, "a", true);
    node = node_create(NULL);
    node_load(node, &(struct model_options){.backend = &backend_apart});
    node_start(node);
    turn(node, "other", POLICY[1], 0);
    cr_assert(reply_failed(node_call(node, turn_of(node, "a", sirllm, 0)),
                           STATUS_FAILED_PRECONDITION, "POLICY_UNSUPPORTED"));
    cr_assert(reply_failed(node_call(node, turn_of(node, "", sirllm, 0)),
                           STATUS_FAILED_PRECONDITION, "POLICY_UNSUPPORTED"));
    cr_assert(reply_failed(node_call(node, turn_of(node, "other", sirllm, 1)),
                           STATUS_FAILED_PRECONDITION, "POLICY_UNSUPPORTED"));
    command = command_make(COMMAND_CREATE_SESSION, node_reply(node));
    strcpy(command->create.name, "a");
    must(policy_parse(sirllm, &command->create.policy));
    cr_assert(reply_failed(node_call(node, command), STATUS_FAILED_PRECONDITION,
                           "POLICY_UNSUPPORTED"));
    end = import_with(node, &how, bundle);
    cr_assert_eq(end->kind, EVENT_ERROR);
    cr_assert_str_eq(end->cause.reason, "POLICY_UNSUPPORTED");
    event_destroy(end);
    cr_assert_eq(node->engine->n_session, 1);
    free(bundle.at);
    node_destroy(node);
    node_destroy(from);
}
