/*
 * Blocks in RAM and in the store: whatever was held, released and pushed out
 * before, a held block has the bytes that were stored, and there are never more
 * pages than was said. Oracle: each byte is a function of block and layer.
 */
#include "base/log.h"
#include "state/paging.h"
#include "state/snapshot_value.h"
#include "state/store_key.h"

#include <criterion/criterion.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_BLOCK = 140 }; /* more than twice a run of indices */

/* The pager's call comes here. */
static sem_t trims;

__attribute__((visibility("default"))) int malloc_trim(size_t pad)
{
    (void)pad;
    return sem_post(&trims);
}

static const struct uid base_log = {7, 1}, own_log = {7, 2};
static struct model *model;
static struct store *store;
static struct ring *engine;
static struct pager *pager;
static struct paging *paging;
static struct policy policy;

static const struct mixer_plan *plan_of(uint32_t layer)
{
    return model_plan_for(model, layer, policy.index);
}

static uint32_t n_layer(void)
{
    return model_config(model)->n_layer;
}

static void pattern(unsigned char *to, size_t n, uint64_t block, uint32_t layer)
{
    for (size_t i = 0; i < n; i++)
        to[i] =
            (unsigned char)((block * 31 + layer * 7 + i) * 2654435761u >> 24);
}

static bool has_pattern(const unsigned char *at, size_t n, uint64_t block,
                        uint32_t layer)
{
    unsigned char *want = malloc(n);
    bool is_same;

    pattern(want, n, block, layer);
    is_same = memcmp(at, want, n) == 0;
    free(want);
    return is_same;
}

static struct uid log_of(uint64_t block)
{
    return block < 20 ? base_log : own_log;
}

static void store_block(uint64_t block, uint32_t layer)
{
    const size_t n = plan_of(layer)->block_bytes;
    const char *numerics = model_numerics(model);
    struct value_head head = {
        .uid = log_of(block),
        .numerics = {model_fingerprint(model),
                     digest_bytes(numerics, strlen(numerics)),
                     policy_digest(&policy)},
        .position = (block + 1) * KV_BLOCK,
        .place = block,
        .layer = layer,
        .n_token = KV_BLOCK};
    struct store_batch *batch = store_batch_create(store);
    struct key key = key_at('b', log_of(block), block);
    unsigned char *bytes = malloc(n);
    struct writer writer;

    key_add_number(&key, layer, 2);
    pattern(bytes, n, block, layer);
    writer_init(&writer, 1u << 24);
    cr_assert_eq(value_put(&writer, FRAME_BLOCK, &head, bytes, n), STATUS_OK);
    store_batch_put(batch, key.bytes, key.n, writer.bytes, writer.n);
    cr_assert_eq(store_write(store, batch, false), STATUS_OK);
    writer_release(&writer);
    store_batch_destroy(batch);
    free(bytes);
}

/* As a load does. */
static void load_into(struct paging *it)
{
    struct log_path base = {.n = 1, .piece = {{base_log, 20 * KV_BLOCK}}};

    cr_assert_eq(paging_expect(it, N_BLOCK), STATUS_OK);
    for (uint64_t b = 0; b < N_BLOCK; b++)
        for (uint32_t i = 0; i < n_layer(); i++) {
            const size_t n = plan_of(i)->block_bytes;
            unsigned char *bytes = malloc(n + 1);

            pattern(bytes, n, b, i);
            if (n)
                cr_assert_eq(paging_put(it, i, b, bytes), STATUS_OK);
            free(bytes);
        }
    paging_loaded(it, N_BLOCK, &base, own_log);
}

static void load(void)
{
    load_into(paging);
}

static void begin(void)
{
    struct model_options options = {.backend = NULL};

    log_set_level(LOG_ERROR);
    cr_assert_eq(sem_init(&trims, 0, 0), 0);
    cr_assert_eq(backend_find("ref", &options.backend), STATUS_OK);
    cr_assert_eq(model_load("tests/golden/qwen3_5_text", &options, &model),
                 STATUS_OK, "%s", status_reason());
    cr_assert_eq(
        policy_parse("quest:sink=64:window=128:pick=256:step=8", &policy),
        STATUS_OK);
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(ring_create(4, 8, &engine), STATUS_OK);
    cr_assert_eq(
        pager_start(&(struct pager_options){store, model, engine, 3}, &pager),
        STATUS_OK);
    for (uint64_t b = 0; b < N_BLOCK; b++)
        for (uint32_t i = 0; i < n_layer(); i++)
            if (plan_of(i)->block_bytes)
                store_block(b, i);
    cr_assert_eq(paging_create(model, &policy, pager,
                               paging_least(model, &policy), &paging),
                 STATUS_OK);
}

