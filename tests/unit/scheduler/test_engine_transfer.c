/*
 * Bundles. The oracle of an imported session is a node that gets its tokens as
 * one prompt; the law is that nothing but a whole, unchanged bundle that fits
 * ever becomes a session, and that nothing stays of another.
 */
#include "base/log.h"
#include "state/bundle.h"
#include "state/snapshot_parts.h"
#include "tests/unit/scheduler/bundle_fixture.h"

#include <criterion/criterion.h>

#define N_LOG 150u

static const char keys[] =
    "# of tests\n"
    "ann 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"
    "bob ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";

static void make_session(struct node *node, const char *name, uint32_t salt)
{
    struct command *command = generate(node, name, "r1", N_LOG - 20, salt);

    command->generate.sampling.max_tokens = 20;
    command->generate.sampling.ignore_eos = true;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    fork_settle(node);
}

static struct node *node_with(const char *name)
{
    struct node *node = fork_node();

    log_set_level(LOG_ERROR);
    make_session(node, name, 7);
    return node;
}

static void expect_same_log(struct node *a, const char *its, struct node *b,
                            const char *name)
{
    cr_assert(same_tokens(node_read(a, its), node_read(b, name)));
}

Test(engine_transfer, a_session_goes_on_elsewhere_as_if_it_had_stayed,
     .timeout = 480)
{
    static const size_t piece[] = {0, 1000, 70000};
    struct node *from = node_with("s"), *to = fork_node(),
                *judge = judge_create();

    for (uint32_t has_state = 0; has_state < 2; has_state++)
        for (uint32_t i = 0; i < 3; i++) {
            struct bytes bundle = export_of(from, "s", has_state);
            struct importing how = {.name = "t", .piece = piece[i]};
            struct event *end = import_with(to, &how, bundle);
            const struct reply *reply;

            cr_assert_eq(end->kind, EVENT_SESSION);
            cr_assert_eq(end->session.position, N_LOG);
            event_destroy(end);
            fork_settle(to);
            cr_assert_null(table_find(to->engine, "t")->resident, "parked");
            expect_same_log(from, "s", to, "t");
            reply = go_on(to, "t", 3, 4, i);
            cr_assert_eq(reply->end->complete.n_restored > 0, has_state);
            cr_assert(judge_agrees(judge, to, "t", 4, i));
            restart(to, true);
            go_on(to, "t", 2, 2, 9);
            cr_assert(judge_agrees(judge, to, "t", 2, 9));
            erase(to, "t");
            fork_settle(to);
            cr_assert_eq(count_rows(to->bulk_store, 'b'), 0);
            free(bundle.at);
        }
    node_destroy(judge);
    node_destroy(to);
    node_destroy(from);
}

/* Its own name, labels and turns; a retry of its last request replays it. */
Test(engine_transfer, what_it_was_comes_along)
{
    struct node *from = node_with("s"), *to = fork_node();
    struct bytes bundle = export_of(from, "s", true);
    struct command *again = generate(to, "s", "r1", N_LOG - 20, 7);
    const struct reply *reply, *was = node_read(from, "s");

    again->generate.sampling.max_tokens = 20;
    again->generate.sampling.ignore_eos = true;
    import_as(to, NULL, bundle);
    reply = node_call(to, again);
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_eq(reply->n_token, 20);
    cr_assert_eq(
        memcmp(reply->token, was->token + N_LOG - 20, 20 * sizeof(uint32_t)),
        0);
    cr_assert_eq(node_read(to, "s")->n_token, N_LOG, "nothing was computed");
    free(bundle.at);
    node_destroy(to);
    node_destroy(from);
}

static struct command *long_turn(struct node *node)
{
    struct command *command = generate(node, "s", "r2", 5, 9);

    command->generate.sampling.max_tokens = 60;
    command->generate.sampling.temperature = 1;
    command->generate.sampling.ignore_eos = true;
    return command;
}

/* Exported at any moment of a reply, with it or without its node: the other
 * node goes on with it, and says all that the first one would have said. */
