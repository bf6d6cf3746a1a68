/*
 * One node on stores in memory, driven step by step with a clock that stands.
 * Judged by what a client hears and what READ_TOKENS says afterwards; the
 * oracle for every run that is disturbed is the same run left alone.
 */
#include "tests/unit/scheduler/fixture.h"

#include "state/store_key.h"

#include <criterion/criterion.h>

#define TINY "assets/models/godwit-tiny"

static struct node *started(const char *dir)
{
    struct node *node = node_create(dir);

    node_start(node);
    return node;
}

Test(engine, a_prompt_is_answered_and_logged)
{
    struct node *node = started(NULL);
    struct reply *reply, *log;

    reply = node_call(node, generate(node, "one", "r1", 100, 1));
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->n_accepted, 1);
    cr_assert_eq(reply->accepted_position, 0);
    cr_assert_eq(reply->seed, 1001);
    cr_assert_eq(reply->n_token, 12);
    cr_assert_eq(reply->first_position, 100);
    cr_assert_eq(reply->end->complete.n_prompt, 100);
    cr_assert_eq(reply->end->complete.n_completion, 12);
    cr_assert_eq(reply->end->complete.n_cached, 0);
    cr_assert_eq(reply->end->complete.committed_position, 112);
    log = node_read(node, "one");
    cr_assert_eq(log->n_token, 112);
    cr_assert_eq(memcmp(log->token + 100, reply->token, 48), 0);
    node_destroy(node);
}

/* The engine's greedy tokens against the model driven by hand. */
Test(engine, greedy_tokens_are_those_of_the_model)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "g", "", 70, 9);
    uint32_t n_vocab = model_config(node->model)->n_vocab;
    struct workspace *workspace;
    struct memory *memory;
    uint32_t token[90], zero = 0;
    struct reply *reply;

    command->generate.sampling.temperature = 0;
    memcpy(token, command->generate.token, 70 * 4);
    reply = node_call(node, command);
    must(workspace_create(node->model, 1, 1, 1, &workspace));
    must(memory_create(node->model, &memory));
    must(memory_reserve(memory, 90));
    for (uint32_t t = 0; t < 81; t++) {
        struct span span = {
            .n_row = 1, .position = t, .layer = memory_layers(memory)};
        struct batch batch = {.token = &token[t],
                              .n_row = 1,
                              .span = &span,
                              .n_span = 1,
                              .logit_row = &zero,
                              .n_logit = 1};
        const float *logits =
            model_forward(node->model, NULL, workspace, &batch);
        uint32_t best = 0;
        memory_advance(memory, 1);
        for (uint32_t id = 1; id < n_vocab; id++)
            if (logits[id] > logits[best])
                best = id;
        if (t >= 69)
            token[t + 1] = best;
    }
    cr_assert_eq(memcmp(token + 70, reply->token, 12 * 4), 0);
    memory_destroy(memory);
    workspace_destroy(workspace);
    node_destroy(node);
}

Test(engine, a_second_turn_finds_its_session_in_memory)
{
    struct node *node = started(NULL);
    struct command *command;
    struct reply *reply;

    node_call(node, generate(node, "one", "", 50, 1));
    command = generate(node, "one", "", 10, 2);
    command->generate.has_expected = true;
    command->generate.expected_position = 62;
    reply = node_call(node, command);
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->end->complete.reuse, REUSE_RESIDENT);
    cr_assert_eq(reply->end->complete.n_cached, 61);
    cr_assert_eq(reply->end->complete.n_restored, 0);
    cr_assert_eq(reply->end->complete.n_replayed, 1);
    cr_assert_eq(reply->first_position, 72);
    command = generate(node, "one", "", 0, 3); /* on from its last token */
    reply = node_call(node, command);
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->first_position, 84);
    cr_assert_eq(reply->n_token, 12);
    node_destroy(node);
}

