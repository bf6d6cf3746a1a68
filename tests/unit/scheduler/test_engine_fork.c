/*
 * Sessions that share a log. The oracle is another node that gets each
 * branch's tokens as one prompt; the law is that nobody but the one named ever
 * notices a fork, a rewind or a deletion. What is stored is counted.
 */
#include "base/log.h"
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fork_fixture.h"

#include <criterion/criterion.h>

#define N_PARENT 150u /* tokens of the parents below */

static void make_parent(struct node *node, const char *name)
{
    struct command *command = generate(node, name, "", N_PARENT - 20, 7);

    command->generate.sampling.max_tokens = 20;
    command->generate.sampling.ignore_eos = true;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
}

static void fork_and_judge(struct node *node, struct node *judge,
                           uint64_t position)
{
    char name[16];

    snprintf(name, sizeof(name), "at-%lu", position);
    cr_assert_eq(fork_at(node, "parent", name, position)->last, EVENT_SESSION);
    go_on(node, name, 3, 2, (uint32_t)position);
    cr_assert(judge_agrees(judge, node, name, 2, (uint32_t)position),
              "fork at %lu differs", position);
}

Test(engine_fork, every_position_goes_on_as_alone, .timeout = 480)
{
    struct node *node = fork_node(), *judge = judge_create();

    log_set_level(LOG_ERROR);
    make_parent(node, "parent");
    for (uint64_t p = 0; p <= N_PARENT; p += p < 80 ? 40 : 1) {
        fork_and_judge(node, judge, p);
        if (p == 100)
            restart(node, false);
        if (p == 120)
            restart(node, true);
    }
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_fork, a_rewind_to_every_position_goes_on_as_alone, .timeout = 480)
{
    struct node *node = fork_node(), *judge = judge_create();

    log_set_level(LOG_ERROR);
    make_parent(node, "one");
    for (uint64_t p = N_PARENT; p >= 76; p--) {
        struct reply *reply = rewind_to(node, "one", p);

        cr_assert_eq(reply->last, EVENT_SESSION);
        cr_assert_eq(reply->end->session.position, p);
        cr_assert_eq(node_read(node, "one")->n_token, p);
        go_on(node, "one", 3, 2, (uint32_t)p);
        cr_assert(judge_agrees(judge, node, "one", 2, (uint32_t)p),
                  "rewind to %lu differs", p);
        if (p == 120)
            restart(node, false);
        if (p == 100)
            restart(node, true);
    }
    rewind_to(node, "one", 0);
    cr_assert_eq(node_read(node, "one")->n_token, 0);
    go_on(node, "one", 3, 2, 5);
    cr_assert(judge_agrees(judge, node, "one", 2, 5));
    node_destroy(judge);
    node_destroy(node);
}

/* Twice as many rewinds and forks as a path has pieces. */
Test(engine_fork, a_long_lineage_is_flattened, .timeout = 480)
{
    struct node *node = fork_node(), *judge = judge_create();
    char name[16] = "g0", before[16];

    log_set_level(LOG_ERROR);
    make_parent(node, "one");
    make_parent(node, name);
    for (uint32_t i = 1; i <= 2 * LOG_PATH_MAX; i++) {
        const struct session *session;

        rewind_to(node, "one", N_PARENT + 3 * i);
        go_on(node, "one", 3, 4, i);
        strcpy(before, name);
        snprintf(name, sizeof(name), "g%u", i);
        cr_assert_eq(node_call(node, fork_of(node, before, name))->last,
                     EVENT_SESSION);
        go_on(node, name, 1, 1, i);
        cr_assert_eq(erase(node, before)->last, EVENT_DONE);
        session = table_find(node->engine, name);
        cr_assert_leq(session->n_piece, LOG_PATH_MAX);
        if (i % 25 == 0)
            restart(node, true);
    }
    cr_assert(judge_agrees(judge, node, "one", 4, 2 * LOG_PATH_MAX));
    cr_assert(judge_agrees(judge, node, name, 1, 2 * LOG_PATH_MAX));
    restart(node, false);
    go_on(node, name, 70, 3, 9);
    cr_assert(judge_agrees(judge, node, name, 3, 9));
    node_destroy(judge);
    node_destroy(node);
}

