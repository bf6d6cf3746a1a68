/*
 * Verification of sessions. Each kind of stored thing is spoiled in each way;
 * the judge of what the session says afterwards is a node that was never
 * spoiled, and the judge of the count is what was spoiled.
 */
#include "base/log.h"
#include "state/snapshot_value.h"
#include "tests/unit/scheduler/stored_fixture.h"

#include <criterion/criterion.h>

#define N_LOG 150u

static struct node *node_with(const char *name)
{
    struct node *node = fork_node();
    struct command *command = generate(node, name, "", N_LOG - 20, 7);

    log_set_level(LOG_ERROR);
    command->generate.sampling.max_tokens = 20;
    command->generate.sampling.ignore_eos = true;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    fork_settle(node);
    return node;
}

static const struct scrub_report *verify(struct node *node, const char *name,
                                         bool replays)
{
    struct command *command = about(node, COMMAND_VERIFY_SESSION, name);
    const struct reply *reply;

    command->target.replays = replays;
    reply = node_call(node, command);
    need(reply->last == EVENT_VERIFIED);
    need(reply->end->verified.is_replayed == replays);
    fork_settle(node);
    need(node->engine->n_errand == 0);
    return reply->end->verified.report;
}

static uint64_t n_bad(const struct scrub_report *report)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < SCRUB_KIND_COUNT; i++)
        n += report->count[i].n_bad + report->count[i].n_missing;
    return n;
}

static bool is_clean(const struct scrub_report *report)
{
    if (n_bad(report) == 0 && report->n_finding == 0 && report->n_drop == 0 &&
        report->n_different == 0)
        return true;
    fprintf(stderr, "%lu bad: %s\n", n_bad(report), report->finding[0]);
    return false;
}

Test(engine_verify, a_sound_session_is_counted)
{
    struct node *node = node_with("s");
    const struct reply *log = node_read(node, "s");
    const struct scrub_report *report = verify(node, "s", false);
    struct digest chain =
        digest_tokens(model_fingerprint(node->model), log->token, log->n_token);

    cr_assert(is_clean(report));
    cr_assert_eq(report->n_token, N_LOG);
    cr_assert(digest_equal(report->chain, chain));
    cr_assert_eq(report->count[SCRUB_SESSION].n, 1);
    cr_assert_eq(report->count[SCRUB_TURNS].n, 1);
    cr_assert_eq(report->count[SCRUB_MANIFEST].n, 1);
    cr_assert_eq(report->count[SCRUB_TOKENS].n,
                 count_rows(node->journal_store, 'k'));
    cr_assert_eq(report->count[SCRUB_STATE].n,
                 count_rows(node->bulk_store, 's'));
    cr_assert_eq(report->count[SCRUB_OPEN].n,
                 count_rows(node->bulk_store, 'o'));
    cr_assert_eq(report->count[SCRUB_BLOCK].n,
                 count_rows(node->bulk_store, 'b'));
    cr_assert_gt(report->count[SCRUB_BLOCK].n, 0);
    node_destroy(node);
}

Test(engine_verify, a_replay_gives_what_is_stored)
{
    struct node *node = node_with("s");
    const struct scrub_report *report = verify(node, "s", true);

    cr_assert(is_clean(report));
    cr_assert_eq(report->n_compared, count_rows(node->bulk_store, 's') +
                                         count_rows(node->bulk_store, 'o') +
                                         count_rows(node->bulk_store, 'b'));
    node_destroy(node);
}

Test(engine_verify, sessions_without_tokens_or_snapshots_are_sound)
{
    struct node *node = fork_node();
    struct command *command =
        command_make(COMMAND_CREATE_SESSION, node_reply(node));

    log_set_level(LOG_ERROR);
    strcpy(command->create.name, "empty");
    command->create.durability = DURABILITY_LOCAL;
    node_call(node, command);
    cr_assert(is_clean(verify(node, "empty", false)));
    cr_assert(reply_failed(
        node_call(node, about(node, COMMAND_VERIFY_SESSION, "nobody")),
        STATUS_NOT_FOUND, "SESSION_NOT_FOUND"));
    command = generate(node, "ram", "", 10, 1);
    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_NONE;
    node_call(node, command);
    cr_assert(reply_failed(
        node_call(node, about(node, COMMAND_VERIFY_SESSION, "ram")),
        STATUS_FAILED_PRECONDITION, "SESSION_NOT_DURABLE"));
    node_destroy(node);
}