static void end(void)
{
    paging_destroy(paging);
    paging_destroy(NULL);
    pager_stop(pager);
    pager_stop(NULL);
    ring_destroy(engine);
    store_close(store);
    model_destroy(model);
}

TestSuite(paging, .init = begin, .fini = end);

static size_t in_ram(void)
{
    size_t n = 0;

    for (uint32_t i = 0; i < n_layer(); i++)
        n += paging_in_ram(paging, i);
    return n;
}

Test(paging, what_is_held_has_its_bytes)
{
    struct block_source *source = paging_source(paging);
    uint64_t x = 1;

    load();
    for (int round = 0; round < 200; round++) {
        uint64_t block[8];

        for (uint32_t i = 0; i < n_layer(); i++) {
            const size_t n = plan_of(i)->block_bytes;
            void *at[8];

            if (n == 0)
                continue;
            for (int k = 0; k < 8; k++) {
                x = x * 6364136223846793005u + 1;
                block[k] = (x >> 33) % N_BLOCK;
                at[k] = source->hold(source, i, block[k]);
                cr_assert_not_null(at[k], "round %d", round);
            }
            source->wait(source, i);
            cr_assert(source->is_ready(source, i));
            for (int k = 0; k < 8; k++)
                cr_assert(has_pattern(at[k], n, block[k], i),
                          "round %d block %lu", round, block[k]);
            source->release(source, i);
        }
        cr_assert_leq(in_ram(), paging_least(model, &policy));
    }
    cr_assert_not(paging_is_lost(paging));
    cr_assert_gt(pager_n_read(pager), 100);
}

/* A step sees the first block and the last, which are in RAM, and one that is
 * not; the next step finds that one too. */
Test(paging, counts_what_steps_find)
{
    struct block_source *source = paging_source(paging);
    struct paging_use use;
    uint32_t i = 0;

    while (plan_of(i)->block_bytes == 0)
        i++;
    load();
    for (uint64_t step = 1; step <= 2; step++) {
        cr_assert_not_null(source->hold(source, i, 0));
        cr_assert_not_null(source->hold(source, i, N_BLOCK - 1));
        cr_assert_not_null(source->hold(source, i, N_BLOCK / 2));
        cr_assert_not_null(source->hold(source, i, N_BLOCK / 2));
        source->wait(source, i);
        source->release(source, i);
        use = paging_use(paging, i);
        cr_assert_eq(use.n_step, step);
        cr_assert_eq(use.n_hit, step == 1 ? 2 : 5);
        cr_assert_eq(use.n_fetched, 1);
    }
    source->release(source, i); /* of nothing */
    cr_assert_eq(paging_use(paging, i).n_step, 2);
    cr_assert_eq(pager_n_hit(pager), 5);
    cr_assert_eq(pager_n_read(pager), 1);
    paging_clear(paging);
    cr_assert_eq(paging_use(paging, i).n_step, 0);
}

/* New blocks stay in RAM until they are stored, and no more come before. */
Test(paging, new_blocks_have_room_when_old_ones_are_stored)
{
    const struct log_path none = {0};
    uint64_t room = paging_room(paging);

    cr_assert_gt(room, 0);
    cr_assert_eq(paging_reserve(paging, room), STATUS_OK);
    cr_assert_eq(paging_room(paging), 0);
    paging_stored(paging, room - 1, &none, own_log);
    cr_assert_eq(paging_room(paging), room - 1);
    for (uint64_t n = 2 * room - 1; paging_room(paging) > 0;) {
        cr_assert_eq(paging_reserve(paging, n), STATUS_OK);
        cr_assert_leq(in_ram(), paging_least(model, &policy));
        paging_stored(paging, n - 1, &none, own_log);
        if (n > 300)
            break;
        n += paging_room(paging);
    }
    for (uint32_t i = 0; i < n_layer(); i++) /* the newest are in RAM */
        if (plan_of(i)->block_bytes)
            cr_assert_not_null(
                paging_blocks(paging, i)[paging_n_block(paging) - 1]);
}

Test(paging, what_is_not_there_is_lost)
{
    struct block_source *source = paging_source(paging);
    struct store_batch *batch = store_batch_create(store);
    uint32_t i = 0;

    while (plan_of(i)->block_bytes == 0)
        i++;
    load();
    store_batch_delete_range(batch, "b", 1, "c", 1);
    cr_assert_eq(store_write(store, batch, true), STATUS_OK);
    store_batch_destroy(batch);
    cr_assert_not_null(source->hold(source, i, N_BLOCK - 1)); /* it was put */
    source->wait(source, i);
    cr_assert(source->is_ready(source, i));
    cr_assert_not(paging_is_lost(paging));
    cr_assert_not_null(source->hold(source, i, 30));
    source->wait(source, i);
    cr_assert(source->is_ready(source, i));
    cr_assert(paging_is_lost(paging));
}