Test(engine_transfer, an_open_turn_is_continued_elsewhere, .timeout = 480)
{
    struct node *judge = node_with("s");
    const struct reply *whole = node_call(judge, long_turn(judge)), *reply;

    cr_assert(reply_completed(whole, FINISH_LENGTH));
    for (uint32_t n = 1; n < 60; n += 13)
        for (uint32_t is_gone = 0; is_gone < 2; is_gone++) {
            struct node *from = node_with("s"), *to = fork_node();
            struct command *command = long_turn(from);
            uint64_t id = command->reply;
            struct bytes bundle;

            node_send(from, command);
            while (from->reply[id].n_token < n)
                if (!node_step(from))
                    ring_wait(from->inbox, 5);
            if (is_gone) {
                node_subject(from, COMMAND_DETACH, id);
                fork_settle(from);
            }
            bundle = export_of(from, "s", true);
            import_as(to, "s", bundle);
            reply = node_call(to, long_turn(to));
            cr_assert(reply_completed(reply, FINISH_LENGTH));
            cr_assert(same_tokens(reply, whole), "at %u", n);
            free(bundle.at);
            node_destroy(to);
            node_destroy(from);
        }
    node_destroy(judge);
}

Test(engine_transfer, a_fork_is_flattened_and_a_part_has_no_turns,
     .timeout = 240)
{
    struct node *from = node_with("s"), *to = fork_node(),
                *judge = judge_create();
    struct exporting part = {
        .session = "f", .position = 131, .has_state = true};
    struct bytes bundle;
    struct event *end;

    fork_at(from, "s", "f", 100);
    go_on(from, "f", 40, 3, 5);
    fork_settle(from);
    bundle = export_of(from, "f", true);
    import_as(to, "whole", bundle);
    free(bundle.at);
    bundle = export_with(from, &part, &end);
    cr_assert_eq(end->kind, EVENT_DONE);
    event_destroy(end);
    import_as(to, "part", bundle);
    free(bundle.at);
    expect_same_log(from, "f", to, "whole");
    cr_assert_eq(node_read(to, "part")->n_token, 131);
    cr_assert_eq(table_find(to->engine, "whole")->n_piece, 1);
    go_on(to, "whole", 3, 3, 1);
    cr_assert(judge_agrees(judge, to, "whole", 3, 1));
    go_on(to, "part", 3, 3, 2);
    cr_assert(judge_agrees(judge, to, "part", 3, 2));
    part.position = 1000;
    bundle = export_with(from, &part, &end);
    cr_assert_eq(end->cause.code, STATUS_OUT_OF_RANGE);
    event_destroy(end);
    node_destroy(judge);
    node_destroy(to);
    node_destroy(from);
}

/* Every byte matters: some flipped, and each end. */
static void expect_refused(struct node *to, struct bytes bundle,
                           const struct importing *how)
{
    for (size_t at = 3; at < bundle.n; at += bundle.n / 61 + 1) {
        bundle.at[at] ^= 16;
        cr_assert(import_fails(to, how, bundle, STATUS_OK, NULL), "byte %zu",
                  at);
        bundle.at[at] ^= 16;
    }
    for (size_t n = bundle.n - 1; n > 0; n = n > 1000 ? n - n / 7 : n / 2) {
        struct bytes part = {bundle.at, n};

        cr_assert(
            import_fails(to, how, part, STATUS_DATA_LOSS, "BUNDLE_TRUNCATED"));
    }
}

Test(engine_transfer, a_flipped_bit_or_a_missing_end_is_refused, .timeout = 240)
{
    struct node *from = node_with("s"), *to = fork_node();
    struct bytes bundle = export_of(from, "s", true);
    struct importing how = {.name = "t", .piece = 40000};
    unsigned char *more = malloc(bundle.n + 8);

    expect_refused(to, bundle, &how);
    memcpy(more, bundle.at, bundle.n);
    memcpy(more + bundle.n, bundle.at, 8);
    cr_assert(import_fails(to, &how, (struct bytes){more, bundle.n + 8},
                           STATUS_DATA_LOSS, "BUNDLE_TRUNCATED"));
    cr_assert(import_fails(to, &how, (struct bytes){more, 0}, STATUS_DATA_LOSS,
                           "BUNDLE_TRUNCATED"));
    memset(more, 'x', 100);
    cr_assert(import_fails(to, &how, (struct bytes){more, 100},
                           STATUS_DATA_LOSS, "BUNDLE_DAMAGED"));
    import_as(to, "t", bundle);
    cr_assert(import_fails(to, &how, bundle, STATUS_ALREADY_EXISTS,
                           "SESSION_EXISTS"));
    free(more);
    free(bundle.at);
    node_destroy(to);
    node_destroy(from);
}

