/*
 * The map of test_store.c with values on both sides of the limit, judged by an
 * unsorted list; what a power cut leaves of it, with rows in memory that forget
 * what was not synced and files that are cut to what was; and what of the disk
 * is given back. fdatasync and fsync come here, so the test knows.
 */
#include "state/store_segments.h"

#include "state/store_calls.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { N_KEY = 60, N_ROUND = 1500, VALUE_MAX = 30000, N_FILE = 4096 };

struct model {
    bool is_there[N_KEY];
    uint32_t value[N_KEY];
};

static char dir[] = "/tmp/godwit-store-XXXXXX";
static struct store *rows; /* in memory; outlives the store on it */
static struct store *store;
static unsigned char bytes[VALUE_MAX], expected[VALUE_MAX];

static uint64_t seed = 1;
static uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

/* --- a disk that can lose what was not synced --- */

static struct {
    ino_t inode;
    off_t synced;
} file[N_FILE];
static uint32_t n_file;
static bool fails_sync;

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    struct stat info;
    uint32_t i = 0;

    if (fails_sync || fstat(fd, &info) != 0)
        return -1;
    while (i < n_file && file[i].inode != info.st_ino)
        i++;
    cr_assert_lt(i, N_FILE);
    file[i].inode = info.st_ino;
    file[i].synced = info.st_size;
    n_file += i == n_file;
    return (int)syscall(SYS_fdatasync, fd);
}

/* Each file of the directory, to what was synced of it. */
static void cut_files(void)
{
    DIR *entries = opendir(dir);
    const struct dirent *entry;

    while ((entry = readdir(entries))) {
        char path[512];
        struct stat info;
        off_t synced = 0;

        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        cr_assert_eq(stat(path, &info), 0);
        for (uint32_t i = 0; i < n_file; i++)
            if (file[i].inode == info.st_ino)
                synced = file[i].synced;
        if (synced == 0)
            cr_assert_eq(unlink(path), 0);
        else if (synced < info.st_size)
            cr_assert_eq(truncate(path, synced), 0);
    }
    (void)closedir(entries);
}

static uint64_t disk_bytes(void)
{
    DIR *entries = opendir(dir);
    const struct dirent *entry;
    uint64_t n = 0;

    while ((entry = readdir(entries))) {
        char path[512];
        struct stat info;

        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        cr_assert_eq(stat(path, &info), 0);
        n += (uint64_t)info.st_blocks * 512;
    }
    (void)closedir(entries);
    return n;
}

/* --- rows that a close does not end --- */

static struct store_calls lent_calls;
static struct store lent = {&lent_calls};

static void lent_close(struct store *self)
{
    (void)self;
}

static enum status lent_write(struct store *self,
                              const struct store_batch *const *batch,
                              uint32_t n_batch, bool sync)
{
    (void)self;
    return store_write_all(rows, batch, n_batch, sync);
}

static enum status lent_get(struct store *self, const void *key,
                            size_t key_bytes, void **out, size_t *out_bytes)
{
    (void)self;
    return store_get(rows, key, key_bytes, out, out_bytes);
}

static enum status lent_scan_open(struct store *self,
                                  const struct store_range *range,
                                  bool is_descending, struct store_scan **out)
{
    (void)self;
    return store_scan_open(rows, range, is_descending, out);
}

static void reopen(void)
{
    store_close(store);
    store = NULL;
    cr_assert_eq(store_segments_adopt(&lent, dir, &store), STATUS_OK, "%s",
                 status_reason());
}

static void begin(void)
{
    cr_assert(mkdtemp(dir));
    cr_assert_eq(store_open_memory(&rows), STATUS_OK);
    lent_calls = (struct store_calls){.close = lent_close,
                                      .write = lent_write,
                                      .get = lent_get,
                                      .scan_open = lent_scan_open};
    reopen();
}

