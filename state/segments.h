#ifndef STATE_SEGMENTS_H
#define STATE_SEGMENTS_H
/*
 * Files that large values are appended to, one behind the other, and never
 * moved: whoever has written a value keeps its extent and says when it is not
 * needed. What is not needed is given back to the file system at once, as a
 * hole, and a file without any needed byte is deleted; so there is nothing to
 * rewrite and no room for dead values.
 *
 * What is appended goes past the system's cache, whose pages would have to be
 * found, filled and written back: 2 MB take 0.15 ms of a CPU, measured, where
 * buffered they take 0.6 to 3 ms. Few values are read again soon; those that
 * are read are in the cache from then on.
 *
 * Each run of the program writes to files of its own, so that nothing that a
 * crash left behind is ever written over. Bytes are as good as the disk: who
 * reads must check them (proto/frame.h). One thread at a time, but for
 * segments_read(), which any may call.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct segments;

struct extent {
    uint64_t file; /* its number, from 1 */
    uint64_t offset, n_bytes;
};

struct bytes {
    const void *at;
    size_t n;
};

/*
 * Open or create the directory (in one that exists). Nothing in it counts as
 * needed: call segments_need() for each extent that is, then segments_sweep().
 *   PERMISSION_DENIED    the directory cannot be made, read or written
 *   RESOURCE_EXHAUSTED   no memory
 */
MUST_CHECK enum status segments_open(const char *path, struct segments **out);
void segments_close(struct segments *segments); /* accepts NULL */

/* Also of a file that is missing: its number is not used again.
 *   RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status segments_need(struct segments *segments,
                                     const struct extent *extent);
/* Delete the files without a needed byte. */
void segments_sweep(struct segments *segments);

/*
 * Append n values; extent i is that of value i. They survive a power cut after
 * segments_sync(). On failure nothing is needed of what may have been written.
 *   RESOURCE_EXHAUSTED  the disk is full, or no memory
 *   PERMISSION_DENIED   a file cannot be made
 *   INTERNAL            the disk failed
 */
MUST_CHECK enum status segments_append(struct segments *segments,
                                       const struct bytes *value, uint32_t n,
                                       struct extent *out);
/* INTERNAL  the disk failed; what was not synced before may be lost */
MUST_CHECK enum status segments_sync(struct segments *segments);

/*
 * All bytes of an extent into out[n_bytes].
 *   DATA_LOSS  the file is missing or shorter; or the disk failed
 */
MUST_CHECK enum status segments_read(struct segments *segments,
                                     const struct extent *extent, void *out);

/* These n are not needed any more, each counted once however often it is named;
 * puts them in order of place. */
void segments_drop(struct segments *segments, struct extent *extent,
                   uint32_t n);
#endif
