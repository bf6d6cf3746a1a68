#ifndef TESTS_UNIT_SCHEDULER_STORED_FIXTURE_H
#define TESTS_UNIT_SCHEDULER_STORED_FIXTURE_H
/*
 * What is stored, spoiled behind the engine's back: the n-th row of a kind is
 * found by its key and written again with a flipped bit, or deleted.
 */
#include "tests/unit/scheduler/fork_fixture.h"

struct row_of {
    unsigned char key[STORE_KEY_MAX];
    size_t key_bytes;
    unsigned char *value; /* free() */
    size_t value_bytes;
};

/* The n-th row of a log, or false if it has fewer. */
static inline bool row_find(struct store *store, char letter, struct uid log,
                            uint32_t n, struct row_of *out)
{
    struct key from = key_of(letter, log), to = key_after(from);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    bool is_there = false;

    must(store_scan_open(
        store, &(struct store_range){from.bytes, from.n, to.bytes, to.n}, false,
        &scan));
    while (!is_there &&
           store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        is_there = n-- == 0;
    if (is_there) {
        memcpy(out->key, key, key_bytes);
        out->key_bytes = key_bytes;
        out->value = malloc(value_bytes + 1);
        need(out->value != NULL);
        memcpy(out->value, value, value_bytes);
        out->value_bytes = value_bytes;
    }
    store_scan_close(scan);
    return is_there;
}

static inline void row_put(struct store *store, const struct row_of *row)
{
    struct store_batch *batch = store_batch_create(store);

    store_batch_put(batch, row->key, row->key_bytes, row->value,
                    row->value_bytes);
    must(store_write(store, batch, true));
    store_batch_destroy(batch);
}

/* False: there is no n-th row. */
static inline bool row_flip(struct store *store, char letter, struct uid log,
                            uint32_t n)
{
    struct row_of row;

    if (!row_find(store, letter, log, n, &row))
        return false;
    row.value[row.value_bytes - 1 - row.value_bytes / 3] ^= 4;
    row_put(store, &row);
    free(row.value);
    return true;
}

static inline bool row_remove(struct store *store, char letter, struct uid log,
                              uint32_t n)
{
    struct store_batch *batch = store_batch_create(store);
    struct row_of row;
    bool is_there = row_find(store, letter, log, n, &row);

    if (is_there) {
        store_batch_delete(batch, row.key, row.key_bytes);
        must(store_write(store, batch, true));
        free(row.value);
    }
    store_batch_destroy(batch);
    return is_there;
}

static inline struct uid log_of(const struct node *node, const char *name)
{
    return session_log(table_find(node->engine, name));
}
#endif
