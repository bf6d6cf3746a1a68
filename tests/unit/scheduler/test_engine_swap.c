/*
 * Sessions that leave the device for the host's memory and come back must never
 * show in their tokens (E5), whatever happens on the way: a request, a kill, a
 * fork, a deletion, a full host, a lost device. The oracle is the same turns on
 * a node with room for all. The device is kernels/apart/apart.h, whose shuttle
 * carries one piece each time it is asked and reads and writes nothing before.
 */
#include "kernels/apart/apart.h"
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define N_SESSION 6u
/* Of the sessions; NULL: all see all. */
static const char *const *policies;
#define N_TURN 3u
#define MOST_TOKENS 420u /* more than a session ever has */
#define PLENTY ((size_t)64 << 20)

static void load(struct node *node)
{
    node_load(node, &(struct model_options){.backend = &backend_apart});
}

static struct node *open_node(size_t session_bytes, size_t host_bytes)
{
    struct node *node = node_create(NULL);

    load(node);
    if (session_bytes)
        node->options.session_bytes = session_bytes;
    node->options.host_bytes = host_bytes;
    node_start(node);
    return node;
}

/* And another one in its place, with a device of its own. */
static void kill_node(struct node *node)
{
    node_kill(node);
    load(node);
    node_start(node);
}

/* What one session of so many tokens takes, with what others keep that have
 * left. */
static size_t room_of(uint32_t n_token)
{
    struct node *node = open_node(0, 0);
    const struct policy most = {.index = INDEX_BOUNDS};
    const size_t bytes =
        memory_bytes_for(node->model, policies ? &most : NULL, n_token) +
        N_SESSION * (MOST_TOKENS * sizeof(uint32_t) + sizeof(struct resident));

    node_destroy(node);
    return bytes;
}

static struct command *turn_of(struct node *node, uint32_t s, uint32_t t)
{
    static const uint32_t LENGTH[] = {63, 64, 65, 130, 7, 90};
    char name[16], id[16];
    struct command *command;

    (void)snprintf(name, sizeof(name), "s%u", s);
    (void)snprintf(id, sizeof(id), "turn-%u", t);
    command = generate(node, name, id, LENGTH[(s + 2 * t) % 6], 100 * s + t);
    command->generate.sampling.max_tokens = 5 + (s * 7 + t * 11) % 12;
    command->generate.sampling.temperature = s % 2 ? 0.8f : 0;
    return under(command, policies && t == 0 ? policies[s] : NULL);
}

static bool is_carrying(const struct node *node)
{
    return node->engine->swap.first != NULL;
}

/* One step; waits for other threads unless the shuttle is under way. */
static void step(struct node *node)
{
    const struct engine *engine = node->engine;

    if (!node_step(node) && engine->swap.marked == engine->swap.reached)
        (void)ring_wait(node->inbox, 2);
}

static struct reply *call(struct node *node, struct command *command)
{
    struct reply *reply = &node->reply[command->reply];

    node_send(node, command);
    for (uint32_t i = 0; i < STEP_LIMIT && !reply->is_over; i++)
        step(node);
    need(reply->is_over);
    return reply;
}

static void turn(struct node *node, uint32_t s, uint32_t t)
{
    const struct reply *reply = call(node, turn_of(node, s, t));

    cr_assert_eq(reply->last, EVENT_COMPLETE, "session %u turn %u: %s", s, t,
                 reply->end->cause.text);
}

static struct session *find(const struct node *node, uint32_t s)
{
    char name[16];

    (void)snprintf(name, sizeof(name), "s%u", s);
    return table_find(node->engine, name);
}

static struct reply *log_of(struct node *node, uint32_t s)
{
    char name[16];

    (void)snprintf(name, sizeof(name), "s%u", s);
    return call(node, about(node, COMMAND_READ_TOKENS, name));
}

