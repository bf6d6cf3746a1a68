/* What is damaged, of something else or not written whole is never used. */
#include "tests/unit/state/snapshot_fixture.h"

TestSuite(snapshot_damage, .init = begin, .fini = end, .timeout = 240);

/* Call visit for every stored key; value may be changed. */
struct stored {
    struct key key;
    unsigned char *value;
    size_t n_bytes;
};
static struct stored stored[256];
static uint32_t n_stored;

static void put_raw(const struct stored *at, const void *value, size_t n_bytes)
{
    struct store_batch *batch = store_batch_create(store);

    if (value)
        store_batch_put(batch, at->key.bytes, at->key.n, value, n_bytes);
    else
        store_batch_delete(batch, at->key.bytes, at->key.n);
    cr_assert_eq(store_write(store, batch, true), STATUS_OK);
    store_batch_destroy(batch);
}

static void read_stored(void)
{
    const void *key, *value;
    size_t key_bytes, value_bytes;
    struct store_scan *scan;

    cr_assert_eq(store_scan_open(store, &(struct store_range){"a", 1, "z", 1},
                                 false, &scan),
                 STATUS_OK);
    n_stored = 0;
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) {
        struct stored *out = &stored[n_stored++];

        out->key.n = key_bytes;
        memcpy(out->key.bytes, key, key_bytes);
        out->n_bytes = value_bytes;
        out->value = malloc(value_bytes);
        memcpy(out->value, value, value_bytes);
    }
    store_scan_close(scan);
}

static void forget_stored(void)
{
    for (uint32_t i = 0; i < n_stored; i++)
        free(stored[i].value);
}

/* With one snapshot at 200, a damaged value leaves nothing to use. */
static void expect_refused(const struct stored *at, enum restore_reason why)
{
    enum restore_reason reason = 99;
    uint64_t position = load(alice, N_TOKEN, &reason, 200);

    cr_assert_eq(position, 0, "key %c used", at->key.bytes[0]);
    cr_assert_eq(reason, why, "key %c: reason %d, expected %d",
                 at->key.bytes[0], reason, why);
}

Test(snapshot_damage, with_any_flipped_byte_is_never_used)
{
    cr_assert_eq(save(alice, 200, 0), STATUS_OK);
    read_stored();
    cr_assert_eq(n_stored, 1 + 4 + 2 * 4);
    for (uint32_t i = 0; i < n_stored; i++) {
        const struct stored *at = &stored[i];
        size_t step = at->n_bytes / 11 + 1;

        for (size_t k = 0; k < at->n_bytes; k += k < 200 ? 9 : step) {
            at->value[k] ^= (unsigned char)(1u << k % 8);
            put_raw(at, at->value, at->n_bytes);
            expect_refused(at, RESTORE_DAMAGED);
            at->value[k] ^= (unsigned char)(1u << k % 8);
        }
        put_raw(at, at->value, at->n_bytes - 1);
        expect_refused(at, RESTORE_DAMAGED);
        put_raw(at, at->value, 0);
        expect_refused(at, RESTORE_DAMAGED);
        put_raw(at, NULL, 0);
        expect_refused(at, at->key.bytes[0] == 'v' ? RESTORE_NONE
                                                   : RESTORE_DAMAGED);
        put_raw(at, at->value, at->n_bytes);
    }
    expect(N_TOKEN, 200, RESTORE_HIT);
    forget_stored();
}

Test(snapshot_damage, with_values_under_each_others_keys_is_never_used)
{
    cr_assert_eq(save(alice, 200, 0), STATUS_OK);
    cr_assert_eq(save(bob, 200, 0), STATUS_OK);
    read_stored();
    for (uint32_t i = 0; i < n_stored; i++)
        for (uint32_t k = 0; k < n_stored; k++) {
            if (i == k || stored[i].key.bytes[0] != stored[k].key.bytes[0] ||
                key_number(stored[i].key.bytes + 9) != alice.lo)
                continue;
            put_raw(&stored[i], stored[k].value, stored[k].n_bytes);
            expect_refused(&stored[i], RESTORE_DAMAGED);
            put_raw(&stored[i], stored[i].value, stored[i].n_bytes);
        }
    expect(N_TOKEN, 200, RESTORE_HIT);
    forget_stored();
}