/* Pages that are being read outlive their session. */
Test(paging, may_go_while_blocks_are_read)
{
    struct block_source *source = paging_source(paging);
    uint32_t i = 0;

    while (plan_of(i)->block_bytes == 0)
        i++;
    for (int round = 0; round < 50; round++) {
        load();
        for (uint64_t b = 5; b < 10; b++)
            cr_assert_not_null(source->hold(source, i, b));
        paging_clear(paging);
    }
}

/* Of a load of another's blocks all stay, until they are stored: as many as
 * paging_most() says, and not one more than there are pages. */
Test(paging, what_is_adopted_stays_until_it_is_stored)
{
    const size_t least = paging_least(model, &policy);
    const uint64_t n = paging_most(model, &policy, least);
    struct log_path base = {0};
    unsigned char *bytes = malloc(1u << 20);
    enum status st = STATUS_OK;
    uint64_t b = 0;

    cr_assert(n > 0 && n < N_BLOCK);
    paging_adopt(paging);
    cr_assert_eq(paging_expect(paging, N_BLOCK), STATUS_OK);
    for (; !st && b < N_BLOCK; b++)
        for (uint32_t i = 0; !st && i < n_layer(); i++) {
            pattern(bytes, plan_of(i)->block_bytes, b, i);
            if (plan_of(i)->block_bytes)
                st = paging_put(paging, i, b, bytes);
        }
    cr_assert_eq(st, STATUS_RESOURCE_EXHAUSTED);
    cr_assert_gt(b, n);
    paging_clear(paging);
    cr_assert_eq(paging_expect(paging, n), STATUS_OK);
    for (b = 0; b < n; b++)
        for (uint32_t i = 0; i < n_layer(); i++) {
            pattern(bytes, plan_of(i)->block_bytes, b, i);
            if (plan_of(i)->block_bytes)
                cr_assert_eq(paging_put(paging, i, b, bytes), STATUS_OK);
        }
    paging_loaded(paging, n, &base, own_log);
    cr_assert_eq(paging_n_stored(paging), 0);
    cr_assert_eq(paging_n_block(paging), n);
    for (b = 0; b < n; b++)
        for (uint32_t i = 0; i < n_layer(); i++) {
            const size_t n_bytes = plan_of(i)->block_bytes;

            pattern(bytes, n_bytes, b, i);
            if (n_bytes)
                cr_assert_eq(
                    memcmp(paging_blocks(paging, i)[b], bytes, n_bytes), 0);
        }
    paging_stored(paging, n, &base, own_log);
    cr_assert_eq(paging_n_stored(paging), n);
    cr_assert_gt(paging_room(paging), 0);
    cr_assert_eq(pager_n_read(pager), 0);
    free(bytes);
}

static uint32_t first_paged(void)
{
    uint32_t i = 0;

    while (plan_of(i)->block_bytes == 0)
        i++;
    return i;
}

static void *read_in(struct paging *it, uint32_t layer, uint64_t block)
{
    struct block_source *source = paging_source(it);
    void *at = source->hold(source, layer, block);

    cr_assert_not_null(at);
    source->wait(source, layer);
    cr_assert(source->is_ready(source, layer));
    source->release(source, layer);
    cr_assert(has_pattern(at, plan_of(layer)->block_bytes, block, layer));
    return at;
}

/* Sessions that see the same stored blocks have one page of each: those that a
 * load left in RAM and those that were read. */