/* The same turns where nothing ever has to go; a test makes them once. */
static const struct reply *undisturbed(uint32_t s)
{
    static struct reply log[N_SESSION];
    struct node *node;

    if (log[s].token)
        return &log[s];
    node = open_node(0, 0);
    for (uint32_t t = 0; t < N_TURN; t++)
        turn(node, s, t);
    log[s] = reply_log(log_of(node, s));
    cr_assert_eq(node->engine->swap.marked, 0);
    node_destroy(node);
    return &log[s];
}

static void expect_same(struct node *node, uint32_t n_session)
{
    for (uint32_t s = 0; s < n_session; s++)
        cr_assert(same_tokens(log_of(node, s), undisturbed(s)), "session %u",
                  s);
}

static uint32_t count_aside(const struct node *node)
{
    uint32_t n = 0;

    for (uint64_t i = 0; i < node->engine->n_session; i++)
        n += swap_is_aside(node->engine->table[i]->resident);
    return n;
}

/* Until nothing is carried any more. */
static void rest(struct node *node)
{
    for (uint32_t i = 0; i < STEP_LIMIT && is_carrying(node); i++)
        step(node);
    need(!is_carrying(node));
}

Test(engine_swap, every_session_leaves_at_each_turn_and_no_bit_changes)
{
    struct node *node = open_node(room_of(MOST_TOKENS), PLENTY);
    uint32_t n_aside = 0;

    for (uint32_t t = 0; t < N_TURN; t++)
        for (uint32_t s = 0; s < N_SESSION; s++) {
            const uint64_t reached = node->engine->swap.reached;

            n_aside +=
                swap_is_aside(find(node, s) ? find(node, s)->resident : NULL);
            turn(node, s, t);
            cr_assert(t == 0 || node->engine->swap.reached > reached);
        }
    cr_assert_eq(n_aside, (N_TURN - 1) * N_SESSION);
    rest(node);
    cr_assert_eq(node->engine->swap.n_aside, count_aside(node));
    expect_same(node, N_SESSION);
    node_destroy(node);
}

#define N_SLOW 1000u /* more than there are */

/* Commits of those that have memory and nobody runs are under way, or landed.
 */
static void slow_down(struct node *node, bool is_slow)
{
    for (uint32_t s = 0; s < N_SESSION; s++) {
        struct session *session = find(node, s);

        if (is_slow && !swap_is_aside(session->resident))
            session->n_flight += N_SLOW;
        else if (session->n_flight >= N_SLOW)
            session->n_flight -= N_SLOW;
    }
    node->engine->n_job += is_slow ? 1 : -1;
}

/* Who waits for room whose holder waits for its commit takes nothing from those
 * that are aside: their tokens are next to nothing. */
Test(engine_swap, a_slow_commit_sends_nobody_to_the_store)
{
    struct node *node = open_node(room_of(MOST_TOKENS), PLENTY);
    const struct reply *reply;
    struct command *command;

    for (uint32_t s = 0; s < N_SESSION; s++)
        turn(node, s, 0);
    rest(node);
    slow_down(node, true);
    command = turn_of(node, 0, 1);
    reply = &node->reply[command->reply];
    cr_assert(swap_is_aside(find(node, 0)->resident));
    node_send(node, command);
    for (uint32_t i = 0; i < 50; i++)
        step(node);
    cr_assert_not(reply->is_over);
    for (uint32_t s = 0; s < N_SESSION; s++)
        cr_assert(find(node, s)->resident, "session %u", s);
    slow_down(node, false);
    for (uint32_t i = 0; i < STEP_LIMIT && !reply->is_over; i++)
        step(node);
    cr_assert_eq(reply->last, EVENT_COMPLETE);
    for (uint32_t s = 0; s < N_SESSION; s++)
        cr_assert(find(node, s)->resident, "session %u", s);
    node_destroy(node);
}

/* All at once, so that replies wait, are preempted and take each other's room;
 * slices end early, at places that differ. */