Test(snapshot_damage, an_older_one_may_use_blocks_that_a_newer_one_wrote)
{
    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 300, 0), STATUS_OK); /* block 0 again */
    expect(299, 100, RESTORE_HIT);
    token[250] ^= 1; /* a block says nothing of the tokens behind it ... */
    expect(299, 100, RESTORE_HIT);
    token[63] ^= 1; /* ... and all of those before its end */
    expect(299, 0, RESTORE_CHAIN);
}

Test(snapshot_damage, falls_back_to_an_older_one)
{
    struct key key;
    struct stored at;

    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 200, 1), STATUS_OK);
    key = key_at('s', alice, 200);
    key_add_number(&key, 2, 2);
    at.key = key;
    put_raw(&at, "x", 1);
    expect(N_TOKEN, 100, RESTORE_DAMAGED);
    cr_assert_eq(save(alice, 200, 1), STATUS_OK, "heals");
    expect(N_TOKEN, 200, RESTORE_HIT);
    key = key_at('b', alice, 2); /* only the newer one has it */
    key_add_number(&key, 3, 2);
    at.key = key;
    put_raw(&at, NULL, 0);
    expect(N_TOKEN, 100, RESTORE_DAMAGED);
    key = key_at('b', alice, 0);
    key_add_number(&key, 5, 2);
    at.key = key;
    put_raw(&at, NULL, 0);
    expect(N_TOKEN, 0, RESTORE_DAMAGED);
}

/* Change one field of a stored value and give it a sound digest again. */
static void forge(const struct stored *at, void (*change)(struct value_head *))
{
    enum frame_kind kind = at->key.bytes[0] == 's'   ? FRAME_STATE
                           : at->key.bytes[0] == 'o' ? FRAME_OPEN
                                                     : FRAME_BLOCK;
    struct value_head head;
    struct writer writer;
    const void *data;
    size_t n_bytes;

    cr_assert_eq(
        value_get(at->value, at->n_bytes, kind, &head, &data, &n_bytes),
        STATUS_OK);
    change(&head);
    writer_init(&writer, 1 << 20);
    cr_assert_eq(value_put(&writer, kind, &head, data, n_bytes), STATUS_OK);
    put_raw(at, writer.bytes, writer.n);
    writer_release(&writer);
}

static void other_model(struct value_head *head)
{
    head->numerics.fingerprint.lo ^= 1;
}
static void other_numerics(struct value_head *head)
{
    head->numerics.id.hi ^= 1;
}
static void other_policy(struct value_head *head)
{
    head->numerics.policy.lo ^= 1;
}

static void other_tokens(struct value_head *head)
{
    head->chain.lo ^= 1;
}
static void later(struct value_head *head)
{
    head->position = N_TOKEN + 1;
}
static void earlier(struct value_head *head)
{
    head->position = 0;
    head->chain = model_fingerprint(model);
}
static void fewer(struct value_head *head)
{
    head->n_token ^= 1;
}

Test(snapshot_damage, behind_the_last_token_tells_of_a_lost_log)
{
    const struct ids shorter = {.id = tokens.id, .n = 150};
    const struct log_path path = log_path_alone(alice);
    struct restore restore = {.reason = 99};
    struct memory *memory;

    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 151, 0), STATUS_OK);
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(
        snapshot_load(snapshots, &path, &shorter, 120, memory, &restore),
        STATUS_DATA_LOSS);
    cr_assert_str_eq(status_cause()->reason, "SESSION_LOG_LOST");
    cr_assert_eq(restore.reason, 99);
    cr_assert_eq(memory_position(memory), 0);
    memory_destroy(memory);
    expect(150, 100, RESTORE_HIT); /* all tokens, an older limit */
}

Test(snapshot_damage, of_other_tokens_or_numerics_is_named_as_such)
{
    static void (*const change[])(struct value_head *) = {
        other_model, other_numerics, other_policy, other_tokens,
        later,       earlier,        fewer};
    static const enum restore_reason reason[] = {
        RESTORE_WEIGHTS, RESTORE_NUMERICS, RESTORE_POLICY, RESTORE_CHAIN,
        RESTORE_CHAIN,   RESTORE_CHAIN,    RESTORE_DAMAGED};

    cr_assert_eq(save(alice, 200, 0), STATUS_OK);
    read_stored();
    for (uint32_t i = 0; i < n_stored; i++) {
        if (stored[i].key.bytes[0] == 'v')
            continue;
        for (size_t k = 0; k < sizeof(change) / sizeof(change[0]); k++) {
            forge(&stored[i], change[k]);
            expect_refused(&stored[i], reason[k]);
        }
        put_raw(&stored[i], stored[i].value, stored[i].n_bytes);
    }
    token[150] ^= 1; /* another conversation under this uid */
    expect_refused(&stored[0], RESTORE_CHAIN);
    token[150] ^= 1;
    token[200] ^= 1; /* behind the snapshot */
    expect(N_TOKEN, 200, RESTORE_HIT);
    forget_stored();
}

