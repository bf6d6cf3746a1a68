/*
 * Prompts run in slices between the passes of running replies, and requests
 * make room for more important ones. The clock ticks whenever it is asked, so
 * that slices end after a piece of work or two. The oracle for tokens is the
 * same request on a node that was left alone.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define TICK_US 3000u /* a slice of an idle engine has one tick or two */

static struct node *ticking(void)
{
    struct node *node = node_create(NULL);

    node_tick(node, TICK_US);
    node_start(node);
    return node;
}

static struct command *talk(struct node *node, const char *name,
                            uint32_t n_token, uint32_t max_tokens,
                            uint32_t salt)
{
    struct command *command = generate(node, name, name, n_token, salt);

    command->generate.sampling.max_tokens = max_tokens;
    return command;
}

static struct reply *sent(struct node *node, struct command *command)
{
    struct reply *reply = &node->reply[command->reply];

    node_send(node, command);
    return reply;
}

static void until_in_pass(struct node *node)
{
    while (!node->engine->prompt.is_under_way)
        node_step(node);
}

static void expect_alone(const struct reply *got, uint32_t n_token,
                         uint32_t max_tokens, uint32_t salt)
{
    struct node *node = node_create(NULL);
    const struct reply *want;

    node_start(node);
    want = node_call(node, talk(node, "alone", n_token, max_tokens, salt));
    cr_assert(same_tokens(got, want));
    node_destroy(node);
}

Test(engine_lanes, replies_go_on_while_a_prompt_is_in_its_pass)
{
    struct node *node = ticking();
    struct reply *talker = sent(node, talk(node, "talks", 20, 300, 1));
    struct reply *reader;
    uint64_t most = 0;

    while (talker->n_token < 3)
        node_step(node);
    reader = sent(node, talk(node, "reads", 1500, 5, 2));
    while (!reader->is_over) {
        uint64_t before = node->engine->generated_tokens;
        while (node->engine->prompt.is_under_way)
            node_step(node);
        if (node->engine->generated_tokens - before > most)
            most = node->engine->generated_tokens - before;
        if (!node_step(node))
            ring_wait(node->inbox, 1);
    }
    cr_assert_gt(most, 2, "%lu tokens in the longest pass", most);
    node_until(node, (uint64_t)(talker - node->reply));
    expect_alone(talker, 20, 300, 1);
    expect_alone(reader, 1500, 5, 2);
    node_destroy(node);
}

/* A slice may be long where no reply waits for its end and nobody calls. */
Test(engine_lanes, a_slice_lingers_until_something_comes)
{
    struct node *node = ticking();
    struct reply *talker;
    struct pass_slice slice = schedule_slice(node->engine);

    cr_assert_gt(slice.linger_us, 0);
    cr_assert_not(slice.is_called(slice.caller));
    talker = sent(node, talk(node, "talks", 20, 300, 1));
    cr_assert(slice.is_called(slice.caller));
    while (talker->n_token < 3)
        node_step(node);
    cr_assert_null(schedule_slice(node->engine).is_called);
    node_until(node, (uint64_t)(talker - node->reply));
    node_destroy(node);
}