static void crowd(size_t session_bytes, size_t host_bytes, uint32_t n_step_kill)
{
    struct node *node = open_node(session_bytes, host_bytes);
    uint64_t open[N_SESSION] = {0};
    uint32_t next[N_SESSION] = {0}, n_left = N_SESSION * N_TURN;
    uint64_t random = n_step_kill + 7;

    node_tick(node, 900);
    for (uint32_t i = 0; n_left > 0; i++) {
        need(i < STEP_LIMIT);
        if (n_step_kill && i == n_step_kill) {
            kill_node(node);
            for (uint32_t s = 0; s < N_SESSION; s++) {
                next[s] -= open[s] != 0;
                open[s] = 0;
            }
        }
        for (uint32_t s = 0; s < N_SESSION; s++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            if (open[s] && node->reply[open[s]].is_over) {
                cr_assert_eq(node->reply[open[s]].last, EVENT_COMPLETE, "%s",
                             node->reply[open[s]].end->cause.text);
                open[s] = 0;
                n_left--;
            }
            if (!open[s] && next[s] < N_TURN && (random >> 61) == 0) {
                struct command *command = turn_of(node, s, next[s]++);

                command->generate.priority = (int32_t)(random >> 40) % 2;
                open[s] = command->reply;
                node_send(node, command);
            }
        }
        step(node);
        /* Heads and tokens of what waits are counted, but never refused. */
        cr_assert_leq(charge_total(node->engine),
                      node->options.session_bytes +
                          N_SESSION * (sizeof(struct resident) +
                                       MOST_TOKENS * sizeof(uint32_t)));
    }
    expect_same(node, N_SESSION);
    node_destroy(node);
}

Test(engine_swap, sessions_that_want_the_same_room_at_once_all_get_it)
{
    for (uint32_t k = 1; k < 4; k++)
        crowd(k * room_of(MOST_TOKENS), PLENTY, 0);
}

/* Their indices lie behind their blocks, and go with them. */
Test(engine_swap, sessions_under_policies_leave_and_come_back)
{
    static const char *const POLICY[N_SESSION] = {
        "quest:sink=0:window=0:pick=64:step=8",
        "full",
        "infllm:sink=0:window=64:pick=64:step=1:index=keys",
        "window:sink=64:window=0",
        "snapkv:window=0:pick=64:end=100",
        "recycle:sink=0:window=0:pick=64:step=16:reuse=8"};

    policies = POLICY;
    for (uint32_t k = 1; k < 4; k++) {
        crowd(k * room_of(MOST_TOKENS), PLENTY, 0);
        crowd(k * room_of(MOST_TOKENS), 3 * room_of(MOST_TOKENS), 40 * k);
    }
    policies = NULL;
}

Test(engine_swap, a_host_with_little_room_hands_on_to_the_store)
{
    for (uint32_t k = 1; k < 4; k++)
        crowd(room_of(MOST_TOKENS), k * room_of(MOST_TOKENS), 0);
    crowd(room_of(MOST_TOKENS), 8192, 0); /* nobody ever fits */
}

Test(engine_swap, a_kill_while_sessions_are_carried_loses_nothing)
{
    for (uint32_t n_step = 20; n_step < 400; n_step += 31)
        crowd(2 * room_of(MOST_TOKENS), 3 * room_of(MOST_TOKENS), n_step);
}

/* Session 0 is made to leave by session 1; `is_saved`: images are stored. */
static struct node *leaving_as(size_t host_bytes, bool is_saved)
{
    struct node *node = open_node(room_of(256), host_bytes);
    struct command *command;

    if (!is_saved) /* as if one were under way */
        node->engine->next_save_us = UINT64_MAX;
    turn(node, 0, 0);
    node_until(node, 0); /* its commits have landed */
    command = turn_of(node, 1, 0);
    node_send(node, command);
    for (uint32_t i = 0; i < 1000 && !is_carrying(node); i++)
        step(node);
    need(is_carrying(node) && find(node, 0)->resident->move);
    return node;
}

