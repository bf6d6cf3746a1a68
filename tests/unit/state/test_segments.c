/*
 * Random appends, reads and drops, judged by a list of what was appended and by
 * what the file system says of the files; then what a disk can do to them.
 */
#include "state/segments.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_VALUE = 400, VALUE_MAX = 300000 };

static char dir[] = "/tmp/godwit-segments-XXXXXX";
static struct segments *segments;
static unsigned char value[VALUE_MAX], found[VALUE_MAX];

static uint64_t seed = 1;
static uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

static void begin(void)
{
    cr_assert(mkdtemp(dir));
}

static void end(void)
{
    char command[64];

    segments_close(segments);
    (void)snprintf(command, sizeof(command), "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(segments, .init = begin, .fini = end, .timeout = 240);

static void open_here(void)
{
    segments_close(segments);
    segments = NULL;
    cr_assert_eq(segments_open(dir, &segments), STATUS_OK, "%s",
                 status_reason());
}

/* How many files, and bytes of the disk in *out_bytes. */
static uint32_t count_files(uint64_t *out_bytes)
{
    DIR *entries = opendir(dir);
    const struct dirent *entry;
    uint32_t n = 0;

    *out_bytes = 0;
    while ((entry = readdir(entries))) {
        char path[512];
        struct stat info;

        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        cr_assert_eq(stat(path, &info), 0);
        *out_bytes += (uint64_t)info.st_blocks * 512;
        n++;
    }
    (void)closedir(entries);
    return n;
}

/* Value i: its length and bytes follow from i. */
static size_t value_of(uint32_t i, unsigned char *out)
{
    size_t n = 1 + i * 7919u % VALUE_MAX;

    for (size_t t = 0; t < n; t++)
        out[t] = (unsigned char)(i * 31u + t * 7u + (t >> 8));
    return n;
}

static enum status append(uint32_t i, struct extent *out)
{
    const struct bytes one = {value, value_of(i, value)};

    return segments_append(segments, &one, 1, out);
}

static void check(uint32_t i, const struct extent *extent)
{
    size_t n = value_of(i, value);

    cr_assert_eq(extent->n_bytes, n);
    cr_assert_eq(segments_read(segments, extent, found), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(memcmp(found, value, n), 0, "value %u", i);
}

/* Reopened now and then with what is needed, as a store does. */
Test(segments, keep_what_is_needed_and_give_back_the_rest)
{
    static struct extent extent[N_VALUE];
    static bool is_needed[N_VALUE];
    uint64_t needed = 0, used, after;

    open_here();
    for (uint32_t i = 0; i < N_VALUE; i++) {
        uint32_t gone = random_below(i + 1);

        cr_assert_eq(append(i, &extent[i]), STATUS_OK);
        is_needed[i] = true;
        if (random_below(4) == 0 && is_needed[gone]) {
            struct extent copy = extent[gone];

            segments_drop(segments, &copy, 1);
            is_needed[gone] = false;
        }
        if (random_below(40) == 0) {
            open_here();
            for (uint32_t k = 0; k <= i; k++)
                if (is_needed[k])
                    cr_assert_eq(segments_need(segments, &extent[k]),
                                 STATUS_OK);
            segments_sweep(segments);
        }
    }
    for (uint32_t i = 0; i < N_VALUE; i++)
        if (is_needed[i]) {
            check(i, &extent[i]);
            needed += extent[i].n_bytes;
        }
    (void)count_files(&used);
    cr_assert(used >= needed / 2 && used < needed + N_VALUE * 8192u,
              "%lu bytes of disk for %lu", used, needed);

    for (uint32_t i = 0; i < N_VALUE; i++)
        if (is_needed[i] && i % 2)
            segments_drop(segments,
                          &(struct extent){extent[i].file, extent[i].offset,
                                           extent[i].n_bytes},
                          1);
    for (uint32_t i = 0; i < N_VALUE; i += 2)
        if (is_needed[i])
            check(i, &extent[i]);
    (void)count_files(&after);
    cr_assert(after < used * 3 / 4, "%lu bytes of disk before, %lu after", used,
              after);
}

Test(segments, drop_neighbours_as_one_hole_and_whole_files)
{
    struct extent extent[40];
    struct bytes piece[40];
    uint64_t before, after;

    open_here();
    for (uint32_t i = 0; i < 40; i++)
        piece[i] = (struct bytes){value, 5000}; /* less than two pages each */
    cr_assert_eq(segments_append(segments, piece, 40, extent), STATUS_OK);
    cr_assert_eq(segments_sync(segments), STATUS_OK);
    cr_assert_eq(count_files(&before), 1);
    segments_drop(segments, extent + 1, 38);
    (void)count_files(&after);
    cr_assert(after <= 6 * 4096u, "%lu of %lu bytes are left", after, before);

    /* It is being written to, so it stays; not so when another one is. */
    segments_drop(segments, extent, 1);
    segments_drop(segments, extent + 39, 1);
    cr_assert_eq(count_files(&after), 1);
    open_here();
    segments_sweep(segments);
    cr_assert_eq(append(1, &extent[0]), STATUS_OK);
    open_here();
    cr_assert_eq(segments_need(segments, &extent[0]), STATUS_OK);
    segments_sweep(segments);
    cr_assert_eq(count_files(&after), 1);
    check(1, &extent[0]);
}

Test(segments, fill_files_of_a_limited_size)
{
    struct extent extent[500];
    uint64_t bytes;
    uint32_t n = 0;

    open_here();
    while (n < 500 && (n == 0 || extent[n - 1].file == extent[0].file)) {
        const struct bytes one = {value, VALUE_MAX};

        cr_assert_eq(segments_append(segments, &one, 1, &extent[n]), STATUS_OK);
        n++;
    }
    cr_assert(n > 200 && n < 300, "%u values of 300,000 bytes in a file", n);
    cr_assert_eq(count_files(&bytes), 2);
    segments_drop(segments, extent, n - 1);
    cr_assert_eq(count_files(&bytes), 1, "all of the first one was dropped");
}

Test(segments, are_never_written_over)
{
    struct extent old, missing, fresh;

    open_here();
    cr_assert_eq(append(3, &old), STATUS_OK);
    missing = (struct extent){old.file + 7, 0, 100};
    open_here();
    cr_assert_eq(segments_need(segments, &old), STATUS_OK);
    cr_assert_eq(segments_need(segments, &missing), STATUS_OK);
    segments_sweep(segments);
    cr_assert_eq(append(4, &fresh), STATUS_OK);
    cr_assert_gt(fresh.file, missing.file);
    check(3, &old);
    check(4, &fresh);
    cr_assert_eq(segments_read(segments, &missing, found), STATUS_DATA_LOSS);
}

Test(segments, count_what_is_dropped_once)
{
    struct extent extent[3], twice[2];
    uint64_t bytes;

    open_here();
    cr_assert_eq(append(60, &extent[0]), STATUS_OK);
    cr_assert_eq(append(60, &extent[1]), STATUS_OK);
    open_here();
    for (int i = 0; i < 2; i++)
        cr_assert_eq(segments_need(segments, &extent[i]), STATUS_OK);
    segments_sweep(segments);
    cr_assert_eq(append(61, &extent[2]), STATUS_OK); /* in another file */
    twice[0] = twice[1] = extent[0];
    segments_drop(segments, twice, 2);
    cr_assert_eq(count_files(&bytes), 2);
    check(60, &extent[1]);
    segments_drop(segments, &extent[1], 1);
    cr_assert_eq(count_files(&bytes), 1);
    check(61, &extent[2]);
}

Test(segments, report_a_shorter_file_as_data_loss)
{
    struct extent extent;
    char path[128];

    open_here();
    cr_assert_eq(append(50, &extent), STATUS_OK);
    (void)snprintf(path, sizeof(path), "%s/%016lx.segment", dir, extent.file);
    cr_assert_eq(truncate(path, (off_t)extent.n_bytes - 1), 0);
    cr_assert_eq(segments_read(segments, &extent, found), STATUS_DATA_LOSS);
    cr_assert(strstr(status_reason(), "it ends there"), "%s", status_reason());
}

/* The write that fails leaves nothing that counts, and the next one works. */
Test(segments, go_on_after_a_write_that_failed)
{
    struct rlimit limit = {1 << 20, RLIM_INFINITY};
    struct extent extent[8];
    struct bytes piece[8];
    enum status st;
    uint64_t bytes;

    open_here();
    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (int i = 0; i < 8; i++)
        piece[i] = (struct bytes){value, VALUE_MAX};
    st = segments_append(segments, piece, 8, extent);
    cr_assert_eq(st, STATUS_INTERNAL, "%s", status_reason());
    limit.rlim_cur = RLIM_INFINITY;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_assert_eq(append(9, &extent[0]), STATUS_OK);
    cr_assert_eq(extent[0].offset, 0, "what failed is written over");
    check(9, &extent[0]);
    cr_assert_eq(count_files(&bytes), 1);
}

Test(segments, need_a_directory_they_can_write)
{
    char path[64];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/file", dir);
    file = fopen(path, "w");
    cr_assert(file);
    (void)fclose(file);
    cr_assert_eq(segments_open(path, &segments), STATUS_PERMISSION_DENIED);
    (void)snprintf(path, sizeof(path), "%s/no/such", dir);
    cr_assert_eq(segments_open(path, &segments), STATUS_PERMISSION_DENIED);
    segments = NULL;
}