/* With an index the blocks are larger; without one they are not. */
Test(snapshot_damage, of_another_policy_is_refused_and_then_replaced)
{
    static const char *const TEXT[] = {
        "full",          "window",        "infllm",       "quest",
        "quest:step=16", "recycle",       "snapkv:end=9", "snapkv:end=10",
        "sirllm:turn=9", "sirllm:turn=10"};

    if (model_device(model))
        return; /* it has no policies: test_device.c */
    for (size_t i = 0; i < sizeof(TEXT) / sizeof(TEXT[0]); i++) {
        policy_text = TEXT[i];
        if (i > 0)
            expect(N_TOKEN, 0, RESTORE_POLICY);
        cr_assert_eq(save(alice, 130 + i, 0), STATUS_OK);
        expect(N_TOKEN, 130 + i, RESTORE_HIT);
    }
    policy_text = TEXT[0];
    expect(N_TOKEN, 0, RESTORE_POLICY);
}

Test(snapshot_damage, manifest_of_other_numerics_is_refused_and_then_replaced)
{
    struct key key = key_of('v', alice);
    struct manifest manifest;
    struct stored at = {.key = key};
    struct writer writer;
    void *bytes;
    size_t n_bytes;

    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 130, 1), STATUS_OK);
    cr_assert_eq(store_get(store, key.bytes, key.n, &bytes, &n_bytes),
                 STATUS_OK);
    cr_assert_eq(manifest_get(bytes, n_bytes, &manifest), STATUS_OK);
    free(bytes);
    manifest.numerics.id.lo ^= 1;
    writer_init(&writer, 1 << 16);
    cr_assert_eq(manifest_put(&writer, &manifest), STATUS_OK);
    put_raw(&at, writer.bytes, writer.n);
    expect(N_TOKEN, 0, RESTORE_NUMERICS);
    cr_assert_eq(save(alice, 110, 0), STATUS_OK);
    expect(N_TOKEN, 110, RESTORE_HIT);
    cr_assert_eq(count_keys('s', 't'), 4, "the others are swept");
    cr_assert_eq(count_keys('o', 'p'), 2);

    put_raw(&at, "garbage", 7);
    expect(N_TOKEN, 0, RESTORE_DAMAGED);
    cr_assert_eq(save(alice, 120, 0), STATUS_OK);
    expect(N_TOKEN, 120, RESTORE_HIT);
    cr_assert_eq(count_keys('s', 't'), 4);

    manifest.numerics.id.lo ^= 1; /* sound, but not in order */
    manifest.entry[0].position = 50;
    writer_clear(&writer);
    cr_assert_eq(manifest_put(&writer, &manifest), STATUS_OK);
    cr_assert_eq(manifest_get(writer.bytes, writer.n, &manifest),
                 STATUS_DATA_LOSS);
    manifest.entry[0].position = 130;
    manifest.uid = bob; /* sound, but another's */
    writer_clear(&writer);
    cr_assert_eq(manifest_put(&writer, &manifest), STATUS_OK);
    put_raw(&at, writer.bytes, writer.n);
    expect(N_TOKEN, 0, RESTORE_DAMAGED);
    writer_release(&writer);
}

/*
 * Let the n-th call of a save fail, for every n, with a power cut behind it or
 * without: what loads then is the old snapshot or the new one.
 */
