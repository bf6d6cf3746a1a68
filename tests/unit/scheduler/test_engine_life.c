/*
 * What happens to a session besides its turns must never show in its tokens:
 * other sessions in the batch (E1), restarts, kills, evictions, snapshots that
 * are there, gone or damaged (E3, E5). The oracle is always the same turns on
 * a node that was left alone.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define N_SESSION 16u
#define N_TURN 3u

/* Turn t of session s: every session samples in another way. */
static struct command *turn_of(struct node *node, uint32_t s, uint32_t t)
{
    static const uint32_t length[] = {1, 63, 64, 65, 130, 7, 200, 2};
    char name[16], id[16];
    struct command *command;
    struct sampling *sampling;

    snprintf(name, sizeof(name), "s%u", s);
    snprintf(id, sizeof(id), "turn-%u", t);
    command = generate(node, name, id, length[(s + 3 * t) % 8], 100 * s + t);
    sampling = &command->generate.sampling;
    sampling->max_tokens = 5 + (s * 7 + t * 11) % 40;
    sampling->temperature = s % 4 == 0 ? 0 : 0.5f + 0.1f * (float)s;
    sampling->top_k = s % 3 == 0 ? 20 : 0;
    sampling->top_p = s % 5 == 0 ? 0.8f : 1;
    sampling->repetition_penalty = s % 2 ? 1.2f : 1;
    sampling->frequency_penalty = s % 7 == 0 ? 0.5f : 0;
    return command;
}

struct log {
    uint32_t *token;
    uint32_t n;
};

static struct log log_of(struct node *node, uint32_t s)
{
    char name[16];
    struct reply *reply;
    struct log log;

    snprintf(name, sizeof(name), "s%u", s);
    reply = node_read(node, name);
    need(reply->last == EVENT_LOG);
    log.n = reply->n_token;
    log.token = malloc(log.n * 4 + 4);
    memcpy(log.token, reply->token, log.n * 4);
    return log;
}

static void expect_same(struct log got, struct log want, const char *what)
{
    cr_assert_eq(got.n, want.n, "%s: %u tokens, not %u", what, got.n, want.n);
    for (uint32_t i = 0; i < got.n; i++)
        cr_assert_eq(got.token[i], want.token[i], "%s: token %u differs", what,
                     i);
    free(got.token);
}

/* All turns of one session on a node of its own. */
static struct log alone(uint32_t s, uint32_t n_turn)
{
    struct node *node = node_create(NULL);
    struct log log;

    node_start(node);
    for (uint32_t t = 0; t < n_turn; t++)
        need(node_call(node, turn_of(node, s, t))->last == EVENT_COMPLETE);
    log = log_of(node, s);
    node_destroy(node);
    return log;
}

Test(engine_life, many_sessions_at_once_get_the_tokens_of_each_alone)
{
    struct node *node = node_create(NULL);
    uint32_t next[N_SESSION] = {0}, n_left = N_SESSION * N_TURN;
    uint64_t open[N_SESSION] = {0}, random = 7;

    node_start(node);
    while (n_left > 0) {
        for (uint32_t s = 0; s < N_SESSION; s++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            if (open[s] && node->reply[open[s]].is_over) {
                need(node->reply[open[s]].last == EVENT_COMPLETE);
                open[s] = 0;
                n_left--;
            }
            if (!open[s] && next[s] < N_TURN && (random >> 60) == 0) {
                struct command *command = turn_of(node, s, next[s]++);
                open[s] = command->reply;
                node_send(node, command);
            }
        }
        if (!node_step(node))
            ring_wait(node->inbox, 1);
    }
    for (uint32_t s = 0; s < N_SESSION; s++) {
        struct log want = alone(s, N_TURN);
        expect_same(log_of(node, s), want, "in a crowd");
        free(want.token);
    }
    node_destroy(node);
}

