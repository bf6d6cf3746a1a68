#ifndef STATE_THREADS_H
#define STATE_THREADS_H
/*
 * The two threads that touch the disk, so that the engine never does.
 *
 * Journal thread: takes commits (one engine step each) from its ring, merges
 * what waits, writes it with one sync, and only then forwards the commits'
 * messages: that is what "only committed tokens are sent" means.
 *
 * Store thread: saves, loads and deletes one job after another and hands each
 * job back.
 *
 * Messages are opaque here: a commit carries `void *` that the journal thread
 * pushes to the outbox ring, in order.
 */
#include "base/ring.h"
#include "state/exporter.h"
#include "state/importer.h"
#include "state/journal.h"
#include "state/scrub.h"
#include "state/snapshot.h"

#define COMMIT_MESSAGE_MAX 1024u

/*
 * One engine step. Made by the engine, destroyed by the journal thread once it
 * was pushed (commit_destroy() frees one that was not).
 */
struct commit {
    struct journal_batch *batch; /* NULL or empty: messages only; owned */
    bool needs_sync;
    uint32_t n_message;
    void **message; /* [n_message] each pushed to the outbox; array owned */
    uint64_t step;  /* the engine's counter, echoed in journal_report */
    uint64_t epoch; /* of the newest report that the engine has read; 0 before
                       the first */
};
/* Frees batch and array, not the messages themselves. Accepts NULL. */
void commit_destroy(struct commit *commit);

/*
 * What the journal thread tells the engine (ring of this struct), once per
 * write.
 *
 * When a write fails, its commits are lost and the epoch goes up by one. Every
 * commit that carries an older epoch was made before the engine could know,
 * maybe on top of what was lost: it is lost, too, without being written. The
 * engine reads the report, closes or repeats what it must, and its next commit
 * carries the new epoch and is tried again. So nothing is ever written behind
 * a hole. (A failed write leaves no part of itself: store_write().)
 */
struct journal_report {
    uint64_t step;      /* the newest commit that this is about: everything up
                           to it that no report called lost is durable ... */
    struct cause cause; /* ... unless the code is not OK: then all commits
                           after the step reported before, up to this one, are
                           lost and their messages went to `drop` */
    uint64_t epoch;     /* for the engine's next commits */
    uint64_t write_us;  /* time of write and sync; 0: nothing was written */
};

struct journal_thread;
struct journal_thread_options {
    struct journal *journal;
    struct ring *outbox;    /* of void *: messages of durable commits */
    struct ring *reports;   /* of struct journal_report; engine kicks below */
    struct ring *engine;    /* kicked after each report */
    uint64_t sync_every_us; /* between the beginnings of two syncs: commits
                               that come faster share one; 0: at once */
    /* Called by the journal thread for each message of a lost commit; it owns
       the message then, and may push another to the outbox. */
    void (*drop)(void *message, const struct cause *cause, struct ring *outbox);
};
/*
 * The ring for commits has `capacity` places of struct commit *. While the
 * outbox or the reports are full, the thread waits: their consumers must run.
 *   RESOURCE_EXHAUSTED  no memory, or the system gives no thread
 *   INVALID_ARGUMENT    as ring_create()
 */
MUST_CHECK enum status
journal_thread_start(const struct journal_thread_options *options,
                     uint32_t capacity, struct journal_thread **out);
/* False when full: try again next step. */
bool journal_thread_push(struct journal_thread *thread, struct commit *commit);
/* Commits not yet durable. Any thread. */
uint32_t journal_thread_backlog(const struct journal_thread *thread);
/*
 * Finish everything that was pushed, then join. Reports that find no place are
 * let go: the engine is the one who waits here. The outbox's consumer should
 * still run; when it takes nothing for OUTBOX_WAIT_MS, what is left goes to
 * `drop`, so that this always returns. Accepts NULL.
 */
#define OUTBOX_WAIT_MS 2000u
void journal_thread_stop(struct journal_thread *thread);

