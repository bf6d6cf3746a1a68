/*
 * A session that goes on under another memory policy is the session that it
 * would be had it had that policy from its first token. The judge of each turn
 * is another node without shared prefixes, which gets the whole log as one
 * prompt under the policy that was in force, and nothing of what was before.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/bundle_fixture.h"

#include <criterion/criterion.h>

static const char *const POLICY[] = {
    "full",
    "window:sink=64:window=64",
    "infllm:sink=0:window=0:pick=64:step=16",
    "quest:sink=64:window=0:pick=64:step=8",
    "sirllm:sink=64:window=64:pick=128:decay=50:turn=11",
};
#define N_POLICY 5u
#define FIRST_INPUT 330u
#define INPUT 40u
#define OUTPUT 150u /* by so many, policies have parted */

static struct command *turn_of(struct node *node, const char *name,
                               const char *policy, uint32_t n_input,
                               uint32_t salt)
{
    struct command *command = generate(node, name, "", n_input, salt);

    command->generate.sampling.max_tokens = OUTPUT;
    command->generate.sampling.ignore_eos = true;
    command->generate.sampling.temperature = 1.0f;
    return under(command, policy);
}

static struct reply *turn(struct node *node, const char *name,
                          const char *policy, uint32_t n_input, uint32_t salt)
{
    struct reply *reply =
        node_call(node, turn_of(node, name, policy, n_input, salt));

    cr_assert(reply_completed(reply, FINISH_LENGTH));
    return reply;
}

static struct node *judge; /* of all that a test asks, and shares nothing */

static void end_judge(void)
{
    if (judge)
        node_destroy(judge);
}

TestSuite(engine_change, .fini = end_judge);

/* Is the last turn of `name`, made with this salt, what it is under `policy`?
 */
static bool agrees(struct node *node, const char *name, const char *policy,
                   uint32_t salt)
{
    const struct reply *log = node_read(node, name), *said;
    const uint32_t n = log->n_token - OUTPUT;
    struct command *command;

    judge = judge ? judge : judge_create();
    command = turn_of(judge, "", policy, n, salt);
    memcpy((uint32_t *)command->generate.token, log->token, n * 4);
    said = node_call(judge, command);
    cr_assert(reply_completed(said, FINISH_LENGTH));
    return said->n_token == OUTPUT &&
           memcmp(said->token, log->token + n, OUTPUT * 4) == 0;
}

static bool has_policy(struct node *node, const char *name, const char *text)
{
    struct policy policy;

    must(policy_parse(text, &policy));
    return policy_equal(&table_find(node->engine, name)->policy, &policy);
}

/* The judge can say no: what is said under one is not said under another. */
Test(engine_change, the_judge_tells_policies_apart, .timeout = 240)
{
    struct node *node = fork_node();

    for (uint32_t p = 0; p < N_POLICY; p++) {
        char name[16];

        snprintf(name, sizeof(name), "s%u", p);
        turn(node, name, POLICY[p], FIRST_INPUT, 1);
        for (uint32_t q = 0; q < N_POLICY; q++)
            cr_assert_eq(agrees(node, name, POLICY[q], 1), p == q,
                         "%s judged as %s", POLICY[p], POLICY[q]);
    }
    node_destroy(node);
}

static void changed(const char *from, const char *to, bool is_killed)
{
    struct node *node = fork_node();
    struct reply *reply;

    turn(node, "a", from, FIRST_INPUT, 1);
    fork_settle(node);
    reply = turn(node, "a", to, INPUT, 2);
    cr_assert_eq(reply->end->complete.reuse, REUSE_POLICY_CHANGED);
    cr_assert_eq(reply->end->complete.n_cached, 0);
    cr_assert(agrees(node, "a", to, 2), "%s, then %s", from, to);
    fork_settle(node);
    restart(node, is_killed);
    cr_assert(has_policy(node, "a", to));
    reply = turn(node, "a", NULL, INPUT, 3);
    cr_assert_eq(reply->end->complete.reuse, REUSE_RESTORED);
    cr_assert(agrees(node, "a", to, 3), "%s, then %s", from, to);
    fork_settle(node);
    restart(node, !is_killed);
    turn(node, "a", from, INPUT, 4);
    cr_assert(agrees(node, "a", from, 4), "%s again", from);
    node_destroy(node);
}

