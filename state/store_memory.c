/*
 * The store for tests and simulation: a sorted array of entries. Entries never
 * change once made and are counted, so a scan keeps its moment's view by
 * holding them. What was written since the last sync stands in an undo log,
 * which a crash plays backwards.
 *
 * The lock stands in for RocksDB's own: calls of different threads overlap.
 */
#include "state/store_calls.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    uint32_t n_ref; /* under the store's lock */
    size_t key_bytes, value_bytes;
    unsigned char bytes[]; /* key, value */
};

struct entries {
    struct entry **at;
    size_t n, capacity;
};

/* Before the write, `key` stood for `old` (NULL: was absent). */
struct undo {
    struct entry *key; /* any entry that holds the key's bytes */
    struct entry *old;
};

struct store_memory {
    struct store base;
    pthread_mutex_t lock;
    struct entries map; /* ascending by key */
    struct undo *undo;
    size_t n_undo, undo_capacity;
    struct store_faults faults;
};

struct scan_memory {
    struct store_scan base;
    struct store_memory *store;
    struct entries view; /* in the order of the scan */
    size_t next;
    enum status status;
};

static struct store_memory *memory_of(struct store *store)
{
    return (struct store_memory *)(void *)store;
}

static int compare(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);

    return order ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

static struct entry *entry_make(const void *key, size_t key_bytes,
                                const void *value, size_t value_bytes)
{
    struct entry *entry = malloc(sizeof(*entry) + key_bytes + value_bytes);

    if (!entry)
        return NULL;
    entry->n_ref = 1;
    entry->key_bytes = key_bytes;
    entry->value_bytes = value_bytes;
    memcpy(entry->bytes, key, key_bytes);
    if (value_bytes > 0)
        memcpy(entry->bytes + key_bytes, value, value_bytes);
    return entry;
}

static struct entry *entry_keep(struct entry *entry)
{
    if (entry)
        entry->n_ref++;
    return entry;
}

static void entry_drop(struct entry *entry)
{
    if (entry && --entry->n_ref == 0)
        free(entry);
}

