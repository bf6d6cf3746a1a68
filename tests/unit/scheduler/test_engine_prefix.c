/*
 * A prompt that shares its beginning with anything stored starts from there
 * and says so; its tokens are those of a node that knows nothing. The oracle
 * is always the same prompt on a node that shares no prefixes.
 */
#include "scheduler/engine_calls.h"
#include "state/snapshot_value.h"
#include "state/store_key.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

#define BUDGET ((size_t)64 << 20)

static struct node *begin(void)
{
    struct node *node = node_create(NULL);

    node->options.prefix_bytes = BUDGET;
    node_start(node);
    return node;
}

/* Until the store thread has nothing to do. */
static void settle(struct node *node)
{
    for (uint32_t i = 0; i < STEP_LIMIT; i++) {
        node_until(node, 0);
        if (!node->engine->n_job && !node->engine->images &&
            !node->engine->n_deleted)
            return;
        ring_wait(node->inbox, 5);
    }
    need(!"settled");
}

/* n tokens: the first `shared` are those of every prompt of this family. */
static struct command *prompt(struct node *node, const char *session,
                              uint32_t family, uint32_t shared, uint32_t n,
                              uint32_t salt)
{
    struct command *command = generate(node, session, "", n, 7000 + salt);
    uint32_t *token = (uint32_t *)command->generate.token;
    uint32_t n_vocab = model_config(node->model)->n_vocab;

    for (uint32_t i = 0; i < shared && i < n; i++)
        token[i] = (family * 7907 + i * 104729) % n_vocab;
    command->generate.sampling.max_tokens = 4;
    command->generate.sampling.seed = 1;
    return command;
}

/* The same prompt on a node that shares nothing. */
static void expect_cold(const struct reply *warm, uint32_t family,
                        uint32_t shared, uint32_t n, uint32_t salt)
{
    static struct node *cold;
    struct reply *want;

    if (!cold || cold->last_reply + 2 >= REPLY_MAX) {
        if (cold)
            node_destroy(cold);
        cold = node_create(NULL);
        cold->options.prefix_bytes = 0;
        node_start(cold);
    }
    want = node_call(cold, prompt(cold, "", family, shared, n, salt));
    cr_assert_eq(want->end->complete.reuse, REUSE_NONE);
    cr_assert_eq(want->end->complete.n_cached, 0);
    cr_assert(same_tokens(warm, want), "family %u, %u of %u tokens", family,
              shared, n);
}

static void expect_reuse(const struct reply *reply,
                         enum restore_reason_code reuse, uint64_t n_cached,
                         uint64_t n_restored)
{
    cr_assert(reply_completed(reply, FINISH_LENGTH));
    cr_assert_str_eq(reuse_name(reply->end->complete.reuse), reuse_name(reuse));
    cr_assert_eq(reply->end->complete.n_cached, n_cached, "cached %lu, not %lu",
                 reply->end->complete.n_cached, n_cached);
    cr_assert_eq(reply->end->complete.n_restored, n_restored);
    cr_assert_eq(reply->end->complete.n_replayed, 0);
}

/* One prompt, checked in every way. */
static void ask(struct node *node, const char *session, uint32_t family,
                uint32_t shared, uint32_t n, uint32_t salt,
                enum restore_reason_code reuse, uint64_t n_cached)
{
    struct reply *reply =
        node_call(node, prompt(node, session, family, shared, n, salt));

    expect_reuse(reply, reuse, n_cached, n_cached);
    expect_cold(reply, family, shared, n, salt);
    settle(node);
}

static void with_system(const char *first, const char *second)
{
    struct node *node = begin();
    struct command *command = prompt(node, first, 1, 150, 300, 1);
    struct reply *reply;

    command->generate.n_shared = 150;
    reply = node_call(node, command);
    expect_reuse(reply, REUSE_NONE, 0, 0);
    expect_cold(reply, 1, 150, 300, 1);
    settle(node);
    ask(node, second, 1, 150, 333, 2, REUSE_PREFIX, 150);
    ask(node, "", 1, 150, 151, 3, REUSE_PREFIX, 150);
    ask(node, "", 1, 150, 150, 3, REUSE_NONE, 0);     /* needs one token more */
    ask(node, "", 1, 149, 300, 4, REUSE_PREFIX, 128); /* two shared that */
    ask(node, "", 2, 150, 300, 5, REUSE_NONE, 0);
    node_destroy(node);
}