/* --- sealed --- */

static struct node *node_with_keys(const char *text)
{
    struct node *node = node_create(NULL);
    struct keyring *keyring;

    must(keyring_parse(text, &keyring));
    node->options.keys = keyring;
    node_start(node);
    return node;
}

static void destroy_with_keys(struct node *node)
{
    struct keyring *keyring = (struct keyring *)(uintptr_t)node->options.keys;

    node_destroy(node);
    keyring_destroy(keyring);
}

/* It is the tenant's now. */
static void go_on_of(struct node *node, const char *name, const char *tenant,
                     uint32_t n_output, uint32_t salt)
{
    struct command *command = generate(node, name, "", 3, salt);

    snprintf(command->tenant, TENANT_SIZE, "%s", tenant);
    command->generate.sampling.max_tokens = n_output;
    command->generate.sampling.ignore_eos = true;
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
}

Test(engine_transfer, a_sealed_session_opens_by_its_tenants_key_alone,
     .timeout = 240)
{
    struct node *from = node_with_keys(keys), *to = node_with_keys(keys);
    struct node *keyless = fork_node(), *judge = judge_create();
    struct exporting how = {
        .session = "s", .tenant = "ann", .has_state = true, .is_sealed = true};
    struct importing in = {.name = "t", .tenant = "ann", .piece = 30000};
    struct event *end;
    struct bytes bundle, other;

    log_set_level(LOG_ERROR);
    make_session(from, "s", 7);
    bundle = export_with(from, &how, &end);
    cr_assert_eq(end->kind, EVENT_DONE);
    event_destroy(end);
    other = export_with(from, &how, &end);
    event_destroy(end);
    cr_assert_eq(other.n, bundle.n);
    cr_assert_neq(memcmp(other.at, bundle.at, bundle.n), 0, "never the same");
    expect_refused(to, bundle, &in);
    cr_assert(import_fails(keyless, &in, bundle, STATUS_FAILED_PRECONDITION,
                           "KEY_MISSING"));
    in.tenant = "bob";
    cr_assert(import_fails(to, &in, bundle, STATUS_FAILED_PRECONDITION,
                           "KEY_MISMATCH"));
    in.tenant = "eve";
    cr_assert(import_fails(to, &in, bundle, STATUS_FAILED_PRECONDITION,
                           "KEY_MISSING"));
    in.tenant = "ann";
    end = import_with(to, &in, bundle);
    cr_assert_eq(end->kind, EVENT_SESSION);
    event_destroy(end);
    to->tenant = "ann";
    go_on_of(to, "t", "ann", 4, 3);
    cr_assert(judge_agrees(judge, to, "t", 4, 3));
    how.tenant = "eve";
    free(bundle.at);
    free(other.at);
    bundle = export_with(from, &how, &end);
    cr_assert_eq(strcmp(end->cause.reason, "KEY_MISSING"), 0);
    event_destroy(end);
    node_destroy(judge);
    node_destroy(keyless);
    destroy_with_keys(to);
    destroy_with_keys(from);
}

/* --- what does not fit --- */

/* The bundle with another head, whose digest is right. */
static struct bytes behead(struct bytes bundle, struct bundle_head *head,
                           void (*spoil)(struct bundle_head *head))
{
    struct writer writer;
    uint64_t n_bytes;
    uint16_t kind;

    must(frame_peek(bundle.at, &kind, &n_bytes));
    must(bundle_get_head(bundle.at, n_bytes, head));
    spoil(head);
    writer_init(&writer, bundle.n + 1000);
    must(bundle_put_head(&writer, head));
    writer_bytes(&writer, bundle.at + n_bytes, bundle.n - n_bytes);
    return (struct bytes){writer.bytes, writer.n};
}

static void other_model(struct bundle_head *head)
{
    head->numerics.fingerprint.lo++;
}
static void other_numerics(struct bundle_head *head)
{
    head->numerics.id.lo++;
}
static void other_chain(struct bundle_head *head)
{
    head->chain.lo++;
}
static void other_length(struct bundle_head *head)
{
    head->n_token = 1u << 20;
}

