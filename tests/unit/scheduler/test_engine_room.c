/*
 * Room for fewer sessions than wait: each request comes to its end, whatever
 * was fetched for the others meanwhile. The oracle for tokens is the same calls
 * on a node with room for all; what waits for ever is told by a limit of steps,
 * some twenty times what is needed.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define N_CALL 5u
#define N_PROMPT 300u
#define N_OUTPUT 40u
#define N_LENGTH (N_PROMPT + 3 + N_OUTPUT)
#define ROOM_STEPS 20000u

static const char *name_of(uint32_t i)
{
    static const char *const name[N_CALL] = {"a", "b", "c", "d", "e"};

    return name[i];
}

static size_t quarters(const struct node *node, uint32_t n)
{
    return n *
           (memory_bytes_for(node->model, NULL, N_LENGTH) +
            sizeof(struct resident) + N_LENGTH * sizeof(uint32_t)) /
           4;
}

/* All its sessions leave memory; then there is room for so many quarters of
 * one, at least one; 0: for all. */
static void restart(struct node *node, uint32_t n_quarter)
{
    node_until(node, 0);
    node_stop(node);
    if (n_quarter)
        node->options.session_bytes = quarters(node, n_quarter);
    node_start(node);
}

/* When the store thread is done with all that it was asked for: reads are
 * then as fast as they can be. */
static void step_behind_store(struct node *node)
{
    for (uint32_t i = 0; ring_count(node->done) < node->engine->n_job; i++) {
        need(i < STEP_LIMIT);
        ring_wait(node->inbox, 20);
    }
    if (!node_step(node))
        ring_wait(node->inbox, 1); /* the journal's turn */
}

static bool are_over(const struct node *node, uint64_t first)
{
    for (uint32_t i = 0; i < N_CALL; i++)
        if (!node->reply[first + i].is_over)
            return false;
    return true;
}

/* All at once. Returns the number of the first. */
static uint64_t call_all(struct node *node,
                         struct command *(*make)(struct node *, uint32_t))
{
    const uint64_t first = node->last_reply + 1;
    uint32_t n_step = 0;

    for (uint32_t i = 0; i < N_CALL; i++)
        node_send(node, make(node, i));
    while (!are_over(node, first) && n_step++ < ROOM_STEPS)
        step_behind_store(node);
    for (uint32_t i = 0; i < N_CALL; i++)
        cr_assert(node->reply[first + i].is_over &&
                      reply_completed(&node->reply[first + i], FINISH_LENGTH),
                  "call %u with room for %zu bytes", i,
                  node->options.session_bytes);
    return first;
}

/* Under any room the same calls have the same tokens. */
static void try_rooms(struct node *(*make_node)(uint32_t n_quarter),
                      struct command *(*make)(struct node *, uint32_t))
{
    struct node *wide = make_node(0);
    const uint64_t first = call_all(wide, make);

    for (uint32_t n_quarter = 5; n_quarter < 4 * N_CALL; n_quarter++) {
        struct node *node = make_node(n_quarter);
        const uint64_t its = call_all(node, make);
        for (uint32_t i = 0; i < N_CALL; i++)
            cr_assert(
                same_tokens(&node->reply[its + i], &wide->reply[first + i]),
                "call %u, %u quarters", i, n_quarter);
        node_destroy(node);
    }
    node_destroy(wide);
}

static struct node *with_prefix(uint32_t n_quarter)
{
    struct node *node = node_create(NULL);

    node_start(node);
    node_completed(node, generate(node, "first", "1", N_PROMPT, 7));
    restart(node, n_quarter);
    return node;
}

/* The prompt that is stored, and tokens of its own. */
static struct command *branch(struct node *node, uint32_t i)
{
    struct command *command = generate(node, name_of(i), "1", N_PROMPT + 3, 7);
    uint32_t *token = (uint32_t *)command->generate.token;

    for (uint32_t t = 0; t < 3; t++)
        token[N_PROMPT + t] = i + t;
    command->generate.sampling.max_tokens = N_OUTPUT;
    return command;
}

Test(room, prompts_that_wait_do_not_take_what_was_fetched_for_each_other)
{
    try_rooms(with_prefix, branch);
}

static struct node *with_sessions(uint32_t n_quarter)
{
    struct node *node = node_create(NULL);

    node_start(node);
    for (uint32_t i = 0; i < N_CALL; i++)
        node_completed(node, generate(node, name_of(i), "1", N_PROMPT, i));
    restart(node, n_quarter);
    return node;
}

static struct command *next_turn(struct node *node, uint32_t i)
{
    struct command *command = generate(node, name_of(i), "2", 3, 100 + i);

    command->generate.sampling.max_tokens = N_OUTPUT - 12;
    return command;
}

Test(room, sessions_that_wait_do_not_take_what_was_fetched_for_each_other)
{
    try_rooms(with_sessions, next_turn);
}

/* A reader that stands still may do so for hours. */
Test(room, who_waits_for_its_reader_leaves_for_a_session_that_is_read)
{
    struct node *node = with_sessions(9);
    struct command *slow = next_turn(node, 0), *busy = next_turn(node, 1);
    struct command *stored = next_turn(node, 2);
    const uint64_t first = slow->reply;

    busy->generate.sampling.max_tokens = 2 * N_OUTPUT;
    node->engine->room_tokens = 16;
    node_send(node, slow);
    while (node->reply[first].n_token == 0)
        (void)node_step(node);
    node_subject(node, COMMAND_PAUSE, first);
    node_send(node, busy);
    while (node->reply[first + 1].n_token == 0)
        (void)node_step(node);
    node_send(node, stored);
    for (uint32_t i = 0; i < ROOM_STEPS && !node->reply[first + 1].is_over; i++)
        step_behind_store(node);
    cr_assert(reply_completed(&node->reply[first + 1], FINISH_LENGTH));
    cr_assert(node->reply[first + 2].is_over, "it waits for the paused one");
    node_subject(node, COMMAND_RESUME, first);
    node_until(node, first);
    cr_assert(reply_completed(&node->reply[first], FINISH_LENGTH));
    node_destroy(node);
}

/* Would nothing wake the engine? */
static bool is_asleep(const struct node *node)
{
    const struct engine *engine = node->engine;

    return engine->n_job == 0 && !engine->oldest_flight && !engine->flight &&
           journal_thread_backlog(node->journal_thread) == 0 &&
           ring_count(node->reports) == 0 && ring_count(node->inbox) == 0;
}

/* A session leaves to make room for one that is read, and was not stored
 * before: it is at once, though nothing else happens on the node. */
Test(room, the_engine_does_not_sleep_while_one_waits_for_room)
{
    struct node *node = with_sessions(5);
    struct command *first = next_turn(node, 0), *second = next_turn(node, 1);
    const uint64_t reply = second->reply;

    first->generate.sampling.max_tokens = 70; /* worth a snapshot */
    store_memory_faults(node->bulk_store)->is_read_only = true;
    node_completed(node, first);
    node_until(node, 0);
    while (node->engine->n_image > 0 || node->engine->n_job > 0)
        step_behind_store(node);
    store_memory_faults(node->bulk_store)->is_read_only = false;
    node_send(node, second);
    for (uint32_t i = 0; i < ROOM_STEPS && !node->reply[reply].is_over; i++) {
        if (node_step(node))
            continue;
        cr_assert(node->reply[reply].is_over || !is_asleep(node));
        ring_wait(node->inbox, 1);
    }
    cr_assert(reply_completed(&node->reply[reply], FINISH_LENGTH));
    node_destroy(node);
}
