#ifndef STATE_BUNDLE_H
#define STATE_BUNDLE_H
/*
 * A session as a stream of bytes, to be kept in a file or read by another node:
 * the frames that are also on disk, between a head and an end.
 *
 *   FRAME_BUNDLE      what it is and how much of it there is (bundle_head)
 *   FRAME_SESSION     its record; the path is that of a log of its own
 *   FRAME_TOKENS ...  all of its tokens
 *   FRAME_TURN ...    turns of its own log, in order
 *   if head.snapshot > 0, of no uid, and each only where the layer has one:
 *   FRAME_STATE ...   by layer
 *   FRAME_OPEN ...    by layer
 *   FRAME_BLOCK ...   by block, then by layer
 *   FRAME_BUNDLE_END  u64 number of frames before it | digest of all of them
 *
 * It may be sealed (state/seal.h). Where it is cut into messages means nothing.
 */
#include "state/journal_record.h"
#include "state/snapshot_value.h"

#define BUNDLE_VERSION 2u
#define BUNDLE_TOKENS 4096u /* of one frame, at most */

struct bundle_head {
    struct numerics numerics;
    uint64_t n_token;
    struct digest chain;
    uint64_t snapshot; /* position of the one that comes along; 0: none */
};

/* RESOURCE_EXHAUSTED  as frame_end() */
MUST_CHECK enum status bundle_put_head(struct writer *writer,
                                       const struct bundle_head *head);
MUST_CHECK enum status bundle_put_end(struct writer *writer, uint64_t n_frame,
                                      struct digest digest);
/*
 * Outputs are untouched on failure.
 *   DATA_LOSS            as frame_open()
 *   FAILED_PRECONDITION  of another version
 */
MUST_CHECK enum status bundle_get_head(const void *bytes, size_t n_bytes,
                                       struct bundle_head *out);
MUST_CHECK enum status bundle_get_end(const void *bytes, size_t n_bytes,
                                      uint64_t *out_n_frame,
                                      struct digest *out_digest);

/* A value's place among those of a snapshot. */
struct snapshots;
struct bundle_place {
    char letter; /* 's', 'o', 'b'; 0: behind the last one */
    uint64_t block;
    uint32_t layer;
};
/* The first value, and the one behind `at`; the session's policy decides which
 * layers have any. */
struct bundle_place bundle_first(const struct snapshots *snapshots,
                                 const struct policy *policy,
                                 uint64_t snapshot);
struct bundle_place bundle_next(const struct snapshots *snapshots,
                                const struct policy *policy, uint64_t snapshot,
                                struct bundle_place at);
#endif