static struct node *leaving(size_t host_bytes)
{
    return leaving_as(host_bytes, true);
}

Test(engine_swap, a_request_on_the_way_out_goes_on_where_it_is)
{
    struct node *node = leaving(PLENTY);

    turn(node, 0, 1);
    rest(node);
    turn(node, 0, 2);
    expect_same(node, 1);
    node_destroy(node);
}

Test(engine_swap, a_session_may_be_deleted_forked_or_parked_on_either_way)
{
    static const enum command_kind KIND[] = {
        COMMAND_DELETE_SESSION, COMMAND_PARK_SESSION, COMMAND_FORK_SESSION,
        COMMAND_CHECKPOINT_SESSION};

    for (uint32_t i = 0; i < 8; i++) {
        struct node *node = leaving(PLENTY);
        const bool is_back = i % 2;
        struct command *command = about(node, KIND[i / 2], "s0");
        struct command *next;
        uint64_t number;

        if (is_back) {
            rest(node);
            next = turn_of(node, 0, 1);
            number = next->reply;
            node_send(node, next);
            for (uint32_t k = 0;
                 k < STEP_LIMIT && !swap_comes_back(find(node, 0)->resident);
                 k++)
                step(node);
            need(swap_comes_back(find(node, 0)->resident));
            node_subject(node, COMMAND_DETACH, number);
            step(node);
        }
        if (KIND[i / 2] == COMMAND_FORK_SESSION) {
            memset(&command->fork, 0, sizeof(command->fork));
            strcpy(command->fork.session, "s0");
            strcpy(command->fork.name, "fork");
        }
        call(node, command);
        rest(node);
        turn(node, 2, 0);
        node_destroy(node);
    }
}

/* The move that was given up ends behind the save: nothing may wait for ever.
 */
Test(engine_swap, one_parked_on_the_way_out_goes_though_it_is_stored_first)
{
    struct node *node = leaving_as(PLENTY, false);
    struct command *command = about(node, COMMAND_PARK_SESSION, "s0");
    const struct reply *reply = &node->reply[command->reply];
    const struct resident *resident = find(node, 0)->resident;

    apart_hold(model_device(node->model), true);
    node_send(node, command);
    (void)node_step(node);
    need(resident->leaves && resident->image);
    node->engine->next_save_us = 0;
    for (uint32_t i = 0; i < STEP_LIMIT && resident->image; i++)
        if (!node_step(node))
            (void)ring_wait(node->inbox, 2);
    need(find(node, 0)->resident == resident && is_carrying(node));
    apart_hold(model_device(node->model), false);
    for (uint32_t i = 0; i < STEP_LIMIT && !reply->is_over; i++)
        step(node);
    cr_assert_eq(reply->last, EVENT_SESSION);
    rest(node);
    cr_assert_null(find(node, 0)->resident);
    cr_assert_eq(node->engine->leaving, 0);
    node_destroy(node);
}

Test(engine_swap, a_lost_device_is_said_and_what_was_committed_is_there)
{
    for (uint32_t is_back = 0; is_back < 2; is_back++) {
        struct node *node = leaving(PLENTY);
        struct command *command;
        struct reply *reply, *want;
        struct node *other = open_node(0, 0);

        rest(node);
        command = turn_of(node, 0, 1);
        reply = &node->reply[command->reply];
        node_send(node, command);
        for (uint32_t i = 0; i < STEP_LIMIT && is_back &&
                             !swap_comes_back(find(node, 0)->resident);
             i++)
            step(node);
        apart_lose(model_device(node->model));
        for (uint32_t i = 0; i < STEP_LIMIT && !reply->is_over; i++)
            step(node);
        cr_assert(reply_failed(reply, STATUS_UNAVAILABLE, "DEVICE_LOST"));
        kill_node(node);
        turn(node, 0, 1);
        turn(other, 0, 0);
        turn(other, 0, 1);
        want = log_of(other, 0);
        cr_assert(same_tokens(log_of(node, 0), want));
        node_destroy(other);
        node_destroy(node);
    }
}

