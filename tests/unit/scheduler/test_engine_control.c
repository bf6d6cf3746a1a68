/*
 * Every refusal is provoked and nothing may have changed behind it; every
 * command about sessions and the node; drains; a journal that fails. Judged by
 * what a client hears and by what a restart finds.
 */
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

static struct node *started(void)
{
    struct node *node = node_create(NULL);

    node_start(node);
    return node;
}

static uint64_t length(struct node *node, const char *session)
{
    struct reply *info =
        node_call(node, about(node, COMMAND_GET_SESSION, session));

    need(info->last == EVENT_SESSION);
    return info->end->session.position;
}

/* Refused, the session "s" untouched, and no session made. */
static void refused(struct node *node, struct command *command,
                    enum status code, const char *reason)
{
    char name[SESSION_NAME_SIZE];
    struct reply *reply;

    memcpy(name, command->generate.session, sizeof(name));
    reply = node_call(node, command);
    cr_assert(reply_failed(reply, code, reason), "expected %s", reason);
    cr_assert_eq(reply->n_event, 1);
    cr_assert_eq(length(node, "s"), 42);
    if (strcmp(name, "s") != 0)
        cr_assert(reply_failed(
            node_call(node, about(node, COMMAND_GET_SESSION, name)),
            STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
}

Test(engine_control, bad_requests_are_refused_and_change_nothing)
{
    struct node *node = started();
    struct command *command;
    uint32_t n_vocab = model_config(node->model)->n_vocab;

    node_call(node, generate(node, "s", "r", 30, 1));
    command = generate(node, "new", "", 5, 1);
    command->generate.creates = false;
    refused(node, command, STATUS_NOT_FOUND, "SESSION_NOT_FOUND");
    command = generate(node, "s", "", 5, 1);
    command->generate.has_expected = true;
    command->generate.expected_position = 41;
    refused(node, command, STATUS_ABORTED, "POSITION_MISMATCH");
    command = generate(node, "new", "", 5, 1);
    ((uint32_t *)command->generate.token)[3] = n_vocab;
    refused(node, command, STATUS_INVALID_ARGUMENT, "TOKEN_OUT_OF_RANGE");
    refused(node, generate(node, "new", "", 4096, 1), STATUS_INVALID_ARGUMENT,
            "CONTEXT_LENGTH_EXCEEDED");
    refused(node, generate(node, "s", "", 4096 - 42, 1),
            STATUS_INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED");
    refused(node, generate(node, "new", "", 0, 1), STATUS_INVALID_ARGUMENT,
            "EMPTY_INPUT");
    command = generate(node, "s", "", 0, 1);
    command->generate.is_append = true;
    refused(node, command, STATUS_INVALID_ARGUMENT, "EMPTY_INPUT");
    command = generate(node, "new", "", 5, 1);
    command->generate.sampling.top_p = 0;
    refused(node, command, STATUS_INVALID_ARGUMENT, "SAMPLING_OUT_OF_RANGE");
    command = generate(node, "s", "unknown", 0, 1);
    command->generate.has_resume = true;
    refused(node, command, STATUS_NOT_FOUND, "REQUEST_UNKNOWN");
    command = generate(node, "new", "unknown", 0, 1);
    command->generate.has_resume = true;
    refused(node, command, STATUS_NOT_FOUND, "REQUEST_UNKNOWN");
    command = generate(node, "s", "", 0, 1);
    command->generate.has_resume = true;
    refused(node, command, STATUS_NOT_FOUND, "REQUEST_UNKNOWN");
    command = generate(node, "s", "r", 0, 1);
    command->generate.has_resume = true;
    command->generate.resume_position = 43;
    refused(node, command, STATUS_OUT_OF_RANGE, "POSITION_OUT_OF_RANGE");
    refused(node, generate(node, "s", "r", 31, 1), STATUS_INVALID_ARGUMENT,
            "REQUEST_ID_REUSED");
    command = about(node, COMMAND_READ_TOKENS, "s");
    command->target.from = 43;
    cr_assert(reply_failed(node_call(node, command), STATUS_OUT_OF_RANGE,
                           "POSITION_OUT_OF_RANGE"));
    cr_assert(reply_failed(node_call(node, about(node, COMMAND_CANCEL, "s")),
                           STATUS_NOT_FOUND, "REQUEST_UNKNOWN"));
    node_destroy(node);
}

Test(engine_control, a_full_context_ends_with_length)
{
    struct node *node = started();
    struct command *command = generate(node, "s", "", 4090, 1);
    struct reply *reply;

    command->generate.sampling.max_tokens = 100;
    reply = node_call(node, command);
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->n_token, 6);
    command = generate(node, "s", "", 0, 1);
    cr_assert(reply_failed(node_call(node, command), STATUS_INVALID_ARGUMENT,
                           "CONTEXT_LENGTH_EXCEEDED"));
    node_destroy(node);
}

Test(engine_control, a_session_takes_one_turn_at_a_time)
{
    struct node *node = started();
    struct command *command = generate(node, "s", "r", 500, 1);
    uint64_t number = command->reply;

    node_send(node, command);
    node_step(node);
    cr_assert(reply_failed(node_call(node, generate(node, "s", "q", 5, 1)),
                           STATUS_ABORTED, "OPERATION_IN_PROGRESS"));
    cr_assert(reply_failed(node_call(node, generate(node, "s", "", 5, 1)),
                           STATUS_ABORTED, "OPERATION_IN_PROGRESS"));
    node_until(node, number);
    cr_assert(reply_completed(&node->reply[number], FINISH_LENGTH));
    node_destroy(node);
}

Test(engine_control, limits_of_queue_memory_and_sessions_are_kept)
{
    struct node *node = node_create(NULL);
    struct command *command;
    uint64_t reply[4];

    node->options.max_running = 1;
    node->options.max_queue = 2;
    node->options.max_sessions = 5;
    node_start(node);
    for (uint32_t i = 0; i < 4; i++) {
        char name[8];
        snprintf(name, sizeof(name), "q%u", i);
        command = generate(node, name, "", 300, i);
        reply[i] = command->reply;
        node_send(node, command);
        if (i == 0)
            node_step(node);
    }
    node_until(node, reply[3]);
    cr_assert(reply_failed(&node->reply[reply[3]], STATUS_RESOURCE_EXHAUSTED,
                           "QUEUE_FULL"));
    cr_assert_gt(node->reply[reply[3]].end->cause.retry_ms, 0);
    for (uint32_t i = 0; i < 3; i++) {
        node_until(node, reply[i]);
        cr_assert(reply_completed(&node->reply[reply[i]], FINISH_LENGTH));
    }
    cr_assert_eq(node->reply[reply[2]].n_ahead, 1);
    node_call(node, generate(node, "q3", "", 3, 1));
    node_call(node, generate(node, "q4", "", 3, 1));
    cr_assert(reply_failed(node_call(node, generate(node, "q5", "", 3, 1)),
                           STATUS_RESOURCE_EXHAUSTED, "STATE_SLOTS"));
    node_stop(node);
    node->options.max_sessions = 100;
    node->options.session_bytes = memory_bytes_for(node->model, NULL, 400);
    node_start(node);
    cr_assert(reply_failed(node_call(node, generate(node, "m", "", 1000, 1)),
                           STATUS_RESOURCE_EXHAUSTED, "KV_MEMORY"));
    cr_assert(reply_completed(node_call(node, generate(node, "m", "", 50, 1)),
                              FINISH_LENGTH));
    node_destroy(node);
}

Test(engine_control, priority_goes_first_in_the_queue)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *low, *high;

    node->options.max_running = 1;
    node_start(node);
    node_send(node, generate(node, "a", "", 300, 1));
    node_step(node);
    command = generate(node, "low", "", 100, 1);
    low = &node->reply[command->reply];
    node_send(node, command);
    command = generate(node, "high", "", 100, 1);
    command->generate.priority = 5;
    high = &node->reply[command->reply];
    node_send(node, command);
    node_until(node, command->reply);
    cr_assert(high->is_over);
    cr_assert_not(low->is_over);
    node_destroy(node);
}

static struct command *creation(struct node *node, const char *name)
{
    struct command *command =
        command_make(COMMAND_CREATE_SESSION, node_reply(node));

