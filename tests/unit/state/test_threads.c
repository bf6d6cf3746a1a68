/*
 * The test is the engine: it pushes commits and reads messages and reports.
 * Oracle of durability: when a message comes out, the store is made to forget
 * what was not synced, and the journal must still hold the message's tokens.
 */
#include "state/lineage.h"
#include "state/threads.h"

#include "base/log.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_MS 10000

static const struct uid alice = {0x10, 1};
static const struct digest fingerprint = {1, 2};

static struct store *store;
static struct journal *journal;
static struct ring *outbox, *reports, *engine;
static struct journal_thread *thread;
static struct digest chain;
static uint32_t n_token;
static _Atomic uint64_t n_dropped, last_dropped;
static uint64_t sync_every_us;

static void drop(void *message, const struct cause *cause, struct ring *to)
{
    cr_assert_neq(cause->code, STATUS_OK);
    cr_assert_eq(to, outbox);
    last_dropped = (uint64_t)(uintptr_t)message;
    n_dropped++;
}

static void begin_rings(uint32_t n_outbox, uint32_t n_reports)
{
    struct journal_thread_options options = {.drop = drop,
                                             .sync_every_us = sync_every_us};

    log_set_level(LOG_ERROR + 1);
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(journal_open(store, fingerprint, &journal), STATUS_OK);
    cr_assert_eq(ring_create(n_outbox, sizeof(void *), &outbox), STATUS_OK);
    cr_assert_eq(
        ring_create(n_reports, sizeof(struct journal_report), &reports),
        STATUS_OK);
    cr_assert_eq(ring_create(1, 1, &engine), STATUS_OK);
    options.journal = journal;
    options.outbox = outbox;
    options.reports = reports;
    options.engine = engine;
    cr_assert_eq(journal_thread_start(&options, 64, &thread), STATUS_OK);
    chain = fingerprint;
}

static void begin(void)
{
    begin_rings(64, 64);
}

static void end(void)
{
    journal_thread_stop(thread);
    journal_close(journal);
    store_close(store);
    ring_destroy(outbox);
    ring_destroy(reports);
    ring_destroy(engine);
}

TestSuite(journal_thread, .init = begin, .fini = end, .timeout = 120);

/* A commit of the next token, with messages number + 0, 1, .... */
static struct commit *commit_of(uint64_t step, uint64_t epoch,
                                uint32_t n_message)
{
    struct commit *commit = calloc(1, sizeof(*commit));
    uint32_t token = n_token;

    commit->batch = journal_batch_create(journal);
    chain = digest_tokens(chain, &token, 1);
    journal_put_tokens(commit->batch, alice, n_token++, &token, 1, chain);
    commit->needs_sync = true;
    commit->step = step;
    commit->epoch = epoch;
    commit->n_message = n_message;
    commit->message = calloc(n_message + 1, sizeof(void *));
    for (uint32_t i = 0; i < n_message; i++)
        commit->message[i] = (void *)(uintptr_t)(step * 1000 + i + 1);
    return commit;
}

static void push(uint64_t step, uint64_t epoch, uint32_t n_message)
{
    cr_assert(journal_thread_push(thread, commit_of(step, epoch, n_message)));
}

static void wait_for(struct ring *ring, void *out)
{
    while (!ring_pop(ring, out)) /* the suite's timeout is the limit */
        ring_wait(ring, WAIT_MS);
}

static uint64_t next_message(void)
{
    void *message;

    wait_for(outbox, &message);
    return (uint64_t)(uintptr_t)message;
}

/* The report about `step`; those before it must be like it. */
static struct journal_report report_of(uint64_t step, enum status code)
{
    struct journal_report report;

    do {
        wait_for(reports, &report);
        cr_assert_eq(report.cause.code, code, "step %lu: %s", report.step,
                     report.cause.text);
        cr_assert_leq(report.step, step);
    } while (report.step < step);
    return report;
}

static size_t n_stored(void)
{
    struct ids ids = {0};
    struct digest end_chain;

    cr_assert_eq(journal_read_tokens(
                     journal, &(struct log_path){1, {{alice, UINT64_MAX}}},
                     &ids, &end_chain),
                 STATUS_OK, "%s", status_reason());
    free(ids.id);
    return ids.n;
}

Test(journal_thread, sends_in_order_and_only_what_is_durable)
{
    for (uint64_t step = 1; step <= 200; step++) {
        push(step, 0, 2);
        if (step % 3)
            continue;
        for (uint64_t i = step - 2; i <= step; i++) {
            cr_assert_eq(next_message(), i * 1000 + 1);
            cr_assert_eq(next_message(), i * 1000 + 2);
            if (i == step) { /* nothing is being written now */
                store_memory_crash(store);
                cr_assert_eq(n_stored(), step);
            }
        }
        cr_assert_eq(report_of(step, STATUS_OK).epoch, 0);
    }
    cr_assert_eq(n_dropped, 0);
}

