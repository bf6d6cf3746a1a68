/*
 * A step that finds no memory for what it needs in between has run in part, and
 * must never show in tokens: one reply says KV_MEMORY, the others of its pass
 * are computed again, and what failed goes on when there is room. The oracle is
 * the same turns on a node with room for all.
 */
#include "kernels/apart/apart.h"
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define N_SESSION 4u
#define N_TURN 2u

static const char *const FULL[N_SESSION] = {NULL};
static const char *const POLICY[N_SESSION] = {
    "infllm:sink=0:window=0:pick=64:step=8",
    "snapkv:sink=0:window=0:pick=64:end=90", NULL,
    "quest:sink=64:window=0:pick=64:step=1"};
static const char *const *policies = FULL;

static struct node *open_node(void)
{
    struct node *node = node_create(NULL);

    node_load(node, &(struct model_options){.backend = &backend_apart});
    node_start(node);
    return node;
}

static struct command *turn_of(struct node *node, uint32_t s, uint32_t t)
{
    static const uint32_t LENGTH[] = {30, 64, 65, 130};
    char name[16], id[16];
    struct command *command;

    (void)snprintf(name, sizeof(name), "s%u", s);
    (void)snprintf(id, sizeof(id), "turn-%u", t);
    command = generate(node, name, id, LENGTH[(s + t) % 4], 100 * s + t);
    command->generate.sampling.max_tokens = 12 + 5 * s;
    command->generate.sampling.temperature = s % 2 ? 0.8f : 0;
    return under(command, t == 0 ? policies[s] : NULL);
}

static void finish(struct node *node, const struct reply *reply)
{
    for (uint32_t i = 0; i < STEP_LIMIT && !reply->is_over; i++)
        if (!node_step(node))
            (void)ring_wait(node->inbox, 2);
    need(reply->is_over);
}

static struct reply *call(struct node *node, struct command *command)
{
    struct reply *reply = &node->reply[command->reply];

    node_send(node, command);
    finish(node, reply);
    return reply;
}

static struct reply *log_of(struct node *node, uint32_t s)
{
    char name[16];

    (void)snprintf(name, sizeof(name), "s%u", s);
    return call(node, about(node, COMMAND_READ_TOKENS, name));
}

/* One turn of all at once with so little; what failed once more with plenty.
 * How many were told. */
static uint32_t turn_of_all(struct node *node, uint32_t t, size_t bytes)
{
    struct reply *reply[N_SESSION];
    uint32_t n_told = 0;

    apart_squeeze(model_device(node->model), bytes);
    for (uint32_t s = 0; s < N_SESSION; s++) {
        struct command *command = turn_of(node, s, t);

        reply[s] = &node->reply[command->reply];
        node_send(node, command);
    }
    for (uint32_t s = 0; s < N_SESSION; s++)
        finish(node, reply[s]);
    apart_squeeze(model_device(node->model), SIZE_MAX);
    for (uint32_t s = 0; s < N_SESSION; s++) {
        if (reply[s]->last == EVENT_COMPLETE)
            continue;
        cr_assert(
            reply_failed(reply[s], STATUS_RESOURCE_EXHAUSTED, "KV_MEMORY"));
        cr_assert_eq(call(node, turn_of(node, s, t))->last, EVENT_COMPLETE);
        n_told++;
    }
    return n_told;
}

/* Floats of keys and values, as the device takes them. */
static size_t key_bytes(const struct node *node)
{
    const struct config *config = model_config(node->model);

    return 2 * (size_t)config->n_kv_head * config->d_head * sizeof(float);
}

static void check_shedding(void)
{
    struct node *wanted = open_node();

    for (uint32_t t = 0; t < N_TURN; t++)
        cr_assert_eq(turn_of_all(wanted, t, SIZE_MAX), 0);
    for (uint32_t n_key = 50; n_key < 600; n_key += 50) {
        struct node *node = open_node();
        uint32_t n_told = 0;

        for (uint32_t t = 0; t < N_TURN; t++)
            n_told += turn_of_all(node, t, n_key * key_bytes(node));
        cr_assert_gt(n_told, 0, "%u keys", n_key);
        cr_assert_lt(n_told, N_SESSION * N_TURN, "%u keys", n_key);
        for (uint32_t s = 0; s < N_SESSION; s++)
            cr_assert(same_tokens(log_of(node, s), log_of(wanted, s)));
        node_destroy(node);
    }
    node_destroy(wanted);
}

Test(engine_scratch, one_reply_of_a_step_without_room_says_so)
{
    check_shedding();
}

/* What steps chose and added up goes back with the rest. */
Test(engine_scratch, so_it_is_under_policies)
{
    policies = POLICY;
    check_shedding();
    policies = FULL;
}
