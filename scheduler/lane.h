#ifndef SCHEDULER_LANE_H
#define SCHEDULER_LANE_H
/*
 * A batch of rows on its way through the model. The engine has two: one for
 * rows of running replies, run whole, and one for prompts, run in slices
 * between (model/pass.h). From lane_begin() until lane_run() has returned true
 * the requests of a lane are `is_in_pass`: their memories are nobody else's.
 */
#include "model/pass.h"

struct request;

struct lane {
    struct workspace *workspace;
    uint32_t max_request, max_row;
    struct request **request; /* [batch.n_span] */
    struct span *span;        /* and the rest of the batch, all owned */
    uint32_t *logit_row, *token;
    struct batch batch;
    bool is_under_way;
    uint64_t busy_us; /* time that its pass has taken so far */
};

/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status lane_init(struct lane *lane, const struct model *model,
                                 uint32_t max_request, uint32_t max_row);
void lane_release(struct lane *lane);
/* Is a token sampled where it has come to `end`? */
bool lane_samples(const struct request *request, uint64_t end);
/*
 * The next n_token of the request's log; logits if it samples.
 *   RESOURCE_EXHAUSTED  no memory for them; it is not in the lane
 */
MUST_CHECK enum status lane_add(struct lane *lane, struct request *request,
                                uint32_t n_token);
void lane_begin(struct lane *lane);
/* Run on for a slice, NULL: to the end. True: the pass is done. */
bool lane_run(struct lane *lane, struct pool *pool, const struct clock *clock,
              const struct pass_slice *slice);
/* Its rows have been taken: empty. */
void lane_clear(struct lane *lane);
#endif
