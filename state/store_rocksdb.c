/*
 * The store on RocksDB, and the only file that knows it.
 *
 * Journal and bulk are two databases: a synced write flushes every unsynced
 * byte of its own database, so bulk data beside the journal would stall tokens.
 *
 * Large bulk values lie in segment files beside the database, which has rows
 * that name them (state/store_segments.h): in SST files as in BlobDB they were
 * written at 200 to 340 MB/s, measured with RocksDB 7.8.3 on 2 cores and a
 * virtual disk, 256 MB of values of 64 KiB to 1 MiB. Each byte is copied eight
 * times there, and the log's CRC32C is computed in software.
 *
 * The journal's log must not lose a committed row in silence. Point-in-time
 * recovery reads a log that is damaged in the middle as one that ends there, so
 * the journal is first opened in the mode that takes only a torn end for an
 * end; damage elsewhere is an error in the log, and then what lies before it is
 * kept (snapshots that are ahead of it tell which sessions lost something). The
 * price is that old logs cannot be recycled: 2,800 commits/s of one synced row
 * instead of 4,100, measured; a step's sync hides behind the next step.
 */
#include "state/store_calls.h"

#include "base/log.h"
#include "state/store_segments.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES_MAX 4096u
/*
 * What a database holds in memory is part of a node's budget, so it is the same
 * whatever is stored: a cache, in which tables' indices are, too, but for their
 * top levels (8 KiB for 64 MiB), and two buffers of rows, of which one is being
 * written. A buffer is a table of level 0; those are merged when there are 16
 * MiB of the journal, 4 MiB of rows that name values, which are few.
 */
#define CACHE_BYTES (1u << 20)
#define BUFFER_BYTES (1u << 20)
#define FILE_BUFFER_BYTES (256u << 10) /* of a file that is written */
#define JOURNAL_TABLES 16
#define BULK_TABLES 4
#define TABLES_SLOW 64 /* far above: writes wait for merges then */
#define TABLES_STOP 96
#define WAL_SYNC_BYTES                                                         \
    (1u << 20) /* written back early, so a sync waits less                     \
                */
#define JOURNAL_WAL_BYTES (16u << 20)
#define BULK_WAL_BYTES (32u << 20)
#define LOG_FILE_BYTES (1u << 20)
#define LOG_FILE_MAX 2u
#define LOG_LEVEL_WARN 2
#define OPEN_FILE_MAX 256
#define BACKGROUND_MAX 2
#define CHECKSUM_XXH3 4

/* Keys that begin with a NUL are ours; users' come after. */
static const char format_key[] = "\0format";
#define FORMAT_KEY_BYTES (sizeof(format_key) - 1)
#define FORMAT_SIZE 32

struct store_rocksdb {
    struct store base;
    rocksdb_t *db;
    rocksdb_writeoptions_t *write_synced, *write_plain;
    rocksdb_readoptions_t *read;
};

struct scan_rocksdb {
    struct store_scan base;
    rocksdb_readoptions_t *read;
    rocksdb_iterator_t *iterator;
    bool is_descending;
    bool is_placed; /* the iterator stands on what comes next */
    enum status status;
    size_t from_bytes, to_bytes;
    char bounds[]; /* from, to: RocksDB keeps pointers to them */
};

static struct store_rocksdb *rocksdb_of(struct store *store)
{
    return (struct store_rocksdb *)(void *)store;
}

/*
 * RocksDB's C interface reports errors as texts alone, so the text decides.
 * Frees it.
 */
static enum status fail(char *error, const char *what)
{
    enum status code = STATUS_INTERNAL;
    enum status st;

    if (strstr(error, "No space left on device") ||
        strstr(error, "Disk quota exceeded"))
        code = STATUS_RESOURCE_EXHAUSTED;
    else if (strncmp(error, "Corruption", 10) == 0)
        code = STATUS_DATA_LOSS;
    else if (strstr(error, "Permission denied") ||
             strstr(error, "Read-only file system"))
        code = STATUS_PERMISSION_DENIED;
    st = status_fail(code, "%s: %s", what, error);
    rocksdb_free(error);
    return st;
}