Test(engine, an_ephemeral_request_leaves_nothing)
{
    struct node *node = started(NULL);
    struct reply *reply, *info;

    reply = node_call(node, generate(node, "", "", 50, 1));
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    info = node_call(node, command_make(COMMAND_GET_NODE, node_reply(node)));
    cr_assert_eq(info->end->node.n_session, 0);
    cr_assert_eq(info->end->node.n_resident, 0);
    cr_assert_eq(info->end->node.session_bytes, 0);
    node_destroy(node);
    node = node_create(NULL); /* and a detached one stops at once */
    node_start(node);
    struct command *command = generate(node, "", "id", 500, 1);
    uint64_t number = command->reply;
    node_send(node, command);
    node_step(node);
    node_subject(node, COMMAND_DETACH, number);
    node_step(node);
    info = node_call(node, command_make(COMMAND_GET_NODE, node_reply(node)));
    cr_assert_eq(info->end->node.n_running, 0);
    cr_assert_eq(info->end->node.session_bytes, 0);
    node_destroy(node);
}

Test(engine, a_draw_of_the_seed_is_told_and_gives_the_tokens_again)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "a", "", 20, 1);
    struct reply *drawn, *given;

    command->generate.has_seed = false;
    drawn = node_call(node, command);
    command = generate(node, "b", "", 20, 1);
    command->generate.sampling.seed = drawn->seed;
    given = node_call(node, command);
    cr_assert(same_tokens(drawn, given));
    command = generate(node, "c", "", 20, 1);
    command->generate.has_seed = false;
    cr_assert_neq(node_call(node, command)->seed, drawn->seed);
    node_destroy(node);
}

Test(engine, appended_tokens_are_the_same_as_sent_with_the_prompt)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "whole", "", 200, 1), *part;
    uint32_t copy[200];
    struct reply *whole, *reply;

    memcpy(copy, command->generate.token, sizeof(copy));
    whole = node_call(node, command);
    part = generate(node, "parts", "x", 200, 1);
    part->generate.n_token = 150;
    part->generate.is_append = true;
    reply = node_call(node, part);
    cr_assert(reply_completed(reply, FINISH_STOP));
    cr_assert_eq(reply->n_token, 0);
    cr_assert_eq(reply->end->complete.committed_position, 150);
    part = generate(node, "parts", "x", 200, 1);
    part->generate.n_token = 150;
    part->generate.is_append = true;
    reply = node_call(node, part); /* the same once more adds nothing */
    cr_assert(reply_completed(reply, FINISH_STOP));
    part = generate(node, "parts", "y", 50, 1);
    memcpy((uint32_t *)part->generate.token, copy + 150, 200);
    reply = node_call(node, part);
    cr_assert_eq(reply->end->complete.n_cached, 149);
    cr_assert(same_tokens(whole, reply));
    node_destroy(node);
}

Test(engine, a_retry_attaches_replays_or_is_refused)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "r", 30, 1);
    struct reply *first, *second, *third, *fourth;

    command->generate.sampling.max_tokens = 40;
    first = &node->reply[command->reply];
    node_send(node, command);
    while (first->n_token < 10)
        node_step(node);
    command = generate(node, "s", "r", 30, 1);
    command->generate.sampling.max_tokens = 40;
    second = node_call(node, command);
    cr_assert(reply_failed(first, STATUS_ABORTED, "REPLY_TAKEN_OVER"));
    cr_assert(reply_completed(second, FINISH_LENGTH));
    cr_assert_eq(second->n_token, 40);
    cr_assert_eq(memcmp(first->token, second->token, first->n_token * 4), 0);
    /* over: replayed from a position, without its content */
    command = generate(node, "s", "r", 0, 1);
    command->generate.has_resume = true;
    command->generate.resume_position = 65;
    third = node_call(node, command);
    cr_assert(reply_completed(third, FINISH_LENGTH));
    cr_assert_eq(third->first_position, 65);
    cr_assert_eq(third->n_token, 5);
    cr_assert_eq(memcmp(third->token, second->token + 35, 20), 0);
    /* the same id with other content */
    fourth = node_call(node, generate(node, "s", "r", 30, 2));
    cr_assert(
        reply_failed(fourth, STATUS_INVALID_ARGUMENT, "REQUEST_ID_REUSED"));
    command = generate(node, "s", "r", 30, 1);
    command->generate.sampling.max_tokens = 41;
    cr_assert(reply_failed(node_call(node, command), STATUS_INVALID_ARGUMENT,
                           "REQUEST_ID_REUSED"));
    cr_assert_eq(node_read(node, "s")->n_token, 70);
    node_destroy(node);
}