    snprintf(command->create.name, SESSION_NAME_SIZE, "%s", name);
    command->create.durability = DURABILITY_LOCAL;
    command->create.n_label = 1;
    snprintf(command->create.label[0].key, LABEL_KEY_SIZE, "team");
    snprintf(command->create.label[0].value, LABEL_VALUE_SIZE, "birds");
    return command;
}

Test(engine_control, sessions_are_created_read_changed_and_deleted)
{
    struct node *node = started();
    struct command *command;
    struct reply *made, *got;
    char etag[24];

    made = node_call(node, creation(node, "s"));
    cr_assert_eq(made->last, EVENT_SESSION);
    cr_assert_eq(made->end->session.state, SESSION_IDLE);
    cr_assert(made->end->session.has_chain);
    cr_assert(reply_failed(node_call(node, creation(node, "s")),
                           STATUS_ALREADY_EXISTS, "SESSION_EXISTS"));
    made = node_call(node, creation(node, "")); /* named by its uid */
    cr_assert_eq(strlen(made->end->session.meta.name), 36);
    memcpy(etag, made->end->session.etag, sizeof(etag));
    command = command_make(COMMAND_UPDATE_SESSION, node_reply(node));
    snprintf(command->update.session, SESSION_NAME_SIZE, "s");
    memcpy(command->update.etag, etag, sizeof(etag)); /* of another */
    command->update.sets_labels = true;
    cr_assert(reply_failed(node_call(node, command), STATUS_ABORTED,
                           "ETAG_MISMATCH"));
    command = command_make(COMMAND_UPDATE_SESSION, node_reply(node));
    snprintf(command->update.session, SESSION_NAME_SIZE, "s");
    command->update.sets_labels = true;
    command->update.sets_durability = true;
    command->update.durability = DURABILITY_NONE;
    cr_assert(reply_failed(node_call(node, command), STATUS_FAILED_PRECONDITION,
                           "DURABILITY_LOWERED"));
    command = command_make(COMMAND_UPDATE_SESSION, node_reply(node));
    snprintf(command->update.session, SESSION_NAME_SIZE, "s");
    command->update.sets_labels = true;
    got = node_call(node, command);
    cr_assert_eq(got->end->session.meta.n_label, 0);
    node_call(node, generate(node, "s", "", 20, 1));
    node_stop(node);
    node_start(node);
    got = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    cr_assert_eq(got->end->session.position, 32);
    cr_assert_eq(got->end->session.committed_position, 32);
    cr_assert_eq(got->end->session.meta.n_label, 0);
    cr_assert_eq(got->end->session.state, SESSION_PARKED);
    cr_assert_not(got->end->session.has_chain);
    cr_assert_eq(node_read(node, "s")->n_token, 32); /* from the store */
    command = about(node, COMMAND_DELETE_SESSION, "s");
    memcpy(command->target.etag, etag, sizeof(etag));
    cr_assert(reply_failed(node_call(node, command), STATUS_ABORTED,
                           "ETAG_MISMATCH"));
    cr_assert_eq(
        node_call(node, about(node, COMMAND_DELETE_SESSION, "s"))->last,
        EVENT_DONE);
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_DELETE_SESSION, "s")),
                     STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    command = about(node, COMMAND_DELETE_SESSION, "s");
    command->target.allows_missing = true;
    cr_assert_eq(node_call(node, command)->last, EVENT_DONE);
    node_call(node, generate(node, "s", "", 5, 1)); /* the name is free */
    cr_assert_eq(length(node, "s"), 17);
    node_destroy(node);
}