/* Blocks that it once found with its ancestors are not counted on. */
Test(engine_fork, what_was_flattened_stores_all_its_blocks)
{
    struct node *node = fork_node();
    char name[16] = "g0", before[16];
    struct reply *reply;

    log_set_level(LOG_ERROR);
    make_parent(node, name);
    for (uint32_t i = 1; i < LOG_PATH_MAX; i++) {
        fork_settle(node);
        strcpy(before, name);
        snprintf(name, sizeof(name), "g%u", i);
        node_call(node, fork_of(node, before, name));
        cr_assert_eq(table_find(node->engine, name)->n_piece, i + 1);
        if (i + 1 < LOG_PATH_MAX)
            go_on(node, name, 1, 1, i);
        erase(node, before);
    }
    fork_settle(node); /* one image at a time */
    cr_assert_gt(table_find(node->engine, name)->resident->base.n, 0);
    go_on(node, name, 150, 1, 1);
    cr_assert_eq(table_find(node->engine, name)->n_piece, 1);
    fork_settle(node);
    restart(node, false);
    reply = go_on(node, name, 1, 1, 9);
    cr_assert_gt(reply->end->complete.n_restored, N_PARENT + 150);
    node_destroy(node);
}

Test(engine_fork, a_session_that_generates_is_forked_where_it_is)
{
    struct node *node = fork_node(), *judge = judge_create();
    struct command *command = generate(node, "parent", "", 100, 3);
    uint64_t running = command->reply;
    struct reply *fork;

    command->generate.sampling.max_tokens = 60;
    command->generate.sampling.ignore_eos = true;
    node_send(node, command);
    while (node->reply[running].n_token < 10)
        if (!node_step(node))
            ring_wait(node->inbox, 5);
    fork = node_call(node, fork_of(node, "parent", "fork"));
    cr_assert_eq(fork->last, EVENT_SESSION);
    cr_assert_geq(fork->end->session.position, 110);
    cr_assert(reply_failed(rewind_to(node, "parent", 50),
                           STATUS_FAILED_PRECONDITION, "TURN_RUNNING"));
    go_on(node, "fork", 2, 8, 4);
    cr_assert(judge_agrees(judge, node, "fork", 8, 4));
    node_until(node, running);
    cr_assert_eq(node->reply[running].n_token, 60);
    cr_assert(judge_agrees(judge, node, "parent", 60, 3));
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_fork, shows_parent_and_position)
{
    struct node *node = fork_node();
    const struct session_meta *meta;
    struct uid uid;

    make_parent(node, "parent");
    uid = table_find(node->engine, "parent")->uid;
    meta = &fork_at(node, "parent", "fork", 99)->end->session.meta;
    cr_assert_str_eq(meta->parent_name, "parent");
    cr_assert(uid_equal(meta->parent, uid));
    cr_assert_eq(meta->fork_position, 99);
    restart(node, true);
    meta = &node_call(node, about(node, COMMAND_GET_SESSION, "fork"))
                ->end->session.meta;
    cr_assert_str_eq(meta->parent_name, "parent");
    cr_assert_eq(meta->fork_position, 99);
    meta = &rewind_to(node, "fork", 60)->end->session.meta;
    cr_assert_eq(meta->fork_position, 60);
    node_destroy(node);
}

Test(engine_fork, refuses_what_cannot_be)
{
    struct node *node = fork_node();
    struct command *command;

    make_parent(node, "parent");
    cr_assert(reply_failed(fork_at(node, "parent", "x", N_PARENT + 1),
                           STATUS_OUT_OF_RANGE, "POSITION_OUT_OF_RANGE"));
    cr_assert(reply_failed(fork_at(node, "nobody", "x", 0), STATUS_NOT_FOUND,
                           "SESSION_NOT_FOUND"));
    cr_assert_eq(fork_at(node, "parent", "x", 3)->last, EVENT_SESSION);
    cr_assert(reply_failed(fork_at(node, "parent", "x", 3),
                           STATUS_ALREADY_EXISTS, "SESSION_EXISTS"));
    cr_assert(reply_failed(rewind_to(node, "parent", N_PARENT + 1),
                           STATUS_OUT_OF_RANGE, "POSITION_OUT_OF_RANGE"));
    cr_assert(reply_failed(rewind_to(node, "nobody", 0), STATUS_NOT_FOUND,
                           "SESSION_NOT_FOUND"));
    command = about(node, COMMAND_TRUNCATE_SESSION, "parent");
    strcpy(command->target.etag, "0123456789abcdef");
    cr_assert(reply_failed(node_call(node, command), STATUS_ABORTED,
                           "ETAG_MISMATCH"));
    cr_assert_eq(rewind_to(node, "parent", N_PARENT)->last, EVENT_SESSION);
    cr_assert_eq(node_read(node, "parent")->n_token, N_PARENT);
    node->engine->options.max_sessions = 2;
    cr_assert(reply_failed(fork_at(node, "parent", "y", 3),
                           STATUS_RESOURCE_EXHAUSTED, "STATE_SLOTS"));
    node_destroy(node);
}