Test(engine, a_detached_turn_stops_and_its_retry_goes_on)
{
    struct node *node = started(NULL), *other = started(NULL);
    struct command *command = generate(node, "s", "r", 30, 1);
    struct reply *first, *rest, *whole;
    uint64_t position;

    command->generate.sampling.max_tokens = 60;
    first = &node->reply[command->reply];
    position = command->reply;
    node_send(node, command);
    while (first->n_token < 10)
        node_step(node);
    node_subject(node, COMMAND_DETACH, position);
    node_until(node, 0);
    position = node_read(node, "s")->n_token;
    cr_assert_lt(position, 90);
    for (int i = 0; i < 10; i++)
        node_step(node);
    cr_assert_eq(node_read(node, "s")->n_token, position);
    command = generate(node, "s", "r", 30, 1);
    command->generate.sampling.max_tokens = 60;
    rest = node_call(node, command);
    cr_assert(reply_completed(rest, FINISH_LENGTH));
    cr_assert_eq(rest->end->complete.n_cached, 30); /* output is no prompt */
    cr_assert_eq(rest->end->complete.n_restored, 0);
    cr_assert_eq(rest->end->complete.n_replayed, 0);
    command = generate(other, "s", "r", 30, 1);
    command->generate.sampling.max_tokens = 60;
    whole = node_call(other, command);
    cr_assert(same_tokens(rest, whole));
    node_destroy(node);
    node_destroy(other);
}

Test(engine, another_request_closes_an_interrupted_turn)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "r", 30, 1);
    uint64_t number = command->reply;
    struct reply *reply, *retry;

    command->generate.sampling.max_tokens = 60;
    node_send(node, command);
    while (node->reply[number].n_token < 10)
        node_step(node);
    node_subject(node, COMMAND_DETACH, number);
    reply = node_call(node, generate(node, "s", "other", 5, 2));
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    command = generate(node, "s", "r", 0, 1);
    command->generate.has_resume = true;
    retry = node_call(node, command);
    cr_assert(reply_failed(retry, STATUS_NOT_FOUND, "REQUEST_UNKNOWN"));
    node_destroy(node);
}

/* The stored record of the turn that begins at 0. */
static size_t first_turn(struct node *node, void **out)
{
    struct reply *info = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    struct key key = key_at('t', info->end->session.meta.uid, 0);
    size_t n_bytes;

    must(store_get(node->journal_store, key.bytes, key.n, out, &n_bytes));
    return n_bytes;
}

Test(engine, an_interrupted_turn_is_closed_in_the_journal)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "r", 30, 1);
    uint64_t number = command->reply;
    void *open, *closed;
    struct turn turn;
    size_t n_bytes;

    command->generate.sampling.max_tokens = 60;
    node_send(node, command);
    while (node->reply[number].n_token < 10)
        node_step(node);
    node_subject(node, COMMAND_DETACH, number);
    node_until(node, 0);
    n_bytes = first_turn(node, &open);
    node_call(node, generate(node, "s", "other", 5, 2));
    cr_assert_eq(first_turn(node, &closed), n_bytes);
    cr_assert_neq(memcmp(open, closed, n_bytes), 0);
    free(open);
    free(closed);
    command = generate(node, "s", "r3", 5, 1); /* or by CANCEL */
    command->generate.sampling.max_tokens = 60;
    number = command->reply;
    node_send(node, command);
    while (node->reply[number].n_token < 10)
        node_step(node);
    node_subject(node, COMMAND_DETACH, number);
    cr_assert_eq(node_call(node, about(node, COMMAND_CANCEL, "s"))->last,
                 EVENT_DONE);
    must(
        journal_last_turn(node->journal,
                          node_call(node, about(node, COMMAND_GET_SESSION, "s"))
                              ->end->session.meta.uid,
                          &turn));
    cr_assert_eq(turn.finish, FINISH_CANCELLED);
    node_destroy(node);
}