Test(engine_control, a_delete_cancels_what_runs)
{
    struct node *node = started();
    struct command *command = generate(node, "s", "r", 500, 1);
    uint64_t number = command->reply;

    node_send(node, command);
    node_step(node);
    node_call(node, about(node, COMMAND_DELETE_SESSION, "s"));
    cr_assert(reply_completed(&node->reply[number], FINISH_CANCELLED));
    node_stop(node);
    node_start(node);
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_GET_SESSION, "s")),
                     STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    node_destroy(node);
}

Test(engine_control, a_deleted_session_leaves_no_snapshots)
{
    struct node *node = started();
    struct snapshot_entry entry[8];
    struct reply *info;
    uint32_t n = 1;

    node_call(node, generate(node, "s", "", 200, 1));
    info = node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    cr_assert_eq(info->last, EVENT_CHECKPOINT);
    info = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    must(snapshot_list(node->snapshots, info->end->session.meta.uid, entry, 8,
                       &n));
    cr_assert_gt(n, 0);
    node_call(node, about(node, COMMAND_DELETE_SESSION, "s"));
    for (int i = 0; i < 200 && n > 0; i++) {
        node_step(node);
        ring_wait(node->inbox, 10); /* for the store thread */
        must(snapshot_list(node->snapshots, info->end->session.meta.uid, entry,
                           8, &n));
    }
    cr_assert_eq(n, 0);
    node_destroy(node);
}