/* The ones that are gone leave what the others read, and no more. */
Test(engine_fork, a_deleted_parent_frees_only_what_nobody_needs)
{
    struct node *node = fork_node(), *judge = judge_create();

    log_set_level(LOG_ERROR);
    make_parent(node, "parent");
    cr_assert_eq(fork_at(node, "parent", "child", 100)->last, EVENT_SESSION);
    go_on(node, "child", 80, 3, 1);
    cr_assert_eq(fork_at(node, "child", "grandchild", 120)->last,
                 EVENT_SESSION);
    erase(node, "parent");
    erase(node, "child");
    fork_settle(node);
    cr_assert_eq(node->engine->n_session, 1);
    make_parent(node, "child"); /* the names are free */
    cr_assert(reply_failed(node_read(node, "parent"), STATUS_NOT_FOUND,
                           "SESSION_NOT_FOUND"));
    restart(node, true);
    cr_assert_eq(node->engine->n_session, 2);
    go_on(node, "grandchild", 3, 4, 8);
    cr_assert(judge_agrees(judge, node, "grandchild", 4, 8));
    erase(node, "child");
    erase(node, "grandchild");
    fork_settle(node);
    for (char letter = 'a'; letter <= 'z'; letter++) {
        cr_assert_eq(count_rows(node->journal_store, letter), 0,
                     "%c is left in the journal", letter);
        cr_assert_eq(count_rows(node->bulk_store, letter), 0,
                     "%c is left in the store", letter);
    }
    node_destroy(judge);
    node_destroy(node);
}

/* Killed before the deletion of what nobody needs is done: the next start does
 * it. */
Test(engine_fork, what_a_kill_leaves_behind_is_swept)
{
    struct node *node = fork_node();

    log_set_level(LOG_ERROR);
    make_parent(node, "parent");
    fork_at(node, "parent", "child", 70);
    fork_settle(node);
    node_send(node, about(node, COMMAND_DELETE_SESSION, "parent"));
    node_send(node, about(node, COMMAND_DELETE_SESSION, "child"));
    node_until(node, node->last_reply);
    restart(node, true);
    fork_settle(node);
    cr_assert_eq(node->engine->n_session, 0);
    cr_assert_eq(count_rows(node->journal_store, 'k'), 0);
    cr_assert_eq(count_rows(node->bulk_store, 'b'), 0);
    cr_assert_eq(count_rows(node->bulk_store, 'v'), 0);
    node_destroy(node);
}