static void fail_saves(bool crashes)
{
    uint64_t n = 0;

    for (;;) {
        enum restore_reason reason;
        enum status st;
        uint64_t position;

        cr_assert_eq(snapshot_trim(snapshots, alice, 0), STATUS_OK);
        cr_assert_eq(save(alice, 100, 0), STATUS_OK);
        store_memory_faults(store)->fail_at = ++n;
        st = save(alice, N_TOKEN, 1);
        if (store_memory_faults(store)->fail_at > 0)
            break;
        cr_assert_eq(st, STATUS_UNAVAILABLE, "call %lu: %s", n,
                     status_name(st));
        if (crashes)
            store_memory_crash(store);
        position = load(alice, N_TOKEN, &reason, 0);
        cr_assert_eq(position, 100);
        cr_assert_eq(reason, RESTORE_HIT);
        cr_assert_lt(n, CALL_MAX);
    }
    store_memory_faults(store)->fail_at = 0;
    /* Two batches of values, old manifest, new manifest; then success. */
    cr_assert_geq(n, 5);
    if (crashes)
        store_memory_crash(store);
    expect(N_TOKEN, N_TOKEN, RESTORE_HIT);
}

Test(snapshot_damage, a_save_that_fails_anywhere_leaves_the_old_one)
{
    fail_saves(false);
    fail_saves(true);
}

Test(snapshot_damage, a_save_on_a_full_disk_leaves_the_old_one)
{
    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    store_memory_faults(store)->is_read_only = true;
    cr_assert_eq(save(alice, 200, 1), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(snapshot_trim(snapshots, alice, 0), STATUS_RESOURCE_EXHAUSTED);
    expect(N_TOKEN, 100, RESTORE_HIT);
    store_memory_faults(store)->is_read_only = false;
    cr_assert_eq(save(alice, 200, 1), STATUS_OK);
    expect(N_TOKEN, 200, RESTORE_HIT);
}

Test(snapshot_damage, a_load_that_fails_anywhere_falls_back)
{
    uint64_t n = 0;

    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 200, 1), STATUS_OK);
    for (;;) {
        enum restore_reason reason;
        uint64_t position;

        store_memory_faults(store)->fail_at = ++n;
        position = load(alice, N_TOKEN, &reason, 0);
        if (store_memory_faults(store)->fail_at > 0)
            break;
        cr_assert_eq(position, n == 1 ? 0 : 100);
        cr_assert_eq(reason, RESTORE_DAMAGED);
        cr_assert_lt(n, CALL_MAX);
    }
    cr_assert_geq(n, 2 + 4 + 2 + 1 + 2 * 3);
    store_memory_faults(store)->fail_at = 0;
}

/* Fetch for a log of n_token and check every byte. */
static uint64_t fetch(const struct snapshot_source *source, uint32_t n_source,
                      uint64_t n_token, enum restore_reason *reason)
{
    struct ids log = {.id = token, .n = n_token};
    struct memory *memory;
    uint64_t position;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(
        snapshot_fetch(snapshots, source, n_source, &log, memory, reason),
        STATUS_OK, "%s", status_reason());
    position = memory_position(memory);
    check_memory(memory,
                 memory_bytes(memory) >=
                         memory_bytes_for(model, NULL, source[0].position)
                     ? source[0].position
                     : 0);
    memory_destroy(memory);
    return position;
}

Test(snapshot_damage, a_fetch_takes_the_first_usable_one_of_anybody)
{
    struct snapshot_source source[SNAPSHOT_SOURCE_MAX] = {
        {alice, 200, chain_at(200)},
        {bob, 130, chain_at(130)},
        {alice, 100, chain_at(100)},
        {bob, 64, chain_at(64)}};
    enum restore_reason reason[SNAPSHOT_SOURCE_MAX];

    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 200, 1), STATUS_OK);
    cr_assert_eq(save(bob, 130, 0), STATUS_OK);
    cr_assert_eq(fetch(source, 4, 200, reason), 200);
    cr_assert_eq(reason[0], RESTORE_HIT);
    cr_assert_eq(reason[1], RESTORE_NONE);
    /* A hint that is wrong in any way is found out. */
    token[150] ^= 1;
    cr_assert_eq(fetch(source, 4, 200, reason), 130);
    cr_assert_eq(reason[0], RESTORE_CHAIN);
    cr_assert_eq(reason[1], RESTORE_HIT);
    token[150] ^= 1;
    cr_assert_eq(fetch(source, 4, 199, reason), 130, "a log that is shorter");
    source[0].chain.lo ^= 1;
    cr_assert_eq(fetch(source, 4, 200, reason), 130);
    cr_assert_eq(reason[0], RESTORE_NONE, "no such snapshot");
    cr_assert_eq(snapshot_trim(snapshots, bob, 0), STATUS_OK);
    cr_assert_eq(fetch(source, 4, 200, reason), 100);
    cr_assert_eq(reason[1], RESTORE_NONE);
    cr_assert_eq(reason[2], RESTORE_HIT);
    cr_assert_eq(fetch(source + 3, 1, 200, reason), 0);
    cr_assert_eq(reason[0], RESTORE_NONE);
}