Test(engine_control, more_events_than_a_commit_holds_arrive_in_order)
{
    struct node *node = started();
    uint64_t reply = node_reply(node);
    uint32_t token[3000];

    for (uint32_t i = 0; i < 3000; i++) {
        void *extra;
        struct event *event =
            event_create(EVENT_LOG, reply, sizeof(uint32_t), &extra);
        memcpy(extra, &i, sizeof(i));
        event->tokens.position = i;
        event->tokens.n_token = 1;
        event->tokens.token = extra;
        event->tokens.text = "";
        event->is_last = i == 2999;
        flight_event(node->engine, event);
        token[i] = i;
    }
    node_until(node, reply);
    cr_assert_eq(node->reply[reply].n_token, 3000);
    cr_assert_eq(memcmp(node->reply[reply].token, token, sizeof(token)), 0);
    node_destroy(node);
}

Test(engine_control, an_expired_session_is_gone)
{
    struct node *node = started();
    struct command *command = creation(node, "s");
    struct reply *info;

    command->create.expire_ms = 5000; /* the clock stands at 1000 */
    node_call(node, command);
    node_call(node, generate(node, "s", "", 5, 1));
    cr_assert_eq(length(node, "s"), 17);
    command = creation(node, "t");
    command->create.expire_ms = 5000;
    node_call(node, command);
    clock_simulated_advance(&node->clock, 4000000);
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_GET_SESSION, "s")),
                     STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    node_step(node); /* and nobody asked for "t" */
    command = creation(node, "busy");
    command->create.expire_ms = 6000;
    node_call(node, command);
    command = generate(node, "busy", "", 5, 1);
    command->generate.sampling.max_tokens = 100;
    info = &node->reply[command->reply];
    node_send(node, command);
    while (info->n_token < 5)
        node_step(node);
    clock_simulated_advance(&node->clock, 2000000); /* 7000: not in a turn */
    while (!info->is_over)
        if (!node_step(node))
            ring_wait(node->inbox, 10);
    cr_assert(reply_completed(info, FINISH_LENGTH));
    clock_simulated_advance(&node->clock, 2000000);
    node_step(node);
    info = node_call(node, command_make(COMMAND_GET_NODE, node_reply(node)));
    cr_assert_eq(info->end->node.n_session, 0);
    node_destroy(node);
}