Test(engine_change, is_as_if_it_had_always_been_so, .timeout = 480)
{
    for (uint32_t p = 0; p < N_POLICY; p++)
        for (uint32_t q = p + 1; q < N_POLICY; q++) /* and back in it */
            changed(POLICY[p], POLICY[q], (p + q) % 2);
}

/* The log and a journal that was synced are all there is after a kill that came
 * before any state was stored. */
Test(engine_change, is_replayed_from_the_log_alone)
{
    struct node *node = fork_node();

    store_memory_faults(node->bulk_store)->is_read_only = true;
    turn(node, "a", POLICY[2], FIRST_INPUT, 1);
    turn(node, "a", POLICY[3], INPUT, 2);
    restart(node, true);
    cr_assert_eq(count_rows(node->bulk_store, 's'), 0);
    turn(node, "a", NULL, INPUT, 3);
    cr_assert(agrees(node, "a", POLICY[3], 3));
    node_destroy(node);
}

Test(engine_change, forks_and_rewinds_go_across_it, .timeout = 480)
{
    struct node *node = fork_node();

    turn(node, "a", POLICY[2], FIRST_INPUT, 1);
    fork_at(node, "a", "before", 200);
    turn(node, "a", POLICY[1], INPUT, 2);
    fork_at(node, "a", "after", 150);
    fork_settle(node);
    turn(node, "before", NULL, INPUT, 3);
    cr_assert(agrees(node, "before", POLICY[2], 3));
    turn(node, "after", NULL, INPUT, 4);
    cr_assert(agrees(node, "after", POLICY[1], 4));
    cr_assert_eq(rewind_to(node, "a", 170)->last, EVENT_SESSION);
    turn(node, "a", NULL, INPUT, 5);
    cr_assert(agrees(node, "a", POLICY[1], 5));
    turn(node, "before", POLICY[3], INPUT, 6);
    cr_assert(agrees(node, "before", POLICY[3], 6));
    fork_settle(node);
    restart(node, true);
    turn(node, "before", NULL, INPUT, 7);
    cr_assert(agrees(node, "before", POLICY[3], 7));
    turn(node, "after", NULL, INPUT, 8);
    cr_assert(agrees(node, "after", POLICY[1], 8));
    node_destroy(node);
}

/* Neither do others' prefixes come in, nor do its own go out to them. */
Test(engine_change, divides_the_prefixes)
{
    struct node *node = fork_node();

    for (uint32_t i = 0; i < 4; i++) {
        struct command *command =
            turn_of(node, "", POLICY[i % 2], FIRST_INPUT, 1);

        command->generate.n_shared = 320;
        cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
        fork_settle(node);
    }
    turn(node, "a", POLICY[0], FIRST_INPUT, 1);
    turn(node, "a", POLICY[1], INPUT, 2);
    cr_assert(agrees(node, "a", POLICY[1], 2));
    fork_settle(node);
    for (uint32_t p = 0; p < N_POLICY; p++) {
        char name[16];

        snprintf(name, sizeof(name), "new-%u", p);
        turn(node, name, POLICY[p], FIRST_INPUT, 1);
        cr_assert(agrees(node, name, POLICY[p], 1), "%s", POLICY[p]);
    }
    node_destroy(node);
}

