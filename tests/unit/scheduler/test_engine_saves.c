/*
 * When snapshots of ended turns are saved. The clock stands while a long reply
 * runs, so the rest behind the first save has no end: what is stored then was
 * not allowed to wait, and what is not shows that the others do.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>
#include <sched.h>

#define YIELD_MAX 100000000L

static struct command *talk(struct node *node, const char *name,
                            uint32_t n_token, uint32_t max_tokens)
{
    struct command *command =
        generate(node, name, name, n_token, (uint32_t)name[0]);

    command->generate.sampling.max_tokens = max_tokens;
    return command;
}

static bool is_stored(const struct node *node, const char *name)
{
    const struct session *session = table_find(node->engine, name);

    return session && session->resident->snapshot_position > 0;
}

/* The engine has heard of all that the store thread was given. */
static void settle(struct node *node)
{
    for (uint32_t i = 0; i < 4; i++) {
        for (long n = 0;
             node->engine->n_job > 0 &&
             ring_count(node->done) < node->engine->n_job && n < YIELD_MAX;
             n++)
            (void)sched_yield();
        (void)node_step(node);
    }
    cr_assert_eq(node->engine->n_job, 0);
}

Test(engine_saves, rest_while_a_reply_runs_and_go_on_when_none_does)
{
    static const char *const NAME[] = {"a", "b", "c"};
    struct node *node = node_create(NULL);
    struct command *command;
    const struct reply *running;
    uint64_t reply;

    node_start(node);
    command = talk(node, "running", 70, 400);
    reply = command->reply;
    running = &node->reply[reply];
    node_send(node, command);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(node_call(node, talk(node, NAME[i], 100, 2))->last,
                     EVENT_COMPLETE);
    settle(node);
    cr_assert(is_stored(node, "a"), "the first one is saved at once");
    cr_assert_not(is_stored(node, "b"));
    cr_assert_not(is_stored(node, "c"));
    cr_assert_eq(node->engine->n_image, 2);

    cr_assert_eq(
        node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "c"))->last,
        EVENT_CHECKPOINT);
    cr_assert(is_stored(node, "c"), "somebody waited for it");
    cr_assert_not(is_stored(node, "b"));
    cr_assert_not(running->is_over);

    node_until(node, reply);
    node_until(node, 0);
    settle(node);
    cr_assert(is_stored(node, "b"));
    cr_assert(is_stored(node, "running"));
    node_destroy(node);
}
