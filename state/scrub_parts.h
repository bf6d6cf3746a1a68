#ifndef STATE_SCRUB_PARTS_H
#define STATE_SCRUB_PARTS_H
/*
 * What scrub.c, which walks, and scrub_judge.c, which compares and heals,
 * share.
 */
#include "state/scrub.h"
#include "state/snapshot_check.h"

struct scrub_entry {
    uint64_t position;
    bool is_bad;
    /* Not to be looked at: no longer named, or behind what the path reads. Its
       owner's business, but a bad block before it is bad for it, too. */
    bool is_gone;
};

/* One log of the path. */
struct scrub_log {
    struct uid uid;
    uint64_t end;         /* tokens of the path up to its end */
    bool is_bad;          /* its manifest is not readable */
    struct log_path base; /* of its manifest */
    uint32_t n;
    struct scrub_entry entry[SNAPSHOT_KEEP_MAX]; /* newest first */
    /* Blocks to look at: those that its own snapshots need of it ... */
    uint64_t first_block, n_block;
    /* ... and those that snapshots of later logs do. */
    uint64_t first_lent, n_lent;
    uint64_t first_bad; /* block; UINT64_MAX: none */
};
static inline bool scrub_has_block(const struct scrub_log *log, uint64_t b)
{
    return (b >= log->first_block && b < log->n_block) ||
           (b >= log->first_lent && b < log->n_lent);
}

enum scrub_phase {
    SCRUB_PHASE_RECORD,
    SCRUB_PHASE_TOKENS,
    SCRUB_PHASE_TURNS,
    SCRUB_PHASE_MANIFESTS,
    SCRUB_PHASE_VALUES,
    SCRUB_PHASE_DONE
};

struct scrub {
    struct scrub_source source;
    struct scrub_report report;
    enum scrub_phase phase;
    uint64_t step_bytes, step_rows; /* of this step so far */
    struct cause failure; /* no memory to look: that says nothing about what is
                             stored, and ends it */
    /* tokens */
    struct ids tokens;
    uint32_t piece;
    uint64_t next_row; /* of turns */
    struct chains chains;
    /* values */
    uint32_t log, layer; /* where to go on ... */
    uint64_t place;      /* ... at an entry, then at a block */
    bool is_in_blocks;
    struct scrub_log logs[LOG_PATH_MAX];
};

/* Note what is bad or missing (NOT_FOUND), from this thread's cause. */
void scrub_note(struct scrub *scrub, enum scrub_kind kind, enum status st,
                const char *what);
enum scrub_kind scrub_kind_of(char letter);
#endif