static struct reply *listed(struct node *node, const char *after,
                            const char *prefix, uint32_t page_size)
{
    struct command *command =
        command_make(COMMAND_LIST_SESSIONS, node_reply(node));

    snprintf(command->list.after, SESSION_NAME_SIZE, "%s", after);
    snprintf(command->list.prefix, SESSION_NAME_SIZE, "%s", prefix);
    command->list.page_size = page_size;
    return node_call(node, command);
}

Test(engine_control, lists_are_in_order_of_names_and_paged)
{
    struct node *node = started();
    struct reply *page;
    char name[8], after[SESSION_NAME_SIZE] = "";
    uint32_t n = 0;

    for (uint32_t i = 0; i < 25; i++) {
        snprintf(name, sizeof(name), "%c%02u", i % 2 ? 'a' : 'b', (i * 7) % 25);
        node_call(node, creation(node, name));
    }
    do {
        page = listed(node, after, "a", 5);
        cr_assert_eq(page->end->sessions.n_total, 12);
        for (uint32_t i = 0; i < page->end->sessions.n_session; i++) {
            const char *now = page->end->sessions.session[i].meta.name;
            cr_assert_gt(strcmp(now, after), 0);
            cr_assert_eq(now[0], 'a');
            snprintf(after, sizeof(after), "%s", now);
            n++;
        }
    } while (page->end->sessions.has_more);
    cr_assert_eq(n, 12);
    cr_assert_eq(listed(node, "", "", 1000)->end->sessions.n_session, 25);
    cr_assert_eq(listed(node, "zz", "", 10)->end->sessions.n_session, 0);
    cr_assert_eq(listed(node, "", "zz", 10)->end->sessions.n_total, 0);
    node_destroy(node);
}

Test(engine_control, checkpoints_are_answered_when_saved)
{
    struct node *node = started();
    struct snapshot_entry entry[8];
    struct reply *info, *saved;
    uint32_t n;

    node_call(node, generate(node, "s", "", 20, 1)); /* too short by itself */
    info = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    must(snapshot_list(node->snapshots, info->end->session.meta.uid, entry, 8,
                       &n));
    cr_assert_eq(n, 0);
    saved = node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    cr_assert_eq(saved->last, EVENT_CHECKPOINT);
    cr_assert_eq(saved->end->checkpoint.position, 31);
    cr_assert_gt(saved->end->checkpoint.bytes, 0);
    must(snapshot_list(node->snapshots, info->end->session.meta.uid, entry, 8,
                       &n));
    cr_assert_eq(n, 1);
    cr_assert_eq(entry[0].position, 31);
    cr_assert(digest_equal(entry[0].chain, saved->end->checkpoint.chain));
    saved = node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    cr_assert_eq(saved->end->checkpoint.position, 31);
    node_stop(node);
    store_close(node->bulk_store); /* all snapshots are gone */
    must(store_open_memory(&node->bulk_store));
    node_start(node);
    saved = node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    cr_assert_eq(saved->last, EVENT_CHECKPOINT); /* recomputed, then saved */
    cr_assert_eq(saved->end->checkpoint.position, 31);
    cr_assert(reply_failed(
        node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "none")),
        STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    struct command *command = generate(node, "n", "", 5, 1);
    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_NONE;
    node_call(node, command);
    cr_assert(reply_failed(
        node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "n")),
        STATUS_FAILED_PRECONDITION, "SESSION_NOT_DURABLE"));
    node_destroy(node);
}

