#ifndef STATE_STORE_H
#define STATE_STORE_H
/*
 * An ordered, durable map from bytes to bytes: the only thing that sessions
 * need of a database. Two implementations: RocksDB (store_rocksdb.c, the only
 * file that knows it; large values of STORE_BULK lie in files beside it,
 * store_segments.c) and memory (store_memory.c, for tests: it can also fail
 * the n-th call, lose what was not synced, and flip bits). Calls of different
 * threads may overlap; of STORE_BULK only store_get() with all others.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_KEY_MAX 512u /* bytes; a key does not begin with a NUL */
#define STORE_FAULT_KEY 32u
#define STORE_BATCH_MAX (512u << 20) /* bytes of one batch */

struct store;
struct writer;
struct store_batch; /* writes that become visible together or not at all */
struct store_scan;  /* a range read from one moment's view */

enum store_kind {
    STORE_JOURNAL, /* tiny values, synced every step, point-in-time recovery */
    STORE_BULK,    /* large values, which carry their own digests */
};

/*
 * Open or create the database in directory `path`.
 *   FAILED_PRECONDITION  another process holds it: says so; or its format
 *                        version is not ours
 *   PERMISSION_DENIED    the directory cannot be made or written
 *   DATA_LOSS            the database is damaged
 *   INTERNAL             anything else RocksDB says
 */
MUST_CHECK enum status
store_open_rocksdb(const char *path, enum store_kind kind, struct store **out);

/*
 * Faults that a test plants in a store in memory; zero-initialised: none. Plain
 * fields: set them while no other thread uses the store. A call is a write, a
 * get, a scan_open or a scan_next; one that fails changes nothing.
 */
struct store_faults {
    uint64_t fail_at;  /* the n-th call from now fails with UNAVAILABLE */
    bool is_read_only; /* every write fails with RESOURCE_EXHAUSTED: full */
    /* Values whose key begins so cannot be read (INTERNAL); 0 bytes: none */
    unsigned char unreadable[STORE_FAULT_KEY];
    size_t unreadable_bytes;
};
/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status store_open_memory(struct store **out);
struct store_faults *store_memory_faults(struct store *store);
/* Forget what was never synced, as a power cut does. */
void store_memory_crash(struct store *store);
/* Accepts NULL. Its scans must be closed before. */
void store_close(struct store *store);

/*
 * NULL: no memory. Order of calls is kept; a later put of a key wins. A call
 * that finds no memory or passes STORE_BATCH_MAX spoils the batch: the write
 * fails with RESOURCE_EXHAUSTED, so nobody checks each put.
 */
struct store_batch *store_batch_create(struct store *store);
void store_batch_destroy(struct store_batch *batch);
void store_batch_clear(struct store_batch *batch);
void store_batch_put(struct store_batch *batch, const void *key,
                     size_t key_bytes, const void *value, size_t value_bytes);
/* The same for a value that the caller writes, behind what the writer has, up
 * to the end of the put: so that large ones are copied once. */
struct writer *store_batch_begin_put(struct store_batch *batch, const void *key,
                                     size_t key_bytes);
void store_batch_end_put(struct store_batch *batch);
void store_batch_delete(struct store_batch *batch, const void *key,
                        size_t key_bytes);
/* Every key in [from, to). */
void store_batch_delete_range(struct store_batch *batch, const void *from,
                              size_t from_bytes, const void *to,
                              size_t to_bytes);
size_t store_batch_bytes(const struct store_batch *batch);

/*
 * Apply a batch; with `sync` it and everything written before it survive a
 * power cut when this returns.
 *   RESOURCE_EXHAUSTED   the disk is full, writes work again once it is not;
 *                        or the batch is spoilt
 *   FAILED_PRECONDITION  the database turned read-only after an I/O error
 *   DATA_LOSS, INTERNAL  anything else RocksDB says
 */
MUST_CHECK enum status store_write(struct store *store,
                                   const struct store_batch *batch, bool sync);
/* The same for several at once, in order: all become visible or none. */
MUST_CHECK enum status store_write_all(struct store *store,
                                       const struct store_batch *const *batch,
                                       uint32_t n_batch, bool sync);

/*
 * *out is a copy that the caller frees with free().
 *   NOT_FOUND           no such key
 *   DATA_LOSS           its bytes fail the block checksum
 *   RESOURCE_EXHAUSTED  no memory
 *   INTERNAL            the disk failed
 */
MUST_CHECK enum status store_get(struct store *store, const void *key,
                                 size_t key_bytes, void **out,
                                 size_t *out_bytes);

/* Keys in [from, to). */
struct store_range {
    const void *from;
    size_t from_bytes;
    const void *to;
    size_t to_bytes;
};

/*
 * Walk a range ascending, or descending from the last key below `to`, as it
 * was when the scan was opened. scan_next() returns false at the end or on an
 * error (scan_status(): DATA_LOSS, INTERNAL). Key and value are borrowed until
 * the next call.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status store_scan_open(struct store *store,
                                       const struct store_range *range,
                                       bool is_descending,
                                       struct store_scan **out);
bool store_scan_next(struct store_scan *scan, const void **out_key,
                     size_t *out_key_bytes, const void **out_value,
                     size_t *out_value_bytes);
enum status store_scan_status(const struct store_scan *scan);
void store_scan_close(struct store_scan *scan);
#endif
