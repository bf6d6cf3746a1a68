/*
 * The memory under test holds no model's numbers but a pattern: every byte is a
 * function of (session's pattern, layer, block or position, offset). So after
 * any load the oracle knows each byte: the pattern of the position it stands
 * at, or all zero at position 0. Plans (sizes, which layers have what) are
 * those of a real model. All of it runs a second time through a device.
 */
#include "state/lineage.h"
#include "state/snapshot.h"

#include "base/log.h"
#include "kernels/device.h"
#include "state/snapshot_value.h"
#include "state/store_key.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 4000u /* blocks of 4 MB: more than one batch */
#define CALL_MAX 400u

static const struct uid alice = {0x10, 1}, bob = {0x10, 2};
static struct model *model;
static struct store *store;
static struct snapshots *snapshots;
static uint32_t token[N_TOKEN];
static const struct ids tokens = {.id = token, .n = N_TOKEN};

static void begin(void)
{
    const char *name = getenv("GODWIT_BACKEND"); /* tests.cmake: a device */
    struct model_options options = {.backend = NULL};

    cr_assert_eq(backend_find(name ? name : "ref", &options.backend),
                 STATUS_OK);
    log_set_level(LOG_ERROR);
    for (uint32_t i = 0; i < N_TOKEN; i++)
        token[i] = i * 2654435761u % 512;
    cr_assert_eq(model_load("tests/golden/qwen3_5_text", &options, &model),
                 STATUS_OK, "%s", status_reason());
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, model, &snapshots), STATUS_OK);
}

static void end(void)
{
    snapshots_close(snapshots);
    snapshots_close(NULL);
    store_close(store);
    model_destroy(model);
}

TestSuite(snapshot, .init = begin, .fini = end, .timeout = 60);

static struct digest chain_at(uint64_t position)
{
    return digest_tokens(model_fingerprint(model), token, position);
}

static uint32_t pattern(uint64_t place, uint32_t layer, size_t i)
{
    uint64_t x = (place * 1009 + layer) * 1000003 + i + 1;

    x *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(x >> 32);
}

/* Write, or compare with, the pattern of n_bytes. */
static void fill(void *to, size_t n_bytes, uint64_t place, uint32_t layer)
{
    uint32_t *word = malloc(n_bytes);

    for (size_t i = 0; i < n_bytes / 4; i++)
        word[i] = pattern(place, layer, i);
    device_write(model_device(model), to, word, n_bytes);
    free(word);
}

/* A copy of a memory's bytes, wherever they lie. */
static void *copy_of(const void *bytes, size_t n_bytes)
{
    struct device *device = model_device(model);
    void *copy;

    cr_assert_eq(device_take_host(device, n_bytes, &copy), STATUS_OK);
    device_read(device, copy, bytes, n_bytes);
    cr_assert_eq(device_wait(device), STATUS_OK);
    return copy;
}

static bool is_filled(const void *bytes, size_t n_bytes, uint64_t place,
                      uint32_t layer)
{
    uint32_t *word = copy_of(bytes, n_bytes);
    size_t i = 0;

    while (i < n_bytes / 4 && word[i] == pattern(place, layer, i))
        i++;
    device_give_host(model_device(model), word);
    return i == n_bytes / 4;
}

#define STATE_PLACE (1u << 20) /* states' places are behind the blocks' */

/* Blocks of [0, position) and states of `position`. */
static void fill_memory(struct memory *memory, uint64_t position)
{
    cr_assert_eq(memory_reserve(memory, position), STATUS_OK);
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct layer_memory *layer = &memory_layers(memory)[i];
        const struct mixer_plan *plan = memory_plan(memory, i);

        if (layer->state)
            fill(layer->state, plan->state_bytes, STATE_PLACE + position, i);
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position; b++)
            fill(memory_block(memory, i, b), plan->block_bytes, b, i);
    }
    memory_advance(memory, position - memory_position(memory));
}