/* One parameter after the other made different. */
static bool changed(struct generate_command *g, uint32_t i)
{
    struct sampling *s = &g->sampling;

    switch (i) {
    case 0:
        return s->temperature = 0.5f, true;
    case 1:
        return s->top_p = 0.5f, true;
    case 2:
        return s->min_p = 0.5f, true;
    case 3:
        return s->top_k = 5, true;
    case 4:
        return s->repetition_penalty = 2, true;
    case 5:
        return s->presence_penalty = 1, true;
    case 6:
        return s->frequency_penalty = 1, true;
    case 7:
        return s->min_tokens = 3, true;
    case 8:
        return s->seed++, true;
    case 9:
        return g->has_seed = false, true;
    case 10:
        return s->n_logprob = 2, true;
    case 11:
        return s->ignore_eos = true;
    case 12:
        return s->skip_special = true;
    case 13:
        return s->n_stop = 1, s->stop[0][0] = 'x', true;
    case 14:
        return s->n_stop_id = 1, true;
    case 15:
        return s->n_bias = 1, true;
    case 16:
        return g->is_append = true;
    case 17:
        return g->n_token--, true;
    case 18:
        return (((uint32_t *)g->token)[3] ^= 1), true;
    }
    return false;
}

Test(engine, a_retry_that_differs_in_anything_is_refused)
{
    struct node *node = started(NULL);
    struct command *command;

    node_call(node, generate(node, "s", "r", 30, 1));
    for (uint32_t i = 0;; i++) {
        command = generate(node, "s", "r", 30, 1);
        if (!changed(&command->generate, i)) {
            cr_assert_eq(i, 19);
            cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
            break;
        }
        cr_assert(reply_failed(node_call(node, command),
                               STATUS_INVALID_ARGUMENT, "REQUEST_ID_REUSED"),
                  "change %u", i);
    }
    node_destroy(node);
}

Test(engine, times_are_those_of_the_clock)
{
    struct node *node = node_create(NULL);
    struct command *command = generate(node, "a", "", 1000, 1);
    struct reply *reply;
    const struct timing *timing;
    uint64_t number;

    node->options.max_running = 1;
    node_start(node);
    node_send(node, command);
    node_step(node);
    command = generate(node, "b", "", 30, 1);
    command->generate.sampling.max_tokens = 100;
    number = command->reply;
    node_send(node, command);
    node_step(node);
    clock_simulated_advance(&node->clock, 2000000);
    reply = &node->reply[number];
    while (reply->n_token < 1)
        node_step(node);
    clock_simulated_advance(&node->clock, 3000000);
    node_until(node, number);
    timing = &reply->end->complete.timing;
    cr_assert_eq(timing->queued_us, 2000000);
    cr_assert_eq(timing->first_token_us, 2000000);
    cr_assert_eq(timing->prefill_us, 0);
    cr_assert_eq(timing->decode_us, 3000000);
    node_destroy(node);
}

