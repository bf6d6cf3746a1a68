#ifndef TESTS_UNIT_STATE_SNAPSHOT_FIXTURE_H
#define TESTS_UNIT_STATE_SNAPSHOT_FIXTURE_H
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

static inline void begin(void)
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

static inline void end(void)
{
    snapshots_close(snapshots);
    snapshots_close(NULL);
    store_close(store);
    model_destroy(model);
}

static inline struct digest chain_at(uint64_t position)
{
    return digest_tokens(model_fingerprint(model), token, position);
}

#define STATE_PLACE (1u << 20) /* states' places are behind the blocks' */

static inline uint32_t pattern(uint64_t place, uint32_t layer, size_t i)
{
    uint64_t x = (place * 1009 + layer) * 1000003 + i + 1;

    x *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(x >> 32);
}

/* Write, or compare with, the pattern of n_bytes. */
static inline void fill(void *to, size_t n_bytes, uint64_t place,
                        uint32_t layer)
{
    uint32_t *word = malloc(n_bytes);

    for (size_t i = 0; i < n_bytes / 4; i++)
        word[i] = pattern(place, layer, i);
    device_write(model_device(model), to, word, n_bytes);
    free(word);
}

/* A copy of a memory's bytes, wherever they lie. */
static inline void *copy_of(const void *bytes, size_t n_bytes)
{
    struct device *device = model_device(model);
    void *copy;

    cr_assert_eq(device_take_host(device, n_bytes, &copy), STATUS_OK);
    device_read(device, copy, bytes, n_bytes);
    cr_assert_eq(device_wait(device), STATUS_OK);
    return copy;
}

/* These of the bytes that fill() wrote. */
static inline bool is_part_filled(const void *bytes, struct mixer_part part,
                                  uint64_t place, uint32_t layer)
{
    uint32_t *word = copy_of((const char *)bytes + part.offset, part.bytes);
    size_t i = 0;

    while (i < part.bytes / 4 &&
           word[i] == pattern(place, layer, part.offset / 4 + i))
        i++;
    device_give_host(model_device(model), word);
    return i == part.bytes / 4;
}

static inline bool is_filled(const void *bytes, size_t n_bytes, uint64_t place,
                             uint32_t layer)
{
    return is_part_filled(bytes, (struct mixer_part){0, n_bytes}, place, layer);
}

/* What a state has to have behind this position: whoever has none is empty. */
static inline bool is_state(const void *state, const struct mixer_plan *plan,
                            uint64_t position, uint32_t layer)
{
    struct mixer_part part[MIXER_FIELD_MAX];
    const uint32_t n_part = mixer_live(plan, position, part);
    bool is_right = n_part > 0;

    for (uint32_t i = 0; i < n_part; i++)
        is_right &=
            is_part_filled(state, part[i], STATE_PLACE + position, layer);
    return is_right;
}

/* Blocks of [0, position) and states of `position`. */
static inline void fill_memory(struct memory *memory, uint64_t position)
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

static inline bool is_zero(const void *bytes, size_t n)
{
    unsigned char *copy = copy_of(bytes, n);
    size_t i = 0;

    while (i < n && copy[i] == 0)
        i++;
    device_give_host(model_device(model), copy);
    return i == n;
}

/* Every byte is that of the memory's position; empty ones are all zero. */
static inline void check_memory(const struct memory *memory, uint64_t n_wiped)
{
    uint64_t position = memory_position(memory);

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct layer_memory *layer = &memory_layers(memory)[i];
        const struct mixer_plan *plan = memory_plan(memory, i);

        if (layer->state)
            cr_assert(position == 0
                          ? is_zero(layer->state, plan->state_bytes)
                          : is_state(layer->state, plan, position, i));
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

static inline struct memory *new_memory(void)
{
    struct memory *memory;
    struct policy policy;

    cr_assert_eq(policy_parse(policy_text, &policy), STATUS_OK);
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_set_policy(memory, &policy), STATUS_OK);
    return memory;
}

static struct snapshot_label label; /* of the saves below, if it has a time */

static inline enum status save(struct uid uid, uint64_t position,
                               uint64_t first_block)
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
static inline uint64_t load(struct uid uid, uint64_t limit,
                            enum restore_reason *out, uint64_t n_wiped)
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

static inline void expect(uint64_t limit, uint64_t position,
                          enum restore_reason why)
{
    enum restore_reason reason = 99;
    uint64_t found = load(alice, limit, &reason, 0);

    cr_assert_eq(found, position, "stands at %lu, expected %lu", found,
                 position);
    cr_assert_eq(reason, why, "reason %d, expected %d", reason, why);
}

static inline uint32_t count_keys(char from, char to)
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
#endif