Test(engine_control, durability_none_writes_nothing_until_it_is_raised)
{
    struct node *node = started();
    struct command *command = generate(node, "n", "r", 20, 1);

    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_NONE;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    command = generate(node, "m", "r", 20, 1);
    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_NONE;
    node_call(node, command);
    command = command_make(COMMAND_UPDATE_SESSION, node_reply(node));
    snprintf(command->update.session, SESSION_NAME_SIZE, "m");
    command->update.sets_durability = true;
    command->update.durability = DURABILITY_LOCAL;
    cr_assert_eq(node_call(node, command)->last, EVENT_SESSION);
    node_kill(node);
    node_start(node);
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_GET_SESSION, "n")),
                     STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    cr_assert_eq(node_read(node, "m")->n_token, 32);
    command = generate(node, "m", "r", 0, 1); /* its turn is known, too */
    command->generate.has_resume = true;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    node_destroy(node);
}

Test(engine_control, a_drain_refuses_finishes_and_parks)
{
    struct node *node = started();
    struct command *command = generate(node, "quick", "r", 100, 1);
    uint64_t quick = command->reply, slow, drain;
    struct reply *again;

    node_send(node, command);
    command = generate(node, "slow", "r", 20, 2);
    command->generate.sampling.max_tokens = 2000;
    slow = command->reply;
    node_send(node, command);
    node_step(node);
    command = command_make(COMMAND_DRAIN, node_reply(node));
    command->deadline_us = node->clock.base.now_us(&node->clock.base) + 5000000;
    drain = command->reply;
    node_send(node, command);
    node_step(node);
    cr_assert(reply_failed(node_call(node, generate(node, "x", "", 5, 1)),
                           STATUS_UNAVAILABLE, "NODE_DRAINING"));
    cr_assert(reply_failed(node_call(node, creation(node, "x")),
                           STATUS_UNAVAILABLE, "NODE_DRAINING"));
    node_until(node, quick);
    cr_assert(reply_completed(&node->reply[quick], FINISH_LENGTH));
    cr_assert_not(node->reply[drain].is_over);
    clock_simulated_advance(&node->clock, 5000000);
    engine_run(node->engine); /* returns */
    node_until(node, drain);
    cr_assert(reply_completed(&node->reply[slow], FINISH_DRAINED));
    node_stop(node);
    node_start(node);
    command = generate(node, "slow", "r", 0, 2); /* its turn is open */
    command->generate.has_resume = true;
    again = node_call(node, command);
    cr_assert(reply_completed(again, FINISH_LENGTH));
    cr_assert_eq(again->n_token, 2000);
    cr_assert_eq(again->end->complete.reuse, REUSE_RESTORED);
    node_destroy(node);
}