/* What would touch a session in its pass waits, and nothing else does. */
static void touched_in_pass(enum command_kind kind)
{
    struct node *node = ticking();
    struct command *command;
    struct reply *talker = sent(node, talk(node, "talks", 20, 200, 1));
    struct reply *reader, *answer = NULL, *retry;

    while (talker->n_token < 3)
        node_step(node);
    reader = sent(node, talk(node, "reads", 1500, 5, 2));
    until_in_pass(node);
    node_step(node);
    cr_assert(node->engine->prompt.is_under_way);
    if (kind == COMMAND_DETACH || kind == COMMAND_PAUSE)
        node_subject(node, kind, (uint64_t)(reader - node->reply));
    else
        answer = sent(node, about(node, kind, "reads"));
    while (node->engine->prompt.is_under_way) {
        cr_assert_not(reader->is_over);
        cr_assert_not(answer && answer->is_over);
        node_step(node);
    }
    node_step(node);
    node_until(node, 0);
    if (kind == COMMAND_CHECKPOINT_SESSION || kind == COMMAND_CANCEL ||
        kind == COMMAND_DELETE_SESSION)
        node_until(node, (uint64_t)(answer - node->reply));
    if (kind == COMMAND_CANCEL || kind == COMMAND_DELETE_SESSION)
        cr_assert(reply_completed(reader, FINISH_CANCELLED));
    if (kind == COMMAND_CHECKPOINT_SESSION)
        cr_assert_gt(answer->end->checkpoint.position, 0);
    if (kind == COMMAND_PAUSE)
        node_subject(node, COMMAND_RESUME, (uint64_t)(reader - node->reply));
    if (kind == COMMAND_DETACH) {
        command = talk(node, "reads", 1500, 5, 2);
        retry = node_call(node, command);
        cr_assert_eq(retry->end->complete.reuse, REUSE_RESIDENT);
        cr_assert_gt(retry->end->complete.n_cached, 0);
        expect_alone(retry, 1500, 5, 2);
    } else if (kind != COMMAND_CANCEL && kind != COMMAND_DELETE_SESSION) {
        node_until(node, (uint64_t)(reader - node->reply));
        expect_alone(reader, 1500, 5, 2);
    }
    node_until(node, (uint64_t)(talker - node->reply));
    expect_alone(talker, 20, 200, 1);
    (void)command;
    node_destroy(node);
}

Test(engine_lanes, a_cancel_waits_for_the_end_of_a_pass_and_not_longer)
{
    touched_in_pass(COMMAND_CANCEL);
}

Test(engine_lanes, a_reader_that_leaves_in_a_pass_finds_what_was_computed)
{
    touched_in_pass(COMMAND_DETACH);
}

Test(engine_lanes, a_pause_in_a_pass_loses_nothing)
{
    touched_in_pass(COMMAND_PAUSE);
}

Test(engine_lanes, a_delete_in_a_pass_waits_for_its_end)
{
    touched_in_pass(COMMAND_DELETE_SESSION);
}

Test(engine_lanes, a_checkpoint_in_a_pass_is_taken_at_its_end)
{
    touched_in_pass(COMMAND_CHECKPOINT_SESSION);
}

Test(engine_lanes, a_deadline_in_a_pass_keeps_what_was_computed)
{
    struct node *node = ticking();
    struct command *command = talk(node, "reads", 1500, 5, 2);
    struct reply *reader, *retry;

    command->deadline_us = node->clock.us + 1000000;
    reader = sent(node, command);
    until_in_pass(node);
    clock_simulated_advance(&node->clock, 2000000);
    while (node->engine->prompt.is_under_way) {
        cr_assert_not(reader->is_over);
        node_step(node);
    }
    node_step(node);
    node_until(node, 0);
    cr_assert(
        reply_failed(reader, STATUS_DEADLINE_EXCEEDED, "DEADLINE_PASSED"));
    cr_assert_eq(node->engine->n_request, 0);
    retry = node_call(node, talk(node, "reads", 1500, 5, 2));
    cr_assert_gt(retry->end->complete.n_cached, 0);
    expect_alone(retry, 1500, 5, 2);
    node_destroy(node);
}

/* A journal that fails in the middle of a pass loses the turn, not the node. */
Test(engine_lanes, a_lost_commit_in_a_pass_leaves_a_session_that_goes_on)
{
    struct node *node = ticking();
    struct reply *reader, *retry;

    node_call(node, talk(node, "first", 30, 4, 7));
    reader = sent(node, talk(node, "reads", 1500, 5, 2));
    store_memory_faults(node->journal_store)->is_read_only = true;
    node_until(node, (uint64_t)(reader - node->reply));
    cr_assert_eq(reader->last, EVENT_ERROR);
    store_memory_faults(node->journal_store)->is_read_only = false;
    retry = node_call(node, talk(node, "reads", 1500, 5, 2));
    expect_alone(retry, 1500, 5, 2);
    node_destroy(node);
}

