#ifndef MODEL_BATCH_H
#define MODEL_BATCH_H
/*
 * The rows of a pass: that they are as agreed, and in which order a pass in
 * pieces takes those of several prompts. One behind the other, each prompt's
 * rows would go to all threads, and operators that go by heads would read what
 * another core wrote (kernels/cpu/cut.h). So prompts lie side by side: a group
 * has a strip of each, and pieces end where groups do. Then a thread has the
 * rows of some prompts, and their heads. No bit depends on it (E2).
 */
#include "model/model.h"

/* What is asserted of each batch: our own mistakes only, what comes from
 * outside was checked on its way. */
void batch_check(const struct model *model, const struct batch *batch);

/* Does it matter to nobody which rows of other spans come between a span's
 * own? Somebody looks at all of them for memory policies and matches. */
bool batch_is_loose(const struct batch *batch);

#define STRIPS_GROUP_MAX 16u

struct strips {
    uint32_t n_group; /* of the pass; 0: rows stand as in the caller's batch */
    uint32_t end[STRIPS_GROUP_MAX]; /* row behind each group */
    struct span *span;              /* [max_span * STRIPS_GROUP_MAX] */
    uint32_t *token;                /* [max_row] */
    uint32_t *logit_row;            /* [max_span] */
};

/*
 * For batches of so many rows and spans.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status strips_init(struct strips *strips, uint32_t max_row,
                                   uint32_t max_span);
void strips_release(struct strips *strips);
size_t strips_bytes(uint32_t max_row, uint32_t max_span);

/*
 * Arrange the batch for pieces of piece_rows rows: *batch becomes one whose
 * arrays are the strips', its logits in the same order. false: it stays as it
 * is. That is where it would gain nothing, and where somebody looks at a span
 * as a whole: for memory policies, matches, and logits of other rows than a
 * prompt's last.
 */
bool strips_arrange(struct strips *strips, uint32_t piece_rows,
                    struct batch *batch);

/* Where the group ends that this row is in; n_row without groups. */
uint32_t strips_end(const struct strips *strips, uint32_t row, uint32_t n_row);
#endif