Test(engine_prefix, the_end_of_a_system_message_serves_the_next_prompt)
{
    with_system("", "");
    with_system("a", "b");
    with_system("a", "");
    with_system("", "b");
}

Test(engine_prefix, where_two_prompts_part_serves_the_third)
{
    struct node *node = begin();

    ask(node, "", 1, 333, 500, 1, REUSE_NONE, 0);
    ask(node, "", 1, 333, 400, 2, REUSE_NONE, 0);
    ask(node, "", 1, 333, 450, 3, REUSE_PREFIX, 320);
    ask(node, "x", 1, 333, 334, 4, REUSE_PREFIX, 320);
    /* The third one again: it may come once more. */
    ask(node, "", 1, 333, 450, 3, REUSE_PREFIX, 320);
    ask(node, "", 1, 333, 450, 3, REUSE_PREFIX, 448);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_loose, 2);
    node_destroy(node);
}

Test(engine_prefix, a_turns_end_serves_a_prompt_that_repeats_it)
{
    struct node *node = begin();
    struct command *command = prompt(node, "s", 1, 200, 200, 1);
    struct reply *first, *again;
    uint32_t *token;

    first = node_call(node, command);
    settle(node);
    /* As clients do that send the whole conversation each time. */
    command = prompt(node, "", 1, 200, 260, 2);
    token = (uint32_t *)command->generate.token;
    memcpy(token + 200, first->token, 4 * sizeof(*token));
    again = node_call(node, command);
    expect_reuse(again, REUSE_PREFIX, 203, 203);
    /* The session itself still has it in memory. */
    again = node_call(node, generate(node, "s", "", 20, 3));
    cr_assert_eq(again->end->complete.reuse, REUSE_RESIDENT);
    cr_assert_eq(again->end->complete.n_cached, 203);
    cr_assert_eq(again->end->complete.n_restored, 0);
    cr_assert_eq(again->end->complete.n_replayed, 1);
    node_destroy(node);
}

Test(engine_prefix, memory_that_was_let_go_comes_back_from_the_own_snapshot)
{
    struct node *node = begin();
    struct reply *reply;

    node_call(node, prompt(node, "s", 1, 300, 300, 1));
    settle(node);
    node_stop(node);
    node_start(node);
    reply = node_call(node, generate(node, "s", "", 20, 3));
    cr_assert_eq(reply->end->complete.reuse, REUSE_RESTORED);
    cr_assert_eq(reply->end->complete.n_cached, 303);
    cr_assert_eq(reply->end->complete.n_restored, 303);
    cr_assert_eq(reply->end->complete.n_replayed, 1);
    node_destroy(node);
}

Test(engine_prefix, nothing_is_shared_between_tenants)
{
    static const char *const tenant[] = {"a", "b", "", "a"};
    struct node *node = begin();

    for (uint32_t i = 0; i < 4; i++) {
        struct command *command = prompt(node, "", 1, 200, 300, i);
        struct reply *reply;

        command->generate.n_shared = 200;
        strcpy(command->tenant, tenant[i]);
        reply = node_call(node, command);
        settle(node);
        if (i < 3)
            expect_reuse(reply, REUSE_NONE, 0, 0);
        else
            expect_reuse(reply, REUSE_PREFIX, 200, 200);
    }
    /* A restart knows whose they are. */
    node_stop(node);
    node_start(node);
    struct command *command = prompt(node, "", 1, 200, 300, 9);
    strcpy(command->tenant, "c");
    expect_reuse(node_call(node, command), REUSE_NONE, 0, 0);
    command = prompt(node, "", 1, 200, 300, 9);
    strcpy(command->tenant, "b");
    expect_reuse(node_call(node, command), REUSE_PREFIX, 200, 200);
    node_destroy(node);
}