static void damage(struct store *store)
{
    struct store_batch *batch = store_batch_create(store);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;

    need(batch != NULL);
    must(store_scan_open(store, &(struct store_range){"\0", 1, "\377", 1},
                         false, &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) {
        char *copy = malloc(value_bytes + 1);
        memcpy(copy, value, value_bytes);
        if (value_bytes)
            copy[value_bytes / 2] ^= 4;
        store_batch_put(batch, key, key_bytes, copy, value_bytes);
        free(copy);
    }
    store_scan_close(scan);
    must(store_write(store, batch, true));
    store_batch_destroy(batch);
}

static void wipe(struct store *store)
{
    struct store_batch *batch = store_batch_create(store);

    need(batch != NULL);
    store_batch_delete_range(batch, "\1", 1, "\377", 1);
    must(store_write(store, batch, true));
    store_batch_destroy(batch);
}

/* Two restarts between turns, with what is done to the store meanwhile. */
static void restarted(void (*meanwhile)(struct store *store), bool is_killed,
                      enum restore_reason_code reuse)
{
    struct log want = alone(4, N_TURN);
    struct node *node = node_create(NULL);

    for (uint32_t t = 0; t < N_TURN; t++) {
        struct reply *reply;
        node_start(node);
        reply = node_call(node, turn_of(node, 4, t));
        need(reply->last == EVENT_COMPLETE);
        if (t > 0)
            cr_assert_eq(reply->end->complete.reuse, reuse);
        if (t > 0 && reuse == REUSE_RESTORED) /* from the newest one */
            cr_assert_eq(reply->end->complete.n_cached,
                         reply->accepted_position - 1);
        if (t + 1 == N_TURN)
            break;
        /* A turn's snapshot is saved when its last token is committed. */
        cr_assert_eq(
            node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s4"))
                ->last,
            EVENT_CHECKPOINT);
        if (is_killed)
            node_kill(node);
        else
            node_stop(node);
        if (meanwhile)
            meanwhile(node->bulk_store);
    }
    expect_same(log_of(node, 4), want, "restarted");
    free(want.token);
    node_destroy(node);
}

Test(engine_life, a_restart_goes_on_from_the_snapshot)
{
    restarted(NULL, false, REUSE_RESTORED);
}

Test(engine_life, a_kill_goes_on_from_the_snapshot)
{
    restarted(NULL, true, REUSE_RESTORED);
}

Test(engine_life, lost_snapshots_are_recomputed)
{
    restarted(wipe, true, REUSE_NONE);
}

Test(engine_life, damaged_snapshots_are_recomputed)
{
    restarted(damage, true, REUSE_SNAPSHOT_DAMAGED);
}

/* Kill after `n_step` steps, wherever that is; the same request goes on. */
static void kill_at(uint32_t n_step, const struct log *want, bool *out_is_over)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *before, *after;
    uint32_t n_heard;

    node_start(node);
    command = turn_of(node, 6, 0);
    before = &node->reply[command->reply];
    node_send(node, command);
    for (uint32_t i = 0; i < n_step; i++)
        node_step(node);
    node_kill(node);
    n_heard = before->n_token;
    *out_is_over = before->is_over && before->last == EVENT_COMPLETE;
    node_start(node);
    command = turn_of(node, 6, 0);
    command->generate.has_resume = before->n_accepted > 0;
    command->generate.resume_position = 200 + n_heard;
    after = node_call(node, command);
    cr_assert(reply_completed(after, FINISH_LENGTH), "step %u", n_step);
    cr_assert_eq(n_heard + after->n_token, want->n - 200);
    for (uint32_t t = 0; t < n_heard; t++)
        cr_assert_eq(before->token[t], want->token[200 + t]);
    for (uint32_t t = 0; t < after->n_token; t++)
        cr_assert_eq(after->token[t], want->token[200 + n_heard + t]);
    expect_same(log_of(node, 6), *want, "after the kill");
    node_destroy(node);
}

Test(engine_life, a_kill_at_any_step_loses_nothing_that_was_heard)
{
    struct log want = alone(6, 1);
    bool is_over = false;

    for (uint32_t n_step = 0; n_step < 80 && !is_over; n_step++)
        kill_at(n_step, &want, &is_over);
    cr_assert(is_over);
    free(want.token);
}

Test(engine_life, idle_sessions_leave_memory_and_come_back)
{
    struct node *node = node_create(NULL);
    size_t one = memory_bytes_for(node->model, NULL, 300);

    node->options.session_bytes = 3 * one;
    node_start(node);
    for (uint32_t t = 0; t < N_TURN; t++)
        for (uint32_t s = 0; s < 8; s++) {
            struct reply *reply = node_call(node, turn_of(node, s, t));
            cr_assert_eq(reply->last, EVENT_COMPLETE, "%s",
                         reply->end->cause.text);
        }
    for (uint32_t s = 0; s < 8; s++) {
        struct log want = alone(s, N_TURN);
        expect_same(log_of(node, s), want, "evicted");
        free(want.token);
    }
    struct reply *info =
        node_call(node, command_make(COMMAND_GET_NODE, node_reply(node)));
    cr_assert_leq(info->end->node.session_bytes,
                  info->end->node.session_bytes_max);
    cr_assert_lt(info->end->node.n_resident, 8);
    node_destroy(node);
}

/* Their tokens are only in memory, so only what layers remember may go. */
Test(engine_life, sessions_that_are_not_durable_keep_their_tokens)
{
    struct node *node = node_create(NULL);

    node->options.session_bytes = 3 * memory_bytes_for(node->model, NULL, 300);
    node_start(node);
    for (uint32_t t = 0; t < N_TURN; t++)
        for (uint32_t s = 0; s < 8; s++) {
            struct command *command = turn_of(node, s, t);
            command->generate.has_durability = true;
            command->generate.durability = DURABILITY_NONE;
            cr_assert_eq(node_call(node, command)->last, EVENT_COMPLETE);
        }
    for (uint32_t s = 0; s < 8; s += 3) {
        struct log want = alone(s, N_TURN);
        expect_same(log_of(node, s), want, "not durable");
        free(want.token);
    }
    node_destroy(node);
}

