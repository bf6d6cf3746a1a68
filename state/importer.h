#ifndef STATE_IMPORTER_H
#define STATE_IMPORTER_H
/*
 * The bytes of a bundle (state/bundle.h), from outside and cut anywhere, become
 * a session: what is pushed is parsed as far as it goes, and values are written
 * under a fresh log as they come. Nothing is trusted: every frame has its
 * digest, every token its chain, every value all that a resume asks of it, and
 * at the end all frames must have been there. Never more than one frame is kept
 * besides tokens and turns.
 *
 * Made, and its results taken, by the engine thread; pushed to by the store
 * thread, never both at once.
 */
#include "state/journal.h"
#include "state/seal.h"
#include "state/snapshot.h"

#define IMPORT_TURN_BYTES (64u << 20) /* of all turns */

struct import_source {
    struct snapshots *snapshots;
    uint32_t n_vocab;
    uint64_t n_context;         /* tokens */
    const struct seal_key *key; /* copied; NULL: there is none */
    struct uid log;             /* what values are written under: fresh */
    uint64_t scope, create_ms;  /* of the snapshot */
    bool skips_state;           /* leave values out */
};

struct importer;
/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status importer_create(const struct import_source *source,
                                       struct importer **out);
void importer_destroy(struct importer *importer); /* accepts NULL */

/*
 * The next bytes. After a failure, or when it is given up, what stands under
 * its log is to be deleted (snapshot_trim()).
 *   FAILED_PRECONDITION  MODEL_FINGERPRINT_MISMATCH, NUMERICS_MISMATCH,
 *                        BUNDLE_VERSION, KEY_MISSING, KEY_MISMATCH,
 *                        CHAIN_MISMATCH; CONTEXT_LENGTH_EXCEEDED
 *   DATA_LOSS            BUNDLE_DAMAGED
 *   RESOURCE_EXHAUSTED   no memory
 *   as store_write()
 */
MUST_CHECK enum status importer_push(struct importer *importer,
                                     const void *bytes, size_t n_bytes);
/*
 * That was all: write what makes the snapshot exist.
 *   DATA_LOSS  BUNDLE_TRUNCATED: there should be more
 *   as store_write()
 */
MUST_CHECK enum status importer_end(struct importer *importer);

/* After importer_end(). meta: as it was exported; its uid and path are the
 * other node's. */
const struct session_meta *importer_meta(const struct importer *importer);
struct ids *importer_tokens(struct importer *importer); /* may be taken */
/* Of the snapshot, when there is one. */
const struct snapshot_entry *importer_entry(const struct importer *importer);
/* Its turns, in order. Stops when visit returns non-zero and returns that. */
typedef enum status importer_visit(void *context, const struct turn *turn);
MUST_CHECK enum status importer_each_turn(const struct importer *importer,
                                          importer_visit *visit, void *context);
#endif