static void end(void)
{
    char command[64];

    store_close(store);
    store_close(rows);
    (void)snprintf(command, sizeof(command), "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(store_segments, .init = begin, .fini = end, .timeout = 240);

/* --- keys and values --- */

static void key_text(char key[8], uint32_t i)
{
    (void)snprintf(key, 8, "k%03u", i);
}

/* n bytes that follow from the value; half of them are large ones. */
static size_t value_of(uint32_t value, unsigned char *out)
{
    size_t n =
        value % 2 ? value % SEGMENT_VALUE_MIN
                  : value % (VALUE_MAX - SEGMENT_VALUE_MIN) + SEGMENT_VALUE_MIN;

    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)(value + i * 7 + (i >> 8));
    return n;
}

static void check_value(uint32_t value, const void *its, size_t n)
{
    cr_assert_eq(n, value_of(value, expected));
    cr_assert_eq(memcmp(its, expected, n), 0, "bytes of %u", value);
}

static void random_op(struct store_batch *batch, struct model *model)
{
    uint32_t i = random_below(N_KEY), kind = random_below(8);
    uint32_t value = random_below(1000000), past;
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
        past = i + random_below(10);
        key_text(to, past);
        store_batch_delete_range(batch, key, 4, to, 4);
        for (; i < past && i < N_KEY; i++)
            model->is_there[i] = false;
    }
}

static void check_all(const struct model *model)
{
    for (uint32_t i = 0; i < N_KEY; i++) {
        char key[8];
        void *value;
        size_t n;
        enum status st;

        key_text(key, i);
        st = store_get(store, key, 4, &value, &n);
        cr_assert_eq(st, model->is_there[i] ? STATUS_OK : STATUS_NOT_FOUND,
                     "%s: %s", key, status_reason());
        if (st)
            continue;
        check_value(model->value[i], value, n);
        free(value);
    }
}

static struct store_scan *scan_all(bool is_descending)
{
    struct store_scan *scan;

    cr_assert_eq(store_scan_open(store, &(struct store_range){"k", 1, "l", 1},
                                 is_descending, &scan),
                 STATUS_OK);
    return scan;
}

static void check_scan(struct store_scan *scan, const struct model *model,
                       bool is_descending)
{
    const void *key, *value;
    size_t key_bytes, n;

    for (uint32_t step = 0; step < N_KEY; step++) {
        uint32_t i = is_descending ? N_KEY - 1 - step : step;

        if (!model->is_there[i])
            continue;
        cr_assert(store_scan_next(scan, &key, &key_bytes, &value, &n),
                  "key %u is missing: %s", i, status_reason());
        check_value(model->value[i], value, n);
    }
    cr_assert_not(store_scan_next(scan, &key, &key_bytes, &value, &n));
    cr_assert_eq(store_scan_status(scan), STATUS_OK);
    store_scan_close(scan);
}

Test(store_segments, are_an_ordered_map_with_views)
{
    static struct model model, before;
    struct store_batch *batch = store_batch_create(store);

    for (int round = 0; round < N_ROUND; round++) {
        bool is_descending = random_below(2);
        struct store_scan *scan = scan_all(is_descending);

        before = model;
        for (uint32_t n_op = random_below(6); n_op > 0; n_op--)
            random_op(batch, &model);
        cr_assert_eq(store_write(store, batch, random_below(4) == 0), STATUS_OK,
                     "%s", status_reason());
        store_batch_clear(batch);
        check_scan(scan, &before, is_descending);
        check_scan(scan_all(is_descending), &model, is_descending);
        if (random_below(100) == 0)
            reopen();
    }
    check_all(&model);
    store_batch_destroy(batch);
}

/* And a torn file never costs more than what was not synced. */
Test(store_segments, keep_what_was_synced_over_a_power_cut)
{
    static struct model model, synced;
    struct store_batch *batch = store_batch_create(store);
    uint32_t n_cut = 0;

    for (int round = 0; round < N_ROUND; round++) {
        bool sync = random_below(7) == 0;

        random_op(batch, &model);
        cr_assert_eq(store_write(store, batch, sync), STATUS_OK);
        store_batch_clear(batch);
        if (sync)
            synced = model;
        if (random_below(40) == 0) {
            store_close(store); /* writes nothing: the rows forget, too */
            store = NULL;
            store_memory_crash(rows);
            cut_files();
            reopen();
            model = synced;
            check_all(&model);
            n_cut++;
        }
    }
    cr_assert_gt(n_cut, 10);
    store_batch_destroy(batch);
}

