#include "state/segments.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEGMENT_BYTES (64u << 20) /* a file is full when it has as many */
#define PAGE_BYTES 4096u /* holes and direct writes are made of whole ones */
/* Of one write. Larger ones take less time of the disk, but each has to be
 * gathered first, best in a cache. A huge page. */
#define GATHER_BYTES (2u << 20)
#define SUFFIX ".segment"

struct segment {
    uint64_t number;
    uint64_t needed; /* bytes */
};

struct segments {
    char path[PATH_MAX];
    int directory;           /* to be synced when a file is new */
    struct segment *segment; /* [n_segment] by number, ascending; owned */
    size_t n_segment, capacity;
    int write_fd; /* of the last one, or -1: the next append makes a new one */
    uint64_t written;      /* bytes of it; whole pages */
    unsigned char *gather; /* [GATHER_BYTES] aligned to that; owned */
    size_t n_gathered;
    bool is_dirty;        /* it has bytes that are not synced ... */
    bool is_new;          /* ... nor is its name */
    pthread_mutex_t lock; /* of what reads share: */
    int read_fd;          /* of read_number, or -1 */
    uint64_t read_number;
};

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for segments");
}

static enum status fail(const char *what, uint64_t number)
{
    const int error = errno;

    return status_fail(
        error == ENOSPC || error == EDQUOT ? STATUS_RESOURCE_EXHAUSTED
                                           : STATUS_INTERNAL,
        "cannot %s segment %lu: %s", what, number, strerror(error));
}

static void name_of(uint64_t number, char out[32])
{
    (void)snprintf(out, 32, "%016lx" SUFFIX, number);
}

/* 0: not the name of a segment. */
static uint64_t number_of(const char *name)
{
    char same[32];
    char *end;
    uint64_t number = strtoull(name, &end, 16);

    name_of(number, same);
    return strcmp(name, same) == 0 ? number : 0;
}