static enum status fail_open(char *error, const char *path)
{
    char what[STATUS_TEXT_SIZE];
    bool is_own = strstr(error, "lock hold by current process") != NULL;

    if (is_own || strstr(error, "While lock file")) {
        rocksdb_free(error);
        (void)status_fail(STATUS_FAILED_PRECONDITION, "%s process uses %s",
                          is_own ? "this" : "another", path);
        return status_because("DATA_DIR_IN_USE");
    }
    (void)snprintf(what, sizeof(what), "cannot open %.200s", path);
    return fail(error, what);
}

/* After an I/O error RocksDB takes no write until it is opened again. */
static enum status fail_write(char *error)
{
    enum status st;

    if (strncmp(error, "IO error", 8) != 0 ||
        strstr(error, "No space left on device") ||
        strstr(error, "Disk quota exceeded"))
        return fail(error, "cannot write to the database");
    st = status_fail(STATUS_FAILED_PRECONDITION,
                     "the database is read-only until it is opened again: %s",
                     error);
    rocksdb_free(error);
    return st;
}

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a database");
}

static enum status rocks_write(struct store *store,
                               const struct store_batch *const *batch,
                               uint32_t n_batch, bool sync)
{
    struct store_rocksdb *rocks = rocksdb_of(store);
    rocksdb_writebatch_t *rows = rocksdb_writebatch_create();
    char *error = NULL;

    for (uint32_t i = 0; i < n_batch; i++) {
        struct store_op op;
        size_t at = 0;

        while (store_batch_next(batch[i], &at, &op)) {
            switch (op.kind) {
            case STORE_PUT:
                rocksdb_writebatch_put(rows, op.key, op.key_bytes, op.value,
                                       op.value_bytes);
                break;
            case STORE_DELETE_KEY:
                rocksdb_writebatch_delete(rows, op.key, op.key_bytes);
                break;
            case STORE_DELETE_RANGE:
                rocksdb_writebatch_delete_range(rows, op.key, op.key_bytes,
                                                op.value, op.value_bytes);
                break;
            }
        }
    }
    rocksdb_write(rocks->db, sync ? rocks->write_synced : rocks->write_plain,
                  rows, &error);
    rocksdb_writebatch_destroy(rows);
    return error ? fail_write(error) : STATUS_OK;
}

static enum status rocks_get(struct store *store, const void *key,
                             size_t key_bytes, void **out, size_t *out_bytes)
{
    struct store_rocksdb *rocks = rocksdb_of(store);
    char *error = NULL;
    rocksdb_pinnableslice_t *slice =
        rocksdb_get_pinned(rocks->db, rocks->read, key, key_bytes, &error);
    enum status st = STATUS_OK;
    size_t n_bytes;
    const char *bytes;
    void *copy;

    if (error) {
        rocksdb_pinnableslice_destroy(slice);
        return fail(error, "cannot read from the database");
    }
    if (!slice)
        return status_fail(STATUS_NOT_FOUND, "store has no such key");
    bytes = rocksdb_pinnableslice_value(slice, &n_bytes);
    copy = malloc(n_bytes + 1);
    if (copy) {
        memcpy(copy, bytes, n_bytes);
        *out = copy;
        *out_bytes = n_bytes;
    } else {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                         "no memory for a value of %zu bytes", n_bytes);
    }
    rocksdb_pinnableslice_destroy(slice);
    return st;
}