Test(engine_prefix, a_deleted_session_leaves_nothing_to_find)
{
    for (int durability = 0; durability < 2; durability++) {
        struct node *node = begin();
        struct command *command = prompt(node, "s", 1, 200, 300, 1);

        command->generate.n_shared = 200;
        command->generate.has_durability = true;
        command->generate.durability =
            durability ? DURABILITY_LOCAL : DURABILITY_NONE;
        node_call(node, command);
        settle(node);
        ask(node, "", 1, 200, 300, 2, REUSE_PREFIX, 200);
        node_send(node, about(node, COMMAND_DELETE_SESSION, "s"));
        node_step(node); /* at once, not when the store has done it */
        cr_assert_eq(prefix_stats(node->engine->prefix).n_owner, 0);
        settle(node);
        cr_assert_eq(prefix_stats(node->engine->prefix).n_owner, 0);
        ask(node, "", 1, 200, 300, 4, REUSE_NONE, 0);
        node_destroy(node);
    }
}

Test(engine_prefix, a_snapshot_that_is_saved_when_its_session_goes_is_not_kept)
{
    for (int durability = 0; durability < 2; durability++)
        for (uint32_t n_step = 1; n_step < 12; n_step++) {
            struct node *node = begin();
            struct command *command = prompt(node, "s", 1, 64, 300, 1);

            command->generate.n_shared = 64;
            command->generate.has_durability = true;
            command->generate.durability =
                durability ? DURABILITY_LOCAL : DURABILITY_NONE;
            node_send(node, command);
            for (uint32_t i = 0; i < n_step; i++)
                node_step(node);
            node_call(node, about(node, COMMAND_DELETE_SESSION, "s"));
            settle(node);
            cr_assert_eq(prefix_stats(node->engine->prefix).n_owner, 0);
            node_destroy(node);
        }
}

static size_t one_snapshot(const struct node *node, uint64_t position)
{
    return snapshot_bytes(node->model, NULL, position);
}

Test(engine_prefix, the_budget_keeps_what_was_of_use_last)
{
    struct node *node = node_create(NULL);

    node->options.prefix_bytes = 2 * one_snapshot(node, 128) + 100;
    node_start(node);
    for (uint32_t family = 1; family <= 2; family++) {
        struct command *command = prompt(node, "", family, 128, 200, 1);

        command->generate.n_shared = 128;
        node_call(node, command);
        settle(node);
    }
    ask(node, "", 1, 128, 200, 2, REUSE_PREFIX, 128);
    struct command *command = prompt(node, "", 3, 128, 200, 1);
    command->generate.n_shared = 128;
    node_call(node, command);
    settle(node);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_loose, 2);
    ask(node, "", 1, 128, 200, 5, REUSE_PREFIX, 128);
    ask(node, "", 3, 128, 200, 6, REUSE_PREFIX, 128);
    ask(node, "", 2, 128, 150, 7, REUSE_EVICTED, 0);
    /* That one shared 128 tokens with an earlier one, so it is back. */
    ask(node, "", 2, 128, 150, 8, REUSE_PREFIX, 128);
    cr_assert_leq(prefix_stats(node->engine->prefix).loose_bytes,
                  node->options.prefix_bytes);
    node_stop(node);
    node->options.prefix_bytes = one_snapshot(node, 128);
    node_start(node); /* a smaller budget counts at once */
    settle(node);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_loose, 1);
    node_destroy(node);
}

/* A loose snapshot counts as what is stored of it: the indices of a policy that
 * looks up are a part of its blocks, in this life and in the next one. */