/* First place whose key is not below `key`. */
static size_t find(const struct entries *map, const void *key, size_t key_bytes)
{
    size_t low = 0, high = map->n;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct entry *entry = map->at[middle];

        if (compare(entry->bytes, entry->key_bytes, key, key_bytes) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const struct entries *map, size_t i, const void *key,
                  size_t key_bytes)
{
    return i < map->n && compare(map->at[i]->bytes, map->at[i]->key_bytes, key,
                                 key_bytes) == 0;
}

static bool entries_reserve(struct entries *entries, size_t n)
{
    size_t capacity = entries->capacity ? entries->capacity : 16;
    struct entry **at;

    if (entries->at && n <= entries->capacity)
        return true;
    while (capacity < n)
        capacity *= 2;
    at = realloc(entries->at, capacity * sizeof(struct entry *));
    if (!at)
        return false;
    entries->at = at;
    entries->capacity = capacity;
    return true;
}

/* Make place i hold `entry`, before it, instead of it, or (NULL) nothing. */
static void set_at(struct entries *map, size_t i, bool is_there,
                   struct entry *entry)
{
    size_t n_behind = map->n - i - (is_there ? 1 : 0);
    struct entry **from = map->at + i + (is_there ? 1 : 0);
    struct entry **to = map->at + i + (entry ? 1 : 0);

    if (is_there)
        entry_drop(map->at[i]);
    if (from != to && n_behind > 0)
        memmove(to, from, n_behind * sizeof(struct entry *));
    if (entry)
        map->at[i] = entry;
    map->n = i + (entry ? 1 : 0) + n_behind;
}

static void undo_to(struct store_memory *memory, size_t n)
{
    while (memory->n_undo > n) {
        struct undo *undo = &memory->undo[--memory->n_undo];
        const struct entry *key = undo->key;
        size_t i = find(&memory->map, key->bytes, key->key_bytes);
        bool is_there = is_at(&memory->map, i, key->bytes, key->key_bytes);

        if (is_there || undo->old)
            set_at(&memory->map, i, is_there, undo->old);
        entry_drop(undo->key);
    }
}

static void undo_forget(struct store_memory *memory)
{
    for (size_t i = 0; i < memory->n_undo; i++) {
        entry_drop(memory->undo[i].key);
        entry_drop(memory->undo[i].old);
    }
    memory->n_undo = 0;
}

/* Change place i and note how to go back. False: no memory, nothing done. */
static bool change(struct store_memory *memory, size_t i, bool is_there,
                   struct entry *entry)
{
    struct entry *old = is_there ? memory->map.at[i] : NULL;

    if (memory->n_undo == memory->undo_capacity) {
        size_t capacity =
            memory->undo_capacity ? 2 * memory->undo_capacity : 16;
        struct undo *undo = realloc(memory->undo, capacity * sizeof(*undo));

        if (!undo)
            return false;
        memory->undo = undo;
        memory->undo_capacity = capacity;
    }
    /* One place more than needed, so that undo_to() never allocates. */
    if (!entries_reserve(&memory->map, memory->map.n + memory->n_undo + 2))
        return false;
    memory->undo[memory->n_undo++] = (struct undo){
        .key = entry_keep(entry ? entry : old), .old = entry_keep(old)};
    set_at(&memory->map, i, is_there, entry);
    return true;
}

static bool apply(struct store_memory *memory, const struct store_op *op)
{
    size_t i = find(&memory->map, op->key, op->key_bytes);
    bool is_there = is_at(&memory->map, i, op->key, op->key_bytes);
    struct entry *entry;

    switch (op->kind) {
    case STORE_PUT:
        entry = entry_make(op->key, op->key_bytes, op->value, op->value_bytes);
        if (entry && change(memory, i, is_there, entry))
            return true;
        entry_drop(entry);
        return false;
    case STORE_DELETE_KEY:
        return !is_there || change(memory, i, true, NULL);
    case STORE_DELETE_RANGE:
        while (i < memory->map.n &&
               compare(memory->map.at[i]->bytes, memory->map.at[i]->key_bytes,
                       op->value, op->value_bytes) < 0)
            if (!change(memory, i, true, NULL))
                return false;
        return true;
    }
    return false;
}

/* Under the lock: is this the call that shall fail? */
static enum status fault(struct store_memory *memory)
{
    if (memory->faults.fail_at > 0 && --memory->faults.fail_at == 0)
        return status_fail(STATUS_UNAVAILABLE, "store fails as planned");
    return STATUS_OK;
}

/* A sector that the disk does not give back. */
static enum status read_fault(const struct store_memory *memory,
                              const void *key, size_t key_bytes)
{
    const struct store_faults *faults = &memory->faults;

    if (faults->unreadable_bytes == 0 || key_bytes < faults->unreadable_bytes ||
        memcmp(key, faults->unreadable, faults->unreadable_bytes) != 0)
        return STATUS_OK;
    return status_fail(STATUS_INTERNAL, "disk cannot be read, as planned");
}

static enum status memory_write(struct store *store,
                                const struct store_batch *const *batch,
                                uint32_t n_batch, bool sync)
{
    struct store_memory *memory = memory_of(store);
    size_t n_undo;
    enum status st;

    pthread_mutex_lock(&memory->lock);
    n_undo = memory->n_undo;
    st = fault(memory);
    if (!st && memory->faults.is_read_only)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "store is full");
    for (uint32_t i = 0; !st && i < n_batch; i++) {
        struct store_op op;
        size_t at = 0;

        while (!st && store_batch_next(batch[i], &at, &op))
            if (!apply(memory, &op))
                st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                                 "no memory for a store of %zu entries",
                                 memory->map.n);
    }
    if (st)
        undo_to(memory, n_undo);
    else if (sync)
        undo_forget(memory);
    pthread_mutex_unlock(&memory->lock);
    return st;
}

static enum status memory_get(struct store *store, const void *key,
                              size_t key_bytes, void **out, size_t *out_bytes)
{
    struct store_memory *memory = memory_of(store);
    enum status st;
    size_t i;

    pthread_mutex_lock(&memory->lock);
    st = fault(memory);
    if (!st)
        st = read_fault(memory, key, key_bytes);
    if (st)
        goto out;
    i = find(&memory->map, key, key_bytes);
    if (is_at(&memory->map, i, key, key_bytes)) {
        const struct entry *entry = memory->map.at[i];
        void *copy = malloc(entry->value_bytes + 1);

        if (!copy) {
            st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "no memory for a value of %zu bytes",
                             entry->value_bytes);
            goto out;
        }
        memcpy(copy, entry->bytes + key_bytes, entry->value_bytes);
        *out = copy;
        *out_bytes = entry->value_bytes;
    } else {
        st = status_fail(STATUS_NOT_FOUND, "store has no such key");
    }
