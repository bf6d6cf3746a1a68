/*
 * Sessions of a node that caps recurrent states (model/state_cap.h): kills and
 * slices around the cap's grid, another cap after a restart, and the metric.
 * The oracle is a node that gets all tokens as one prompt; log-probabilities
 * are compared as well, since tokens of a random model hardly know of a cap.
 */
#include "tests/unit/scheduler/fork_fixture.h"

#include <criterion/criterion.h>

#define CAP 0.001f   /* far below what heads grow to: every one is scaled */
#define N_PROMPT 990 /* the grid's point comes in the reply */
#define N_REPLY 70u
#define N_HEAD 16u /* of all layers */

/* The model again, with this cap. */
static void set_cap(struct node *node, float cap)
{
    struct model_options options = {.state_cap = cap};

    must(backend_find("auto", &options.backend));
    node_load(node, &options);
}

static struct node *capped_node(float cap)
{
    struct node *node = node_create(NULL);

    set_cap(node, cap);
    node->options.prefix_bytes = 0;
    must(metrics_create(&node->metrics));
    node_start(node);
    return node;
}

static struct command *turn_of(struct node *node, const char *id, uint32_t n,
                               uint32_t salt)
{
    struct command *command = generate(node, "s", id, n, salt);

    command->generate.sampling.max_tokens = N_REPLY;
    command->generate.sampling.ignore_eos = true;
    command->generate.sampling.temperature = 0;
    command->generate.sampling.n_logprob = 1;
    return command;
}

static uint64_t count_capped(const struct node *node)
{
    char *text = metrics_format(node->metrics);
    const char *name = "\ngodwit_state_capped_total ";
    const char *at = strstr(text, name);
    uint64_t n;

    cr_assert_not_null(at);
    n = strtoull(at + strlen(name), NULL, 10);
    free(text);
    return n;
}

/* What a node of this cap, left alone, says to the first n tokens of a log. */
static struct reply *alone(struct node *judge, const uint32_t *token,
                           uint32_t n)
{
    struct command *command = turn_of(judge, "", n, 7);

    command->generate.session[0] = '\0';
    memcpy((uint32_t *)command->generate.token, token, n * sizeof(*token));
    return node_completed(judge, command);
}

static void assert_same(const struct reply *a, const struct reply *b,
                        const char *what)
{
    cr_assert(same_tokens(a, b), "%s", what);
    cr_assert_eq(a->n_logprob, N_REPLY);
    cr_assert(a->logprob_sum == b->logprob_sum, "%s: %a, %a", what,
              a->logprob_sum, b->logprob_sum);
}

Test(engine_capped, heads_that_were_scaled_are_counted)
{
    struct node *node = capped_node(CAP), *plain = capped_node(0);
    struct reply *reply, *other;

    cr_assert_eq(count_capped(node), 0);
    reply = node_completed(node, turn_of(node, "a", N_PROMPT, 1));
    cr_assert_eq(count_capped(node), N_HEAD, "once, at token 1,024");
    other = node_completed(plain, turn_of(plain, "a", N_PROMPT, 1));
    cr_assert_eq(count_capped(plain), 0);
    cr_assert(reply->logprob_sum != other->logprob_sum);
    node_destroy(node);
    node_destroy(plain);
}

/* Killed after so many steps, then asked again; and the turn after that, in
 * slices of any length. */
static void kill_and_go_on(uint32_t n_step, struct node *judge)
{
    struct node *node = capped_node(CAP);
    struct reply *reply;
    const struct reply *log;

    node_send(node, turn_of(node, "a", N_PROMPT, 1));
    for (uint32_t i = 0; i < n_step; i++)
        node_step(node);
    restart(node, true);
    (void)node_completed(node, turn_of(node, "a", N_PROMPT, 1));
    node_tick(node, 3000);
    reply = node_completed(node, turn_of(node, "b", 1500, 2));
    log = node_read(node, "s");
    cr_assert_eq(log->n_token, N_PROMPT + 1500 + 2 * N_REPLY);
    cr_assert(same_tokens(
        alone(judge, log->token, N_PROMPT),
        &(struct reply){.token = log->token + N_PROMPT, .n_token = N_REPLY}));
    assert_same(alone(judge, log->token, log->n_token - N_REPLY), reply,
                "after the kill");
    node_destroy(node);
}

Test(engine_capped, a_kill_anywhere_around_the_grid_changes_no_bit)
{
    struct node *judge = capped_node(CAP);

    for (uint32_t n_step = 2; n_step < 2 + N_REPLY; n_step += 12) {
        kill_and_go_on(n_step, judge);
        forget_replies(judge);
    }
    node_destroy(judge);
}

Test(engine_capped, states_of_another_cap_are_not_used_and_the_reply_says_why)
{
    static const float cap[] = {0.002f, 0, CAP};
    struct node *node = capped_node(CAP);

    (void)node_completed(node, turn_of(node, "a", 1100, 1));
    for (uint32_t i = 0; i < 3; i++) {
        struct node *judge = capped_node(cap[i]);
        struct reply *reply;
        const struct reply *log;
        char id[8];

        fork_settle(node); /* its snapshot is stored */
        node_stop(node);
        set_cap(node, cap[i]);
        node_start(node);
        snprintf(id, sizeof(id), "b%u", i);
        reply = node_completed(node, turn_of(node, id, 20, 2 + i));
        cr_assert_eq(reply->end->complete.reuse, REUSE_NUMERICS_CHANGED);
        cr_assert_eq(reply->end->complete.n_restored, 0);
        log = node_read(node, "s");
        assert_same(alone(judge, log->token, log->n_token - N_REPLY), reply,
                    "computed again");
        node_destroy(judge);
    }
    node_destroy(node);
}