Test(engine_lanes, a_more_important_request_takes_a_place_in_the_batch)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *low, *same, *high;
    uint32_t before;

    node->options.max_running = 1;
    node_start(node);
    command = talk(node, "low", 20, 60, 1);
    command->generate.priority = -1;
    low = sent(node, command);
    while (low->n_token < 20)
        node_step(node);
    command = talk(node, "same", 20, 60, 3); /* its equal waits */
    command->generate.priority = -1;
    same = sent(node, command);
    high = sent(node, talk(node, "high", 20, 10, 2));
    node_step(node);
    before = low->n_token;
    node_until(node, (uint64_t)(high - node->reply));
    cr_assert_not(low->is_over);
    /* Of what was made before, some waits for the journal and some is there. */
    cr_assert_leq(low->n_token, before + 2 * JOURNAL_PLACES + 1);
    cr_assert_eq(same->n_token, 0);
    node_until(node, (uint64_t)(low - node->reply));
    cr_assert_lt(same->n_token, 30, "it was served before");
    node_until(node, (uint64_t)(same - node->reply));
    expect_alone(low, 20, 60, 1);
    expect_alone(same, 20, 60, 3);
    expect_alone(high, 20, 10, 2);
    node_destroy(node);
}

/* Memory for one and a half: the lower one is stored, freed and comes back. */
static void parked(enum durability durability)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *low, *high;

    node->options.session_bytes =
        memory_bytes_for(node->model, NULL, 900) * 3 / 2;
    node->options.durability = durability;
    node_start(node);
    command = talk(node, "low", 700, 100, 1);
    command->generate.priority = -1;
    low = sent(node, command);
    while (low->n_token < 20)
        node_step(node);
    high = sent(node, talk(node, "high", 600, 200, 2));
    node_until(node, (uint64_t)(high - node->reply));
    cr_assert(reply_completed(high, FINISH_LENGTH));
    cr_assert_not(low->is_over);
    cr_assert_leq(node->engine->charged, node->options.session_bytes);
    node_until(node, (uint64_t)(low - node->reply));
    cr_assert(reply_completed(low, FINISH_LENGTH));
    expect_alone(low, 700, 100, 1);
    expect_alone(high, 600, 200, 2);
    node_destroy(node);
}

Test(engine_lanes, a_parked_reply_goes_on_exactly)
{
    parked(DURABILITY_LOCAL);
}

Test(engine_lanes, a_parked_reply_that_is_not_durable_is_computed_again)
{
    parked(DURABILITY_NONE);
}

/* Important requests that come whenever it runs cannot stop one for ever. */
Test(engine_lanes, who_was_preempted_gets_on_before_it_is_again)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *low, *high = NULL;
    uint32_t n_high = 0, n_token = 1;

    node->options.max_running = 1;
    node_start(node);
    command = talk(node, "low", 20, 100, 1);
    command->generate.priority = -1;
    low = sent(node, command);
    while (!low->is_over) {
        if (high && !high->is_over) {
            n_token = low->n_token;
        } else if (low->n_token > n_token) {
            char name[16];
            snprintf(name, sizeof(name), "h%u", n_high++);
            high = sent(node, talk(node, name, 5, 3, n_high));
        }
        if (!node_step(node))
            ring_wait(node->inbox, 1);
    }
    cr_assert_geq(n_high, 3);
    /* The end of low may wait for the journal while more of them come. */
    cr_assert_leq(n_high, 2 + 100 / PREEMPT_PROGRESS + JOURNAL_PLACES);
    node_until(node, (uint64_t)(high - node->reply));
    expect_alone(low, 20, 100, 1);
    node_destroy(node);
}

static struct command *of_tenant(struct node *node, const char *name,
                                 uint32_t n_token, const char *tenant)
{
    struct command *command = talk(node, name, n_token, 2, n_token);

    snprintf(command->tenant, TENANT_SIZE, "%s", tenant);
    return command;
}