/* Its first turn was cancelled while that was on its way. */
static void fetched_before(const char *from, const char *to)
{
    struct node *node = fork_node();
    struct command *command = turn_of(node, "", from, FIRST_INPUT, 1);
    struct store_job *job = NULL;
    uint64_t reply;

    command->generate.n_shared = 320;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    fork_settle(node);
    node_send(node, turn_of(node, "a", from, FIRST_INPUT, 1));
    node_step(node);
    cr_assert(table_find(node->engine, "a")->is_fetching);
    for (uint32_t i = 0; i < 1000 && !ring_pop(node->done, &job); i++)
        ring_wait(node->inbox, 20);
    need(job && job->kind == STORE_FETCH);
    cr_assert_eq(node_call(node, about(node, COMMAND_CANCEL, "a"))->last,
                 EVENT_DONE);
    command = turn_of(node, "a", to, INPUT, 2);
    reply = command->reply;
    node_send(node, command);
    node_step(node);
    need(ring_push(node->done, &job));
    node_until(node, reply);
    cr_assert(reply_completed(&node->reply[reply], FINISH_LENGTH));
    cr_assert(agrees(node, "a", to, 2), "%s, then %s", from, to);
    node_destroy(node);
}

Test(engine_change, what_was_fetched_for_the_one_before_does_not_come_in)
{
    fetched_before(POLICY[0], POLICY[2]);
    fetched_before(POLICY[2], POLICY[0]);
    fetched_before(POLICY[2], POLICY[3]);
}

static struct reply *checkpoint(struct node *node, const char *name,
                                const char *policy)
{
    struct command *command = about(node, COMMAND_CHECKPOINT_SESSION, name);

    command->target.has_policy = true;
    must(policy_parse(policy, &command->target.policy));
    return node_call(node, command);
}

static void checkpointed(bool is_parked)
{
    struct node *node = fork_node();
    struct reply *reply;

    turn(node, "a", POLICY[2], FIRST_INPUT, 1);
    fork_settle(node);
    if (is_parked)
        restart(node, false);
    reply = checkpoint(node, "a", POLICY[1]);
    cr_assert_eq(reply->last, EVENT_CHECKPOINT);
    cr_assert_eq(reply->end->checkpoint.position, FIRST_INPUT + OUTPUT - 1);
    cr_assert(has_policy(node, "a", POLICY[1]));
    fork_settle(node);
    restart(node, true);
    reply = turn(node, "a", NULL, INPUT, 2);
    cr_assert_eq(reply->end->complete.reuse, REUSE_RESTORED);
    cr_assert_eq(reply->end->complete.n_restored, FIRST_INPUT + OUTPUT - 1);
    cr_assert(agrees(node, "a", POLICY[1], 2));
    node_destroy(node);
}

Test(engine_change, a_checkpoint_makes_it_and_stores_it)
{
    checkpointed(false);
    checkpointed(true);
}

Test(engine_change, of_a_session_without_tokens)
{
    struct node *node = fork_node();
    struct command *command =
        command_make(COMMAND_CREATE_SESSION, node_reply(node));

    strcpy(command->create.name, "a");
    command->create.durability = DURABILITY_LOCAL;
    node_call(node, command);
    cr_assert_eq(checkpoint(node, "a", POLICY[1])->last, EVENT_CHECKPOINT);
    cr_assert(has_policy(node, "a", POLICY[1]));
    restart(node, true);
    cr_assert(has_policy(node, "a", POLICY[1]));
    turn(node, "a", POLICY[3], FIRST_INPUT, 1);
    cr_assert(agrees(node, "a", POLICY[3], 1));
    node_destroy(node);
}

Test(engine_change, of_a_session_that_is_only_in_memory)
{
    struct node *node = fork_node();
    struct command *command = turn_of(node, "a", POLICY[1], FIRST_INPUT, 1);

    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_NONE;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    turn(node, "a", POLICY[2], INPUT, 2);
    cr_assert(agrees(node, "a", POLICY[2], 2));
    command = turn_of(node, "a", POLICY[3], INPUT, 3);
    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_LOCAL;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    cr_assert(agrees(node, "a", POLICY[3], 3));
    restart(node, true);
    turn(node, "a", NULL, INPUT, 4);
    cr_assert(agrees(node, "a", POLICY[3], 4));
    node_destroy(node);
}