static enum status rocks_scan_open(struct store *store,
                                   const struct store_range *range,
                                   bool is_descending, struct store_scan **out)
{
    struct store_rocksdb *rocks = rocksdb_of(store);
    size_t n = range->from_bytes + range->to_bytes;
    struct scan_rocksdb *scan = calloc(1, sizeof(*scan) + n);

    if (!scan)
        return no_memory();
    scan->base.calls = store->calls;
    scan->is_descending = is_descending;
    scan->from_bytes = range->from_bytes;
    scan->to_bytes = range->to_bytes;
    memcpy(scan->bounds, range->from, range->from_bytes);
    memcpy(scan->bounds + range->from_bytes, range->to, range->to_bytes);
    scan->read = rocksdb_readoptions_create();
    /* What is read in order is not asked for again soon. */
    rocksdb_readoptions_set_fill_cache(scan->read, 0);
    rocksdb_readoptions_set_iterate_lower_bound(scan->read, scan->bounds,
                                                scan->from_bytes);
    rocksdb_readoptions_set_iterate_upper_bound(
        scan->read, scan->bounds + scan->from_bytes, scan->to_bytes);
    scan->iterator = rocksdb_create_iterator(rocks->db, scan->read);
    if (is_descending)
        rocksdb_iter_seek_to_last(scan->iterator);
    else
        rocksdb_iter_seek(scan->iterator, scan->bounds, scan->from_bytes);
    scan->is_placed = true;
    *out = &scan->base;
    return STATUS_OK;
}

static bool rocks_scan_next(struct store_scan *base, const void **out_key,
                            size_t *out_key_bytes, const void **out_value,
                            size_t *out_value_bytes)
{
    struct scan_rocksdb *scan = (struct scan_rocksdb *)(void *)base;
    char *error = NULL;

    if (scan->status)
        return false;
    if (!scan->is_placed && rocksdb_iter_valid(scan->iterator)) {
        if (scan->is_descending)
            rocksdb_iter_prev(scan->iterator);
        else
            rocksdb_iter_next(scan->iterator);
    }
    scan->is_placed = false;
    if (!rocksdb_iter_valid(scan->iterator)) {
        rocksdb_iter_get_error(scan->iterator, &error);
        if (error)
            scan->status = fail(error, "cannot read from the database");
        return false;
    }
    *out_key = rocksdb_iter_key(scan->iterator, out_key_bytes);
    *out_value = rocksdb_iter_value(scan->iterator, out_value_bytes);
    return true;
}

static enum status rocks_scan_status(const struct store_scan *base)
{
    return ((const struct scan_rocksdb *)(const void *)base)->status;
}

static void rocks_scan_close(struct store_scan *base)
{
    struct scan_rocksdb *scan = (struct scan_rocksdb *)(void *)base;

    rocksdb_iter_destroy(scan->iterator);
    rocksdb_readoptions_destroy(scan->read);
    free(scan);
}

static void rocks_close(struct store *store)
{
    struct store_rocksdb *rocks = rocksdb_of(store);

    if (rocks->db)
        rocksdb_close(rocks->db);
    if (rocks->write_synced)
        rocksdb_writeoptions_destroy(rocks->write_synced);
    if (rocks->write_plain)
        rocksdb_writeoptions_destroy(rocks->write_plain);
    if (rocks->read)
        rocksdb_readoptions_destroy(rocks->read);
    free(rocks);
}

static const struct store_calls calls = {
    .close = rocks_close,
    .write = rocks_write,
    .get = rocks_get,
    .scan_open = rocks_scan_open,
    .scan_next = rocks_scan_next,
    .scan_status = rocks_scan_status,
    .scan_close = rocks_scan_close,
};