static uint32_t blocks_of(struct node *node, struct uid log)
{
    struct key from = key_of('b', log), to = key_after(from);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint32_t n = 0;

    must(store_scan_open(
        node->bulk_store,
        &(struct store_range){from.bytes, from.n, to.bytes, to.n}, false,
        &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        n++;
    store_scan_close(scan);
    return n;
}

Test(engine_fork, writes_no_block_that_its_ancestor_has)
{
    struct node *node = fork_node(), *judge = judge_create();
    struct uid parent, child;
    uint32_t n_before;
    struct reply *reply;

    log_set_level(LOG_ERROR);
    make_parent(node, "parent");
    fork_settle(node);
    parent = table_find(node->engine, "parent")->uid;
    n_before = count_rows(node->bulk_store, 'b');
    cr_assert_eq(blocks_of(node, parent), n_before);
    cr_assert_gt(n_before, 0);
    fork_at(node, "parent", "child", N_PARENT);
    fork_settle(node);
    child = table_find(node->engine, "child")->uid;
    cr_assert_eq(count_rows(node->bulk_store, 'b'), n_before);
    go_on(node, "child", 100, 3, 1); /* 253 tokens: blocks 2 */
    fork_settle(node);
    cr_assert_eq(blocks_of(node, child), n_before / 2, "of the same layers");
    restart(node, true);
    reply = go_on(node, "child", 3, 3, 2);
    cr_assert_gt(reply->end->complete.n_restored, 240);
    cr_assert(judge_agrees(judge, node, "child", 3, 2));
    erase(node, "parent");
    fork_settle(node);
    restart(node, false);
    reply = go_on(node, "child", 3, 3, 5);
    cr_assert_gt(reply->end->complete.n_restored, 240);
    cr_assert(judge_agrees(judge, node, "child", 3, 5));
    node_destroy(judge);
    node_destroy(node);
}

/* Shared blocks are counted once, and are free when the last one goes. */
Test(engine_fork, forks_in_memory_cost_what_they_differ_in)
{
    struct node *node = fork_node();
    size_t one, all, small = resident_bytes(node->engine, NULL, 0);
    char name[16];

    log_set_level(LOG_ERROR);
    cr_assert(reply_completed(
        node_call(node, generate(node, "parent", "", 2000, 1)), FINISH_LENGTH));
    fork_settle(node);
    one = charge_total(node->engine);
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof(name), "f%d", i);
        cr_assert_eq(node_call(node, fork_of(node, "parent", name))->last,
                     EVENT_SESSION);
        cr_assert_not_null(table_find(node->engine, name)->resident);
    }
    all = charge_total(node->engine);
    cr_assert_lt(all - one,
                 16 * (small + 2012 * 4 + 8192 +
                       memory_bytes_for(node->model, NULL, KV_BLOCK)));
    cr_assert_lt(all, 3 * one, "%zu for one, %zu for 17", one, all);
    cr_assert_gt(node->engine->shared_bytes, 0);
    erase(node, "parent");
    cr_assert_gt(node->engine->shared_bytes, 0, "others hold them");
    restart(node, false); /* read again, by one after the other */
    go_on(node, "f3", 1, 1, 1);
    one = charge_total(node->engine);
    go_on(node, "f4", 1, 1, 2);
    go_on(node, "f5", 1, 1, 2);
    cr_assert_gt(node->engine->shared_bytes, 0);
    cr_assert_lt(charge_total(node->engine), 2 * one);
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof(name), "f%d", i);
        erase(node, name);
    }
    fork_settle(node);
    cr_assert_eq(charge_total(node->engine), 0);
    node_destroy(node);
}

static struct command *again_without_input(struct node *node,
                                           const char *session)
{
    struct command *command = generate(node, session, "", 0, 5);

    command->generate.sampling.max_tokens = 3;
    command->generate.sampling.ignore_eos = true;
    return command;
}

Test(engine_fork, of_what_is_not_durable_is_not_durable_either)
{
    struct node *node = fork_node(), *judge = judge_create();

    node->engine->options.durability = DURABILITY_NONE;
    make_parent(node, "parent");
    cr_assert_eq(fork_at(node, "parent", "early", 90)->last, EVENT_SESSION);
    cr_assert_eq(fork_at(node, "parent", "child", N_PARENT)->last,
                 EVENT_SESSION);
    /* where the parent's memory stands: nothing would be left to compute */
    cr_assert_eq(fork_at(node, "parent", "late", N_PARENT - 1)->last,
                 EVENT_SESSION);
    erase(node, "parent");
    cr_assert(reply_completed(
        node_call(node, again_without_input(node, "late")), FINISH_LENGTH));
    cr_assert(judge_agrees(judge, node, "late", 3, 5));
    for (uint64_t p = 140; p > 100; p -= 13) {
        cr_assert_eq(rewind_to(node, "child", p)->end->session.position, p);
        go_on(node, "child", 2, 3, (uint32_t)p);
        cr_assert(judge_agrees(judge, node, "child", 3, (uint32_t)p));
    }
    go_on(node, "early", 2, 3, 5);
    cr_assert(judge_agrees(judge, node, "early", 3, 5));
    cr_assert_eq(count_rows(node->journal_store, 'm'), 0);
    restart(node, false);
    cr_assert_eq(node->engine->n_session, 0);
    node_destroy(judge);
    node_destroy(node);
}