Test(engine_life, a_reader_that_leaves_while_its_session_loads_costs_nothing)
{
    struct node *node = node_create(NULL);
    struct log want = alone(4, 2);
    struct command *command;
    uint64_t number;

    node_start(node);
    node_call(node, turn_of(node, 4, 0));
    node_stop(node);
    node_start(node);
    command = turn_of(node, 4, 1);
    number = command->reply;
    node_send(node, command);
    node_subject(node, COMMAND_DETACH, number); /* in the same step */
    node_step(node);
    cr_assert(
        reply_completed(node_call(node, turn_of(node, 4, 1)), FINISH_LENGTH));
    expect_same(log_of(node, 4), want, "detached");
    free(want.token);
    node_destroy(node);
}

static uint32_t count(struct store *store)
{
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint32_t n = 0;

    must(store_scan_open(store, &(struct store_range){"\1", 1, "\377", 1},
                         false, &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        n++;
    store_scan_close(scan);
    return n;
}

Test(engine_life, no_snapshot_is_saved_before_its_tokens_are_committed)
{
    for (int is_lost = 0; is_lost < 2; is_lost++) {
        struct node *node = node_create(NULL);
        struct command *command = generate(node, "s", "", 100, 1);

        command->generate.is_append = true; /* all in one step */
        store_memory_faults(node->journal_store)->is_read_only = is_lost;
        node_start(node);
        node_call(node, command);
        node_until(node, 0);
        node_stop(node); /* finishes what the store thread has */
        cr_assert_eq(count(node->bulk_store) > 0, !is_lost);
        node_destroy(node);
    }
}

Test(engine_life, a_long_prompt_leaves_a_snapshot_at_the_grid)
{
    struct node *node = node_create("assets/models/godwit-tiny");
    struct snapshot_entry entry[8];
    struct reply *info, *reply;
    uint32_t n = 0;
    bool has_grid = false;

    node_start(node);
    reply =
        node_call(node, generate(node, "long", "a", SNAPSHOT_GRID + 700, 5));
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "long"));
    info = node_call(node, about(node, COMMAND_GET_SESSION, "long"));
    must(snapshot_list(node->snapshots, info->end->session.meta.uid, entry, 8,
                       &n));
    for (uint32_t i = 0; i < n; i++)
        has_grid |= entry[i].position == SNAPSHOT_GRID;
    cr_assert(has_grid);
    cr_assert_eq(entry[0].position, SNAPSHOT_GRID + 700 + 11);
    node_destroy(node);
}

/* Each may grow to almost all memory, yet all are taken and all are right. */
static void crowd_with(uint64_t room_tokens)
{
    enum { N = 5 };
    struct node *node = node_create(NULL), *other = node_create(NULL);
    struct reply *reply[N], *paused, *want;
    struct command *command;
    uint64_t number;

    node->options.session_bytes =
        memory_bytes_for(node->model, NULL, 1200) + 16384;
    node_start(node);
    node_start(other);
    node->engine->room_tokens = room_tokens;
    command = generate(node, "paused", "", 500, 90);
    command->generate.sampling.max_tokens = 500;
    number = command->reply;
    paused = &node->reply[number];
    node_send(node, command);
    while (paused->n_token < 5)
        node_step(node);
    node_subject(node, COMMAND_PAUSE, number);
    for (uint32_t i = 0; i < N; i++) {
        char name[8];
        snprintf(name, sizeof(name), "p%u", i);
        command = generate(node, name, "", 300, i);
        command->generate.sampling.max_tokens = 800;
        reply[i] = &node->reply[command->reply];
        node_send(node, command);
    }
    for (uint32_t i = 0; i < N; i++) {
        node_until(node, (uint64_t)(reply[i] - node->reply));
        cr_assert(reply_completed(reply[i], FINISH_LENGTH));
        cr_assert_leq(node->engine->charged, node->options.session_bytes);
    }
    cr_assert_not(paused->is_over);
    node_subject(node, COMMAND_RESUME, number);
    node_until(node, number);
    cr_assert(reply_completed(paused, FINISH_LENGTH));
    command = generate(other, "paused", "", 500, 90);
    command->generate.sampling.max_tokens = 500;
    want = node_call(other, command);
    cr_assert(same_tokens(paused, want));
    for (uint32_t i = 0; i < N; i += 4) {
        command = generate(other, i ? "p4" : "p0", "", 300, i);
        command->generate.sampling.max_tokens = 800;
        want = node_call(other, command);
        cr_assert(same_tokens(reply[i], want));
    }
    node_destroy(node);
    node_destroy(other);
}

Test(engine_life, large_promises_wait_for_room_and_are_not_refused)
{
    crowd_with(ROOM_TOKENS);
}

Test(engine_life, turns_that_outgrow_memory_step_back_and_go_on)
{
    crowd_with(64);
}