Test(snapshot_damage, a_fetch_refuses_each_damaged_value)
{
    struct snapshot_source source[2] = {{alice, 200, chain_at(200)},
                                        {bob, 130, chain_at(130)}};
    enum restore_reason reason[2];

    cr_assert_eq(save(alice, 200, 0), STATUS_OK);
    cr_assert_eq(save(bob, 130, 0), STATUS_OK);
    read_stored();
    for (uint32_t i = 0; i < n_stored; i++) {
        bool is_alice = stored[i].key.bytes[16] == (unsigned char)alice.lo;

        if (!is_alice)
            continue;
        for (size_t at = 0; at < stored[i].n_bytes;
             at += stored[i].n_bytes / 5 + 1) {
            stored[i].value[at] ^= 8;
            put_raw(&stored[i], stored[i].value, stored[i].n_bytes);
            stored[i].value[at] ^= 8;
            cr_assert_eq(fetch(source, 2, 300, reason), 130);
            cr_assert_eq(reason[0], RESTORE_DAMAGED);
            cr_assert_eq(reason[1], RESTORE_HIT);
        }
        put_raw(&stored[i], stored[i].value, stored[i].n_bytes);
    }
    cr_assert_eq(fetch(source, 2, 300, reason), 200);
    forget_stored();
}

struct listed {
    uint32_t n;
    struct uid uid[4], session[4];
    uint32_t n_entry[4];
    bool is_usable[4];
};

static enum status note(void *context, const struct snapshot_owned *owned)
{
    struct listed *listed = context;

    listed->uid[listed->n] = owned->uid;
    listed->session[listed->n] = owned->session;
    listed->n_entry[listed->n] = owned->n;
    listed->is_usable[listed->n++] = owned->is_usable;
    return STATUS_OK;
}

Test(snapshot_damage, all_lists_are_visited_and_bad_ones_counted)
{
    const struct uid carol = {0x10, 3}, dave = {0x10, 4};
    struct key key = key_of('v', dave);
    struct listed listed = {0};
    struct manifest manifest;
    struct stored at = {.key = key};
    struct writer writer;
    uint64_t n_bad = 99;
    size_t n_bytes;
    void *bytes;

    log_set_level(LOG_ERROR + 1);
    cr_assert_eq(snapshots_each(snapshots, note, &listed, &n_bad), STATUS_OK);
    cr_assert_eq(listed.n, 0);
    cr_assert_eq(n_bad, 0);
    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 200, 1), STATUS_OK);
    label = (struct snapshot_label){.session = {0, 0}, .create_ms = 1};
    cr_assert_eq(save(bob, 70, 0), STATUS_OK);
    label.create_ms = 0;
    cr_assert_eq(save(carol, 30, 0), STATUS_OK);
    cr_assert_eq(save(dave, 30, 0), STATUS_OK);
    put_raw(&(struct stored){.key = key_of('v', carol)}, "garbage", 7);
    cr_assert_eq(store_get(store, key.bytes, key.n, &bytes, &n_bytes),
                 STATUS_OK);
    cr_assert_eq(manifest_get(bytes, n_bytes, &manifest), STATUS_OK);
    free(bytes);
    manifest.numerics.id.hi ^= 1;
    writer_init(&writer, 1 << 16);
    cr_assert_eq(manifest_put(&writer, &manifest), STATUS_OK);
    put_raw(&at, writer.bytes, writer.n);
    writer_release(&writer);
    cr_assert_eq(snapshots_each(snapshots, note, &listed, &n_bad), STATUS_OK);
    cr_assert_eq(n_bad, 1);
    cr_assert_eq(listed.n, 3);
    cr_assert(uid_equal(listed.uid[0], alice));
    cr_assert(uid_equal(listed.session[0], alice));
    cr_assert_eq(listed.n_entry[0], 2);
    cr_assert(listed.is_usable[0]);
    cr_assert(uid_equal(listed.uid[1], bob));
    cr_assert(uid_equal(listed.session[1], (struct uid){0, 0}));
    cr_assert(uid_equal(listed.uid[2], dave));
    cr_assert_not(listed.is_usable[2]);
}