static rocksdb_options_t *options_of(enum store_kind kind, int recovery)
{
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_block_based_table_options_t *table =
        rocksdb_block_based_options_create();
    rocksdb_cache_t *cache = rocksdb_cache_create_lru(CACHE_BYTES);
    bool is_bulk = kind == STORE_BULK;

    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_set_wal_recovery_mode(options, recovery);
    rocksdb_options_set_write_buffer_size(options, BUFFER_BYTES);
    rocksdb_options_set_writable_file_max_buffer_size(options,
                                                      FILE_BUFFER_BYTES);
    rocksdb_options_set_level0_file_num_compaction_trigger(
        options, is_bulk ? BULK_TABLES : JOURNAL_TABLES);
    rocksdb_options_set_level0_slowdown_writes_trigger(options, TABLES_SLOW);
    rocksdb_options_set_level0_stop_writes_trigger(options, TABLES_STOP);
    rocksdb_options_set_max_total_wal_size(
        options, is_bulk ? BULK_WAL_BYTES : JOURNAL_WAL_BYTES);
    rocksdb_options_set_bytes_per_sync(options, WAL_SYNC_BYTES);
    rocksdb_options_set_max_background_jobs(options, BACKGROUND_MAX);
    rocksdb_options_set_max_open_files(options, OPEN_FILE_MAX);
    rocksdb_options_set_max_file_opening_threads(options, BACKGROUND_MAX);
    rocksdb_options_set_info_log_level(options, LOG_LEVEL_WARN);
    rocksdb_options_set_max_log_file_size(options, LOG_FILE_BYTES);
    rocksdb_options_set_keep_log_file_num(options, LOG_FILE_MAX);
    /* Nothing wakes up while nothing is written. */
    rocksdb_options_set_stats_dump_period_sec(options, 0);
    rocksdb_options_set_stats_persist_period_sec(options, 0);
    if (is_bulk)
        rocksdb_options_set_wal_bytes_per_sync(options, WAL_SYNC_BYTES);
    rocksdb_block_based_options_set_checksum(table, CHECKSUM_XXH3);
    rocksdb_block_based_options_set_block_cache(table, cache);
    rocksdb_block_based_options_set_index_type(
        table, rocksdb_block_based_table_index_type_two_level_index_search);
    rocksdb_block_based_options_set_cache_index_and_filter_blocks(table, 1);
    rocksdb_block_based_options_set_pin_top_level_index_and_filter(table, 1);
    rocksdb_options_set_block_based_table_factory(options, table);
    /* The factory holds its own references. */
    rocksdb_cache_destroy(cache);
    rocksdb_block_based_options_destroy(table);
    return options;
}

/* A new directory survives a power cut once the one above it was synced. */
static void sync_parent(const char *part)
{
    char parent[PATH_BYTES_MAX];
    const char *slash = strrchr(part, '/');
    size_t n = slash ? (size_t)(slash - part) : 0;
    int fd;

    memcpy(parent, part, n);
    parent[n] = 0;
    fd = open(n > 0 ? parent : (slash ? "/" : "."),
              O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return; /* may not be readable to us; then it is as before */
    (void)fsync(fd);
    (void)close(fd);
}

/* mkdir -p, and the directory must be ours to write. */
static enum status make_dirs(const char *path)
{
    char part[PATH_BYTES_MAX];
    size_t n = strlen(path);

    if (n == 0 || n >= sizeof(part))
        return status_fail(STATUS_PERMISSION_DENIED,
                           "directory name has %zu bytes, expected 1 to %zu", n,
                           sizeof(part) - 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != 0)
            continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0700) == 0)
            sync_parent(part);
        else if (errno != EEXIST)
            return status_fail(STATUS_PERMISSION_DENIED,
                               "cannot make directory %.200s: %s", part,
                               strerror(errno));
    }
    if (access(path, R_OK | W_OK | X_OK))
        return status_fail(STATUS_PERMISSION_DENIED,
                           "cannot write in directory %.200s: %s", path,
                           strerror(errno));
    return STATUS_OK;
}

/* Is the database without any key? */
static enum status check_empty(struct store_rocksdb *rocks, const char *path)
{
    rocksdb_iterator_t *iterator =
        rocksdb_create_iterator(rocks->db, rocks->read);
    char *error = NULL;
    bool is_empty;