out:
    pthread_mutex_unlock(&memory->lock);
    return st;
}

static enum status memory_scan_open(struct store *store,
                                    const struct store_range *range,
                                    bool is_descending, struct store_scan **out)
{
    struct store_memory *memory = memory_of(store);
    struct scan_memory *scan = calloc(1, sizeof(*scan));
    size_t begin, end;
    enum status st;

    pthread_mutex_lock(&memory->lock);
    st = fault(memory);
    if (st)
        goto out;
    begin = find(&memory->map, range->from, range->from_bytes);
    end = find(&memory->map, range->to, range->to_bytes);
    end = end < begin ? begin : end;
    if (!scan || !entries_reserve(&scan->view, end - begin)) {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                         "no memory to scan %zu entries", end - begin);
        goto out;
    }
    for (size_t i = begin; i < end; i++)
        scan->view.at[scan->view.n++] = entry_keep(
            memory->map.at[is_descending ? end - 1 - (i - begin) : i]);
    scan->base.calls = store->calls;
    scan->store = memory;
    *out = &scan->base;
    scan = NULL;
out:
    pthread_mutex_unlock(&memory->lock);
    if (scan)
        free(scan->view.at);
    free(scan);
    return st;
}

static bool memory_scan_next(struct store_scan *base, const void **out_key,
                             size_t *out_key_bytes, const void **out_value,
                             size_t *out_value_bytes)
{
    struct scan_memory *scan = (struct scan_memory *)(void *)base;
    const struct entry *entry;

    if (scan->status)
        return false;
    pthread_mutex_lock(&scan->store->lock);
    scan->status = fault(scan->store);
    pthread_mutex_unlock(&scan->store->lock);
    if (scan->status || scan->next == scan->view.n)
        return false;
    entry = scan->view.at[scan->next];
    scan->status = read_fault(scan->store, entry->bytes, entry->key_bytes);
    if (scan->status)
        return false;
    scan->next++;
    *out_key = entry->bytes;
    *out_key_bytes = entry->key_bytes;
    *out_value = entry->bytes + entry->key_bytes;
    *out_value_bytes = entry->value_bytes;
    return true;
}

static enum status memory_scan_status(const struct store_scan *base)
{
    return ((const struct scan_memory *)(const void *)base)->status;
}

static void memory_scan_close(struct store_scan *base)
{
    struct scan_memory *scan = (struct scan_memory *)(void *)base;

    pthread_mutex_lock(&scan->store->lock);
    for (size_t i = 0; i < scan->view.n; i++)
        entry_drop(scan->view.at[i]);
    pthread_mutex_unlock(&scan->store->lock);
    free(scan->view.at);
    free(scan);
}

static void memory_close(struct store *store)
{
    struct store_memory *memory = memory_of(store);

    undo_forget(memory);
    for (size_t i = 0; i < memory->map.n; i++)
        entry_drop(memory->map.at[i]);
    free(memory->map.at);
    free(memory->undo);
    (void)pthread_mutex_destroy(&memory->lock);
    free(memory);
}

static const struct store_calls calls = {
    .close = memory_close,
    .write = memory_write,
    .get = memory_get,
    .scan_open = memory_scan_open,
    .scan_next = memory_scan_next,
    .scan_status = memory_scan_status,
    .scan_close = memory_scan_close,
};

enum status store_open_memory(struct store **out)
{
    struct store_memory *memory = calloc(1, sizeof(*memory));

    if (!memory)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a store");
    memory->base.calls = &calls;
    (void)pthread_mutex_init(&memory->lock, NULL);
    *out = &memory->base;
    return STATUS_OK;
}

struct store_faults *store_memory_faults(struct store *store)
{
    assert(store->calls == &calls);
    return &memory_of(store)->faults;
}

void store_memory_crash(struct store *store)
{
    struct store_memory *memory = memory_of(store);

    assert(store->calls == &calls);
    pthread_mutex_lock(&memory->lock);
    undo_to(memory, 0);
    pthread_mutex_unlock(&memory->lock);
}