enum store_job_kind {
    STORE_SAVE,    /* image -> snapshot */
    STORE_LOAD,    /* journal's tokens and turn, then the best snapshot */
    STORE_FETCH,   /* the best of some snapshots, of any owner */
    STORE_TOKENS,  /* journal's tokens only */
    STORE_DELETE,  /* snapshots of a log that is not needed, or not all of it */
    STORE_EVICT,   /* all but the newest snapshots of a log, or all of them */
    STORE_SCRUB,   /* one step of verifying a session */
    STORE_COMPARE, /* its image beside what is stored */
    STORE_HEAL,    /* drop what was found bad */
    STORE_INSPECT, /* what the logs of a path have stored */
    STORE_EXPORT,  /* make the next bytes of a bundle */
    STORE_IMPORT,  /* take the next bytes of one */
};
/* What one log has stored. */
struct log_stored {
    uint32_t n_snapshot;
    size_t bytes;
    uint64_t first_block; /* its blocks [first_block, n_block) */
    uint64_t n_block;
};
struct store_job {
    enum store_job_kind kind;
    struct uid uid;       /* of the log */
    struct log_path path; /* LOAD, TOKENS: that ends in it */
    void *owner;          /* the engine's; untouched here */

    struct image *image; /* SAVE, COMPARE: owned by the job, released by the
                            engine */
    struct scrub *scrub; /* SCRUB, COMPARE, HEAL: the engine's */
    struct exporter *exporter; /* EXPORT: the engine's */
    struct importer *importer; /* IMPORT: the engine's ... */
    const void *bytes;         /* ... and what it takes now: [n_bytes] */
    size_t n_bytes;
    bool is_last;
    struct memory *memory; /* LOAD: fresh, from the engine; back to it */
    uint64_t keep_back;    /* LOAD: use no snapshot of the last so many tokens;
                              1 if the engine needs the last token's logits */
    uint64_t n_needed;     /* DELETE: tokens of the log that somebody needs */
    uint32_t n_keep;       /* EVICT: newest snapshots that stay */
    uint32_t n_source;     /* FETCH: best first; its `tokens` are given and
                              `memory` as for LOAD */
    struct snapshot_source source[SNAPSHOT_SOURCE_MAX];
    uint64_t n_byte, expected_us; /* the engine's estimates; untouched here */

    /* results */
    struct log_stored *stored; /* INSPECT: [path.n] of its logs; the engine's */
    struct state_norm *norm; /* INSPECT: [n_layer] of entry[0]; the engine's */
    float head_rms;          /* SAVE: snapshots_head_rms() */
    bool is_done;            /* SCRUB: that was the last step */
    enum status status;
    struct cause cause;
    struct ids tokens; /* LOAD, TOKENS, FETCH: ids_release() by the engine */
    struct digest chain;
    struct turn turn;       /* LOAD: the last one ... */
    bool has_turn;          /* ... if there is one */
    struct restore restore; /* LOAD */
    enum restore_reason refused[SNAPSHOT_SOURCE_MAX]; /* FETCH: of source[i] */
    uint32_t n_entry; /* SAVE, LOAD, DELETE, EVICT, INSPECT: what the owner has,
                         newest first */
    struct snapshot_entry entry[SNAPSHOT_KEEP_MAX];
    size_t n_stored; /* SAVE, DELETE, EVICT: bytes of the owner then */
    uint64_t elapsed_us;
    uint64_t cpu_us; /* of that, the time that its thread had a CPU for */
};

struct store_thread;
struct store_thread_options {
    struct journal *journal;
    struct snapshots *snapshots;
    struct ring *done;   /* of struct store_job *: finished jobs; has room for
                            every job that is out, so it is never full */
    struct ring *engine; /* kicked after each */
};
/* As journal_thread_start(). */
MUST_CHECK enum status
store_thread_start(const struct store_thread_options *options,
                   uint32_t capacity, struct store_thread **out);
/* False when full: try again next step. */
bool store_thread_push(struct store_thread *thread, struct store_job *job);
/*
 * Finish what was pushed (loads are skipped: status CANCELLED), then join. All
 * jobs are in `done` then. Accepts NULL.
 */
void store_thread_stop(struct store_thread *thread);
#endif