/* What the client heard is an error, so nothing of it happened. */
Test(engine_fork, a_lost_commit_takes_fork_and_rewind_back)
{
    struct node *node = fork_node(), *judge = judge_create();

    log_set_level(LOG_ERROR + 1);
    make_parent(node, "parent");
    fork_at(node, "parent", "child", 80);
    fork_settle(node);
    store_memory_faults(node->journal_store)->is_read_only = true;
    cr_assert(reply_failed(fork_at(node, "parent", "lost", 90),
                           STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    fork_settle(node);
    cr_assert(reply_failed(rewind_to(node, "parent", 60),
                           STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    fork_settle(node);
    store_memory_faults(node->journal_store)->is_read_only = false;
    cr_assert_null(table_find(node->engine, "lost"));
    cr_assert_eq(node->engine->lineage.n, 3, "parent, child and its ancestor");
    cr_assert_eq(node_call(node, about(node, COMMAND_GET_SESSION, "parent"))
                     ->end->session.committed_position,
                 N_PARENT);
    cr_assert_eq(node_read(node, "parent")->n_token, N_PARENT);
    go_on(node, "parent", 2, 3, 5);
    cr_assert(judge_agrees(judge, node, "parent", 3, 5));
    go_on(node, "child", 2, 3, 6);
    cr_assert(judge_agrees(judge, node, "child", 3, 6));
    restart(node, true);
    cr_assert_eq(node_read(node, "parent")->n_token, N_PARENT + 5);
    cr_assert_eq(node_read(node, "child")->n_token, 85);
    node_destroy(judge);
    node_destroy(node);
}

/* One step, in which a LOAD is sent; its end is kept from the engine until what
 * else was sent is known to be lost. */
static struct store_job *load_beside_a_loss(struct node *node)
{
    struct store_job *job = NULL;

    node_step(node);
    for (uint32_t i = 0; i < 1000 && ring_count(node->reports) == 0; i++)
        ring_wait(node->inbox, 20);
    for (uint32_t i = 0; i < 1000 && !ring_pop(node->done, &job); i++)
        ring_wait(node->inbox, 20);
    need(job && job->kind == STORE_LOAD);
    node_step(node);
    return job;
}

/* It was read for a turn behind a rewind that the journal then lost: with that
 * the session has its old log again, and what was read is not its tokens. */
static void lose_a_rewind_while_reading(bool is_waited_for)
{
    struct node *node = fork_node(), *judge = judge_create();
    const struct reply *next;
    struct command *command;
    struct store_job *job;

    log_set_level(LOG_ERROR + 1);
    make_parent(node, "parent");
    fork_settle(node);
    store_memory_faults(node->journal_store)->is_read_only = true;
    command = about(node, COMMAND_TRUNCATE_SESSION, "parent");
    command->target.from = 60;
    node_send(node, command);
    node_send(node, generate(node, "parent", "lost", 3, 4));
    job = load_beside_a_loss(node);
    store_memory_faults(node->journal_store)->is_read_only = false;
    command = generate(node, "parent", "next", 2, 5);
    command->generate.sampling.max_tokens = 3;
    command->generate.sampling.ignore_eos = true;
    next = &node->reply[command->reply];
    node_send(node, command);
    if (is_waited_for)
        node_step(node);
    need(ring_push(node->done, &job));
    node_until(node, command->reply);
    cr_assert_eq(next->last, EVENT_COMPLETE);
    cr_assert_eq(next->accepted_position, N_PARENT);
    cr_assert(judge_agrees(judge, node, "parent", 3, 5));
    restart(node, true);
    cr_assert_eq(node_read(node, "parent")->n_token, N_PARENT + 5);
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_fork, what_was_read_behind_a_lost_rewind_is_not_the_session)
{
    lose_a_rewind_while_reading(false);
    lose_a_rewind_while_reading(true);
}

/* Forked behind the new end of what is rewound. */
Test(engine_fork, a_rewind_leaves_the_forks_their_tokens)
{
    struct node *node = fork_node(), *judge = judge_create();
    struct reply *before;

    log_set_level(LOG_ERROR);
    make_parent(node, "parent");
    fork_at(node, "parent", "child", 140);
    before = node_read(node, "child");
    rewind_to(node, "parent", 30);
    go_on(node, "parent", 90, 3, 5);
    fork_settle(node);
    cr_assert(same_tokens(node_read(node, "child"), before));
    restart(node, true);
    go_on(node, "child", 2, 3, 6);
    cr_assert(judge_agrees(judge, node, "child", 3, 6));
    cr_assert_eq(node_read(node, "parent")->n_token, 123);
    cr_assert(judge_agrees(judge, node, "parent", 3, 5));
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_fork, a_turn_of_before_is_not_known_any_more)
{
    struct node *node = fork_node();
    struct command *command = generate(node, "one", "id", 80, 1);

    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    rewind_to(node, "one", 85);
    node_call(node, fork_of(node, "one", "two"));
    command = generate(node, "one", "id", 80, 1);
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    cr_assert_eq(node_read(node, "one")->n_token, 85 + 92);
    command = generate(node, "two", "id", 80, 1);
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    cr_assert(same_tokens(node_read(node, "one"), node_read(node, "two")));
    node_destroy(node);
}