    rocksdb_iter_seek_to_first(iterator);
    is_empty = !rocksdb_iter_valid(iterator);
    rocksdb_iter_get_error(iterator, &error);
    rocksdb_iter_destroy(iterator);
    if (error)
        return fail_open(error, path);
    if (!is_empty)
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "%.200s holds a database that is not godwit's",
                           path);
    return STATUS_OK;
}

/* A new database gets our mark; an old one must have it. */
static enum status check_format(struct store_rocksdb *rocks,
                                enum store_kind kind, const char *path)
{
    char format[FORMAT_SIZE];
    char *error = NULL;
    size_t n, n_found;
    char *found = rocksdb_get(rocks->db, rocks->read, format_key,
                              FORMAT_KEY_BYTES, &n_found, &error);
    enum status st = STATUS_OK;

    if (error)
        return fail_open(error, path);
    n = (size_t)snprintf(format, sizeof(format), "godwit %s 1",
                         kind == STORE_BULK ? "store" : "journal");
    if (found) {
        if (n_found != n || memcmp(found, format, n) != 0)
            st = status_fail(STATUS_FAILED_PRECONDITION,
                             "%.200s has format '%.*s', this build uses '%s'",
                             path, n_found < 64 ? (int)n_found : 64, found,
                             format);
        rocksdb_free(found);
        return st;
    }
    st = check_empty(rocks, path);
    if (st)
        return st;
    rocksdb_put(rocks->db, rocks->write_synced, format_key, FORMAT_KEY_BYTES,
                format, n, &error);
    return error ? fail_open(error, path) : STATUS_OK;
}

static rocksdb_t *open_with(const char *path, enum store_kind kind,
                            int recovery, char **error)
{
    rocksdb_options_t *options = options_of(kind, recovery);
    rocksdb_t *db = rocksdb_open(options, path, error);

    rocksdb_options_destroy(options);
    return db;
}

/* What the journal still holds is better than nothing, but never in silence. */
static rocksdb_t *open_journal(const char *path, char **error)
{
    rocksdb_t *db =
        open_with(path, STORE_JOURNAL,
                  rocksdb_tolerate_corrupted_tail_records_recovery, error);

    if (!*error || strncmp(*error, "Corruption", 10) != 0)
        return db;
    log_line(LOG_ERROR, "state", "",
             "the journal in %s is damaged, committed tokens may be lost: %s; "
             "going on with what precedes the damage",
             path, *error);
    rocksdb_free(*error);
    *error = NULL;
    return open_with(path, STORE_JOURNAL, rocksdb_point_in_time_recovery,
                     error);
}

/* The store of these rows, or none. */
static enum status add_segments(struct store *rows, const char *path,
                                struct store **out)
{
    char segments[PATH_BYTES_MAX + sizeof("/segments")];
    enum status st;

    (void)snprintf(segments, sizeof(segments), "%s/segments", path);
    st = store_segments_adopt(rows, segments, out);
    if (st)
        rocks_close(rows);
    return st;
}

enum status store_open_rocksdb(const char *path, enum store_kind kind,
                               struct store **out)
{
    struct store_rocksdb *rocks;
    char *error = NULL;
    enum status st = make_dirs(path);

    if (st)
        return st;
    rocks = calloc(1, sizeof(*rocks));
    if (!rocks)
        return no_memory();
    rocks->base.calls = &calls;
    rocks->write_plain = rocksdb_writeoptions_create();
    rocks->write_synced = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(rocks->write_synced, 1);
    rocks->read = rocksdb_readoptions_create();
    rocks->db =
        kind == STORE_JOURNAL
            ? open_journal(path, &error)
            : open_with(path, kind, rocksdb_point_in_time_recovery, &error);
    st = error ? fail_open(error, path) : check_format(rocks, kind, path);
    if (!st && kind == STORE_BULK)
        return add_segments(&rocks->base, path, out);
    if (st) {
        rocks_close(&rocks->base);
        return st;
    }
    *out = &rocks->base;
    return STATUS_OK;
}
