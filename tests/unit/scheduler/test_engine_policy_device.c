/*
 * Sessions under memory policies on a node whose model lies on a device: the
 * oracle of their tokens is a node on a CPU of the same arithmetic that served
 * each of them alone. The device is kernels/apart/apart.h.
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
};
#define N_POLICY 6u
#define N_TURN 3u

static void load(struct node *node, const struct backend *backend)
{
    node_load(node, &(struct model_options){.backend = backend,
                                            .arithmetic = ARITHMETIC_PAIR});
}

static struct node *open_on(const struct backend *backend)
{
    struct node *node = node_create(NULL);

    load(node, backend);
    node_start(node);
    return node;
}

static struct node *open_cpu(void)
{
    const struct backend *backend;

    must(backend_find("auto", &backend));
    return open_on(backend);
}

/* Session p begins under policy p; in its last turn it changes to the next. */
static struct command *turn_of(struct node *node, uint32_t p, uint32_t t)
{
    static const uint32_t length[N_TURN] = {310, 70, 45};
    const char *policy = t == 0            ? POLICY[p]
                         : t == N_TURN - 1 ? POLICY[(p + 1) % N_POLICY]
                                           : NULL;
    char id[16], name[16];
    struct command *command;

    snprintf(id, sizeof(id), "turn-%u", t);
    snprintf(name, sizeof(name), "s%u", p);
    if (policy && t > 0 && strstr(policy, "snapkv"))
        policy = "snapkv:window=0:pick=64:end=333";
    command = generate(node, name, id, length[t], 7 + t);
    command->generate.sampling.max_tokens = 25;
    command->generate.sampling.temperature = p % 2 ? 1.0f : 0.0f;
    return under(command, policy);
}

static struct reply *said_by(struct node *node, uint32_t p)
{
    char name[16];

    snprintf(name, sizeof(name), "s%u", p);
    return node_call(node, about(node, COMMAND_READ_TOKENS, name));
}

static void settle(struct node *node)
{
    node_until(node, 0);
    while (node->engine->n_image > 0 || node->engine->n_job > 0)
        if (!node_step(node))
            ring_wait(node->inbox, 1);
}

/* Turn t of all at once, so that steps have rows under several policies. */
static void turn_all(struct node *node, uint32_t t)
{
    uint64_t reply[N_POLICY];

    for (uint32_t p = 0; p < N_POLICY; p++) {
        struct command *command = turn_of(node, p, t);

        reply[p] = command->reply;
        node_send(node, command);
    }
    for (uint32_t p = 0; p < N_POLICY; p++) {
        node_until(node, reply[p]);
        cr_assert_eq(node->reply[reply[p]].last, EVENT_COMPLETE, "%s: %s",
                     POLICY[p], node->reply[reply[p]].end->cause.text);
    }
}

static void expect_as_alone(struct node *node)
{
    struct node *alone = open_cpu();

    cr_assert_str_eq(model_numerics(node->model), model_numerics(alone->model));
    for (uint32_t p = 0; p < N_POLICY; p++) {
        for (uint32_t t = 0; t < N_TURN; t++)
            cr_assert_eq(node_call(alone, turn_of(alone, p, t))->last,
                         EVENT_COMPLETE);
        cr_assert(same_tokens(said_by(node, p), said_by(alone, p)), "%s",
                  POLICY[p]);
    }
    node_destroy(alone);
}

Test(engine_policy_device, all_at_once_say_what_each_says_alone_on_a_cpu)
{
    for (uint32_t tick = 0; tick < 2; tick++) {
        struct node *node = open_on(&backend_apart);

        if (tick) /* slices of prompts between steps */
            node_tick(node, 900);
        for (uint32_t t = 0; t < N_TURN; t++)
            turn_all(node, t);
        cr_assert_gt(apart_n_replay(model_device(node->model)), 20);
        expect_as_alone(node);
        node_destroy(node);
    }
}

/* Snapshots of before have their indices and what their steps have added up. */
Test(engine_policy_device, are_kept_over_restarts_and_kills)
{
    for (uint32_t is_killed = 0; is_killed < 2; is_killed++) {
        struct node *node = open_on(&backend_apart);

        for (uint32_t t = 0; t < N_TURN; t++) {
            turn_all(node, t);
            settle(node);
            if (is_killed)
                node_kill(node);
            else
                node_stop(node);
            load(node, &backend_apart);
            node_start(node);
        }
        expect_as_alone(node);
        node_destroy(node);
    }
}

Test(engine_policy_device, are_inherited_by_forks_and_bundles)
{
    for (uint32_t p = 1; p < N_POLICY; p++) {
        struct node *node = open_on(&backend_apart),
                    *to = open_on(&backend_apart);
        struct command *command;
        struct bytes bundle;
        struct reply *want;

        cr_assert_eq(node_call(node, turn_of(node, p, 0))->last,
                     EVENT_COMPLETE);
        command = command_make(COMMAND_FORK_SESSION, node_reply(node));
        snprintf(command->fork.session, sizeof(command->fork.session), "s%u",
                 p);
        strcpy(command->fork.name, "fork");
        cr_assert_eq(node_call(node, command)->last, EVENT_SESSION);
        settle(node);
        verify_whole(node, "fork");
        bundle = export_of(node, "fork", true);
        import_as(to, "fork", bundle);
        settle(to);
        verify_whole(to, "fork");
        want = node_call(node, turn_of(node, p, 1));
        command = turn_of(node, p, 1);
        strcpy(command->generate.session, "fork");
        cr_assert(same_tokens(node_call(node, command), want), "%s", POLICY[p]);
        command = turn_of(to, p, 1);
        strcpy(command->generate.session, "fork");
        cr_assert(same_tokens(node_call(to, command), want), "%s", POLICY[p]);
        free(bundle.at);
        node_destroy(node);
        node_destroy(to);
    }
}
