#ifndef STATE_SNAPSHOT_H
#define STATE_SNAPSHOT_H
/*
 * Stored memories: at some positions of a session its recurrent states and KV
 * blocks are kept, so that a resume need not replay the whole journal. They
 * are caches: each value carries the position, the chain hash of the tokens
 * before it, the model's fingerprint, the numerics id and a digest of its
 * bytes, and any mismatch means "not used, counted, logged, replayed".
 *
 *   'v' uid                            manifest: whose tokens, a list of
 *                                      (position, chain, scope, ...), and where
 *                                      the blocks lie that it did not write
 *   's' uid be64(position) be16(layer) state of one layer
 *   'o' uid be64(position) be16(layer) its open KV block, with its tokens
 *   'b' uid be64(block) be16(layer)    sealed KV block
 *
 * Values are written first, unsynced; then the manifest in one synced batch,
 * which is the commit point. Sealed blocks never change, so all snapshots
 * share them; the block that is not full belongs to its snapshot. A block's
 * value carries position and chain of its own end, so that it serves whoever
 * has the same tokens up to there.
 *
 * The uid is that of a log (state/session.h). A fork writes no block that its
 * ancestors have stored: its manifest names their logs, and its path keeps
 * them.
 *
 * Values of a save that no manifest came to name stay until that position is
 * saved again or the session is deleted.
 */
#include "model/state_norm.h"
#include "model/tokenizer.h"
#include "state/memory.h"
#include "state/session.h"
#include "state/store.h"

#define SNAPSHOT_GRID 4096u /* tokens between snapshots of a long session */
#define SNAPSHOT_KEEP_MAX                                                      \
    64u /* kept per log: state/retention.h; blocks all                         \
         */
#define SNAPSHOT_SHARED_MAX                                                    \
    4u                         /* of them, shared ones that are kept as such   \
                                */
#define SNAPSHOT_PINNED_MAX 8u /* and such that a client asked for */

struct snapshots;

/*
 * Store and model must outlive it. Used by one thread at a time.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status snapshots_open(struct store *store,
                                      const struct model *model,
                                      struct snapshots **out);
void snapshots_close(struct snapshots *snapshots);

/*
 * What a save needs, gathered by the engine thread without disk access: the
 * states, a copy of the open block; sealed blocks are borrowed from `memory`,
 * which must live (unchanged below `position`) until the image is destroyed; it
 * may grow meanwhile.
 */
struct image;
struct image_pool;
struct image_source {
    struct uid log; /* owner of the snapshot */
    const struct memory *memory;
    const uint32_t *token; /* [memory_position()] */
    /* What is stored already, in full blocks of the tokens [0, from): by the
       last snapshot that was saved or loaded by this process; 0 saves all. */
    uint64_t from;
    struct digest chain;         /* of tokens [0, from) */
    const struct log_path *base; /* leading blocks that lie with other logs,
                                    not behind `from`; NULL: none */
    struct image_pool *pool;     /* where room for the copy comes from, and goes
                                    back to; NULL: it is allocated */
};
/*
 * Rooms of images that are gone, for the next ones: fresh memory is given page
 * by page, which takes four times as long as the copy. Keeps up to 64 MiB. The
 * thread that makes images also destroys them.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status image_pool_create(const struct model *model,
                                         struct image_pool **out);
/* Behind all its images; accepts NULL. */
void image_pool_destroy(struct image_pool *pool);
/* RESOURCE_EXHAUSTED  no memory for the copy */
MUST_CHECK enum status image_create(const struct model *model,
                                    const struct image_source *source,
                                    struct image **out);
void image_destroy(struct image *image); /* accepts NULL */
/* Bytes of states and open blocks, as they will be stored. */
size_t image_bytes(const struct image *image);
/*
 * What the manifest says of it besides; unset: a session's own snapshot, of no
 * tenant. The label of the newest image is that of its manifest.
 */
struct snapshot_label {
    struct uid session; /* whose tokens; 0: of one without a name */
    uint64_t scope;     /* state/prefix.h */
    uint64_t create_ms; /* wall time */
    bool is_shared;     /* at a point where prompts are expected to meet: kept
                           before others */
    bool is_pinned;     /* a client asked for it */
};
void image_label(struct image *image, const struct snapshot_label *label);
/* Bytes in the store of one snapshot, all its blocks included; policy NULL is
 * full. */
size_t snapshot_bytes(const struct model *model, const struct policy *policy,
                      uint64_t position);

/*
 * Write the image and its manifest; drop snapshots that the manifest no longer
 * names (state/retention.h; those of another model or numerics id all go).
 * Store thread.
 *   as store_write() and store_get(); nothing half-written is ever used
 */
MUST_CHECK enum status snapshot_save(struct snapshots *snapshots,
                                     const struct image *image);

/* The largest root mean square of a head's recurrent state in what was saved
 * last; 0 if there was none. */
float snapshots_head_rms(const struct snapshots *snapshots);
/*
 * How large the states of a snapshot are, by layer: [n_layer]. A value that
 * cannot be used leaves a layer without heads.
 *   as store_get()
 */
MUST_CHECK enum status snapshot_norms(struct snapshots *snapshots,
                                      struct uid uid, uint64_t position,
                                      struct state_norm *out);

/*
 * Why a restore did not use more: for metrics and the reply; the log names
 * position and cause.
 */
