#ifndef MODEL_VIEW_PARTS_H
#define MODEL_VIEW_PARTS_H
/*
 * What the files of views share: which rows have one view (view.c), and who
 * makes it, the host, with queries and indices in hand (view_host.c), or a
 * device, which is asked for it and for which nobody waits (view_far.c).
 */
#include "model/view.h"

/* Of one layer and session, between two rows. */
struct look {
    float *queries; /* [VIEW_QUERIES][n_head, d_head] ring of sums, each over
                       the queries of one step; with longer steps fewer are used
                     */
    uint32_t *pick; /* [1 + POLICY_BLOCK_MAX] how many, then the blocks */
};

/* One session in this layer. */
struct viewed {
    const struct view_args *args;
    const struct policy *policy;
    const struct layer_memory *memory;
    struct block_source *source; /* NULL: all blocks are there */
    enum index_kind index;
    struct look look; /* with an index that looks at queries */
};

/* Rows of it that see the same blocks before their own; where they see all,
 * before theirs and among them. */
struct view_run {
    uint32_t row, n;
    uint64_t position;
    bool sees_all;
};

/* Sums that a look-up adds up. */
uint32_t view_n_sum(const struct policy *policy);

/* Will rows from this one on be looked up by, so that somebody adds up their
 * queries? */
bool view_counts(const struct viewed *it, uint64_t position);

/* A span for rows that see every block, or that see the next n_seen entries of
 * the room's lists. */
void view_add_all(const struct viewed *it, const struct view_run *run);
void view_add_seen(const struct viewed *it, const struct view_run *run,
                   uint32_t n_seen);

/* The spans of a run, and what is done when it is through; false and nothing:
 * there is no room for what it sees. Of a device all is done when it is asked
 * for all runs; one without a policy has its place among them. */
bool view_host_run(const struct viewed *it, const struct view_run *run);
bool view_far_run(const struct viewed *it, const struct view_run *run);
void view_far_skip(const struct mixer_batch *batch);
void view_far_ask(const struct view_args *args);
#endif