Test(engine_change, is_verified_exported_and_imported, .timeout = 480)
{
    for (uint32_t has_state = 0; has_state < 2; has_state++) {
        struct node *from = fork_node(), *to = fork_node();
        struct bytes bundle;
        struct reply *reply;

        turn(from, "a", POLICY[0], FIRST_INPUT, 1);
        fork_settle(from);
        turn(from, "a", POLICY[2], INPUT, 2);
        fork_settle(from);
        verify_whole(from, "a");
        bundle = export_of(from, "a", has_state);
        import_as(to, "b", bundle);
        fork_settle(to);
        cr_assert(has_policy(to, "b", POLICY[2]));
        reply = turn(to, "b", NULL, INPUT, 3);
        cr_assert_eq(reply->end->complete.n_restored > 0, has_state);
        cr_assert(agrees(to, "b", POLICY[2], 3));
        fork_settle(to);
        verify_whole(to, "b");
        free(bundle.at);
        node_destroy(from);
        node_destroy(to);
    }
}

/* What was said of it was an error, so it has the policy and the log that it
 * had. */
Test(engine_change, a_lost_commit_takes_it_back)
{
    struct node *node = fork_node();
    struct reply *reply;

    turn(node, "a", POLICY[1], FIRST_INPUT, 1);
    fork_settle(node);
    store_memory_faults(node->journal_store)->is_read_only = true;
    reply = node_call(node, turn_of(node, "a", POLICY[2], INPUT, 2));
    cr_assert_eq(reply->last, EVENT_ERROR);
    store_memory_faults(node->journal_store)->is_read_only = false;
    fork_settle(node);
    cr_assert(has_policy(node, "a", POLICY[1]));
    turn(node, "a", NULL, INPUT, 3);
    cr_assert_eq(node_read(node, "a")->n_token,
                 FIRST_INPUT + INPUT + 2 * OUTPUT);
    cr_assert(agrees(node, "a", POLICY[1], 3));
    restart(node, true);
    cr_assert(has_policy(node, "a", POLICY[1]));
    node_destroy(node);
}

Test(engine_change, what_does_not_fit_is_refused_and_changes_nothing)
{
    struct node *node = fork_node();
    struct reply *reply;

    turn(node, "a", POLICY[1], FIRST_INPUT, 1);
    fork_settle(node);
    node_stop(node);
    node->options.session_bytes = 100000;
    node_start(node);
    reply = node_call(node, turn_of(node, "a", POLICY[2], INPUT, 2));
    cr_assert(reply_failed(reply, STATUS_RESOURCE_EXHAUSTED, "KV_MEMORY"));
    cr_assert(has_policy(node, "a", POLICY[1]));
    node_destroy(node);
}

/* With pages before and after, and under `full`, which has none. */
Test(engine_change, of_a_session_with_pages, .timeout = 480)
{
    static const char *const path[] = {
        "infllm:sink=64:window=64:pick=128:step=8", "full",
        "quest:sink=64:window=64:pick=64:step=8", "window:sink=64:window=64",
        "sirllm:sink=64:window=64:pick=128:decay=50:turn=11"};
    struct node *node = node_create(NULL);

    node->has_pager = true;
    node_start(node);
    for (uint32_t t = 0; t < 5; t++) {
        const struct memory *memory;

        turn(node, "a", path[t], t ? INPUT : 1500, 1 + t);
        memory = table_find(node->engine, "a")->resident->memory;
        cr_assert_eq(memory_paging(memory) != NULL, t != 1);
        cr_assert(agrees(node, "a", path[t], 1 + t), "%s", path[t]);
        if (t % 2)
            fork_settle(node);
    }
    node_destroy(node);
}