Test(engine_transfer, what_does_not_fit_is_refused_with_its_reason)
{
    static const struct {
        void (*spoil)(struct bundle_head *head);
        const char *reason;
    } row[] = {{other_model, "MODEL_FINGERPRINT_MISMATCH"},
               {other_numerics, "NUMERICS_MISMATCH"},
               {other_chain, "CHAIN_MISMATCH"},
               {other_length, "CONTEXT_LENGTH_EXCEEDED"}};
    struct node *from = node_with("s"), *to = fork_node();
    struct bytes bundle = export_of(from, "s", true), spoilt;
    struct importing how = {.name = "t", .piece = 9999};
    struct bundle_head head;

    for (uint32_t i = 0; i < 4; i++) {
        spoilt = behead(bundle, &head, row[i].spoil);
        cr_assert(import_fails(to, &how, spoilt, STATUS_FAILED_PRECONDITION,
                               row[i].reason),
                  "%s", row[i].reason);
        free(spoilt.at);
    }
    bundle.at[6]++; /* version; its digest says so first */
    cr_assert(
        import_fails(to, &how, bundle, STATUS_DATA_LOSS, "BUNDLE_DAMAGED"));
    free(bundle.at);
    node_destroy(to);
    node_destroy(from);
}

/* Log alone: states of another arithmetic do not matter. */
Test(engine_transfer, states_may_be_left_out)
{
    struct node *from = node_with("s"), *to = fork_node(),
                *judge = judge_create();
    struct bytes bundle = export_of(from, "s", true);
    struct importing how = {.name = "t", .skips_state = true, .piece = 5000};
    struct event *end = import_with(to, &how, bundle);

    cr_assert_eq(end->kind, EVENT_SESSION);
    event_destroy(end);
    cr_assert_eq(count_rows(to->bulk_store, 'b'), 0);
    go_on(to, "t", 3, 4, 3);
    cr_assert(judge_agrees(judge, to, "t", 4, 3));
    free(bundle.at);
    node_destroy(judge);
    node_destroy(to);
    node_destroy(from);
}

/* --- half-way --- */

Test(engine_transfer, a_client_that_leaves_leaves_nothing, .timeout = 240)
{
    struct node *from = node_with("s"), *to = fork_node();
    struct bytes bundle = export_of(from, "s", true);
    struct importing how = {.name = "t"};

    for (size_t n = 0; n <= bundle.n; n += bundle.n / 8) {
        const uint64_t reply = node_reply(to);
        struct command *command = import_piece(reply, &how, bundle.at, n);

        command->import.is_first = true;
        node_send(to, command);
        for (size_t i = 0; i < 1 + n % 5; i++)
            node_step(to);
        node_subject(to, COMMAND_DETACH, reply);
        for (uint32_t i = 0; i < 1000 && (i < 3 || to->engine->errands); i++) {
            node_step(to);
            ring_wait(to->inbox, 5);
        }
        cr_assert_null(to->engine->errands);
        fork_settle(to);
        cr_assert_eq(count_rows(to->bulk_store, 's'), 0);
        cr_assert_eq(count_rows(to->bulk_store, 'v'), 0);
    }
    node_subject(from, COMMAND_DETACH, 0);
    free(bundle.at);
    node_destroy(to);
    node_destroy(from);
}

/* One that neither goes on nor leaves is given up after a minute. */
Test(engine_transfer, a_client_that_stands_still_is_given_up)
{
    struct node *node = node_with("s");
    struct bytes bundle = export_of(node, "s", true);
    struct importing how = {.name = "t"};
    struct command *in =
        import_piece(node_reply(node), &how, bundle.at, bundle.n / 2);
    struct command *out =
        command_make(COMMAND_EXPORT_SESSION, node_reply(node));
    struct event *event;
    uint32_t n_error = 0;

    in->import.is_first = true;
    strcpy(out->export.session, "s");
    node_send(node, in);
    node_send(node, out);
    for (uint32_t i = 0; i < 400; i++) {
        (void)engine_step(node->engine);
        if (i == 200)
            clock_simulated_advance(&node->clock, ERRAND_WAIT_US);
        while (ring_pop(node->outbox, &event)) {
            n_error += event->kind == EVENT_ERROR;
            cr_assert(event->kind != EVENT_ERROR || i >= 200);
            event_destroy(event);
        }
        ring_wait(node->inbox, 2);
    }
    cr_assert_eq(n_error, 2);
    cr_assert_eq(node->engine->n_errand, 0);
    fork_settle(node);
    cr_assert_eq(count_rows(node->journal_store, 'm'), 1);
    free(bundle.at);
    node_destroy(node);
}