Test(engine, detaching_without_a_request_id_cancels)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "", 30, 1);
    uint64_t number = command->reply;
    struct turn turn;
    struct reply *info;

    command->generate.sampling.max_tokens = 60;
    node_send(node, command);
    while (node->reply[number].n_token < 3)
        node_step(node);
    node_subject(node, COMMAND_DETACH, number);
    node_until(node, 0);
    info = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    cr_assert_eq(info->end->session.state, SESSION_IDLE);
    cr_assert_geq(info->end->session.position, 33);
    must(journal_last_turn(node->journal, info->end->session.meta.uid, &turn));
    cr_assert_eq(turn.finish, FINISH_CANCELLED);
    node_destroy(node);
}

Test(engine, cancel_acts_within_one_step_and_keeps_the_tokens)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "r", 2000, 1), *cancel;
    struct turn turn;
    struct reply *reply = &node->reply[command->reply], *log;

    node_send(node, command);
    node_step(node); /* in the middle of its prompt */
    cancel = about(node, COMMAND_CANCEL, "s");
    cr_assert_eq(node_call(node, cancel)->last, EVENT_DONE);
    cr_assert(reply_completed(reply, FINISH_CANCELLED));
    log = node_read(node, "s");
    cr_assert_eq(log->n_token, 2000);
    command = generate(node, "s", "r2", 10, 1);
    command->generate.sampling.max_tokens = 500;
    reply = &node->reply[command->reply];
    node_send(node, command);
    while (reply->n_token < 5)
        node_step(node);
    cancel = about(node, COMMAND_CANCEL, "");
    snprintf(cancel->target.request_id, REQUEST_ID_SIZE, "r2");
    cr_assert_eq(node_call(node, cancel)->last, EVENT_DONE);
    cr_assert(reply_completed(reply, FINISH_CANCELLED));
    must(
        journal_last_turn(node->journal,
                          node_call(node, about(node, COMMAND_GET_SESSION, "s"))
                              ->end->session.meta.uid,
                          &turn));
    cr_assert_eq(turn.finish, FINISH_CANCELLED);
    cr_assert_lt(reply->n_token, 20);
    cr_assert_eq(node_read(node, "s")->n_token, 2010 + reply->n_token);
    node_destroy(node);
}

Test(engine, a_paused_reply_makes_no_tokens_and_others_go_on)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "slow", "r", 30, 1);
    uint64_t number = command->reply;
    struct reply *slow = &node->reply[number], *fast, *want;
    uint32_t n;

    command->generate.sampling.max_tokens = 50;
    node_send(node, command);
    while (slow->n_token < 5)
        node_step(node);
    node_subject(node, COMMAND_PAUSE, number);
    node_until(node, 0);
    n = slow->n_token;
    fast = node_call(node, generate(node, "fast", "", 30, 2));
    cr_assert(reply_completed(fast, FINISH_LENGTH));
    cr_assert_eq(slow->n_token, n);
    cr_assert_not(slow->is_over);
    cr_assert_eq(node_call(node, about(node, COMMAND_GET_SESSION, "slow"))
                     ->end->session.state,
                 SESSION_DECODING);
    node_subject(node, COMMAND_RESUME, number);
    node_until(node, number);
    cr_assert(reply_completed(slow, FINISH_LENGTH));
    command = generate(node, "want", "", 30, 1);
    command->generate.sampling.max_tokens = 50;
    want = node_call(node, command);
    cr_assert(same_tokens(slow, want));
    node_destroy(node);
}

