#ifndef STATE_STORE_SEGMENTS_H
#define STATE_STORE_SEGMENTS_H
/*
 * A store whose large values lie in segment files (state/segments.h); the rows
 * of another store, which has all the others, name them. For values that are
 * written once, read seldom and dropped in one go a database is the wrong
 * place: it copies and checks each of them eight times, into its log, its
 * memory, a first file and a second, and takes 10 ms of a CPU for 2 MB.
 *
 * A row that names a value is a frame of its own kind, so a store from before
 * segments reads as it is. Values are synced before the rows that name them,
 * when a write is; they are given back after the rows that named them are gone
 * for good, at the next write that is synced.
 *
 * Unlike store.h says, it is used by one thread at a time, but for store_get(),
 * which any may call.
 */
#include "state/store.h"

#define SEGMENT_VALUE_MIN 4096u /* bytes; smaller values stay in their rows */

/*
 * The store of `rows` and of the segments in directory `path`, which is made if
 * need be. Keeps `rows`, and closes it in the end; on failure it is the
 * caller's still.
 *   as segments_open(), and as the calls of `rows`
 */
MUST_CHECK enum status
store_segments_adopt(struct store *rows, const char *path, struct store **out);
#endif