enum restore_reason {
    RESTORE_HIT,      /* the newest snapshot was used */
    RESTORE_NONE,     /* no snapshot exists */
    RESTORE_NUMERICS, /* other numerics id */
    RESTORE_POLICY,   /* other memory policy */
    RESTORE_WEIGHTS,  /* other model */
    RESTORE_CHAIN,    /* belongs to other tokens */
    RESTORE_DAMAGED,  /* bytes failed their digest, or were missing */
};

struct restore {
    enum restore_reason reason; /* of the newest snapshot */
    struct log_path base; /* where leading blocks of the memory lie that its own
                             log does not have; as struct image_source */
};
/*
 * Load the newest usable snapshot of at most `limit` tokens into `memory`
 * (fresh, position 0), trying older ones in turn: the own ones of the path's
 * log first, then those of the logs before it. `tokens` are all that the path
 * has; a snapshot whose chain differs from theirs is not used. On OK the memory
 * stands at the snapshot's position, 0 if none could be used; *out says why the
 * first refused one was refused. Bad values are never an error: the journal is
 * replayed instead.
 *   DATA_LOSS           a snapshot stands behind the last token: the journal
 *                       lost its end (SESSION_LOG_LOST)
 *   RESOURCE_EXHAUSTED  no memory, or as memory_reserve()
 */
MUST_CHECK enum status snapshot_load(struct snapshots *snapshots,
                                     const struct log_path *path,
                                     const struct ids *tokens, uint64_t limit,
                                     struct memory *memory,
                                     struct restore *out);

#define SNAPSHOT_SOURCE_MAX 4u /* alternatives of one fetch */
/* A snapshot of any owner, as state/prefix.h names it. */
struct snapshot_source {
    struct uid uid;
    uint64_t position;
    struct digest chain;
};
/*
 * Load the first of these that is usable into `memory` (fresh), with the same
 * checks as snapshot_load(): it must have been made from `tokens`. reason[i] is
 * RESTORE_HIT for the one that was used, RESTORE_NONE for one that is not there
 * any more and for those behind the hit. The memory stands at its position, 0
 * if there is none.
 *   RESOURCE_EXHAUSTED  no memory, or as memory_reserve()
 */
MUST_CHECK enum status snapshot_fetch(struct snapshots *snapshots,
                                      const struct snapshot_source *source,
                                      uint32_t n_source,
                                      const struct ids *tokens,
                                      struct memory *memory,
                                      enum restore_reason *reason);

struct snapshot_entry {
    uint64_t position;
    struct digest chain;
    uint64_t scope, create_ms; /* of its label */
    bool is_shared, is_pinned;
};
/*
 * Manifest's entries, newest first, at most `max`; 0 when there is none.
 *   DATA_LOSS, FAILED_PRECONDITION  as frame_open(); and as store_get()
 */
MUST_CHECK enum status snapshot_list(struct snapshots *snapshots,
                                     struct uid uid, struct snapshot_entry *out,
                                     uint32_t max, uint32_t *out_n);

/*
 * Call visit for every manifest in order of uid; `is_usable`: model and
 * numerics id are ours. Bad ones are logged, counted in *out_n_bad and passed
 * over. Stops when visit returns non-zero and returns that. Not while another
 * thread uses `snapshots`.
 *   as store_scan_open() and store_scan_status()
 */
struct snapshot_owned {
    struct uid uid, session; /* owner, and whose tokens (its label) */
    bool is_usable;
    size_t bytes; /* stored under this owner */
    uint32_t n;
    const struct snapshot_entry *entry; /* [n] newest first; borrowed */
};
typedef enum status snapshot_visit(void *context,
                                   const struct snapshot_owned *list);
MUST_CHECK enum status snapshots_each(struct snapshots *snapshots,
                                      snapshot_visit *visit, void *context,
                                      uint64_t *out_n_bad);

/* Bytes of what the owner's manifest names and stands under it; 0 when there is
 * none.  as snapshot_list() */
MUST_CHECK enum status snapshot_stored(struct snapshots *snapshots,
                                       struct uid uid, size_t *out);

/* Which blocks of it stand under the owner: [*out_first, *out_n).  as
 * snapshot_list() */
MUST_CHECK enum status snapshot_blocks(struct snapshots *snapshots,
                                       struct uid uid, uint64_t *out_first,
                                       uint64_t *out_n);

/*
 * Forget all but the newest n_keep snapshots of a log; its blocks, too, when
 * that is 0. Not synced.  as store_get() and store_write()
 */
MUST_CHECK enum status snapshot_thin(struct snapshots *snapshots,
                                     struct uid uid, uint32_t n_keep);

/*
 * Only the first n_token tokens of this log are needed any more: forget the
 * snapshots and blocks behind; all of it, if that is 0. Not synced.
 *   as store_get() and store_write()
 */
MUST_CHECK enum status snapshot_trim(struct snapshots *snapshots,
                                     struct uid uid, uint64_t n_token);
/*
 * Forget those of these snapshots that the owner's manifest names, with their
 * states and open blocks; synced. Blocks stay: others may read them.
 *   as store_get() and store_write()
 */
MUST_CHECK enum status snapshot_drop(struct snapshots *snapshots,
                                     struct uid uid, const uint64_t *position,
                                     uint32_t n);
#endif