Test(engine_control, a_lost_commit_fails_its_replies_and_the_node_serves_on)
{
    struct node *node = started();
    struct command *command;
    struct reply *lost, *none, *again;
    uint64_t number;

    node_call(node, generate(node, "s", "r", 20, 1));
    command = generate(node, "s", "q", 20, 2);
    command->generate.sampling.max_tokens = 60;
    number = command->reply;
    lost = &node->reply[number];
    node_send(node, command);
    while (lost->n_token < 5)
        node_step(node);
    store_memory_faults(node->journal_store)->is_read_only = true;
    node_until(node, number);
    cr_assert(
        reply_failed(lost, STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    cr_assert(reply_failed(node_call(node, generate(node, "new", "", 5, 1)),
                           STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    cr_assert(reply_failed(node_call(node, creation(node, "new")),
                           STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_DELETE_SESSION, "s")),
                     STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    none = node_call(node, generate(node, "", "", 5, 1));
    cr_assert(reply_completed(none, FINISH_LENGTH)); /* needs no journal */
    store_memory_faults(node->journal_store)->is_read_only = false;
    node_until(node, 0);
    cr_assert_eq(length(node, "s"), 32 + 20 + lost->n_token);
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_GET_SESSION, "new")),
                     STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    command = generate(node, "s", "q", 20, 2);
    command->generate.sampling.max_tokens = 60;
    again = node_call(node, command);
    cr_assert(reply_completed(again, FINISH_LENGTH));
    cr_assert_eq(again->n_token, 60);
    cr_assert_eq(memcmp(again->token, lost->token, lost->n_token * 4), 0);
    node_destroy(node);
}

static struct command *labelling(struct node *node, const char *key)
{
    struct command *command =
        command_make(COMMAND_UPDATE_SESSION, node_reply(node));

    snprintf(command->update.session, SESSION_NAME_SIZE, "s");
    command->update.sets_labels = true;
    command->update.n_label = 1;
    snprintf(command->update.label[0].key, LABEL_KEY_SIZE, "%s", key);
    return command;
}

Test(engine_control, what_a_lost_commit_did_is_undone_newest_first)
{
    struct node *node = started();
    struct command *command;
    struct reply *info;
    uint64_t first = 0;

    node_call(node, creation(node, "s"));
    node_call(node, generate(node, "s", "r", 20, 1));
    store_memory_faults(node->journal_store)->is_read_only = true;
    node_send(node, labelling(node, "a")); /* all of one step */
    node_send(node, labelling(node, "b"));
    node_send(node, about(node, COMMAND_DELETE_SESSION, "s"));
    command = creation(node, "s");
    first = command->reply - 3;
    node_send(node, command);
    for (uint64_t reply = first; reply < first + 4; reply++) {
        node_until(node, reply);
        cr_assert(reply_failed(&node->reply[reply], STATUS_FAILED_PRECONDITION,
                               "STORE_READ_ONLY"));
    }
    node_until(node, 0);
    store_memory_faults(node->journal_store)->is_read_only = false;
    info = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    cr_assert_eq(info->last, EVENT_SESSION);
    cr_assert_eq(info->end->session.position, 32);
    cr_assert_str_eq(info->end->session.meta.label[0].key, "team");
    cr_assert_eq(listed(node, "", "", 10)->end->sessions.n_session, 1);
    cr_assert_eq(node_read(node, "s")->n_token, 32);
    node_destroy(node);
}

/* A request whose events are lost, but none of its tokens. */
Test(engine_control, a_turn_that_lost_only_events_stays_open_for_a_retry)
{
    struct node *node = started();
    struct command *command = generate(node, "s", "r", 2000, 1);
    struct reply *made, *retry;
    uint64_t number = command->reply;

    node_send(node, command);
    (void)node_step(node); /* its prompt is under way */
    node_subject(node, COMMAND_DETACH, number);
    node_until(node, 0);
    cr_assert_eq(length(node, "s"), 2000);
    store_memory_faults(node->journal_store)->is_read_only = true;
    command = creation(node, "x"); /* fails, and what is in its commit */
    made = &node->reply[command->reply];
    node_send(node, command);
    command = generate(node, "s", "r", 2000, 1);
    retry = &node->reply[command->reply];
    node_send(node, command);
    while (!made->is_over || !retry->is_over)
        if (!node_step(node))
            ring_wait(node->inbox, 10);
    cr_assert(
        reply_failed(retry, STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    store_memory_faults(node->journal_store)->is_read_only = false;
    retry = node_call(node, generate(node, "s", "r", 2000, 1));
    cr_assert(reply_completed(retry, FINISH_LENGTH));
    cr_assert_eq(retry->n_token, 12);
    node_destroy(node);
}

Test(engine_control, a_checkpoint_brings_memory_up_to_the_log)
{
    struct node *node = started();
    struct command *command = generate(node, "s", "r", 2000, 1);
    struct reply *saved;
    uint64_t number = command->reply;

    node_send(node, command);
    while (node->reply[number].n_accepted == 0)
        node_step(node);
    node_subject(node, COMMAND_DETACH, number); /* in mid-prompt */
    saved = node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    cr_assert_eq(saved->last, EVENT_CHECKPOINT);
    cr_assert_eq(saved->end->checkpoint.position, 1999);
    node_destroy(node);
}

/* The journal thread reports commits of an old epoch after the failure that
 * made them stale; by then newer ones may be under way, and they are good. */
Test(engine_control, a_late_report_of_a_loss_touches_nothing_newer)
{
    struct node *node = started();
    struct journal_report stale = {.cause = {.code = STATUS_UNAVAILABLE}};
    struct command *command = generate(node, "s", "r", 20, 1);
    uint64_t number = command->reply;

    node_send(node, command);
    for (int i = 0; i < 5; i++) {
        engine_step(node->engine);
        need(ring_push(node->reports, &stale)); /* of epoch 0, as now */
    }
    node_until(node, number);
    cr_assert(reply_completed(&node->reply[number], FINISH_LENGTH));
    cr_assert_eq(node_read(node, "s")->n_token, 32);
    node_destroy(node);
}

/* Every call of a store fails once, the n-th; the node serves on, and what it
 * says in the end is what it would have said. */
static void fail_nth(bool is_journal, uint64_t n, const struct reply *want)
{
    struct node *node = started();
    struct store *store = is_journal ? node->journal_store : node->bulk_store;
    struct reply *reply = NULL;
    uint32_t n_try = 0;

    store_memory_faults(store)->fail_at = n;
    for (uint32_t t = 0; t < 2; t++)
        do {
            struct command *command =
                generate(node, "s", t ? "b" : "a", 90, 1 + t);
            cr_assert_lt(n_try++, 5);
            reply = node_call(node, command);
            if (t == 0 && reply->last == EVENT_COMPLETE)
                node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
        } while (reply->last != EVENT_COMPLETE);
    cr_assert(same_tokens(reply, want), "call %lu", n);
    cr_assert_eq(node_read(node, "s")->n_token, 204);
    node_destroy(node);
}

Test(engine_control, any_failing_store_call_costs_a_retry_at_most)
{
    struct node *node = started();
    struct reply *want;

    node_call(node, generate(node, "s", "a", 90, 1));
    want = node_call(node, generate(node, "s", "b", 90, 2));
    for (uint64_t n = 1; n < 30; n++)
        fail_nth(true, n, want);
    for (uint64_t n = 1; n < 12; n++)
        fail_nth(false, n, want);
    node_destroy(node);
}

Test(engine_control, options_out_of_range_are_refused)
{
    struct node *node = node_create(NULL);
    struct engine *engine = NULL;
    struct engine_options o = node->options;

    o.max_running = 0;
    cr_assert_eq(engine_create(&o, &engine), STATUS_INVALID_ARGUMENT);
    o.max_running = ENGINE_RUNNING_MAX + 1;
    cr_assert_eq(engine_create(&o, &engine), STATUS_INVALID_ARGUMENT);
    o.max_running = 1;
    o.max_queue = ENGINE_QUEUE_MAX + 1;
    cr_assert_eq(engine_create(&o, &engine), STATUS_INVALID_ARGUMENT);
    o.max_queue = 1;
    o.default_max_tokens = 0;
    cr_assert_eq(engine_create(&o, &engine), STATUS_INVALID_ARGUMENT);
    cr_assert_null(engine);
    node_destroy(node);
}

Test(engine_control, what_happens_is_counted)
{
    struct node *node = node_create(NULL);
    char *text;

    must(metrics_create(&node->metrics));
    node_start(node);
    node_call(node, generate(node, "s", "", 20, 1));
    node_call(node, generate(node, "s", "", 5000, 1));
    text = metrics_format(node->metrics);
    cr_assert_not_null(strstr(text, "godwit_prompt_tokens_total 20\n"));
    cr_assert_not_null(strstr(text, "godwit_generation_tokens_total 12\n"));
    cr_assert_not_null(strstr(
        text, "godwit_request_success_total{finish_reason=\"length\"} 1\n"));
    cr_assert_not_null(strstr(text, "CONTEXT_LENGTH_EXCEEDED\"} 1\n"));
    free(text);
    node_destroy(node);
}