Test(paging, what_several_see_is_in_ram_once)
{
    enum { N_FORK = 8, FIRST_READ = 22, N_READ = 4 };
    struct paging *fork[N_FORK];
    const uint32_t i = first_paged();
    size_t alone, shared;

    load();
    for (uint64_t b = FIRST_READ; b < FIRST_READ + N_READ; b++)
        (void)read_in(paging, i, b);
    alone = pager_bytes(pager);
    cr_assert_eq(pager_shared_bytes(pager), 0);
    cr_assert_eq(paging_shared_bytes(paging), 0);
    for (uint32_t k = 0; k < N_FORK; k++) {
        cr_assert_eq(paging_create(model, &policy, pager,
                                   paging_least(model, &policy), &fork[k]),
                     STATUS_OK);
        load_into(fork[k]);
        for (uint64_t b = FIRST_READ; b < FIRST_READ + N_READ; b++)
            cr_assert_eq(read_in(fork[k], i, b), read_in(paging, i, b));
        cr_assert_eq(pager_bytes(pager), alone);
        paging_count_shared(fork[k]);
        cr_assert_eq(paging_shared_bytes(fork[k]), alone);
    }
    cr_assert_eq(pager_n_read(pager), N_READ);
    shared = pager_shared_bytes(pager);
    paging_count_shared(paging);
    cr_assert_eq(shared, alone);
    cr_assert_eq(paging_shared_bytes(paging), alone);
    paging_clear(paging); /* the others go on with them */
    cr_assert_eq(pager_bytes(pager), alone);
    for (uint32_t k = 0; k < N_FORK; k++) {
        for (uint64_t b = FIRST_READ; b < FIRST_READ + N_READ; b++)
            (void)read_in(fork[k], i, b);
        paging_destroy(fork[k]);
        cr_assert_eq(pager_bytes(pager), k + 1 < N_FORK ? alone : 0);
    }
    cr_assert_eq(pager_n_read(pager), N_READ);
    cr_assert_eq(pager_shared_bytes(pager), 0);
}

/* Whatever one lets go, the bytes of what another holds stay; and each counts
 * what it has as its own or as shared. */
Test(paging, one_may_push_out_what_another_sees)
{
    struct paging *it[2] = {paging, NULL};
    const uint32_t i = first_paged();
    uint64_t x = 1;

    cr_assert_eq(paging_create(model, &policy, pager,
                               paging_least(model, &policy), &it[1]),
                 STATUS_OK);
    load_into(it[0]);
    load_into(it[1]);
    for (int round = 0; round < 400; round++) {
        size_t own = 0;

        x = x * 6364136223846793005u + 1;
        (void)read_in(it[x >> 63], i, (x >> 33) % N_BLOCK);
        if (round % 100 == 99) {
            paging_clear(it[x >> 62 & 1]);
            load_into(it[x >> 62 & 1]);
        }
        for (int k = 0; k < 2; k++)
            own += paging_held_bytes(it[k]) - paging_shared_bytes(it[k]);
        cr_assert_leq(pager_bytes(pager), own + pager_shared_bytes(pager));
        cr_assert_leq(pager_shared_bytes(pager), pager_bytes(pager));
    }
    paging_destroy(it[1]);
    cr_assert_lt(pager_n_read(pager), 400);
}

/* A fork sees the blocks and indices of the other, goes on apart from it, and
 * has them when that is gone. */
Test(paging, is_forked)
{
    const uint32_t i = first_paged();
    const size_t n = plan_of(i)->block_bytes;
    struct paging *fork;

    load();
    cr_assert_eq(paging_reserve(paging, N_BLOCK + 1), STATUS_OK);
    cr_assert(paging_may_fork(paging));
    pattern(paging_blocks(paging, i)[N_BLOCK], n, N_BLOCK, i);
    cr_assert_eq(paging_shared_bytes(paging), 0);
    cr_assert_eq(paging_fork(paging, &fork), STATUS_OK);
    cr_assert_gt(paging_shared_bytes(fork), 0); /* indices */
    cr_assert_eq(paging_shared_bytes(paging), paging_shared_bytes(fork));
    cr_assert_eq(pager_shared_bytes(pager), paging_shared_bytes(fork));
    cr_assert_eq(paging_n_block(fork), N_BLOCK + 1);
    cr_assert_eq(paging_n_stored(fork), N_BLOCK);
    cr_assert(has_pattern(paging_blocks(fork, i)[N_BLOCK], n, N_BLOCK, i));
    cr_assert_neq(paging_blocks(fork, i)[N_BLOCK],
                  paging_blocks(paging, i)[N_BLOCK]);
    for (uint64_t b = 0; b < N_BLOCK; b++)
        cr_assert_eq(memcmp(paging_indices(fork, i)[b],
                            paging_indices(paging, i)[b],
                            plan_of(i)->short_bytes),
                     0);
    memset(paging_indices(fork, i)[N_BLOCK], 1, 1);
    memset(paging_indices(paging, i)[N_BLOCK], 2, 1);
    cr_assert_eq(*(char *)paging_indices(fork, i)[N_BLOCK], 1);
    (void)read_in(paging, i, 10); /* in the base's log */
    (void)read_in(paging, i, 40); /* in its own */
    cr_assert_eq(read_in(fork, i, 10), read_in(paging, i, 10));
    cr_assert_eq(read_in(fork, i, 40), read_in(paging, i, 40));
    cr_assert_eq(pager_n_read(pager), 2);
    cr_assert_eq(paging_reserve(paging, N_BLOCK + 2), STATUS_OK);
    cr_assert_not(paging_may_fork(paging)); /* one is full and not stored */
    paging_clear(paging);
    (void)read_in(fork, i, 10);
    (void)read_in(fork, i, 41);
    cr_assert_not(paging_is_lost(fork));
    paging_destroy(fork);
    cr_assert_eq(pager_bytes(pager), 0);
    cr_assert_eq(pager_shared_bytes(pager), 0);
}