Test(engine, a_deadline_ends_a_turn_without_an_id_as_cancelled)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "", 100, 1);
    struct reply *reply = &node->reply[command->reply];
    struct turn turn;

    command->generate.sampling.max_tokens = 500;
    command->deadline_us = node->clock.base.now_us(&node->clock.base) + 1000000;
    node_send(node, command);
    while (reply->n_token < 5)
        node_step(node);
    clock_simulated_advance(&node->clock, 1000000);
    node_step(node);
    node_until(node, 0);
    cr_assert(reply_failed(reply, STATUS_DEADLINE_EXCEEDED, "DEADLINE_PASSED"));
    must(
        journal_last_turn(node->journal,
                          node_call(node, about(node, COMMAND_GET_SESSION, "s"))
                              ->end->session.meta.uid,
                          &turn));
    cr_assert_eq(turn.finish, FINISH_CANCELLED);
    command = generate(node, "t", "r", 100, 1); /* passed already */
    command->deadline_us = 1;
    cr_assert(reply_failed(node_call(node, command), STATUS_DEADLINE_EXCEEDED,
                           "DEADLINE_PASSED"));
    cr_assert(
        reply_failed(node_call(node, about(node, COMMAND_GET_SESSION, "t")),
                     STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    node_destroy(node);
}

Test(engine, a_deadline_leaves_a_turn_with_an_id_to_its_retry)
{
    struct node *node = started(NULL), *other = started(NULL);
    struct command *command = generate(node, "s", "r", 100, 1);
    struct reply *reply = &node->reply[command->reply], *rest, *whole;
    struct turn turn;

    command->generate.sampling.max_tokens = 60;
    command->deadline_us = node->clock.base.now_us(&node->clock.base) + 1000000;
    node_send(node, command);
    while (reply->n_token < 5)
        node_step(node);
    clock_simulated_advance(&node->clock, 1000000);
    node_step(node);
    node_until(node, 0);
    cr_assert(reply_failed(reply, STATUS_DEADLINE_EXCEEDED, "DEADLINE_PASSED"));
    must(
        journal_last_turn(node->journal,
                          node_call(node, about(node, COMMAND_GET_SESSION, "s"))
                              ->end->session.meta.uid,
                          &turn));
    cr_assert_eq(turn.finish, FINISH_NONE);
    command = generate(node, "s", "r", 100, 1);
    command->generate.sampling.max_tokens = 60;
    rest = node_call(node, command);
    cr_assert(reply_completed(rest, FINISH_LENGTH));
    command = generate(other, "s", "r", 100, 1);
    command->generate.sampling.max_tokens = 60;
    whole = node_call(other, command);
    cr_assert_eq(whole->n_token, 60);
    cr_assert(same_tokens(rest, whole));
    node_destroy(node);
    node_destroy(other);
}

Test(engine, progress_is_told_while_a_prompt_is_consumed)
{
    struct node *node = node_create(NULL);
    struct command *command;
    struct reply *reply;

    node_start(node);
    command = generate(node, "s", "", 1500, 1);
    command->generate.wants_progress = true;
    reply = node_call(node, command);
    cr_assert_geq(reply->n_progress, 2); /* passes of 1024 rows */
    cr_assert_eq(reply->progress_total, 1500);
    cr_assert_eq(reply->progress_done, 1500);
    cr_assert_eq(reply->progress_cached, 0);
    node_destroy(node);
}

Test(engine, logprobs_come_with_each_token)
{
    struct node *node = started(NULL);
    struct command *command = generate(node, "s", "", 10, 1);
    struct reply *reply;

    command->generate.sampling.n_logprob = 3;
    reply = node_call(node, command);
    cr_assert_eq(reply->n_logprob, reply->n_token);
    cr_assert_lt(reply->logprob_sum, 0);
    node_destroy(node);
}

static struct command *say(struct node *node, const char *session,
                           const char *text)
{
    struct command *command = generate(node, session, "", 1, 1);
    struct ids ids = {0};
    uint32_t *token;

    must(tokenizer_encode(node->tokenizer, text, strlen(text), false, 10000,
                          &ids));
    token = arena_take(command->arena, ids.n * sizeof(*token));
    need(token != NULL);
    memcpy(token, ids.id, ids.n * sizeof(*token));
    command->generate.token = token;
    command->generate.n_token = ids.n;
    command->generate.sampling.temperature = 0;
    command->generate.sampling.max_tokens = 60;
    ids_release(&ids);
    return command;
}

/* The first two input tokens are what only a session's start has. */
static struct command *opened(struct node *node, const char *id, uint32_t salt)
{
    struct command *command = generate(node, "opened", id, 9, salt);

    command->generate.n_opening = 2;
    return command;
}

Test(engine, only_a_sessions_first_turn_has_the_opening)
{
    struct node *node = started(NULL);
    struct reply *first = node_call(node, opened(node, "one", 1)), *reply;
    uint32_t n_first = first->n_token;

    cr_assert(reply_completed(first, FINISH_LENGTH));
    cr_assert_eq(first->end->complete.n_prompt, 9);
    /* A retry says the same, though the session is no longer empty. */
    reply = node_call(node, opened(node, "one", 1));
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->n_token, n_first);
    reply = node_call(node, opened(node, "two", 2));
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->end->complete.n_prompt, 7);
    node_destroy(node);
}