static bool is_zero(const void *bytes, size_t n)
{
    unsigned char *copy = copy_of(bytes, n);
    size_t i = 0;

    while (i < n && copy[i] == 0)
        i++;
    device_give_host(model_device(model), copy);
    return i == n;
}

/* Every byte is that of the memory's position; empty ones are all zero. */
static void check_memory(const struct memory *memory, uint64_t n_wiped)
{
    uint64_t position = memory_position(memory);

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct layer_memory *layer = &memory_layers(memory)[i];
        const struct mixer_plan *plan = memory_plan(memory, i);

        if (layer->state)
            cr_assert(position == 0 ? is_zero(layer->state, plan->state_bytes)
                                    : is_filled(layer->state, plan->state_bytes,
                                                STATE_PLACE + position, i));
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position; b++)
            cr_assert(
                is_filled(memory_block(memory, i, b), plan->block_bytes, b, i),
                "block %lu of layer %u", b, i);
        for (uint64_t b = (position + KV_BLOCK - 1) / KV_BLOCK;
             plan->block_bytes && b * KV_BLOCK < n_wiped; b++)
            cr_assert(is_zero(memory_block(memory, i, b), plan->block_bytes));
    }
}

static const char *policy_text = "full"; /* of the memories below */

static struct memory *new_memory(void)
{
    struct memory *memory;
    struct policy policy;

    cr_assert_eq(policy_parse(policy_text, &policy), STATUS_OK);
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_set_policy(memory, &policy), STATUS_OK);
    return memory;
}

static struct snapshot_label label; /* of the saves below, if it has a time */

static enum status save(struct uid uid, uint64_t position, uint64_t first_block)
{
    struct memory *memory = new_memory();
    struct image *image;
    enum status st;

    fill_memory(memory, position);
    cr_assert_eq(image_create(model,
                              &(struct image_source){
                                  .log = uid,
                                  .memory = memory,
                                  .token = tokens.id,
                                  .from = first_block * KV_BLOCK,
                                  .chain = chain_at(first_block * KV_BLOCK)},
                              &image),
                 STATUS_OK);
    if (label.create_ms)
        image_label(image, &label);
    st = snapshot_save(snapshots, image);
    image_destroy(image);
    memory_destroy(memory);
    return st;
}

/* Load and check every byte; the position it came to. `n_wiped`: tokens of the
 * largest attempt. */
static uint64_t load(struct uid uid, uint64_t limit, enum restore_reason *out,
                     uint64_t n_wiped)
{
    struct memory *memory = new_memory();
    uint64_t position;

    struct log_path path = log_path_alone(uid);
    struct restore restore;

    cr_assert_eq(
        snapshot_load(snapshots, &path, &tokens, limit, memory, &restore),
        STATUS_OK, "%s", status_reason());
    *out = restore.reason;
    cr_assert_eq(memory_reserve(memory, n_wiped), STATUS_OK);
    check_memory(memory, n_wiped);
    position = memory_position(memory);
    memory_destroy(memory);
    return position;
}

static void expect(uint64_t limit, uint64_t position, enum restore_reason why)
{
    enum restore_reason reason = 99;
    uint64_t found = load(alice, limit, &reason, 0);

    cr_assert_eq(found, position, "stands at %lu, expected %lu", found,
                 position);
    cr_assert_eq(reason, why, "reason %d, expected %d", reason, why);
}

Test(snapshot, comes_back_byte_for_byte_at_odd_positions)
{
    static const uint64_t at[] = {1, 63, 64, 65, 127, 128, 200, N_TOKEN};

    expect(N_TOKEN, 0, RESTORE_NONE);
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        cr_assert_eq(save(alice, at[i], 0), STATUS_OK);
        expect(N_TOKEN, at[i], RESTORE_HIT);
        cr_assert_eq(snapshot_trim(snapshots, alice, 0), STATUS_OK);
        expect(N_TOKEN, 0, RESTORE_NONE);
    }
}

