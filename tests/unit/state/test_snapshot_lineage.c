/*
 * Snapshots through ancestors. Every byte of a memory is a function of its
 * place, so that a load from the wrong log, or of too little, is seen at once;
 * what was written where is counted by the keys.
 */
#include "base/log.h"
#include "state/lineage.h"
#include "state/snapshot.h"
#include "state/store_key.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 400u
#define CALL_MAX 200u

static const struct uid parent = {1, 1}, child = {1, 2};
static struct model *model;
static struct store *store;
static struct snapshots *snapshots;
static uint32_t token[N_TOKEN]; /* of the child; the parent's part at 150 */
static uint32_t parent_token[N_TOKEN];
static struct log_path path;

static void begin(void)
{
    struct model_options options = {0};
    struct log_path alone = log_path_alone(parent);

    log_set_level(LOG_ERROR + 1);
    cr_assert_eq(backend_find("ref", &options.backend), STATUS_OK);
    cr_assert_eq(model_load("tests/golden/qwen3_5_text", &options, &model),
                 STATUS_OK);
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, model, &snapshots), STATUS_OK);
    for (uint32_t i = 0; i < N_TOKEN; i++) {
        token[i] = i * 2654435761u % 4096;
        parent_token[i] = i < 150 ? token[i] : token[i] ^ 1;
    }
    cr_assert(log_path_fork(&alone, 150, child, &path));
}

static void end(void)
{
    snapshots_close(snapshots);
    store_close(store);
    model_destroy(model);
}

TestSuite(snapshot_lineage, .init = begin, .fini = end);

static int value_of(uint64_t place, uint32_t layer, bool is_parent)
{
    return (int)(place * 7 + layer * 3 + (is_parent ? 50 : 0)) % 100 + 1;
}

/* Blocks from 150 on, and states behind it, are those of the branch. */
static bool is_parents(uint64_t end, bool of_parent)
{
    return of_parent && end > 150;
}

static struct memory *memory_at(uint64_t position, bool of_parent)
{
    struct memory *memory;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, position), STATUS_OK);
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);
        const struct layer_memory *layer = &memory_layers(memory)[i];

        if (layer->state) {
            memset(
                layer->state,
                value_of(1000 + position, i, is_parents(position, of_parent)),
                plan->state_bytes);
            mixer_clear_moot(plan, position, layer->state);
        }
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position; b++)
            memset(layer->block[b],
                   value_of(b, i,
                            is_parents((b + 1) * KV_BLOCK < position
                                           ? (b + 1) * KV_BLOCK
                                           : position,
                                       of_parent)),
                   plan->block_bytes);
    }
    memory_advance(memory, position);
    return memory;
}

static bool same_memory(const struct memory *x, const struct memory *y)
{
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);
        const struct layer_memory *a = &memory_layers(x)[i],
                                  *b = &memory_layers(y)[i];

        if (a->state && memcmp(a->state, b->state, plan->state_bytes) != 0)
            return false;
        for (uint64_t n = 0;
             plan->block_bytes && n * KV_BLOCK < memory_position(x); n++)
            if (memcmp(a->block[n], b->block[n], plan->block_bytes) != 0)
                return false;
    }
    return true;
}

static enum status save(struct uid log, uint64_t position, uint64_t from,
                        const struct log_path *base)
{
    const uint32_t *mine = uid_equal(log, parent) ? parent_token : token;
    struct memory *memory = memory_at(position, uid_equal(log, parent));
    struct image_source source = {
        .log = log,
        .memory = memory,
        .token = mine,
        .from = from,
        .chain = digest_tokens(model_fingerprint(model), mine, from),
        .base = base};
    struct image *image;
    enum status st = image_create(model, &source, &image);

    cr_assert_eq(st, STATUS_OK);
    st = snapshot_save(snapshots, image);
    image_destroy(image);
    memory_destroy(memory);
    return st;
}

/* Where a load of the child comes to; every byte is checked. */
static uint64_t load(uint64_t limit, struct restore *out)
{
    const struct ids tokens = {.id = token, .n = N_TOKEN};
    struct memory *memory, *want;
    uint64_t position;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(snapshot_load(snapshots, &path, &tokens, limit, memory, out),
                 STATUS_OK, "%s", status_reason());
    position = memory_position(memory);
    want = memory_at(position, false);
    cr_assert(position == 0 || same_memory(memory, want));
    memory_destroy(want);
    memory_destroy(memory);
    return position;
}

static uint32_t count(char letter, struct uid log)
{
    struct key from = key_of(letter, log), to = key_after(from);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint32_t n = 0;

    cr_assert_eq(store_scan_open(
                     store,
                     &(struct store_range){from.bytes, from.n, to.bytes, to.n},
                     false, &scan),
                 STATUS_OK);
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        n++;
    store_scan_close(scan);
    return n;
}

Test(snapshot_lineage, a_child_starts_from_its_ancestors_snapshot)
{
    struct restore restore;

    cr_assert_eq(save(parent, 100, 0, NULL), STATUS_OK);
    cr_assert_eq(save(parent, 140, 64, NULL), STATUS_OK);
    cr_assert_eq(save(parent, 300, 128, NULL), STATUS_OK); /* behind the fork */
    cr_assert_eq(load(N_TOKEN, &restore), 140);
    cr_assert_eq(restore.reason, RESTORE_HIT);
    cr_assert_eq(restore.base.n, 1);
    cr_assert(uid_equal(restore.base.piece[0].log, parent));
    cr_assert_eq(restore.base.piece[0].end, 128);
    cr_assert_eq(load(139, &restore), 100);
    cr_assert_eq(load(99, &restore), 0);
}

