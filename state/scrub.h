#ifndef STATE_SCRUB_H
#define STATE_SCRUB_H
/*
 * Everything that is stored for one session, derived again: digests of all
 * records and values, chain hashes of all tokens, and whether what manifests
 * name is there. In steps of bounded length, since the store thread has other
 * work. Made, and read when it is done, by the engine thread; stepped by the
 * store thread.
 *
 * The session may run on meanwhile: tokens behind n_token are not looked at,
 * and a snapshot that is no longer named when a value of it is missing was
 * dropped for a newer one. Its path must be held (scheduler/logs.c).
 */
#include "state/journal.h"
#include "state/scrub_report.h"
#include "state/snapshot.h"

#define SCRUB_STEP_BYTES (4u << 20) /* read by one step, about */
#define SCRUB_STEP_ROWS 16384u      /* journal records of one step at most */

struct scrub;
struct scrub_source {
    struct journal *journal;
    struct snapshots *snapshots;
    struct uid session;
    struct policy policy; /* its own, under which all of it was made */
    struct log_path path;
    uint64_t n_token; /* committed */
};
/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status scrub_create(const struct scrub_source *source,
                                    struct scrub **out);
void scrub_destroy(struct scrub *scrub); /* accepts NULL */

/*
 * Go on for a step; *out_is_done when all was looked at. What is bad is in the
 * report and no error.
 *   FAILED_PRECONDITION  MODEL_FINGERPRINT_MISMATCH: made with another model
 *   RESOURCE_EXHAUSTED   no memory
 */
MUST_CHECK enum status scrub_step(struct scrub *scrub, bool *out_is_done);

/* When that is done: the log, and the first position behind `after` at which a
 * sound snapshot stands, or the grid has a point; n_token if there is none. */
const struct ids *scrub_tokens(const struct scrub *scrub);
uint64_t scrub_stop(const struct scrub *scrub, uint64_t after);

/* The one of its source; the session may have another one by now. */
const struct policy *scrub_policy(const struct scrub *scrub);

/*
 * Compare the image of a memory that was computed from the same tokens under
 * that policy with what is stored: states and open blocks of snapshots at its
 * position, and the blocks that it has.
 */
void scrub_compare(struct scrub *scrub, const struct image *image);

/*
 * At the end: drop the snapshots that something bad belongs to.
 *   as snapshot_drop(); the report says then what was dropped
 */
MUST_CHECK enum status scrub_heal(struct scrub *scrub);

const struct scrub_report *scrub_report(const struct scrub *scrub);
#endif