Test(engine_prefix, the_budget_counts_indices)
{
    struct node *node = node_create("assets/models/godwit-tiny");
    struct command *command;
    struct policy policy;

    must(policy_parse("infllm:sink=64:window=64:pick=64", &policy));
    node->options.prefix_bytes = BUDGET;
    node_start(node);
    command = prompt(node, "", 1, 128, 200, 1);
    command->generate.n_shared = 128;
    node_call(node, under(command, "infllm:sink=64:window=64:pick=64"));
    settle(node);
    for (int life = 0; life < 2; life++) {
        const struct prefix_stats stats = prefix_stats(node->engine->prefix);

        cr_assert_eq(stats.n_loose, 1);
        cr_assert_eq(stats.loose_bytes,
                     snapshot_bytes(node->model, &policy, 128));
        cr_assert_gt(stats.loose_bytes, one_snapshot(node, 128));
        node_stop(node);
        node_start(node);
    }
    node_destroy(node);
}

/* Rows of one kind, each with one bit changed. */
static uint32_t damage(struct store *store, char letter, size_t at)
{
    struct store_batch *batch = store_batch_create(store);
    const char from[] = {letter}, to[] = {(char)(letter + 1)};
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint32_t n = 0;

    need(batch != NULL);
    must(store_scan_open(store, &(struct store_range){from, 1, to, 1}, false,
                         &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) {
        char *copy = malloc(value_bytes + 1);
        memcpy(copy, value, value_bytes);
        copy[at % value_bytes] ^= 4;
        store_batch_put(batch, key, key_bytes, copy, value_bytes);
        free(copy);
        n++;
    }
    store_scan_close(scan);
    must(store_write(store, batch, true));
    store_batch_destroy(batch);
    return n;
}

Test(engine_prefix, damaged_bytes_are_named_and_computed_again)
{
    static const char letters[] = {'s', 'o', 'b', 'v'};

    for (uint32_t i = 0; i < sizeof(letters); i++) {
        struct node *node = begin();
        struct command *command = prompt(node, "", 1, 150, 300, 1);

        command->generate.n_shared = 150;
        node_call(node, command);
        settle(node);
        cr_assert_gt(damage(node->bulk_store, letters[i], 100 + 17 * i), 0);
        ask(node, "", 1, 150, 300, 2, REUSE_SNAPSHOT_DAMAGED, 0);
        /* It is not asked for again, and another one was made on the way. */
        ask(node, "", 1, 150, 300, 3, REUSE_NONE, 0);
        ask(node, "", 1, 150, 300, 4, REUSE_PREFIX, 128);
        node_destroy(node);
    }
}

Test(engine_prefix, an_older_one_serves_when_the_best_is_damaged)
{
    struct node *node = begin();
    struct command *command = prompt(node, "a", 1, 300, 400, 1);
    struct session *session;

    command->generate.n_shared = 100;
    node_call(node, command);
    settle(node);
    command = prompt(node, "b", 1, 300, 400, 2);
    command->generate.n_shared = 200;
    expect_reuse(node_call(node, command), REUSE_PREFIX, 100, 100);
    settle(node);
    session = table_find(node->engine, "b");
    struct key key = key_at('s', session->uid, 256);
    struct store_batch *batch = store_batch_create(node->bulk_store);
    key_add_number(&key, 0, 2);
    store_batch_put(batch, key.bytes, key.n, "junk", 4);
    must(store_write(node->bulk_store, batch, true));
    store_batch_destroy(batch);
    ask(node, "", 1, 300, 400, 3, REUSE_SNAPSHOT_DAMAGED, 100);
    node_destroy(node);
}

Test(engine_prefix, loose_ones_survive_a_kill_and_orphans_do_not)
{
    struct node *node = begin();
    struct command *command;
    struct session *session;
    struct uid kept, gone;

    command = prompt(node, "", 1, 128, 300, 1);
    command->generate.n_shared = 128;
    node_call(node, command);
    command = prompt(node, "none", 2, 128, 300, 1);
    command->generate.n_shared = 128;
    command->generate.has_durability = true;
    command->generate.durability = DURABILITY_NONE;
    node_call(node, command);
    node_call(node, prompt(node, "kept", 3, 200, 200, 1));
    node_call(node, prompt(node, "gone", 4, 200, 200, 1));
    settle(node);
    session = table_find(node->engine, "kept");
    kept = session->uid;
    gone = table_find(node->engine, "gone")->uid;
    /* Killed between the journal's delete and the store's. */
    node_kill(node);
    struct journal *journal;
    must(journal_open(node->journal_store, model_fingerprint(node->model),
                      &journal));
    struct journal_batch *batch = journal_batch_create(journal);
    journal_delete_session(batch, gone);
    must(journal_commit(journal, &batch, 1, true));
    journal_batch_destroy(batch);
    journal_close(journal);
    node_start(node);
    settle(node);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_loose, 1);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_owner, 2);
    struct snapshot_entry entry[8];
    uint32_t n = 9;
    must(snapshot_list(node->snapshots, gone, entry, 8, &n));
    cr_assert_eq(n, 0);
    must(snapshot_list(node->snapshots, kept, entry, 8, &n));
    cr_assert_eq(n, 1);
    ask(node, "", 1, 128, 300, 2, REUSE_PREFIX, 128);
    ask(node, "", 2, 128, 300, 2, REUSE_NONE, 0);
    ask(node, "", 3, 200, 300, 2, REUSE_NONE, 0); /* its snapshot: at 203 */
    ask(node, "", 4, 200, 300, 2, REUSE_NONE, 0);
    node_stop(node);
    node->options.prefix_bytes = 0;
    node_start(node); /* off: what only served sharing is deleted */
    settle(node);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_loose, 0);
    node_stop(node);
    node->options.prefix_bytes = BUDGET;
    node_start(node);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_loose, 0);
    cr_assert_eq(prefix_stats(node->engine->prefix).n_owner, 1);
    node_destroy(node);
}