static void begin_paced(void)
{
    sync_every_us = 500000;
    begin();
}

/* The first step is written at once; then there is half a second for two more,
 * far longer than anything here takes but for the wait itself. */
Test(journal_thread, steps_faster_than_its_pace_share_a_sync,
     .init = begin_paced)
{
    struct journal_report report;

    push(1, 0, 1);
    cr_assert_eq(report_of(1, STATUS_OK).step, 1);
    push(2, 0, 1);
    for (int i = 0; i < 20000; i++) {
        cr_assert_not(ring_pop(reports, &report), "step 2 was not held");
        (void)sched_yield();
    }
    cr_assert_eq(ring_count(outbox), 1);
    push(3, 0, 1);
    wait_for(reports, &report);
    cr_assert_eq(report.step, 3);
    cr_assert_eq(n_stored(), 3);
    for (uint64_t step = 1; step <= 3; step++)
        cr_assert_eq(next_message(), step * 1000 + 1);
}

Test(journal_thread, messages_without_tokens_keep_their_place)
{
    struct commit *bare = calloc(1, sizeof(*bare));

    push(1, 0, 1);
    bare->step = 2;
    bare->n_message = 1;
    bare->message = calloc(1, sizeof(void *));
    bare->message[0] = (void *)(uintptr_t)2001;
    cr_assert(journal_thread_push(thread, bare));
    push(3, 0, 1);
    cr_assert_eq(next_message(), 1001);
    cr_assert_eq(next_message(), 2001);
    cr_assert_eq(next_message(), 3001);
    (void)report_of(3, STATUS_OK);
    cr_assert_eq(journal_thread_backlog(thread), 0);
    commit_destroy(NULL);
}

Test(journal_thread, unsynced_commits_are_written_without_sync)
{
    struct commit *commit = commit_of(1, 0, 1);

    commit->needs_sync = false;
    cr_assert(journal_thread_push(thread, commit));
    (void)report_of(1, STATUS_OK);
    cr_assert_eq(n_stored(), 1);
    store_memory_crash(store);
    cr_assert_eq(n_stored(), 0);
}

Test(journal_thread, writes_nothing_behind_a_hole)
{
    struct digest chain_before;
    struct journal_report report;

    push(1, 0, 1);
    (void)report_of(1, STATUS_OK);
    cr_assert_eq(next_message(), 1001);
    chain_before = chain;
    store_memory_faults(store)->fail_at = 1;
    push(2, 0, 3);
    report = report_of(2, STATUS_UNAVAILABLE);
    cr_assert_eq(report.epoch, 1);
    cr_assert_eq(n_dropped, 3);
    cr_assert_eq(last_dropped, 2003);
    /* The store works again, but these were made before we knew. */
    push(3, 0, 1);
    push(4, 0, 1);
    report = report_of(4, STATUS_UNAVAILABLE);
    cr_assert_eq(report.epoch, 1);
    cr_assert_eq(report.write_us, 0);
    cr_assert_eq(n_dropped, 5);
    cr_assert_eq(n_stored(), 1);
    /* Now we know, and go on from what is durable. */
    n_token = 1;
    chain = chain_before;
    push(5, 1, 1);
    cr_assert_eq(report_of(5, STATUS_OK).epoch, 1);
    cr_assert_eq(next_message(), 5001);
    cr_assert_eq(n_stored(), 2);
    /* And it can happen again. */
    store_memory_faults(store)->is_read_only = true;
    push(6, 1, 1);
    cr_assert_eq(report_of(6, STATUS_RESOURCE_EXHAUSTED).epoch, 2);
    cr_assert_eq(n_dropped, 6);
}

Test(journal_thread, stop_finishes_what_was_pushed)
{
    for (uint64_t step = 1; step <= 40; step++)
        push(step, 0, 1);
    journal_thread_stop(thread);
    thread = NULL;
    journal_thread_stop(NULL);
    store_memory_crash(store);
    cr_assert_eq(n_stored(), 40);
    for (uint64_t step = 1; step <= 40; step++)
        cr_assert_eq(next_message(), step * 1000 + 1);
}

Test(journal_thread, refuses_a_ring_without_places)
{
    struct journal_thread_options options = {.journal = journal};
    struct journal_thread *none;

    cr_assert_eq(journal_thread_start(&options, 0, &none),
                 STATUS_INVALID_ARGUMENT);
    cr_assert_eq(store_thread_start(&(struct store_thread_options){0}, 0,
                                    &(struct store_thread *){0}),
                 STATUS_INVALID_ARGUMENT);
}