/* One tenant fills the queue; another one's prompt is not behind all of it. */
Test(engine_lanes, a_tenant_with_much_to_do_lets_others_pass)
{
    struct node *node = node_create(NULL);
    struct reply *many[6], *one;
    uint32_t n_over = 0;
    char name[16];

    node->options.max_running = 1;
    node_start(node);
    for (uint32_t i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "many%u", i);
        many[i] = sent(node, of_tenant(node, name, 300 + i, "many"));
    }
    node_step(node);
    one = sent(node, of_tenant(node, "one", 300, "one"));
    node_until(node, (uint64_t)(one - node->reply));
    for (uint32_t i = 0; i < 6; i++)
        n_over += many[i]->is_over && many[i]->rank < one->rank;
    cr_assert_leq(n_over, 2, "%u were before it", n_over);
    for (uint32_t i = 0; i < 6; i++)
        node_until(node, (uint64_t)(many[i] - node->reply));
    node_destroy(node);
}

Test(engine_lanes, a_tenant_has_a_share_of_the_queue)
{
    struct node *node = node_create(NULL);
    struct reply *reply[6];
    char name[16];

    node->options.max_running = 1;
    node->options.max_queue = 4;
    node_start(node);
    reply[5] = sent(node, talk(node, "runs", 20, 50, 3));
    while (reply[5]->n_token == 0)
        node_step(node);
    for (uint32_t i = 0; i < 5; i++) {
        snprintf(name, sizeof(name), "many%u", i);
        reply[i] = sent(node, of_tenant(node, name, 100 + i, "many"));
    }
    node_until(node, (uint64_t)(reply[4] - node->reply));
    cr_assert(
        reply_failed(reply[4], STATUS_RESOURCE_EXHAUSTED, "TENANT_QUOTA"));
    cr_assert_str_eq(reply[4]->end->cause.field, "tenant:many");
    cr_assert_gt(reply[4]->end->cause.retry_ms, 0);
    for (uint32_t i = 0; i < 4; i++)
        node_until(node, (uint64_t)(reply[i] - node->reply));
    node_destroy(node);
}

/* A full queue takes an important request in place of a sheddable one. */
Test(engine_lanes, sheddable_requests_make_room_in_the_queue)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *runs, *shed[2], *more, *kept;
    char name[16];

    node->options.max_running = 1;
    node->options.max_queue = 2;
    node_start(node);
    runs = sent(node, talk(node, "runs", 20, 50, 3));
    while (runs->n_token == 0)
        node_step(node);
    for (uint32_t i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "shed%u", i);
        command = talk(node, name, 20, 3, 10 + i);
        command->generate.priority = -1;
        shed[i] = sent(node, command);
    }
    node_step(node);
    command = talk(node, "more", 20, 3, 12);
    command->generate.priority = -1;
    more = node_call(node, command);
    cr_assert(reply_failed(more, STATUS_RESOURCE_EXHAUSTED, "QUEUE_FULL"));
    kept = node_call(node, talk(node, "kept", 20, 3, 13));
    cr_assert(reply_completed(kept, FINISH_LENGTH));
    cr_assert_neq(shed[0]->last == EVENT_ERROR, shed[1]->last == EVENT_ERROR);
    for (uint32_t i = 0; i < 2; i++) {
        node_until(node, (uint64_t)(shed[i] - node->reply));
        if (shed[i]->last != EVENT_ERROR)
            continue;
        cr_assert(reply_failed(shed[i], STATUS_RESOURCE_EXHAUSTED, "SHED"));
        cr_assert_gt(shed[i]->end->cause.retry_ms, 0);
    }
    node_destroy(node);
}

/* Who would be late behind others is told so at once. */
Test(engine_lanes, a_deadline_that_cannot_be_met_is_refused)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *reply, *runs;

    node_start(node);
    runs = sent(node, talk(node, "runs", 3000, 3, 2));
    command = talk(node, "late", 3000, 3, 1);
    command->deadline_us = node->clock.us + 1;
    reply = node_call(node, command);
    cr_assert(reply_failed(reply, STATUS_RESOURCE_EXHAUSTED, "DEADLINE"));
    cr_assert_gt(reply->end->cause.retry_ms, 0);
    cr_assert_eq(node->engine->n_session, 1);
    node_until(node, (uint64_t)(runs - node->reply));
    cr_assert(reply_completed(runs, FINISH_LENGTH));
    node_destroy(node);
}