Test(engine_transfer, killed_half_way_nothing_is_left, .timeout = 240)
{
    struct node *from = node_with("s");
    struct bytes bundle = export_of(from, "s", true);
    struct importing how = {.name = "t"};

    for (size_t part = 1; part <= 8; part++) {
        struct node *to = fork_node();
        struct command *command =
            import_piece(node_reply(to), &how, bundle.at, bundle.n * part / 8);

        command->import.is_first = true;
        command->import.is_last = part == 8;
        node_send(to, command);
        for (uint32_t i = 0; i < 200 && to->engine->n_job == 0; i++)
            node_step(to);
        for (uint32_t i = 0; i < 200 && ring_count(to->done) == 0; i++)
            ring_wait(to->inbox, 5);
        restart(to, true);
        fork_settle(to);
        cr_assert_eq(count_rows(to->bulk_store, 's'), 0);
        cr_assert_eq(count_rows(to->bulk_store, 'b'), 0);
        cr_assert_eq(count_rows(to->bulk_store, 'v'), 0);
        cr_assert_null(table_find(to->engine, "t"));
        node_destroy(to);
    }
    free(bundle.at);
    node_destroy(from);
}

Test(engine_transfer, a_full_disk_refuses_and_the_node_goes_on)
{
    struct node *from = node_with("s"), *to = fork_node();
    struct bytes bundle = export_of(from, "s", true);
    struct importing how = {.name = "t", .piece = 50000};

    store_memory_faults(to->bulk_store)->is_read_only = true;
    cr_assert(import_fails(to, &how, bundle, STATUS_RESOURCE_EXHAUSTED, ""));
    store_memory_faults(to->bulk_store)->is_read_only = false;
    store_memory_faults(to->journal_store)->is_read_only = true;
    cr_assert(import_fails(to, &how, bundle, STATUS_FAILED_PRECONDITION,
                           "STORE_READ_ONLY"));
    store_memory_faults(to->journal_store)->is_read_only = false;
    fork_settle(to);
    cr_assert_eq(count_rows(to->bulk_store, 's'), 0);
    import_as(to, "t", bundle);
    expect_same_log(from, "s", to, "t");
    free(bundle.at);
    node_destroy(to);
    node_destroy(from);
}

/* The store's value is bad: an export says so, and the log alone goes. */
Test(engine_transfer, a_bad_value_is_not_exported)
{
    struct node *from = node_with("s");
    struct exporting how = {.session = "s", .has_state = true};
    struct event *end;
    struct bytes bundle;

    cr_assert(row_flip(from->bulk_store, 'b', log_of(from, "s"), 1));
    bundle = export_with(from, &how, &end);
    cr_assert_eq(end->cause.code, STATUS_DATA_LOSS);
    cr_assert_eq(strcmp(end->cause.reason, "SNAPSHOT_DAMAGED"), 0);
    event_destroy(end);
    free(bundle.at);
    bundle = export_of(from, "s", false);
    cr_assert_gt(bundle.n, 0);
    free(bundle.at);
    node_destroy(from);
}

/* --- inspecting --- */

