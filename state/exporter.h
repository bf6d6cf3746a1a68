#ifndef STATE_EXPORTER_H
#define STATE_EXPORTER_H
/*
 * A session becomes a bundle (state/bundle.h), step by step. Made, and its
 * bytes taken, by the engine thread; stepped by the store thread, never both at
 * once. The session's path must be held meanwhile.
 */
#include "state/journal.h"
#include "state/seal.h"
#include "state/snapshot.h"

#define EXPORT_STEP_BYTES (256u << 10) /* made by one step, about */

struct export_source {
    struct journal *journal;
    struct snapshots *snapshots;
    struct session_meta meta;
    uint64_t n_token; /* committed, of the path: so many are exported */
    bool has_turns;   /* not when the log goes on behind n_token */
    bool has_last;    /* the turn at last.position is this one: in the journal
                         it may be further than n_token */
    struct turn last;
    bool has_state;             /* the newest snapshot, if there is one */
    const struct seal_key *key; /* copied; NULL: not sealed */
};

struct exporter;
/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status exporter_create(const struct export_source *source,
                                       struct exporter **out);
void exporter_destroy(struct exporter *exporter); /* accepts NULL */

/*
 * Make more bytes; all were taken before.
 *   as journal_read_tokens(); RESOURCE_EXHAUSTED
 *   DATA_LOSS  a value of the snapshot is bad or missing (SNAPSHOT_DAMAGED), or
 *              a turn is
 */
MUST_CHECK enum status exporter_step(struct exporter *exporter);

/* At most max_bytes of what is made and not taken; *out_n 0: step, or, if
 * exporter_is_done(), that was all. Borrowed until the next step. */
const void *exporter_take(struct exporter *exporter, size_t max_bytes,
                          size_t *out_n);
bool exporter_is_done(const struct exporter *exporter);
#endif