/* Index of the first one whose number is not below. */
static size_t seek(const struct segments *segments, uint64_t number)
{
    size_t low = 0, high = segments->n_segment;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (segments->segment[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct segment *find(const struct segments *segments, uint64_t number)
{
    size_t i = seek(segments, number);

    return i < segments->n_segment && segments->segment[i].number == number
               ? &segments->segment[i]
               : NULL;
}

static enum status add(struct segments *segments, uint64_t number)
{
    size_t i = seek(segments, number);

    if (segments->n_segment == segments->capacity) {
        size_t capacity = 2 * segments->capacity + 16;
        struct segment *segment =
            realloc(segments->segment, capacity * sizeof(*segment));

        if (!segment)
            return no_memory();
        segments->segment = segment;
        segments->capacity = capacity;
    }
    memmove(&segments->segment[i + 1], &segments->segment[i],
            (segments->n_segment - i) * sizeof(*segments->segment));
    segments->segment[i] = (struct segment){.number = number};
    segments->n_segment++;
    return STATUS_OK;
}

static enum status list(struct segments *segments)
{
    DIR *directory = opendir(segments->path);
    const struct dirent *entry;
    enum status st = STATUS_OK;

    if (!directory)
        return status_fail(STATUS_PERMISSION_DENIED, "cannot read %.200s: %s",
                           segments->path, strerror(errno));
    while (!st && (entry = readdir(directory))) {
        uint64_t number = number_of(entry->d_name);

        if (number > 0)
            st = add(segments, number);
    }
    (void)closedir(directory);
    return st;
}

enum status segments_open(const char *path, struct segments **out)
{
    struct segments *segments = calloc(1, sizeof(*segments));
    enum status st;

    if (!segments)
        return no_memory();
    segments->directory = segments->write_fd = segments->read_fd = -1;
    (void)pthread_mutex_init(&segments->lock, NULL);
    segments->gather = aligned_alloc(GATHER_BYTES, GATHER_BYTES);
    if (!segments->gather) {
        segments_close(segments);
        return no_memory();
    }
    /* A direct write names each of its pages to the disk; this is one. */
    (void)madvise(segments->gather, GATHER_BYTES, MADV_HUGEPAGE);
    (void)snprintf(segments->path, sizeof(segments->path), "%s", path);
    if ((mkdir(path, 0700) != 0 && errno != EEXIST) ||
        access(path, R_OK | W_OK | X_OK) != 0 ||
        (segments->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) <
            0) {
        st = status_fail(STATUS_PERMISSION_DENIED,
                         "cannot write in directory %.200s: %s", path,
                         strerror(errno));
        segments_close(segments);
        return st;
    }
    st = list(segments);
    if (st) {
        segments_close(segments);
        return st;
    }
    *out = segments;
    return STATUS_OK;
}

static void shut(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

void segments_close(struct segments *segments)
{
    if (!segments)
        return;
    shut(&segments->write_fd);
    shut(&segments->read_fd);
    shut(&segments->directory);
    (void)pthread_mutex_destroy(&segments->lock);
    free(segments->gather);
    free(segments->segment);
    free(segments);
}

enum status segments_need(struct segments *segments,
                          const struct extent *extent)
{
    struct segment *segment = find(segments, extent->file);

    if (!segment) {
        enum status st = add(segments, extent->file);

        if (st)
            return st;
        segment = find(segments, extent->file);
    }
    segment->needed += extent->n_bytes;
    return STATUS_OK;
}

/* The last one's number is what the next one's is made from. */
static bool is_in_use(const struct segments *segments, size_t i)
{
    return segments->segment[i].needed > 0 || i + 1 == segments->n_segment;
}

static void delete_file(struct segments *segments, uint64_t number)
{
    char name[32];

    (void)pthread_mutex_lock(&segments->lock);
    if (number == segments->read_number)
        shut(&segments->read_fd);
    (void)pthread_mutex_unlock(&segments->lock);
    name_of(number, name);
    (void)unlinkat(segments->directory, name, 0);
}

void segments_sweep(struct segments *segments)
{
    size_t n = 0;

    for (size_t i = 0; i < segments->n_segment; i++) {
        if (is_in_use(segments, i))
            segments->segment[n++] = segments->segment[i];
        else
            delete_file(segments, segments->segment[i].number);
    }
    segments->n_segment = n;
}

static enum status begin_file(struct segments *segments)
{
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC;
    const size_t n = segments->n_segment;
    const uint64_t number = n ? segments->segment[n - 1].number + 1 : 1;
    char name[32];
    enum status st = add(segments, number);

    if (st)
        return st;
    name_of(number, name);
    segments->write_fd =
        openat(segments->directory, name, flags | O_EXCL | O_DIRECT, 0600);
    if (segments->write_fd < 0 && errno == EINVAL) /* there is none here */
        segments->write_fd = openat(segments->directory, name, flags, 0600);
    if (segments->write_fd < 0)
        return status_fail(STATUS_PERMISSION_DENIED,
                           "cannot make segment %lu: %s", number,
                           strerror(errno));
    segments->written = 0;
    segments->is_new = true;
    return STATUS_OK;
}

static enum status write_gathered(struct segments *segments)
{
    const size_t n_page = (segments->n_gathered + PAGE_BYTES - 1) / PAGE_BYTES;
    const size_t n = n_page * PAGE_BYTES;
    size_t n_done = 0;

    memset(segments->gather + segments->n_gathered, 0,
           n - segments->n_gathered);
    segments->n_gathered = 0;
    segments->is_dirty = true;
    while (n_done < n) {
        ssize_t n_now = pwrite(segments->write_fd, segments->gather + n_done,
                               n - n_done, (off_t)(segments->written + n_done));

        if (n_now < 0 && errno == EINTR)
            continue;
        if (n_now <= 0)
            return fail("write",
                        segments->segment[segments->n_segment - 1].number);
        /* Only whole pages can be written directly. */
        n_done += n_now < (ssize_t)PAGE_BYTES
                      ? (size_t)n_now
                      : (size_t)n_now / PAGE_BYTES * PAGE_BYTES;
    }
    segments->written += n;
    return STATUS_OK;
}

static enum status gather(struct segments *segments, const struct bytes *value)
{
    size_t n_done = 0;

    while (n_done < value->n) {
        const size_t room = GATHER_BYTES - segments->n_gathered;
        const size_t n_left = value->n - n_done;
        const size_t n_now = n_left < room ? n_left : room;

        memcpy(segments->gather + segments->n_gathered,
               (const char *)value->at + n_done, n_now);
        segments->n_gathered += n_now;
        n_done += n_now;
        if (segments->n_gathered == GATHER_BYTES) {
            enum status st = write_gathered(segments);

            if (st)
                return st;
        }
    }
    return STATUS_OK;
}

/* The values one behind the other, then up to the end of a page. */
static enum status append_all(struct segments *segments,
                              const struct bytes *value, uint32_t n,
                              struct extent *out)
{
    const uint64_t number = segments->segment[segments->n_segment - 1].number;
    uint64_t at = segments->written;
    enum status st = STATUS_OK;

    segments->n_gathered = 0;
    for (uint32_t i = 0; i < n && !st; i++) {
        out[i] = (struct extent){number, at, value[i].n};
        at += value[i].n;
        st = gather(segments, &value[i]);
    }
    if (!st && segments->n_gathered > 0)
        st = write_gathered(segments);
    return st;
}

enum status segments_append(struct segments *segments,
                            const struct bytes *value, uint32_t n,
                            struct extent *out)
{
    uint64_t written;
    enum status st = STATUS_OK;

    if (segments->write_fd >= 0 && segments->written >= SEGMENT_BYTES) {
        st = segments_sync(segments);
        shut(&segments->write_fd);
    }
    if (!st && segments->write_fd < 0)
        st = begin_file(segments);
    if (st)
        return st;
    written = segments->written;
    st = append_all(segments, value, n, out);
    if (st) { /* it is written over by the next one */
        segments->written = written;
        return st;
    }
    for (uint32_t i = 0; i < n; i++)
        segments->segment[segments->n_segment - 1].needed += value[i].n;
    return STATUS_OK;
}

enum status segments_sync(struct segments *segments)
{
    enum status st = STATUS_OK;

    if (!segments->is_dirty)
        return STATUS_OK;
    if (fdatasync(segments->write_fd) != 0 ||
        (segments->is_new && fsync(segments->directory) != 0)) {
        st = fail("sync", segments->segment[segments->n_segment - 1].number);
        /* Which of its bytes are lost nobody knows: none is added to it. */
        shut(&segments->write_fd);
    }
    segments->is_dirty = segments->is_new = false;
    return st;
}

/* With the lock. */
static enum status open_to_read(struct segments *segments, uint64_t number)
{
    char name[32];

    if (segments->read_fd >= 0 && segments->read_number == number)
        return STATUS_OK;
    shut(&segments->read_fd);
    name_of(number, name);
    segments->read_fd = openat(segments->directory, name, O_RDONLY | O_CLOEXEC);
    if (segments->read_fd < 0)
        return status_fail(STATUS_DATA_LOSS, "cannot open segment %lu: %s",
                           number, strerror(errno));
    segments->read_number = number;
    return STATUS_OK;
}

/* The caller's own, so that others may open another file meanwhile. */
static enum status borrow(struct segments *segments, uint64_t number, int *out)
{
    enum status st;

    (void)pthread_mutex_lock(&segments->lock);
    st = open_to_read(segments, number);
    *out = st ? -1 : fcntl(segments->read_fd, F_DUPFD_CLOEXEC, 0);
    (void)pthread_mutex_unlock(&segments->lock);
    if (!st && *out < 0)
        st = status_fail(STATUS_INTERNAL, "cannot read segment %lu: %s", number,
                         strerror(errno));
    return st;
}

enum status segments_read(struct segments *segments,
                          const struct extent *extent, void *out)
{
    int fd;
    enum status st = borrow(segments, extent->file, &fd);
    uint64_t n_done = 0;

    while (!st && n_done < extent->n_bytes) {
        ssize_t n = pread(fd, (char *)out + n_done, extent->n_bytes - n_done,
                          (off_t)(extent->offset + n_done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            st = status_fail(STATUS_DATA_LOSS,
                             "segment %lu gives %lu of %lu bytes: %s",
                             extent->file, n_done, extent->n_bytes,
                             n < 0 ? strerror(errno) : "it ends there");
        else
            n_done += (uint64_t)n;
    }
    shut(&fd);
    return st;
}

static int compare_extents(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;

    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* A file system that makes no holes keeps the bytes until the file goes. */
static void make_hole(const struct segments *segments, uint64_t number,
                      uint64_t from, uint64_t to)
{
    char name[32];
    int fd;

    from = (from + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    to = to / PAGE_BYTES * PAGE_BYTES;
    if (from >= to)
        return;
    name_of(number, name);
    fd = openat(segments->directory, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
                    (off_t)(to - from));
    (void)close(fd);
}

/* Those of one file. */
static void drop_from(struct segments *segments, const struct extent *extent,
                      uint32_t n)
{
    struct segment *segment = find(segments, extent->file);
    uint64_t n_bytes = 0;

    for (uint32_t i = 0; i < n; i++)
        n_bytes += extent[i].n_bytes;
    assert(segment && n_bytes <= segment->needed);
    segment->needed -= n_bytes;
    if (!is_in_use(segments, (size_t)(segment - segments->segment))) {
        delete_file(segments, segment->number);
        memmove(segment, segment + 1,
                (size_t)(segments->segment + --segments->n_segment - segment) *
                    sizeof(*segment));
        return;
    }
    for (uint32_t i = 0, end; i < n; i = end) {
        uint64_t to = extent[i].offset + extent[i].n_bytes;

        for (end = i + 1; end < n && extent[end].offset == to; end++)
            to += extent[end].n_bytes;
        make_hole(segments, extent->file, extent[i].offset, to);
    }
}

/* In order of place, each once; how many. */
static uint32_t sort(struct extent *extent, uint32_t n)
{
    uint32_t n_kept = 0;

    qsort(extent, n, sizeof(*extent), compare_extents);
    for (uint32_t i = 0; i < n; i++)
        if (n_kept == 0 || compare_extents(&extent[n_kept - 1], &extent[i]))
            extent[n_kept++] = extent[i];
    return n_kept;
}

void segments_drop(struct segments *segments, struct extent *extent, uint32_t n)
{
    n = n > 0 ? sort(extent, n) : 0; /* of none there may be no array */
    for (uint32_t i = 0, end; i < n; i = end) {
        end = i + 1;
        while (end < n && extent[end].file == extent[i].file)
            end++;
        drop_from(segments, extent + i, end - i);
    }
}