/* What an older arithmetic has left in the store. */
static void age_manifests(struct store *store, bool is_model)
{
    struct store_batch *batch = store_batch_create(store);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;

    must(store_scan_open(store, &(struct store_range){"v", 1, "w", 1}, false,
                         &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) {
        struct manifest manifest;
        struct writer writer;

        must(manifest_get(value, value_bytes, &manifest));
        if (is_model)
            manifest.numerics.fingerprint.lo ^= 1;
        else
            manifest.numerics.id.lo ^= 1;
        writer_init(&writer, 1 << 16);
        must(manifest_put(&writer, &manifest));
        store_batch_put(batch, key, key_bytes, writer.bytes, writer.n);
        writer_release(&writer);
    }
    store_scan_close(scan);
    must(store_write(store, batch, true));
    store_batch_destroy(batch);
}

Test(engine_prefix, other_numerics_are_named)
{
    for (int is_model = 0; is_model < 2; is_model++) {
        struct node *node = begin();
        struct command *command = prompt(node, "s", 1, 128, 300, 1);
        struct reply *reply;

        command->generate.n_shared = 128;
        node_call(node, command);
        command = prompt(node, "", 2, 128, 300, 1);
        command->generate.n_shared = 128;
        node_call(node, command);
        settle(node);
        node_stop(node);
        age_manifests(node->bulk_store, is_model);
        node_start(node);
        settle(node);
        ask(node, "", 1, 128, 300, 2, REUSE_NUMERICS_CHANGED, 0);
        ask(node, "", 2, 128, 300, 2, REUSE_NONE, 0); /* useless: deleted */
        reply = node_call(node, generate(node, "s", "", 5, 3));
        cr_assert_eq(reply->end->complete.reuse,
                     is_model ? REUSE_WEIGHTS_CHANGED : REUSE_NUMERICS_CHANGED);
        cr_assert_eq(reply->end->complete.n_cached, 0);
        cr_assert_eq(reply->end->complete.n_restored, 0);
        cr_assert_eq(reply->end->complete.n_replayed, 304);
        node_destroy(node);
    }
}

Test(engine_prefix, what_is_not_worth_it_is_computed)
{
    struct node *node = begin();
    struct command *command = prompt(node, "s", 1, 40, 40, 1);

    command->generate.sampling.max_tokens = 1;
    node_call(node, command);
    node_call(node, about(node, COMMAND_CHECKPOINT_SESSION, "s"));
    settle(node);
    ask(node, "", 1, 40, 100, 2, REUSE_TOO_SHORT, 0);
    command = prompt(node, "", 2, 128, 300, 1);
    command->generate.n_shared = 128;
    node_call(node, command);
    settle(node);
    node->engine->cost.compute_us_per_token = 1;
    node->engine->cost.load_us_per_byte = 1000;
    ask(node, "", 2, 128, 300, 2, REUSE_SLOWER, 0);
    node->engine->cost.compute_us_per_token = 1000;
    node->engine->cost.load_us_per_byte = 0.0001;
    ask(node, "", 2, 128, 300, 3, REUSE_PREFIX, 128);
    node_destroy(node);
}

Test(engine_prefix, an_estimate_that_forbids_reading_fades)
{
    struct node *node = begin();
    struct command *command = prompt(node, "", 2, 128, 300, 1);
    uint32_t n = 0;

    command->generate.n_shared = 128;
    node_call(node, command);
    settle(node);
    node->engine->cost.compute_us_per_token = 1;
    node->engine->cost.load_us_per_byte =
        2.0 * 128 / (double)one_snapshot(node, 128);
    while (node_call(node, prompt(node, "", 2, 128, 200, 10 + n))
               ->end->complete.reuse == REUSE_SLOWER) {
        cr_assert_eq(node->engine->cost.backlog_us, 0);
        n++;
        need(n < 100);
    }
    cr_assert_geq(n, 30);
    node_destroy(node);
}

/*
 * Anything at once: prompts of a few families, with sessions of all kinds,
 * that are deleted, restarted, killed and damaged meanwhile.
 */
Test(engine_prefix, no_token_ever_differs)
{
    static const char *const names[] = {"", "a", "b", "c"};
    struct node *node = begin();
    uint64_t random = 3;
    uint32_t n_hit = 0;

    for (uint32_t round = 0; round < 250; round++) {
        uint32_t family, shared, n, salt;
        struct command *command;
        struct reply *reply;
        const char *name;

        random = random * 6364136223846793005u + 1442695040888963407u;
        family = (uint32_t)(random >> 33) % 3;
        shared = 64 + (uint32_t)(random >> 36) % 300;
        n = shared + 1 + (uint32_t)(random >> 46) % 80;
        salt = (uint32_t)(random >> 50) % 4;
        name = names[(random >> 60) % 4];
        if (round % 10 == 7) {
            settle(node);
            if (round % 20 == 7)
                node_kill(node);
            else
                node_stop(node);
            if (round % 30 == 7)
                damage(node->bulk_store, "sobv"[random >> 62], random >> 20);
            node_start(node);
        } else if (round % 13 == 5) {
            (void)damage(node->bulk_store, "sob"[(random >> 30) % 3],
                         random >> 20);
        }
        if (name[0]) {
            struct command *delete = about(node, COMMAND_DELETE_SESSION, name);
            delete->target.allows_missing = true;
            node_call(node, delete);
        }
        command = prompt(node, name, family, shared, n, salt);
        if (random >> 63)
            command->generate.n_shared = shared;
        command->generate.has_durability = true;
        command->generate.durability =
            name[0] == 'c' ? DURABILITY_NONE : DURABILITY_LOCAL;
        reply = node_call(node, command);
        cr_assert(reply_completed(reply, FINISH_LENGTH));
        cr_assert_eq(reply->end->complete.n_restored,
                     reply->end->complete.n_cached);
        cr_assert_lt(reply->end->complete.n_cached, n);
        if (reply->end->complete.reuse == REUSE_PREFIX)
            cr_assert_geq(reply->end->complete.n_cached, 64);
        else if (reply->end->complete.reuse != REUSE_SNAPSHOT_DAMAGED)
            cr_assert_eq(reply->end->complete.n_cached, 0);
        n_hit += reply->end->complete.n_cached > 0;
        expect_cold(reply, family, shared, n, salt);
        if (round % 3)
            settle(node);
        reply_release(reply);
    }
    cr_assert_gt(n_hit, 50, "%u hits", n_hit);
    node_destroy(node);
}
