/*
 * What RocksDB does to a directory: locks, rights, formats, kill -9, torn
 * logs. A second process is this program again, started with GODWIT_TEST_ROLE:
 * exec and not fork alone, because RocksDB's threads do not survive a fork.
 */
#include "state/store.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_ROW = 100000, NOBODY = 65534 };

/* RocksDB's calls of these come here: what was asked of the disk is counted. */
static _Atomic uint32_t n_sync;

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    n_sync++;
    return (int)syscall(SYS_fdatasync, fd);
}

__attribute__((visibility("default"))) int fsync(int fd)
{
    n_sync++;
    return (int)syscall(SYS_fsync, fd);
}

static struct store *store;
static char dir[] = "/tmp/godwit-rocks-XXXXXX";

static enum status put(struct store *to, uint32_t i, bool sync)
{
    struct store_batch *batch = store_batch_create(to);
    char key[16], value[200];
    enum status st;

    (void)snprintf(key, sizeof(key), "r%08u", i);
    memset(value, (int)(i % 251), sizeof(value));
    store_batch_put(batch, key, 9, value, sizeof(value));
    st = store_write(to, batch, sync);
    store_batch_destroy(batch);
    return st;
}

/* Rows 0, 1, ... without a hole and with their bytes; how many. */
static uint32_t count_rows(struct store *in)
{
    const void *key, *value;
    size_t key_bytes, value_bytes;
    struct store_scan *scan;
    uint32_t n = 0;

    cr_assert_eq(store_scan_open(in, &(struct store_range){"r", 1, "s", 1},
                                 false, &scan),
                 STATUS_OK);
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) {
        char expected[16];

        (void)snprintf(expected, sizeof(expected), "r%08u", n);
        cr_assert_eq(memcmp(key, expected, 9), 0);
        cr_assert_eq(value_bytes, 200);
        for (size_t i = 0; i < value_bytes; i++)
            cr_assert_eq(((const unsigned char *)value)[i], n % 251);
        n++;
    }
    cr_assert_eq(store_scan_status(scan), STATUS_OK);
    store_scan_close(scan);
    return n;
}

/* Write rows, synced, and tell of each on stdout, until killed. */
static int role_writer(const char *path)
{
    if (store_open_rocksdb(path, STORE_JOURNAL, &store))
        return 1;
    for (uint32_t i = count_rows(store); i < N_ROW; i++)
        if (put(store, i, true) || write(1, &i, sizeof(i)) != sizeof(i))
            return 1;
    return 0;
}

/* As a user without rights on the directory. */
static int role_nobody(const char *path)
{
    if (getuid() == 0 && setuid(NOBODY))
        return 1;
    return store_open_rocksdb(path, STORE_JOURNAL, &store) ==
                   STATUS_PERMISSION_DENIED
               ? 0
               : 2;
}

/* Files may not grow past 64 KiB: the log's write fails in the middle. */
static int role_io_error(const char *path)
{
    struct rlimit limit = {1 << 16, 1 << 16};
    enum status st = STATUS_OK;
    uint32_t i = 0;

    if (store_open_rocksdb(path, STORE_JOURNAL, &store))
        return 1;
    (void)signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit))
        return 1;
    for (; i < N_ROW && !st; i++)
        st = put(store, i, true);
    if (st != STATUS_FAILED_PRECONDITION || i < 100)
        return 2;
    if (put(store, i, true) != STATUS_FAILED_PRECONDITION)
        return 3;
    return count_rows(store) == i - 1 ? 0 : 4;
}

__attribute__((constructor)) static void maybe_play(void)
{
    const char *role = getenv("GODWIT_TEST_ROLE");
    const char *path = getenv("GODWIT_TEST_DIR");

    if (!role || !path)
        return;
    if (strcmp(role, "writer") == 0)
        _exit(role_writer(path));
    if (strcmp(role, "nobody") == 0)
        _exit(role_nobody(path));
    if (strcmp(role, "io_error") == 0)
        _exit(role_io_error(path));
    _exit(99);
}