static void begin_narrow(void)
{
    begin_rings(2, 1);
}

TestSuite(narrow, .init = begin_narrow, .fini = end, .timeout = 120);

Test(narrow, a_full_outbox_loses_nothing)
{
    push(1, 0, 500);
    push(2, 0, 500);
    for (uint64_t step = 1; step <= 2; step++)
        for (uint64_t i = 1; i <= 500; i++)
            cr_assert_eq(next_message(), step * 1000 + i);
    (void)report_of(2, STATUS_OK);
    cr_assert_eq(n_dropped, 0);
}

Test(narrow, a_full_ring_refuses_the_push)
{
    uint64_t step = 1;

    /* Nobody reads, so the thread stands at the outbox. */
    for (; step < 1000; step++) {
        struct commit *commit = commit_of(step, 0, 5);

        if (!journal_thread_push(thread, commit)) {
            commit_destroy(commit);
            break;
        }
    }
    cr_assert_leq(step, 64 + 64 + 1);
    cr_assert_gt(step, 64);
    cr_assert_geq(journal_thread_backlog(thread), 64);
    for (uint64_t i = 1; i < step; i++)
        for (uint64_t k = 1; k <= 5; k++) {
            struct journal_report report;

            cr_assert_eq(next_message(), i * 1000 + k);
            (void)ring_pop(reports, &report);
        }
}

Test(narrow, stop_ends_though_nobody_takes_anything)
{
    push(1, 0, 20);
    push(2, 0, 20);
    push(3, 0, 20);
    journal_thread_stop(thread);
    thread = NULL;
    cr_assert_eq(n_dropped, 60 - 2);
    cr_assert_eq(last_dropped, 3020);
    cr_assert_eq(n_stored(), 3);
}

/* ------------------------------------------------------------ store thread */

static struct model *model;
static struct snapshots *snapshots;
static struct ring *done;
static struct store_thread *store_thread;

static void begin_store(void)
{
    const struct model_options options = {.backend = backend_all()[0]};

    log_set_level(LOG_ERROR + 1);
    cr_assert_eq(model_load("tests/golden/qwen3_5_text", &options, &model),
                 STATUS_OK, "%s", status_reason());
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(journal_open(store, model_fingerprint(model), &journal),
                 STATUS_OK);
    cr_assert_eq(snapshots_open(store, model, &snapshots), STATUS_OK);
    cr_assert_eq(ring_create(16, sizeof(struct store_job *), &done), STATUS_OK);
    cr_assert_eq(ring_create(1, 1, &engine), STATUS_OK);
    cr_assert_eq(store_thread_start(
                     &(struct store_thread_options){.journal = journal,
                                                    .snapshots = snapshots,
                                                    .done = done,
                                                    .engine = engine},
                     8, &store_thread),
                 STATUS_OK);
}

static void end_store(void)
{
    store_thread_stop(store_thread);
    store_thread_stop(NULL);
    snapshots_close(snapshots);
    journal_close(journal);
    store_close(store);
    model_destroy(model);
    ring_destroy(done);
    ring_destroy(engine);
}

TestSuite(store_thread, .init = begin_store, .fini = end_store, .timeout = 120);

static uint32_t token[200];

static void put_session(void)
{
    struct journal_batch *batch = journal_batch_create(journal);
    struct turn turn = {.n_input = 150};

    for (uint32_t i = 0; i < 200; i++)
        token[i] = i * 7;
    journal_put_tokens(batch, alice, 0, token, 200,
                       digest_tokens(model_fingerprint(model), token, 200));
    journal_put_turn(batch, alice, &turn);
    cr_assert_eq(journal_commit(journal, &batch, 1, true), STATUS_OK);
    journal_batch_destroy(batch);
}

static struct memory *memory_at(uint64_t position)
{
    struct memory *memory;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, position), STATUS_OK);
    memory_advance(memory, position);
    return memory;
}

static void finish(struct store_job *job)
{
    struct store_job *back;

    cr_assert(store_thread_push(store_thread, job));
    wait_for(done, &back);
    cr_assert_eq(back, job);
}

static void save_at(uint64_t position)
{
    struct store_job job = {.kind = STORE_SAVE, .uid = alice};
    struct memory *memory = memory_at(position);

    cr_assert_eq(
        image_create(model,
                     &(struct image_source){.log = alice,
                                            .memory = memory,
                                            .token = token,
                                            .chain = model_fingerprint(model)},
                     &job.image),
        STATUS_OK);
    finish(&job);
    cr_assert_eq(job.status, STATUS_OK);
    image_destroy(job.image);
    memory_destroy(memory);
}