/* Without a session's block in RAM, a fork finds none of another policy or
 * another log. */
Test(paging, another_block_is_never_found)
{
    const struct page_wanted name = {own_log, 30, first_paged(),
                                     policy_digest(&policy)};
    struct page_wanted other[4] = {name, name, name, name};
    struct page *found;

    load();
    (void)read_in(paging, name.layer, name.block);
    other[0].log = base_log;
    other[1].block++;
    other[2].layer++;
    other[3].policy.lo++;
    for (int k = 0; k < 4; k++)
        cr_assert_null(pager_find(pager, &other[k]));
    found = pager_find(pager, &name);
    cr_assert_not_null(found);
    pager_give(pager, found);
    paging_clear(paging);
    cr_assert_null(pager_find(pager, &name));
}

/* Within its limit it has what it sees, like any; a wider one takes effect, a
 * narrower one drops nothing. What goes on request is read again, with what is
 * not stored staying where it is. */
Test(paging, has_as_many_pages_as_it_may)
{
    const size_t least = paging_least(model, &policy);
    const uint32_t i = first_paged();
    const size_t n = plan_of(i)->block_bytes;
    const void *open;
    size_t held;

    paging_destroy(paging);
    cr_assert_eq(paging_create(model, &policy, pager, 3 * least, &paging),
                 STATUS_OK);
    load();
    paging_limit(paging, N_BLOCK);
    for (uint64_t b = 0; b < N_BLOCK; b++)
        (void)read_in(paging, i, b);
    cr_assert_leq(pager_bytes(pager), least);
    cr_assert_geq(paging_grown_bytes(paging, N_BLOCK),
                  paging_held_bytes(paging));
    paging_limit(paging, UINT64_MAX);
    for (uint64_t b = 0; b < N_BLOCK; b++)
        (void)read_in(paging, i, b);
    cr_assert_gt(pager_bytes(pager), 2 * least);
    held = paging_held_bytes(paging);
    paging_limit(paging, 0);
    cr_assert_eq(paging_held_bytes(paging), held);
    cr_assert_geq(paging_grown_bytes(paging, N_BLOCK), held);

    cr_assert_eq(paging_reserve(paging, N_BLOCK + 1), STATUS_OK);
    open = paging_blocks(paging, i)[N_BLOCK];
    pattern(paging_blocks(paging, i)[N_BLOCK], n, N_BLOCK, i);
    cr_assert(paging_trim(paging));
    cr_assert_not(paging_trim(paging));
    cr_assert_leq(pager_bytes(pager), n_layer() * page_size(n));
    cr_assert_eq(paging_blocks(paging, i)[N_BLOCK], open);
    cr_assert(has_pattern(open, n, N_BLOCK, i));
    for (uint64_t b = 0; b < N_BLOCK; b++)
        (void)read_in(paging, i, b);
    cr_assert(has_pattern(open, n, N_BLOCK, i));
    cr_assert_not(paging_is_lost(paging));
}

static bool was_trimmed(void)
{
    struct timespec end;

    (void)clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 20;
    return sem_timedwait(&trims, &end) == 0;
}

/* An idle session that leaves has next to no pages left, but the indices of a
 * million tokens. */
Test(paging, indices_go_back_to_the_system, .timeout = 240)
{
    const size_t least = paging_least(model, &policy);
    uint64_t n_block = N_BLOCK;
    struct paging *fork;

    while (paging_bytes(model, &policy, least, n_block) < least + (16u << 20))
        n_block *= 2;
    cr_assert_eq(paging_expect(paging, n_block), STATUS_OK);
    paging_loaded(paging, n_block, &(struct log_path){0}, own_log);
    cr_assert_eq(pager_bytes(pager), 0);
    cr_assert_eq(paging_fork(paging, &fork), STATUS_OK);
    paging_clear(paging);
    cr_assert_eq(sem_trywait(&trims), -1, "the fork has them");
    paging_destroy(fork);
    cr_assert(was_trimmed());
}