static pid_t start(const char *role, int *out_fd)
{
    char *argv[] = {"role", NULL};
    posix_spawn_file_actions_t actions;
    extern char **environ;
    int fd[2];
    pid_t pid;

    cr_assert_eq(pipe2(fd, O_CLOEXEC), 0);
    setenv("GODWIT_TEST_ROLE", role, 1);
    setenv("GODWIT_TEST_DIR", dir, 1);
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_adddup2(&actions, fd[1], 1);
    cr_assert_eq(
        posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ), 0);
    (void)posix_spawn_file_actions_destroy(&actions);
    unsetenv("GODWIT_TEST_ROLE");
    (void)close(fd[1]);
    *out_fd = fd[0];
    return pid;
}

static int finish(pid_t pid, int fd)
{
    int status;

    (void)close(fd);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void make_dir(void)
{
    cr_assert(mkdtemp(dir));
}

static void remove_dir(void)
{
    char command[64];

    store_close(store);
    store = NULL;
    (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(rocksdb, .init = make_dir, .fini = remove_dir, .timeout = 240);

static enum status open_here(void)
{
    return store_open_rocksdb(dir, STORE_JOURNAL, &store);
}

Test(rocksdb, keeps_every_acknowledged_row_over_kill_9)
{
    for (int round = 0; round < 3; round++) {
        struct store *second;
        uint32_t last = 0, n;
        int fd;
        pid_t pid = start("writer", &fd);

        for (int i = 0; i < 20 + 130 * round; i++)
            cr_assert_eq(read(fd, &last, sizeof(last)), sizeof(last));
        cr_assert_eq(store_open_rocksdb(dir, STORE_JOURNAL, &second),
                     STATUS_FAILED_PRECONDITION);
        cr_assert(strstr(status_reason(), "another process uses"), "%s",
                  status_reason());
        cr_assert(strstr(status_reason(), dir));
        cr_assert_str_eq(status_cause()->reason, "DATA_DIR_IN_USE");
        (void)kill(pid, SIGKILL);
        while (read(fd, &last, sizeof(last)) == sizeof(last))
            ; /* what was told before the end */
        cr_assert_eq(finish(pid, fd), -SIGKILL);
        cr_assert_eq(open_here(), STATUS_OK, "%s", status_reason());
        n = count_rows(store);
        cr_assert(n > last, "%u told, %u found", last + 1, n);
        store_close(store);
        store = NULL;
    }
}

Test(rocksdb, asks_the_disk_once_for_each_synced_write)
{
    for (int kind = 0; kind < 2; kind++) {
        char path[64];
        uint32_t n_before;

        (void)snprintf(path, sizeof(path), "%s/%d", dir, kind);
        cr_assert_eq(
            store_open_rocksdb(path, kind ? STORE_BULK : STORE_JOURNAL, &store),
            STATUS_OK);
        cr_assert_eq(put(store, 0, true), STATUS_OK);
        n_before = n_sync;
        for (uint32_t i = 1; i < 50; i++)
            cr_assert_eq(put(store, i, false), STATUS_OK);
        cr_assert_eq(n_sync, n_before);
        for (uint32_t i = 50; i < 100; i++)
            cr_assert_eq(put(store, i, true), STATUS_OK);
        cr_assert_eq(n_sync, n_before + 50);
        store_close(store);
        store = NULL;
    }
}

Test(rocksdb, opened_twice_in_one_process_is_refused)
{
    struct store *second;

    cr_assert_eq(open_here(), STATUS_OK);
    cr_assert_eq(store_open_rocksdb(dir, STORE_JOURNAL, &second),
                 STATUS_FAILED_PRECONDITION);
    cr_assert(strstr(status_reason(), "this process uses"));
    cr_assert_eq(put(store, 0, true), STATUS_OK, "the first goes on");
}

Test(rocksdb, needs_a_directory_it_can_write)
{
    char path[64];
    int fd;
    pid_t pid;

    (void)snprintf(path, sizeof(path), "%s/file", dir);
    cr_assert_eq(close(creat(path, 0600)), 0);
    cr_assert_eq(store_open_rocksdb(path, STORE_JOURNAL, &store),
                 STATUS_PERMISSION_DENIED);
    (void)snprintf(path, sizeof(path), "%s/file/deeper", dir);
    cr_assert_eq(store_open_rocksdb(path, STORE_JOURNAL, &store),
                 STATUS_PERMISSION_DENIED);
    cr_assert(strstr(status_reason(), "file/deeper"), "%s", status_reason());
    cr_assert_eq(store_open_rocksdb("", STORE_JOURNAL, &store),
                 STATUS_PERMISSION_DENIED);
    cr_assert_eq(chmod(dir, 0555), 0);
    pid = start("nobody", &fd);
    cr_assert_eq(finish(pid, fd), 0);
    cr_assert_eq(chmod(dir, 0700), 0);
    (void)snprintf(path, sizeof(path), "%s/a/b", dir);
    cr_assert_eq(store_open_rocksdb(path, STORE_JOURNAL, &store), STATUS_OK,
                 "missing parents are made");
}

Test(rocksdb, turns_read_only_after_a_failed_write)
{
    int fd;
    pid_t pid = start("io_error", &fd);

    cr_assert_eq(finish(pid, fd), 0);
    cr_assert_eq(open_here(), STATUS_OK, "%s", status_reason());
    cr_assert_geq(count_rows(store), 100);
    cr_assert_eq(put(store, N_ROW, true), STATUS_OK);
}

/* A number above every file's of this suffix, and its path. */
static void newest(const char *suffix, char *path, size_t size)
{
    DIR *list = opendir(dir);
    const struct dirent *entry;
    unsigned long best = 0;

    cr_assert(list);
    while ((entry = readdir(list))) {
        const char *dot = strrchr(entry->d_name, '.');
        unsigned long number = strtoul(entry->d_name, NULL, 10);

        if (dot && strcmp(dot, suffix) == 0 && number >= best) {
            best = number;
            (void)snprintf(path, size, "%s/%.40s", dir, entry->d_name);
        }
    }
    (void)closedir(list);
    cr_assert(best > 0, "no %s file", suffix);
}

Test(rocksdb, opens_with_a_prefix_when_the_log_is_torn)
{
    static const long cut[] = {1, 7, 150, 1000, 5000};
    uint32_t n = 0;

    for (size_t i = 0; i < sizeof(cut) / sizeof(cut[0]); i++) {
        uint32_t n_before, n_lost;
        char path[128];
        struct stat info;

        cr_assert_eq(open_here(), STATUS_OK, "%s", status_reason());
        for (int k = 0; k < 50; k++)
            cr_assert_eq(put(store, n++, true), STATUS_OK);
        store_close(store);
        store = NULL;
        n_before = n;
        newest(".log", path, sizeof(path));
        cr_assert_eq(stat(path, &info), 0);
        cr_assert_eq(truncate(path, info.st_size - cut[i]), 0);
        cr_assert_eq(open_here(), STATUS_OK, "cut %ld: %s", cut[i],
                     status_reason());
        n = count_rows(store);
        n_lost = n_before - n;
        cr_assert(n_lost >= 1 && n_lost <= 2 + (uint32_t)cut[i] / 200,
                  "cut of %ld bytes lost %u rows", cut[i], n_lost);
        store_close(store);
        store = NULL;
    }
}

/* Damage before the end is no torn end: what follows it was committed. The rows
 * before it are kept, and the loss is said (the log line is shown by hand). */
Test(rocksdb, keeps_what_precedes_damage_in_the_middle_of_the_log)
{
    char path[128];
    uint32_t n;
    FILE *file;
    int byte;

    cr_assert_eq(open_here(), STATUS_OK, "%s", status_reason());
    for (uint32_t k = 0; k < 200; k++)
        cr_assert_eq(put(store, k, true), STATUS_OK);
    store_close(store);
    store = NULL;
    newest(".log", path, sizeof(path));
    file = fopen(path, "r+");
    cr_assert(file != NULL);
    cr_assert_eq(fseek(file, 0, SEEK_END), 0);
    cr_assert_eq(fseek(file, ftell(file) / 2, SEEK_SET), 0);
    byte = fgetc(file);
    cr_assert_eq(fseek(file, -1, SEEK_CUR), 0);
    cr_assert_neq(fputc(byte ^ 0x20, file), EOF);
    cr_assert_eq(fclose(file), 0);
    cr_assert_eq(open_here(), STATUS_OK, "%s", status_reason());
    n = count_rows(store);
    cr_assert(n > 80 && n < 120, "%u rows are left", n);
}

Test(rocksdb, reports_a_flipped_byte_of_a_table_as_data_loss)
{
    enum status st = STATUS_OK;
    char path[128];
    uint32_t n;
    FILE *file;
    void *value;
    size_t n_bytes;

    cr_assert_eq(open_here(), STATUS_OK);
    for (n = 0; n < 40; n++)
        cr_assert_eq(put(store, n, true), STATUS_OK);
    store_close(store); /* the next open turns the log into a table */
    cr_assert_eq(open_here(), STATUS_OK);
    store_close(store);
    store = NULL;
    newest(".sst", path, sizeof(path));
    file = fopen(path, "r+b");
    cr_assert(file);
    (void)fseek(file, 300, SEEK_SET);
    (void)fputc(0x55, file);
    (void)fclose(file);
    st = open_here();
    if (!st)
        st = store_get(store, "r00000001", 9, &value, &n_bytes);
    cr_assert_eq(st, STATUS_DATA_LOSS, "%s", status_reason());
}

Test(rocksdb, refuses_another_format)
{
    cr_assert_eq(open_here(), STATUS_OK);
    store_close(store);
    store = NULL;
    cr_assert_eq(store_open_rocksdb(dir, STORE_BULK, &store),
                 STATUS_FAILED_PRECONDITION);
    cr_assert(strstr(status_reason(), "godwit journal 1"), "%s",
              status_reason());
    cr_assert_eq(open_here(), STATUS_OK, "the lock was given back");
}

Test(rocksdb, reports_a_damaged_database)
{
    char path[64];
    FILE *file;

    cr_assert_eq(open_here(), STATUS_OK);
    store_close(store);
    store = NULL;
    (void)snprintf(path, sizeof(path), "%s/CURRENT", dir);
    file = fopen(path, "wb");
    cr_assert(file);
    (void)fputs("nonsense", file);
    (void)fclose(file);
    cr_assert_eq(open_here(), STATUS_DATA_LOSS, "%s", status_reason());
}

/* Of malloc(), in use, in all heaps. Sanitizers' says 0. */
static size_t in_use(void)
{
    const struct mallinfo2 info = mallinfo2();

    return info.uordblks + info.hblkhd;
}

/* 48 MiB of rows, and each of them read; what the most was at any time. */
static size_t most_in_use(void)
{
    enum { N_PIECE = 12288 };
    static char value[4096];
    size_t most = 0;
    char key[16];

    for (uint32_t i = 0; i < 2 * N_PIECE; i++) {
        struct store_batch *batch = store_batch_create(store);
        void *found = NULL;
        size_t n, now;

        (void)snprintf(key, sizeof(key), "r%08u", i % N_PIECE * 7919 % N_PIECE);
        memset(value, (int)(i % 251), sizeof(value));
        if (i < N_PIECE) {
            store_batch_put(batch, key, 9, value, sizeof(value) - 1);
            cr_assert_eq(store_write(store, batch, false), STATUS_OK);
        } else {
            cr_assert_eq(store_get(store, key, 9, &found, &n), STATUS_OK);
        }
        free(found);
        store_batch_destroy(batch);
        now = in_use();
        most = now > most ? now : most;
    }
    return most;
}

/* A cache, two buffers, and what a flush and a merge hold while they run: 3.6
 * to 4.6 MiB in six runs of both kinds. With buffers and caches of 4 MiB it
 * was 9.9 to 13.5. */
enum { MOST_BYTES = 6 << 20 };

/* Behind every million tokens there are 4 MiB of rows more. */
Test(rocksdb, takes_as_much_memory_whatever_is_stored)
{
    for (int kind = 0; kind < 2; kind++) {
        char path[64];
        size_t before, most;

        (void)snprintf(path, sizeof(path), "%s/%d", dir, kind);
        cr_assert_eq(
            store_open_rocksdb(path, kind ? STORE_BULK : STORE_JOURNAL, &store),
            STATUS_OK);
        cr_assert_eq(put(store, 0, true), STATUS_OK);
        before = in_use();
        most = most_in_use();
        cr_expect_leq(most, before + MOST_BYTES, "kind %d: %zu KiB", kind,
                      (most - before) >> 10);
        store_close(store);
        store = NULL;
    }
}