Test(snapshot, of_one_session_share_sealed_blocks)
{
    static const uint64_t at[] = {10, 64, 100, 130, 256, 300};
    uint64_t before = 0;

    label = (struct snapshot_label){/* so that all stay */
                                    .session = alice,
                                    .create_ms = 1,
                                    .is_pinned = true};
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        cr_assert_eq(save(alice, at[i], before / KV_BLOCK), STATUS_OK);
        before = at[i];
    }
    label.create_ms = 0;
    cr_assert_eq(save(bob, 500, 0), STATUS_OK);
    expect(N_TOKEN, 300, RESTORE_HIT);
    expect(299, 256, RESTORE_HIT);
    expect(256, 256, RESTORE_HIT);
    expect(255, 130, RESTORE_HIT);
    expect(129, 100, RESTORE_HIT);
    expect(10, 10, RESTORE_HIT);
    expect(9, 0, RESTORE_NONE);
    expect(0, 0, RESTORE_NONE);
    cr_assert_eq(snapshot_trim(snapshots, bob, 0), STATUS_OK);
    expect(N_TOKEN, 300, RESTORE_HIT);
}

static uint32_t count_keys(char from, char to)
{
    const void *key, *value;
    size_t key_bytes, value_bytes;
    struct store_scan *scan;
    uint32_t n = 0;

    cr_assert_eq(store_scan_open(store, &(struct store_range){&from, 1, &to, 1},
                                 false, &scan),
                 STATUS_OK);
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        n++;
    store_scan_close(scan);
    return n;
}

Test(snapshot, the_newest_stay_and_blocks_all)
{
    static const uint64_t kept[] = {110, 100, 10};
    struct snapshot_entry entry[9];
    uint32_t n = 99, n_state, n_open;

    cr_assert_eq(snapshot_list(snapshots, alice, entry, 9, &n), STATUS_OK);
    cr_assert_eq(n, 0);
    cr_assert_eq(save(alice, 10, 0), STATUS_OK);
    n_state = count_keys('s', 't');
    n_open = count_keys('o', 'p');
    cr_assert_eq(n_state, 4);
    cr_assert_eq(n_open, 2);
    for (uint64_t i = 2; i <= 11; i++)
        cr_assert_eq(save(alice, 10 * i, 10 * (i - 1) / KV_BLOCK), STATUS_OK);
    cr_assert_eq(save(alice, 100, 0), STATUS_OK, "the same position again");
    cr_assert_eq(snapshot_list(snapshots, alice, entry, 9, &n), STATUS_OK);
    cr_assert_eq(n, 3);
    for (uint32_t i = 0; i < n; i++) {
        cr_assert_eq(entry[i].position, kept[i]);
        cr_assert(digest_equal(entry[i].chain, chain_at(kept[i])));
    }
    cr_assert_eq(count_keys('s', 't'), 3 * n_state);
    cr_assert_eq(count_keys('o', 'p'), 3 * n_open);
    cr_assert_eq(count_keys('b', 'c'), 2);
    cr_assert_eq(snapshot_list(snapshots, alice, entry, 2, &n), STATUS_OK);
    cr_assert_eq(n, 2);
    expect(40, 10, RESTORE_HIT);
    expect(9, 0, RESTORE_NONE);
    /* Older than all that are kept: it takes the oldest one's place. */
    cr_assert_eq(save(alice, 5, 0), STATUS_OK);
    expect(39, 5, RESTORE_HIT);
    expect(49, 5, RESTORE_HIT);
    cr_assert_eq(snapshot_trim(snapshots, alice, 0), STATUS_OK);
    cr_assert_eq(count_keys('a', 'z'), 0);
}