/* Its sums are those of the ledger and of the memory's account. */
Test(engine_transfer, an_inspection_says_what_is_where)
{
    struct node *node = node_with("s");
    const struct inspection *seen;
    uint64_t stored = 0, in_memory = 0;

    fork_at(node, "s", "f", N_LOG);
    go_on(node, "f", 70, 3, 3);
    fork_settle(node);
    seen = &node_call(node, about(node, COMMAND_INSPECT_SESSION, "f"))
                ->end->inspected;
    cr_assert_eq(seen->n_log, 2);
    cr_assert_eq(seen->log[0].begin, 0);
    cr_assert_eq(seen->log[0].end, N_LOG);
    cr_assert_eq(seen->log[1].end, UINT64_MAX);
    cr_assert(uid_equal(seen->log[0].uid, log_of(node, "s")));
    cr_assert(uid_equal(seen->log[1].uid, log_of(node, "f")));
    cr_assert_eq(seen->n_layer, model_config(node->model)->n_layer);
    for (uint32_t i = 0; i < seen->n_layer; i++) {
        const struct inspected_layer *layer = &seen->layer[i];

        cr_assert_eq(strcmp(layer->kind, "softmax") == 0, layer->memory_kv > 0);
        stored += layer->stored_state + layer->stored_kv;
        in_memory += layer->memory_state + layer->memory_kv;
    }
    cr_assert_eq(stored, ledger_get(&node->engine->stored, log_of(node, "f")));
    cr_assert_eq(stored, seen->session.stored_bytes);
    cr_assert_eq(seen->log[1].bytes, stored);
    cr_assert_gt(in_memory, 0);
    cr_assert_gt(seen->n_snapshot, 0);
    cr_assert_eq(seen->snapshot[0].position, N_LOG + 72);
    node_call(node, about(node, COMMAND_PARK_SESSION, "f"));
    seen = &node_call(node, about(node, COMMAND_INSPECT_SESSION, "f"))
                ->end->inspected;
    for (uint32_t i = 0; i < seen->n_layer; i++)
        cr_assert_eq(seen->layer[i].memory_state + seen->layer[i].memory_kv, 0);
    node_destroy(node);
}

/* Its states as they are in memory, where the snapshot was just made. */
Test(engine_transfer, an_inspection_measures_the_newest_states)
{
    struct node *node = node_with("s");
    const struct layer_memory *layer;
    const struct inspection *seen;
    uint32_t n_state = 0;

    fork_settle(node);
    layer = memory_layers(table_find(node->engine, "s")->resident->memory);
    seen = &node_call(node, about(node, COMMAND_INSPECT_SESSION, "s"))
                ->end->inspected;
    cr_assert_gt(seen->n_snapshot, 0);
    for (uint32_t i = 0; i < seen->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(node->model, i);
        const struct state_norm *got = &seen->layer[i].norm;
        struct state_norm want = {0};

        if (plan->state_bytes > 0)
            want = state_norm_of(plan, layer[i].state);
        cr_assert_eq(got->n_head, want.n_head);
        cr_assert_eq(got->head, want.head);
        cr_assert_eq(got->head_rms, want.head_rms);
        cr_assert_eq(got->rms, want.rms);
        cr_assert_eq(got->max, want.max);
        n_state += got->head_rms > 0;
    }
    cr_assert_gt(n_state, 0);
    node_destroy(node);
}

Test(engine_transfer, a_snapshot_tells_the_metric_how_large_its_states_are)
{
    struct node *node = node_create(NULL);

    must(metrics_create(&node->metrics));
    node_start(node);
    cr_assert_eq(metric_value(node->engine->metrics.state_rms), 0);
    node_call(node, generate(node, "s", "", 200, 1));
    node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    cr_assert_eq(metric_value(node->engine->metrics.state_rms), 1);
    node_destroy(node);
}

/* --- parking --- */

Test(engine_transfer, a_parked_session_is_not_in_memory_and_wakes)
{
    struct node *node = node_with("s"), *judge = judge_create();
    const struct reply *reply =
        node_call(node, about(node, COMMAND_PARK_SESSION, "s"));

    cr_assert_eq(reply->last, EVENT_SESSION);
    cr_assert_eq(reply->end->session.state, SESSION_PARKED);
    cr_assert_null(table_find(node->engine, "s")->resident);
    cr_assert_eq(node->engine->charged, 0);
    reply = node_call(node, about(node, COMMAND_PARK_SESSION, "s"));
    cr_assert_eq(reply->last, EVENT_SESSION, "once more");
    go_on(node, "s", 3, 4, 3);
    reply = node_call(node, about(node, COMMAND_PARK_SESSION, "s"));
    cr_assert_eq(reply->end->session.state, SESSION_PARKED, "just now used");
    go_on(node, "s", 3, 4, 4);
    cr_assert(judge_agrees(judge, node, "s", 4, 4));
    node_destroy(judge);
    node_destroy(node);
}
