/*
 * Disks that fail. Beside the session that is hit stands another one, which
 * must never notice. The judge of what the hit one says, when it can say
 * anything, is a node whose disk is sound; what was committed must be there
 * afterwards, token by token.
 */
#include "base/log.h"
#include "tests/unit/scheduler/stored_fixture.h"

#include <criterion/criterion.h>

#define N_LOG 150u

static void make(struct node *node, const char *name, uint32_t salt)
{
    struct command *command = generate(node, name, "", N_LOG - 20, salt);

    command->generate.sampling.max_tokens = 20;
    command->generate.sampling.ignore_eos = true;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    fork_settle(node);
}

struct bench {
    struct node *node, *judge;
    uint32_t log[N_LOG]; /* of "hit" */
};

static struct bench begin(void)
{
    struct bench bench = {.node = fork_node(), .judge = judge_create()};
    const struct reply *log;

    log_set_level(LOG_ERROR);
    make(bench.node, "hit", 1);
    make(bench.node, "other", 2);
    log = node_read(bench.node, "hit");
    cr_assert_eq(log->n_token, N_LOG);
    memcpy(bench.log, log->token, sizeof(bench.log));
    restart(bench.node, true);
    return bench;
}

static void end(struct bench *bench)
{
    node_destroy(bench->judge);
    node_destroy(bench->node);
}

static void expect_other_is_well(struct bench *bench, uint32_t salt)
{
    go_on(bench->node, "other", 2, 2, salt);
    cr_assert(judge_agrees(bench->judge, bench->node, "other", 2, salt));
}

static void expect_nothing_lost(struct bench *bench)
{
    const struct reply *log = node_read(bench->node, "hit");

    cr_assert_geq(log->n_token, N_LOG);
    cr_assert_eq(memcmp(log->token, bench->log, sizeof(bench->log)), 0);
}

/* It goes on by replay. */
static void expect_replays(struct bench *bench, uint32_t salt)
{
    const struct reply *reply = go_on(bench->node, "hit", 3, 2, salt);

    cr_assert_lt(reply->end->complete.n_restored, N_LOG - 1);
    cr_assert(judge_agrees(bench->judge, bench->node, "hit", 2, salt));
    expect_nothing_lost(bench);
}

Test(engine_faults, a_flipped_bit_or_a_missing_value_means_a_replay,
     .timeout = 480)
{
    static const char letters[] = "sobv";

    for (uint32_t i = 0; letters[i]; i++)
        for (uint32_t is_missing = 0; is_missing < 2; is_missing++) {
            struct bench bench = begin();
            struct uid log = log_of(bench.node, "hit");

            cr_assert(
                is_missing
                    ? row_remove(bench.node->bulk_store, letters[i], log, 0)
                    : row_flip(bench.node->bulk_store, letters[i], log, 0));
            expect_other_is_well(&bench, i);
            expect_replays(&bench, i);
            expect_other_is_well(&bench, 10 + i);
            end(&bench);
        }
}

static void make_unreadable(struct store *store, char letter, struct uid log)
{
    struct store_faults *faults = store_memory_faults(store);
    struct key key = key_of(letter, log);

    memcpy(faults->unreadable, key.bytes, key.n);
    faults->unreadable_bytes = key.n;
}

Test(engine_faults, stored_values_that_cannot_be_read_mean_a_replay,
     .timeout = 480)
{
    static const char letters[] = "sobv";

    for (uint32_t i = 0; letters[i]; i++) {
        struct bench bench = begin();
        struct command *command;
        const struct scrub_report *report;

        make_unreadable(bench.node->bulk_store, letters[i],
                        log_of(bench.node, "hit"));
        expect_other_is_well(&bench, i);
        expect_replays(&bench, i);
        command = about(bench.node, COMMAND_VERIFY_SESSION, "hit");
        report = node_call(bench.node, command)->end->verified.report;
        cr_assert_gt(report->n_finding, 0);
        cr_assert(strstr(report->finding[0], "cannot be read"));
        expect_other_is_well(&bench, 10 + i);
        end(&bench);
    }
}

/* Of the log itself: refused with its reason, read-only in effect, and whole
 * again when the disk is. */
Test(engine_faults, a_log_that_cannot_be_read_is_refused_and_comes_back)
{
    struct bench bench = begin();
    struct reply *reply;

    make_unreadable(bench.node->journal_store, 'k', log_of(bench.node, "hit"));
    reply = node_call(bench.node, generate(bench.node, "hit", "", 3, 1));
    cr_assert_eq(reply->last, EVENT_ERROR);
    cr_assert_eq(reply->end->cause.code, STATUS_INTERNAL);
    cr_assert(strstr(reply->end->cause.text, "cannot be read"));
    expect_other_is_well(&bench, 1);
    store_memory_faults(bench.node->journal_store)->unreadable_bytes = 0;
    go_on(bench.node, "hit", 3, 2, 5);
    cr_assert(judge_agrees(bench.judge, bench.node, "hit", 2, 5));
    expect_nothing_lost(&bench);
    end(&bench);
}