static void put(const char *key, uint32_t value, bool sync)
{
    struct store_batch *batch = store_batch_create(store);

    store_batch_put(batch, key, strlen(key), bytes, value_of(value, bytes));
    cr_assert_eq(store_write(store, batch, sync), STATUS_OK, "%s",
                 status_reason());
    store_batch_destroy(batch);
}

Test(store_segments, give_the_disk_back)
{
    struct store_batch *batch = store_batch_create(store);
    uint64_t full, rest;
    char key[8];

    for (uint32_t i = 0; i < N_KEY; i++) {
        key_text(key, i);
        put(key, 20000, true);
    }
    full = disk_bytes();
    cr_assert_gt(full, N_KEY * value_of(20000, expected));
    /* Half by a range, and the other half is written anew, but for one. */
    store_batch_delete_range(batch, "k000", 4, "k030", 4);
    cr_assert_eq(store_write(store, batch, false), STATUS_OK);
    cr_assert_geq(disk_bytes(), full, "it may come back at a power cut");
    for (uint32_t i = 30; i < N_KEY - 1; i++) {
        key_text(key, i);
        put(key, 1, true);
    }
    rest = disk_bytes();
    /* Of each value that was written alone its last page is left. */
    cr_assert_lt(rest, full / 4, "%lu of %lu bytes", rest, full);
    store_batch_destroy(batch);
}

Test(store_segments, read_a_store_from_before)
{
    struct store_batch *batch = store_batch_create(rows);
    void *value;
    size_t n;

    store_batch_put(batch, "old", 3, bytes, value_of(20000, bytes));
    cr_assert_eq(store_write(rows, batch, true), STATUS_OK);
    reopen();
    cr_assert_eq(store_get(store, "old", 3, &value, &n), STATUS_OK);
    check_value(20000, value, n);
    free(value);
    store_batch_destroy(batch);
}

Test(store_segments, fail_as_their_parts_do_and_change_nothing)
{
    struct store_batch *batch = store_batch_create(store);
    void *value;
    size_t n;

    put("k001", 20000, true);
    store_batch_put(batch, "k001", 4, bytes, value_of(22222, bytes));
    for (uint64_t at = 1; at <= 2;
         at++) { /* the look at the old row, a write */
        store_memory_faults(rows)->fail_at = at;
        cr_assert_eq(store_write(store, batch, true), STATUS_UNAVAILABLE);
    }
    fails_sync = true;
    cr_assert_eq(store_write(store, batch, true), STATUS_INTERNAL);
    fails_sync = false;
    cr_assert_eq(store_get(store, "k001", 4, &value, &n), STATUS_OK);
    check_value(20000, value, n);
    free(value);
    cr_assert_eq(store_write(store, batch, true), STATUS_OK);
    cr_assert_eq(store_get(store, "k001", 4, &value, &n), STATUS_OK);
    check_value(22222, value, n);
    free(value);
    store_batch_destroy(batch);
}

Test(store_segments, report_a_lost_file_as_data_loss)
{
    const void *key, *its;
    struct store_scan *scan;
    size_t key_bytes, n;
    void *value;
    char command[64];

    put("k001", 20000, true);
    (void)snprintf(command, sizeof(command), "rm %s/*", dir);
    cr_assert_eq(system(command), 0);
    reopen();
    cr_assert_eq(store_get(store, "k001", 4, &value, &n), STATUS_DATA_LOSS);
    scan = scan_all(false);
    cr_assert_not(store_scan_next(scan, &key, &key_bytes, &its, &n));
    cr_assert_eq(store_scan_status(scan), STATUS_DATA_LOSS);
    store_scan_close(scan);
}