/* The parent stored block 1 with a snapshot behind the fork: it serves. */
Test(snapshot_lineage, a_block_serves_whoever_wrote_it_later)
{
    struct restore restore;

    cr_assert_eq(save(parent, 50, 0, NULL), STATUS_OK);
    cr_assert_eq(save(parent, 300, 0, NULL), STATUS_OK);
    struct log_path base = {1, {{parent, 128}}};
    cr_assert_eq(save(child, 260, 128, &base), STATUS_OK);
    cr_assert_eq(load(N_TOKEN, &restore), 260);
    cr_assert_eq(restore.base.n, 1);
    cr_assert_eq(restore.base.piece[0].end, 128);
    cr_assert_eq(count('b', child), count('b', parent) / 2,
                 "blocks 2 and 3, of 0 to 3");
}

Test(snapshot_lineage, a_damaged_block_of_the_ancestor_is_seen)
{
    struct log_path base = {1, {{parent, 128}}};
    struct key key = key_at('b', parent, 1), to = key_after(key);
    struct store_batch *raw = store_batch_create(store);
    struct restore restore;

    cr_assert_eq(save(parent, 140, 0, NULL), STATUS_OK);
    cr_assert_eq(save(child, 260, 128, &base), STATUS_OK);
    store_batch_delete_range(raw, key.bytes, key.n, to.bytes, to.n);
    cr_assert_eq(store_write(store, raw, true), STATUS_OK);
    store_batch_destroy(raw);
    cr_assert_eq(load(N_TOKEN, &restore), 0);
    cr_assert_eq(restore.reason, RESTORE_DAMAGED);
    cr_assert_eq(save(child, 270, 0, NULL), STATUS_OK, "heals, by itself");
    cr_assert_eq(load(N_TOKEN, &restore), 270);
    cr_assert_eq(restore.base.n, 0);
    cr_assert_eq(load(269, &restore), 260, "older ones find their blocks, too");
}

Test(snapshot_lineage, what_the_child_lost_the_ancestor_has)
{
    struct log_path base = {1, {{parent, 128}}};
    struct key key = key_of('v', child);
    struct store_batch *raw = store_batch_create(store);
    struct restore restore;

    cr_assert_eq(save(parent, 140, 0, NULL), STATUS_OK);
    cr_assert_eq(save(child, 260, 128, &base), STATUS_OK);
    store_batch_put(raw, key.bytes, key.n, "torn", 4);
    cr_assert_eq(store_write(store, raw, true), STATUS_OK);
    store_batch_destroy(raw);
    cr_assert_eq(load(N_TOKEN, &restore), 140);
    cr_assert_eq(restore.reason, RESTORE_DAMAGED, "of the newest");
}

Test(snapshot_lineage, a_trimmed_log_keeps_what_is_needed)
{
    struct log_path base = {1, {{parent, 128}}};
    struct snapshot_entry entry[SNAPSHOT_KEEP_MAX];
    struct restore restore;
    uint32_t n, n_block;

    cr_assert_eq(save(parent, 100, 0, NULL), STATUS_OK);
    cr_assert_eq(save(parent, 300, 64, NULL), STATUS_OK);
    n_block = count('b', parent);
    cr_assert_eq(save(child, 260, 128, &base), STATUS_OK);
    cr_assert_eq(snapshot_trim(snapshots, parent, 150), STATUS_OK);
    cr_assert_eq(snapshot_list(snapshots, parent, entry, 8, &n), STATUS_OK);
    cr_assert_eq(n, 1);
    cr_assert_eq(entry[0].position, 100);
    cr_assert_eq(count('b', parent), n_block / 2);
    cr_assert_eq(load(N_TOKEN, &restore), 260);
    cr_assert_eq(load(200, &restore), 100);
    cr_assert_eq(snapshot_trim(snapshots, parent, 99), STATUS_OK);
    cr_assert_eq(count('v', parent), 1, "so that its blocks are known of");
    cr_assert_eq(count('s', parent), 0);
    cr_assert_eq(load(200, &restore), 0);
    cr_assert_eq(snapshot_trim(snapshots, parent, 0), STATUS_OK);
    for (char letter = 'a'; letter <= 'z'; letter++)
        cr_assert_eq(count(letter, parent), 0);
}

static enum status trim_and_load(void)
{
    struct log_path base = {1, {{parent, 128}}};
    struct restore restore;
    enum status st = save(parent, 140, 0, NULL);

    if (!st)
        st = save(parent, 300, 128, NULL);
    if (!st)
        st = save(child, 260, 128, &base);
    if (!st)
        st = snapshot_trim(snapshots, parent, 150);
    /* A load never fails for what the store has: it finds less. */
    if (!st && load(N_TOKEN, &restore) < 260)
        st = status_fail(STATUS_UNAVAILABLE, "loaded less");
    return st;
}

Test(snapshot_lineage, bears_the_failure_of_every_call)
{
    uint64_t n = 0;
    enum status st;

    for (;;) {
        cr_assert_eq(snapshot_trim(snapshots, parent, 0), STATUS_OK);
        cr_assert_eq(snapshot_trim(snapshots, child, 0), STATUS_OK);
        store_memory_faults(store)->fail_at = ++n;
        st = trim_and_load();
        if (store_memory_faults(store)->fail_at > 0)
            break;
        cr_assert_eq(st, STATUS_UNAVAILABLE, "call %lu: %s", n,
                     status_name(st));
        cr_assert_lt(n, CALL_MAX);
    }
    cr_assert_eq(st, STATUS_OK);
    cr_assert_geq(n, 15);
}
