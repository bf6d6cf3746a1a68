/*
 * Both stores run the same random operations, judged by an unsorted list with
 * linear search. Then what only the memory has: planned faults and crashes.
 */
#include "state/store.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_KEY = 200, N_ROUND = 400, N_OP_MAX = 12 };

/* Key i is "k" and i as 3 digits, so byte order is number order. */
struct model {
    bool is_there[N_KEY];
    uint32_t value[N_KEY];
};

static uint64_t seed = 1;
static uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

static void key_text(char key[8], uint32_t i)
{
    (void)snprintf(key, 8, "k%03u", i);
}

/* Values of many lengths, 0 included: n bytes of n's low byte. */
static size_t value_of(uint32_t value, unsigned char *out)
{
    size_t n = value % 300;

    memset(out, (int)(value & 0xff), n);
    return n;
}

static void random_op(struct store_batch *batch, struct model *model)
{
    uint32_t i = random_below(N_KEY), kind = random_below(8);
    uint32_t value = random_below(1000000), end;
    unsigned char bytes[300];
    char key[8], to[8];

    key_text(key, i);
    if (kind < 5) {
        store_batch_put(batch, key, 4, bytes, value_of(value, bytes));
        model->is_there[i] = true;
        model->value[i] = value;
    } else if (kind < 7) {
        store_batch_delete(batch, key, 4);
        model->is_there[i] = false;
    } else {
        end = i + random_below(10);
        key_text(to, end);
        store_batch_delete_range(batch, key, 4, to, 4);
        for (; i < end && i < N_KEY; i++)
            model->is_there[i] = false;
    }
}

static void check_value(uint32_t value, const void *bytes, size_t n)
{
    unsigned char expected[300];

    cr_assert_eq(n, value_of(value, expected));
    cr_assert_eq(memcmp(bytes, expected, n), 0);
}

/* Keys in [from, to) of the scan and the model agree. */
static void check_scan(struct store_scan *scan, const struct model *model,
                       uint32_t from, uint32_t to, bool is_descending)
{
    const void *key, *value;
    size_t key_bytes, value_bytes;

    for (uint32_t step = 0; step < to - from; step++) {
        uint32_t i = is_descending ? to - 1 - step : from + step;
        char expected[8];

        if (!model->is_there[i])
            continue;
        key_text(expected, i);
        cr_assert(store_scan_next(scan, &key, &key_bytes, &value, &value_bytes),
                  "%u is missing", i);
        cr_assert_eq(key_bytes, 4);
        cr_assert_eq(memcmp(key, expected, 4), 0, "found %.4s, expected %s",
                     (const char *)key, expected);
        check_value(model->value[i], value, value_bytes);
    }
    cr_assert_not(
        store_scan_next(scan, &key, &key_bytes, &value, &value_bytes));
    cr_assert_eq(store_scan_status(scan), STATUS_OK);
}

static struct store_scan *scan_of(struct store *store, uint32_t from,
                                  uint32_t to, bool is_descending)
{
    struct store_scan *scan;
    char a[8], b[8];

    key_text(a, from);
    key_text(b, to);
    cr_assert_eq(store_scan_open(store, &(struct store_range){a, 4, b, 4},
                                 is_descending, &scan),
                 STATUS_OK);
    return scan;
}

static void check_all(struct store *store, const struct model *model)
{
    for (uint32_t i = 0; i < N_KEY; i++) {
        char key[8];
        void *value;
        size_t n;
        enum status st;

        key_text(key, i);
        st = store_get(store, key, 4, &value, &n);
        cr_assert_eq(st, model->is_there[i] ? STATUS_OK : STATUS_NOT_FOUND,
                     "%s: %s", key, status_name(st));
        if (st)
            continue;
        check_value(model->value[i], value, n);
        free(value);
    }
}

static void run(struct store *store)
{
    struct model model = {0};
    struct store_batch *batch = store_batch_create(store);

    for (int round = 0; round < N_ROUND; round++) {
        uint32_t from = random_below(N_KEY), n = random_below(N_KEY - from);
        bool is_descending = random_below(2);
        struct model before = model;
        struct store_scan *scan = scan_of(store, from, from + n, is_descending);

        for (uint32_t n_op = random_below(N_OP_MAX); n_op > 0; n_op--)
            random_op(batch, &model);
        cr_assert_eq(store_write(store, batch, random_below(4) == 0),
                     STATUS_OK);
        store_batch_clear(batch);
        cr_assert_eq(store_batch_bytes(batch), 0);
        check_scan(scan, &before, from, from + n, is_descending);
        store_scan_close(scan);
        scan = scan_of(store, from, from + n, is_descending);
        check_scan(scan, &model, from, from + n, is_descending);
        store_scan_close(scan);
    }
    check_all(store, &model);
    store_batch_destroy(batch);
}