/* Spoil, verify, and see that nothing is wrong any more, and nothing was. */
static void expect_heals(struct node *node, struct node *judge, uint32_t salt)
{
    const struct scrub_report *report = verify(node, "s", false);

    cr_assert_eq(n_bad(report), 1, "%lu found", n_bad(report));
    cr_assert_eq(report->n_finding, 1);
    report = verify(node, "s", true);
    cr_assert(is_clean(report));
    cr_assert_gt(report->n_compared, 0, "it is stored again");
    restart(node, true);
    go_on(node, "s", 3, 2, salt);
    cr_assert(judge_agrees(judge, node, "s", 2, salt));
    fork_settle(node);
    forget_replies(node);
}

Test(engine_verify, a_flipped_bit_is_found_named_and_healed, .timeout = 480)
{
    struct node *node = node_with("s"), *judge = judge_create();
    static const char letters[] = "sobv";

    for (uint32_t i = 0; letters[i]; i++)
        for (uint32_t n = 0; n < 3; n++) {
            if (!row_flip(node->bulk_store, letters[i], log_of(node, "s"), n))
                continue;
            expect_heals(node, judge, 10 * i + n);
        }
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_verify, a_missing_value_is_found_and_healed, .timeout = 480)
{
    struct node *node = node_with("s"), *judge = judge_create();
    static const char letters[] = "sob";

    for (uint32_t i = 0; letters[i]; i++) {
        cr_assert(
            row_remove(node->bulk_store, letters[i], log_of(node, "s"), i % 2));
        expect_heals(node, judge, 50 + i);
    }
    node_destroy(judge);
    node_destroy(node);
}

/* A value whose digest is right and whose floats are not. */
static void lie(struct node *node, char letter, enum frame_kind kind)
{
    struct value_head head;
    struct writer writer;
    struct row_of row;
    const void *data;
    size_t data_bytes;
    float *copy;

    need(row_find(node->bulk_store, letter, log_of(node, "s"), 0, &row));
    must(
        value_get(row.value, row.value_bytes, kind, &head, &data, &data_bytes));
    copy = malloc(data_bytes);
    memcpy(copy, data, data_bytes);
    copy[1] += 1;
    writer_init(&writer, SNAPSHOT_VALUE_MAX);
    must(value_put(&writer, kind, &head, copy, data_bytes));
    free(row.value);
    row.value = writer.bytes;
    row.value_bytes = writer.n;
    row_put(node->bulk_store, &row);
    writer_release(&writer);
    free(copy);
}

Test(engine_verify, only_a_replay_sees_a_lie_that_is_well_sealed)
{
    static const struct {
        char letter;
        enum frame_kind kind;
    } row[] = {{'s', FRAME_STATE}, {'o', FRAME_OPEN}, {'b', FRAME_BLOCK}};
    struct node *node = node_with("s"), *judge = judge_create();

    for (uint32_t i = 0; i < 3; i++) {
        const struct scrub_report *report;

        lie(node, row[i].letter, row[i].kind);
        cr_assert(is_clean(verify(node, "s", false)));
        report = verify(node, "s", true);
        cr_assert_eq(report->n_different, 1);
        cr_assert_geq(report->n_drop, 1);
        cr_assert(is_clean(verify(node, "s", true)));
        restart(node, false);
        go_on(node, "s", 3, 2, i);
        cr_assert(judge_agrees(judge, node, "s", 2, i));
        fork_settle(node);
        forget_replies(node);
    }
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_verify, a_bad_journal_record_is_said_and_nothing_is_touched)
{
    struct node *node = node_with("s");
    const struct scrub_report *report;
    uint32_t n_state = count_rows(node->bulk_store, 's');

    cr_assert(row_flip(node->journal_store, 'k', log_of(node, "s"), 1));
    report = verify(node, "s", true);
    cr_assert_eq(report->count[SCRUB_TOKENS].n_bad, 1);
    cr_assert_lt(report->n_token, N_LOG);
    cr_assert_eq(report->n_drop, 0);
    cr_assert_eq(count_rows(node->bulk_store, 's'), n_state);
    cr_assert(row_flip(node->journal_store, 't', log_of(node, "s"), 0));
    cr_assert(row_flip(node->journal_store, 'm', log_of(node, "s"), 0));
    report = verify(node, "s", false);
    cr_assert_eq(report->count[SCRUB_TURNS].n_bad, 1);
    cr_assert_eq(report->count[SCRUB_SESSION].n_bad, 1);
    node_destroy(node);
}