Test(engine_swap, a_full_device_refuses_the_request_and_the_session_stays_aside)
{
    struct node *node = leaving(PLENTY);
    struct reply *reply;

    rest(node);
    node_until(node, 0);
    cr_assert(swap_is_aside(find(node, 0)->resident));
    apart_limit(model_device(node->model), 0);
    reply = call(node, turn_of(node, 0, 1));
    cr_assert(reply_failed(reply, STATUS_RESOURCE_EXHAUSTED, "KV_MEMORY"));
    rest(node);
    cr_assert(swap_is_aside(find(node, 0)->resident));
    apart_limit(model_device(node->model), SIZE_MAX);
    turn(node, 0, 1);
    cr_assert_not(swap_is_aside(find(node, 0)->resident));
    node_destroy(node);
}

/* It is saved from there: the next start finds it. */
Test(engine_swap, what_is_aside_is_stored_from_there)
{
    struct node *node = leaving(PLENTY);
    const struct session *session = find(node, 0);
    const uint64_t reads = node->last_reply;

    rest(node);
    cr_assert(swap_is_aside(session->resident));
    for (uint32_t i = 0; i < STEP_LIMIT && session->resident->image; i++)
        step(node);
    cr_assert_eq(session->resident->snapshot_position,
                 resident_position(session->resident));
    cr_assert_eq(node->last_reply, reads);
    for (uint32_t i = 0; i < 2; i++) {
        const struct reply *seen =
            call(node, about(node, COMMAND_INSPECT_SESSION, i ? "s1" : "s0"));

        cr_assert_str_eq(seen->end->inspected.tier, i ? "device" : "host");
    }
    node_stop(node);
    node_start(node);
    turn(node, 0, 1);
    node_destroy(node);
}

/* As when the newest snapshot of a session is damaged and an older one is
 * read. */
Test(engine_swap, room_for_more_than_a_memory_has_is_not_carried)
{
    struct node *node = open_node(0, PLENTY);
    struct memory *from, *to;
    uint64_t n_piece;

    must(memory_create(node->model, &from));
    must(memory_reserve(from, 5 * KV_BLOCK));
    memory_advance(from, KV_BLOCK + 1);
    must(memory_create_aside(node->model, node->engine->swap.rooms, &to));
    must(memory_reserve(to, KV_BLOCK + 1));
    n_piece = memory_n_piece(from);
    cr_assert_eq(n_piece, 3);
    memory_carry(to, from, 0, n_piece);
    must(device_wait(device_shuttle(model_device(node->model))));
    cr_assert_eq(memory_position(to), KV_BLOCK + 1);
    cr_assert_eq(memory_n_piece(to), n_piece);
    memory_destroy(from);
    memory_destroy(to);
    node_destroy(node);
}

Test(engine_swap, sessions_that_are_not_durable_leave_and_come_back_too)
{
    struct node *node = open_node(room_of(MOST_TOKENS), PLENTY);
    uint32_t n_aside = 0;

    for (uint32_t t = 0; t < N_TURN; t++)
        for (uint32_t s = 0; s < N_SESSION; s++) {
            struct command *command = turn_of(node, s, t);

            command->generate.has_durability = true;
            command->generate.durability = DURABILITY_NONE;
            n_aside +=
                swap_is_aside(find(node, s) ? find(node, s)->resident : NULL);
            cr_assert_eq(call(node, command)->last, EVENT_COMPLETE);
        }
    cr_assert_gt(n_aside, N_SESSION);
    expect_same(node, N_SESSION);
    node_destroy(node);
}