Test(store, in_memory_is_an_ordered_map_with_views)
{
    struct store *store;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    run(store);
    store_close(store);
    store_close(NULL);
}

Test(store, rocksdb_is_an_ordered_map_with_views)
{
    char dir[] = "/tmp/godwit-store-XXXXXX", command[64];
    struct store *store;

    for (int kind = 0; kind < 2; kind++) {
        cr_assert(mkdtemp(dir));
        cr_assert_eq(
            store_open_rocksdb(dir, kind ? STORE_BULK : STORE_JOURNAL, &store),
            STATUS_OK, "%s", status_reason());
        run(store);
        store_close(store);
        (void)snprintf(command, sizeof(command), "rm -r %s", dir);
        cr_assert_eq(system(command), 0);
        strcpy(dir, "/tmp/godwit-store-XXXXXX");
    }
}

Test(store, several_batches_are_one_write_in_order)
{
    struct store *store;
    struct store_batch *batch[2];
    void *value;
    size_t n;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    batch[0] = store_batch_create(store);
    batch[1] = store_batch_create(store);
    store_batch_put(batch[0], "a", 1, "old", 3);
    store_batch_put(batch[0], "b", 1, "old", 3);
    store_batch_put(batch[1], "a", 1, "newer", 5);
    store_memory_faults(store)->fail_at = 1;
    cr_assert_eq(store_write_all(
                     store, (const struct store_batch *const *)batch, 2, true),
                 STATUS_UNAVAILABLE);
    cr_assert_eq(store_get(store, "a", 1, &value, &n), STATUS_NOT_FOUND);
    cr_assert_eq(store_write_all(
                     store, (const struct store_batch *const *)batch, 2, true),
                 STATUS_OK);
    cr_assert_eq(store_get(store, "a", 1, &value, &n), STATUS_OK);
    cr_assert_eq(n, 5);
    free(value);
    store_batch_destroy(batch[0]);
    store_batch_destroy(batch[1]);
    store_batch_destroy(NULL);
    store_close(store);
}

Test(store, memory_fails_the_nth_call_and_changes_nothing)
{
    struct store *store;
    struct store_batch *batch;
    struct store_scan *scan;
    const void *k, *v;
    size_t n, m;
    void *value;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    batch = store_batch_create(store);
    store_batch_put(batch, "k001", 4, "x", 1);
    store_memory_faults(store)->fail_at = 2;
    cr_assert_eq(store_write(store, batch, false), STATUS_OK);
    cr_assert_eq(store_get(store, "k001", 4, &value, &n), STATUS_UNAVAILABLE);
    store_memory_faults(store)->fail_at = 1;
    cr_assert_eq(store_scan_open(store, &(struct store_range){"a", 1, "z", 1},
                                 false, &scan),
                 STATUS_UNAVAILABLE);
    store_memory_faults(store)->fail_at = 2;
    scan = scan_of(store, 0, 9, false);
    cr_assert_not(store_scan_next(scan, &k, &n, &v, &m));
    cr_assert_eq(store_scan_status(scan), STATUS_UNAVAILABLE);
    cr_assert_not(store_scan_next(scan, &k, &n, &v, &m), "stays failed");
    store_scan_close(scan);

    store_memory_faults(store)->is_read_only = true;
    store_batch_put(batch, "k002", 4, "x", 1);
    cr_assert_eq(store_write(store, batch, false), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(store_get(store, "k002", 4, &value, &n), STATUS_NOT_FOUND);
    store_memory_faults(store)->is_read_only = false;
    cr_assert_eq(store_write(store, batch, false), STATUS_OK);
    store_batch_destroy(batch);
    store_close(store);
}

Test(store, memory_crash_gives_what_was_synced)
{
    static struct model model, synced;
    struct store *store;
    struct store_batch *batch;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    batch = store_batch_create(store);
    for (int round = 0; round < 3000; round++) {
        bool sync = random_below(7) == 0;

        random_op(batch, &model);
        cr_assert_eq(store_write(store, batch, sync), STATUS_OK);
        store_batch_clear(batch);
        if (sync)
            synced = model;
        if (random_below(40) == 0) {
            store_memory_crash(store);
            model = synced;
            check_all(store, &model);
        }
    }
    store_batch_destroy(batch);
    store_close(store);
}
