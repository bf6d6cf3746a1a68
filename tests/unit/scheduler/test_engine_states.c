/*
 * A budget for states alone, squeezed to those of one session: whoever comes
 * takes the place of another, and says what it says with room for all (E5).
 */
#include "scheduler/engine_calls.h"
#include "state/pager.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

static const char *const POLICY[] = {
    "full",
    "window:sink=64:window=64",
    "infllm:sink=64:window=64:pick=128:step=8",
    "quest:sink=64:window=64:pick=64:step=8",
};
#define N_SESSION 4u
#define N_TURN 3u

static struct command *turn_of(struct node *node, uint32_t s, uint32_t t)
{
    char name[8];
    struct command *command;

    snprintf(name, sizeof(name), "s%u", s);
    command = generate(node, name, "", t ? 60 : 300 + 50 * s, 10 * s + t);
    command->generate.sampling.max_tokens = 150;
    command->generate.sampling.ignore_eos = true;
    command->generate.sampling.temperature = 1.0f;
    return under(command, t ? NULL : POLICY[s]);
}

static size_t states_now(const struct engine *engine)
{
    size_t n = 0;

    for (uint64_t i = 0; i < engine->n_session; i++)
        n += engine->table[i]->state_charge;
    return n;
}

/* All turns of a round are sent at once. */
static void squeezed(bool has_pager)
{
    struct node *node = node_create(NULL), *alone = node_create(NULL);
    uint32_t n_restored = 0;

    node->options.state_bytes = engine_state_least(node->model);
    node->has_pager = has_pager;
    node_start(node);
    node_start(alone);
    for (uint32_t t = 0; t < N_TURN; t++) {
        uint64_t reply[N_SESSION];

        for (uint32_t s = 0; s < N_SESSION; s++) {
            struct command *command = turn_of(node, s, t);

            reply[s] = command->reply;
            node_send(node, command);
        }
        for (uint32_t s = 0; s < N_SESSION; s++) {
            const struct reply *got = &node->reply[reply[s]];

            node_until(node, reply[s]);
            cr_assert(reply_completed(got, FINISH_LENGTH));
            cr_assert_leq(states_now(node->engine), node->options.state_bytes);
            n_restored += got->end->complete.n_restored > 0;
            cr_assert(same_tokens(got, node_call(alone, turn_of(alone, s, t))),
                      "turn %u under %s", t, POLICY[s]);
        }
    }
    cr_assert_geq(n_restored, (N_TURN - 1) * (N_SESSION - 1));
    node_until(node, 0);
    while (node->engine->n_image > 0 || node->engine->n_job > 0)
        if (!node_step(node))
            ring_wait(node->inbox, 1);
    /* What is counted is what is there, once nothing is under way. */
    cr_assert_eq(node->engine->state_charged, states_now(node->engine));
    node_destroy(node);
    node_destroy(alone);
}

Test(engine_states, of_one_session_are_enough, .timeout = 240)
{
    squeezed(false);
}

Test(engine_states, of_one_session_are_enough_beside_pages, .timeout = 240)
{
    squeezed(true);
}

Test(engine_states, for_none_are_refused)
{
    struct node *node = node_create(NULL);
    struct engine_options options = node->options;
    struct engine *engine;

    options.model = node->model;
    options.state_bytes = engine_state_least(node->model) - 1;
    cr_assert_eq(engine_create(&options, &engine), STATUS_INVALID_ARGUMENT);
    cr_assert(strstr(status_reason(), "give at least"));
    node_start(node);
    node_destroy(node);
}
