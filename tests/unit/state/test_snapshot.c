/* Snapshots come back byte for byte, and the right ones stay. */
#include "tests/unit/state/snapshot_fixture.h"

#include "state/store_calls.h"

TestSuite(snapshot, .init = begin, .fini = end, .timeout = 240);

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

/* What writes bring, on their way to the store under test. */
static const struct store_calls *calls_below;
static size_t most_bytes;
static uint32_t n_write;

static enum status weigh(struct store *to,
                         const struct store_batch *const *batch,
                         uint32_t n_batch, bool sync)
{
    for (uint32_t i = 0; i < n_batch; i++)
        if (batch[i]->log.capacity > most_bytes)
            most_bytes = batch[i]->log.capacity;
    n_write++;
    return calls_below->write(to, batch, n_batch, sync);
}

/* A writer doubles: a byte more than 2 MiB would be 4 from then on. */
Test(snapshot, is_written_from_two_mib)
{
    struct store_calls calls = *store->calls;

    calls_below = store->calls;
    calls.write = weigh;
    store->calls = &calls;
    cr_assert_eq(save(alice, N_TOKEN, 0), STATUS_OK);
    store->calls = calls_below;
    cr_assert_geq(n_write, 3);
    cr_assert_leq(most_bytes, 2u << 20);
    expect(N_TOKEN, N_TOKEN, RESTORE_HIT);
}