static void check_load(uint64_t keep_back, uint64_t position)
{
    struct store_job job = {.kind = STORE_LOAD,
                            .uid = alice,
                            .path = log_path_alone(alice),
                            .owner = &job,
                            .keep_back = keep_back,
                            .memory = memory_at(0)};

    finish(&job);
    cr_assert_eq(job.status, STATUS_OK);
    cr_assert_eq(job.owner, &job);
    cr_assert_eq(job.tokens.n, 200);
    cr_assert_arr_eq(job.tokens.id, token, sizeof(token));
    cr_assert(digest_equal(
        job.chain, digest_tokens(model_fingerprint(model), token, 200)));
    cr_assert(job.has_turn);
    cr_assert_eq(job.turn.n_input, 150);
    cr_assert_eq(memory_position(job.memory), position,
                 "at %lu, expected %lu, reason %d", memory_position(job.memory),
                 position, (int)job.restore.reason);
    cr_assert_eq(job.restore.reason, position ? RESTORE_HIT : RESTORE_NONE);
    ids_release(&job.tokens);
    memory_destroy(job.memory);
}

Test(store_thread, saves_loads_and_deletes)
{
    struct store_job erase = {.kind = STORE_DELETE, .uid = alice};
    struct store_job list = {
        .kind = STORE_TOKENS, .uid = alice, .path = log_path_alone(alice)};

    put_session();
    check_load(0, 0);
    save_at(120);
    save_at(200);
    check_load(0, 200);
    check_load(1, 120);
    check_load(80, 120);
    check_load(81, 0);
    check_load(1000, 0);
    finish(&list);
    cr_assert_eq(list.status, STATUS_OK);
    cr_assert_eq(list.tokens.n, 200);
    cr_assert_not(list.has_turn);
    ids_release(&list.tokens);
    finish(&erase);
    cr_assert_eq(erase.status, STATUS_OK);
    check_load(0, 0);
}

Test(store_thread, of_an_unknown_session_gives_no_tokens)
{
    struct store_job job = {.kind = STORE_LOAD,
                            .uid = {9, 9},
                            .path = log_path_alone((struct uid){9, 9}),
                            .memory = memory_at(0)};

    finish(&job);
    cr_assert_eq(job.status, STATUS_OK);
    cr_assert_eq(job.tokens.n, 0);
    cr_assert_not(job.has_turn);
    cr_assert_eq(job.restore.reason, RESTORE_NONE);
    memory_destroy(job.memory);
}

Test(store_thread, hands_back_the_cause_of_a_failure)
{
    uint64_t n = 0;

    put_session();
    save_at(120);
    for (;;) {
        struct store_job job = {.kind = STORE_LOAD,
                                .uid = alice,
                                .path = log_path_alone(alice),
                                .memory = memory_at(0)};

        store_memory_faults(store)->fail_at = ++n;
        finish(&job);
        ids_release(&job.tokens);
        memory_destroy(job.memory);
        if (!job.status)
            break; /* from here on it falls back to replay */
        cr_assert_eq(job.status, STATUS_UNAVAILABLE);
        cr_assert_eq(job.cause.code, STATUS_UNAVAILABLE);
        cr_assert(strstr(job.cause.text, "as planned"));
        cr_assert_lt(n, 100);
    }
    cr_assert_geq(n, 5);
}

Test(store_thread, stop_gives_every_job_back_and_does_every_save)
{
    struct store_job load[3], save = {.kind = STORE_SAVE, .uid = alice};
    struct memory *memory = memory_at(64);
    struct store_job *back;
    uint32_t n_back = 0;

    put_session();
    cr_assert_eq(
        image_create(model,
                     &(struct image_source){.log = alice,
                                            .memory = memory,
                                            .token = token,
                                            .chain = model_fingerprint(model)},
                     &save.image),
        STATUS_OK);
    for (int i = 0; i < 3; i++) {
        load[i] = (struct store_job){.kind = STORE_LOAD,
                                     .uid = alice,
                                     .path = log_path_alone(alice),
                                     .memory = memory_at(0)};
        cr_assert(store_thread_push(store_thread, &load[i]));
    }
    cr_assert(store_thread_push(store_thread, &save));
    store_thread_stop(store_thread);
    store_thread = NULL;
    while (ring_pop(done, &back)) {
        if (back->kind == STORE_LOAD) {
            cr_assert(back->status == STATUS_OK ||
                      back->status == STATUS_CANCELLED);
            ids_release(&back->tokens);
            memory_destroy(back->memory);
        }
        n_back++;
    }
    cr_assert_eq(n_back, 4);
    cr_assert_eq(save.status, STATUS_OK);
    image_destroy(save.image);
    memory_destroy(memory);
}