Test(engine_faults, a_flipped_bit_in_the_log_is_said_and_others_go_on)
{
    struct bench bench = begin();
    struct reply *reply;

    cr_assert(
        row_flip(bench.node->journal_store, 'k', log_of(bench.node, "hit"), 2));
    reply = node_call(bench.node, generate(bench.node, "hit", "", 3, 1));
    cr_assert(reply_failed(reply, STATUS_DATA_LOSS, "SESSION_LOG_LOST"));
    expect_other_is_well(&bench, 1);
    cr_assert(
        row_flip(bench.node->journal_store, 'k', log_of(bench.node, "hit"), 2),
        "as if the disk had come to its senses");
    go_on(bench.node, "hit", 3, 2, 5);
    expect_nothing_lost(&bench);
    end(&bench);
}

/* A manifest of which only a part was written: every length of it. */
Test(engine_faults, a_half_written_manifest_is_none, .timeout = 480)
{
    struct bench bench = begin();
    struct uid log = log_of(bench.node, "hit");
    struct row_of whole;

    cr_assert(row_find(bench.node->bulk_store, 'v', log, 0, &whole));
    for (size_t n = 0; n < whole.value_bytes; n += 1 + n / 3) {
        struct row_of part = whole;

        part.value_bytes = n;
        node_kill(bench.node);
        row_put(bench.node->bulk_store, &part);
        node_start(bench.node);
        forget_replies(bench.node);
        expect_replays(&bench, (uint32_t)n);
        fork_settle(bench.node);
        expect_other_is_well(&bench, (uint32_t)n);
    }
    free(whole.value);
    end(&bench);
}

/* The bulk store is full: no snapshot, and nobody's reply suffers. */
Test(engine_faults, a_full_store_costs_snapshots_alone)
{
    struct bench bench = begin();

    store_memory_faults(bench.node->bulk_store)->is_read_only = true;
    go_on(bench.node, "hit", 70, 4, 1);
    cr_assert(judge_agrees(bench.judge, bench.node, "hit", 4, 1));
    expect_other_is_well(&bench, 1);
    fork_settle(bench.node);
    store_memory_faults(bench.node->bulk_store)->is_read_only = false;
    go_on(bench.node, "hit", 70, 4, 2);
    fork_settle(bench.node);
    restart(bench.node, true);
    cr_assert_gt(go_on(bench.node, "hit", 3, 2, 3)->end->complete.n_restored,
                 N_LOG);
    cr_assert(judge_agrees(bench.judge, bench.node, "hit", 2, 3));
    expect_nothing_lost(&bench);
    end(&bench);
}

/* The journal is full: what was not committed is refused, all else is there. */
Test(engine_faults, a_full_journal_refuses_and_loses_nothing)
{
    struct bench bench = begin();
    struct reply *reply;

    store_memory_faults(bench.node->journal_store)->is_read_only = true;
    reply = node_call(bench.node, generate(bench.node, "hit", "", 3, 1));
    cr_assert(
        reply_failed(reply, STATUS_FAILED_PRECONDITION, "STORE_READ_ONLY"));
    expect_nothing_lost(&bench);
    store_memory_faults(bench.node->journal_store)->is_read_only = false;
    go_on(bench.node, "hit", 3, 2, 2);
    cr_assert(judge_agrees(bench.judge, bench.node, "hit", 2, 2));
    expect_other_is_well(&bench, 3);
    restart(bench.node, true);
    expect_nothing_lost(&bench);
    end(&bench);
}

/* Each store call of a session's life fails once, the n-th: whatever becomes of
 * it, the other one is well, and so is this one afterwards. */
Test(engine_faults, any_call_of_the_store_may_fail, .timeout = 900)
{
    for (uint64_t n = 1; n < 400; n += 1 + n / 6) {
        struct bench bench = begin();

        store_memory_faults(bench.node->bulk_store)->fail_at = n;
        go_on(bench.node, "hit", 66, 3, 1);
        expect_other_is_well(&bench, 2);
        fork_settle(bench.node);
        store_memory_faults(bench.node->bulk_store)->fail_at = 0;
        restart(bench.node, true);
        go_on(bench.node, "hit", 3, 2, 3);
        cr_assert(judge_agrees(bench.judge, bench.node, "hit", 2, 3));
        expect_nothing_lost(&bench);
        end(&bench);
    }
}