/* The block of the parent that both read. */
Test(engine_verify, a_forks_loss_is_its_parents_too)
{
    struct node *node = node_with("s"), *judge = judge_create();
    const struct scrub_report *report;

    cr_assert_eq(fork_at(node, "s", "f", 140)->last, EVENT_SESSION);
    go_on(node, "f", 70, 2, 3);
    fork_settle(node);
    cr_assert(is_clean(verify(node, "f", true)));
    cr_assert(row_flip(node->bulk_store, 'b', log_of(node, "s"), 0));
    report = verify(node, "f", false);
    cr_assert_eq(n_bad(report), 1);
    cr_assert(is_clean(verify(node, "f", true)));
    verify(node, "s", false);
    cr_assert(is_clean(verify(node, "s", true)));
    restart(node, true);
    go_on(node, "f", 3, 2, 4);
    cr_assert(judge_agrees(judge, node, "f", 2, 4));
    go_on(node, "s", 3, 2, 5);
    cr_assert(judge_agrees(judge, node, "s", 2, 5));
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_verify, its_caller_may_go_and_its_session_may_be_deleted)
{
    for (uint32_t n_step = 0; n_step < 12; n_step++) {
        struct node *node = node_with("s");
        struct command *command = about(node, COMMAND_VERIFY_SESSION, "s");
        uint64_t reply = command->reply;

        command->target.replays = true;
        node_send(node, command);
        for (uint32_t i = 0; i < n_step; i++)
            node_step(node);
        if (n_step % 2)
            node_subject(node, COMMAND_DETACH, reply);
        cr_assert_eq(erase(node, "s")->last, EVENT_DONE);
        if (n_step % 2 == 0)
            node_until(node, reply);
        fork_settle(node);
        for (uint32_t i = 0; i < 100 && node->engine->errands; i++) {
            node_step(node);
            ring_wait(node->inbox, 20);
        }
        cr_assert_null(node->engine->errands);
        fork_settle(node);
        cr_assert_eq(count_rows(node->bulk_store, 'b'), 0, "nothing is left");
        cr_assert_eq(count_rows(node->journal_store, 'k'), 0);
        cr_assert_eq(node->engine->charged, 0);
        node_destroy(node);
    }
}

/* It is verified as it was when that was asked. */
Test(engine_verify, its_session_may_get_another_policy_meanwhile)
{
    for (uint32_t n_step = 0; n_step < 12; n_step++) {
        struct node *node = node_with("s");
        struct command *verify = about(node, COMMAND_VERIFY_SESSION, "s");
        struct command *turn = generate(node, "s", "", 20, 8);
        uint64_t reply = verify->reply;

        verify->target.replays = true;
        node_send(node, verify);
        for (uint32_t i = 0; i < n_step; i++)
            if (!node_step(node))
                ring_wait(node->inbox, 5);
        under(turn, "infllm:sink=0:window=0:pick=64:step=16");
        cr_assert_eq(node_call(node, turn)->last, EVENT_COMPLETE);
        node_until(node, reply);
        cr_assert_eq(node->reply[reply].last, EVENT_VERIFIED);
        cr_assert(is_clean(node->reply[reply].end->verified.report),
                  "after %u steps", n_step);
        node_destroy(node);
    }
}

Test(engine_verify, others_are_served_meanwhile)
{
    struct node *node = node_with("s"), *judge = judge_create();
    struct command *command = about(node, COMMAND_VERIFY_SESSION, "s");
    uint64_t reply = command->reply;

    command->target.replays = true;
    node_send(node, command);
    go_on(node, "s", 4, 3, 9);
    node_until(node, reply);
    cr_assert_eq(node->reply[reply].last, EVENT_VERIFIED);
    cr_assert(judge_agrees(judge, node, "s", 3, 9));
    node_destroy(judge);
    node_destroy(node);
}

Test(engine_verify, a_node_that_stops_ends_it)
{
    for (uint32_t n_step = 0; n_step < 8; n_step++) {
        struct node *node = node_with("s");
        struct command *command = about(node, COMMAND_VERIFY_SESSION, "s");
        struct command *drain = command_make(COMMAND_DRAIN, node_reply(node));
        uint64_t reply = command->reply, end = drain->reply;

        command->target.replays = true;
        node_send(node, command);
        for (uint32_t i = 0; i < n_step; i++)
            node_step(node);
        drain->deadline_us = 1;
        node_send(node, drain);
        node_until(node, end);
        cr_assert(node->reply[reply].is_over);
        node_destroy(node);
    }
}