Test(snapshot, an_image_is_of_its_moment)
{
    struct memory *memory;
    struct image *image;
    size_t n_bytes = 0;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    fill_memory(memory, 100);
    cr_assert_eq(image_create(model,
                              &(struct image_source){.log = alice,
                                                     .memory = memory,
                                                     .token = tokens.id,
                                                     .chain = chain_at(0)},
                              &image),
                 STATUS_OK);
    fill_memory(memory, N_TOKEN); /* new tables, new states, new blocks */
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = memory_plan(memory, i);

        n_bytes += plan->state_bytes + plan->block_bytes;
        if (plan->block_bytes)
            fill(memory_block(memory, i, 1), plan->block_bytes, 77, i);
    }
    cr_assert_eq(image_bytes(image), n_bytes);
    cr_assert_eq(snapshot_save(snapshots, image), STATUS_OK);
    image_destroy(image);
    image_destroy(NULL);
    memory_destroy(memory);
    expect(N_TOKEN, 100, RESTORE_HIT);
}

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

Test(snapshot, with_any_flipped_byte_is_never_used)
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

Test(snapshot, with_values_under_each_others_keys_is_never_used)
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

Test(snapshot, an_older_one_may_use_blocks_that_a_newer_one_wrote)
{
    cr_assert_eq(save(alice, 100, 0), STATUS_OK);
    cr_assert_eq(save(alice, 300, 0), STATUS_OK); /* block 0 again */
    expect(299, 100, RESTORE_HIT);
    token[250] ^= 1; /* a block says nothing of the tokens behind it ... */
    expect(299, 100, RESTORE_HIT);
    token[63] ^= 1; /* ... and all of those before its end */
    expect(299, 0, RESTORE_CHAIN);
}

Test(snapshot, falls_back_to_an_older_one)
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

Test(snapshot, behind_the_last_token_tells_of_a_lost_log)
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

Test(snapshot, of_other_tokens_or_numerics_is_named_as_such)
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
Test(snapshot, of_another_policy_is_refused_and_then_replaced)
{
    static const char *const TEXT[] = {"full", "window", "infllm", "quest",
                                       "quest:step=16"};

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

Test(snapshot, manifest_of_other_numerics_is_refused_and_then_replaced)
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

Test(snapshot, a_save_that_fails_anywhere_leaves_the_old_one)
{
    fail_saves(false);
    fail_saves(true);
}

Test(snapshot, a_save_on_a_full_disk_leaves_the_old_one)
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

Test(snapshot, a_load_that_fails_anywhere_falls_back)
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

Test(snapshot, shared_ones_stay_before_others_but_not_all)
{
    static const uint64_t kept[] = {170, 160, 60, 50, 40, 30, 10};
    struct snapshot_entry entry[8];
    uint32_t n = 0, n_shared = 0;

    label = (struct snapshot_label){
        .session = alice, .scope = 5, .create_ms = 77, .is_shared = true};
    for (uint64_t i = 1; i <= 6; i++)
        cr_assert_eq(save(alice, 10 * i, 0), STATUS_OK);
    label.is_shared = false;
    label.scope = 6;
    for (uint64_t i = 7; i <= 17; i++)
        cr_assert_eq(save(alice, 10 * i, 0), STATUS_OK);
    label.create_ms = 0;
    cr_assert_eq(snapshot_list(snapshots, alice, entry, 8, &n), STATUS_OK);
    cr_assert_eq(n, 7);
    for (uint32_t i = 0; i < n; i++) {
        cr_assert_eq(entry[i].is_shared, i >= 2);
        cr_assert_eq(entry[i].scope, entry[i].is_shared ? 5 : 6);
        cr_assert_eq(entry[i].create_ms, 77);
        cr_assert_eq(entry[i].position, kept[i], "%u: %lu", i,
                     entry[i].position);
        n_shared += entry[i].is_shared;
    }
    cr_assert_eq(n_shared, SNAPSHOT_SHARED_MAX + 1, "the oldest by itself");
    cr_assert_eq(count_keys('s', 't'), 7 * 4, "values of the others are gone");
    expect(39, 30, RESTORE_HIT);
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

Test(snapshot, a_fetch_takes_the_first_usable_one_of_anybody)
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

Test(snapshot, a_fetch_refuses_each_damaged_value)
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

Test(snapshot, all_lists_are_visited_and_bad_ones_counted)
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