Test(engine, text_comes_with_tokens_and_stops_before_a_stop_string)
{
    static const char prompt[] = "It was a bright cold day and the";
    struct node *node = started(TINY);
    struct reply *whole = node_call(node, say(node, "a", prompt)), *cut;
    struct command *command;
    char stop[8] = "";
    const char *at;

    cr_assert_gt(whole->text_bytes, 40);
    memcpy(stop, whole->text + 25, 5);
    at = strstr(whole->text, stop);
    command = say(node, "b", prompt);
    command->generate.sampling.n_stop = 1;
    memcpy(command->generate.sampling.stop[0], stop, sizeof(stop));
    cut = node_call(node, command);
    cr_assert(reply_completed(cut, FINISH_STOP_SEQUENCE));
    cr_assert_eq(cut->text_bytes, (size_t)(at - whole->text));
    cr_assert_eq(memcmp(cut->text, whole->text, cut->text_bytes), 0);
    cr_assert_lt(cut->n_token, whole->n_token);
    node_destroy(node);
}

Test(engine, replayed_text_is_the_rest_of_what_was_heard)
{
    struct node *node = started(TINY);
    struct command *command = say(node, "a", "The ship sailed");
    struct reply *whole, *part;

    snprintf(command->generate.request_id, REQUEST_ID_SIZE, "r");
    command->generate.sampling.n_stop = 1; /* some text is held back */
    snprintf(command->generate.sampling.stop[0], STOP_BYTES_MAX, " the xyzzy");
    whole = node_call(node, command);
    for (uint32_t from = 0; from < whole->n_token; from += 7) {
        char text[4096] = "";
        command = say(node, "a", "The ship sailed");
        snprintf(command->generate.request_id, REQUEST_ID_SIZE, "r");
        command->generate.n_token = 0;
        command->generate.has_resume = true;
        command->generate.resume_position = whole->first_position + from;
        part = node_call(node, command);
        cr_assert(reply_completed(part, FINISH_LENGTH));
        cr_assert_eq(part->n_token, whole->n_token - from);
        memcpy(text, whole->text + whole->text_bytes - part->text_bytes,
               part->text_bytes);
        cr_assert_str_eq(part->text, text);
    }
    node_destroy(node);
}

Test(engine, an_end_token_is_logged_and_has_no_text)
{
    struct node *node = started(TINY);
    struct reply *whole = node_call(node, say(node, "a", "Once upon a time"));
    struct command *command = say(node, "b", "Once upon a time");
    struct reply *cut;

    command->generate.sampling.n_stop_id = 1;
    command->generate.sampling.stop_id[0] = whole->token[6];
    cut = node_call(node, command);
    cr_assert(reply_completed(cut, FINISH_STOP));
    cr_assert_leq(cut->n_token, 7);
    cr_assert_eq(cut->token[cut->n_token - 1], whole->token[6]);
    cr_assert_eq(memcmp(cut->text, whole->text, cut->text_bytes), 0);
    cr_assert_eq(node_read(node, "b")->n_token,
                 cut->first_position + cut->n_token);
    node_destroy(node);
}
