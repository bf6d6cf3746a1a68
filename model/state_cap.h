#ifndef MODEL_STATE_CAP_H
#define MODEL_STATE_CAP_H
/*
 * A guard against states that grow without end (model/state_norm.h): where a
 * session passes a point of an absolute grid of tokens, a head whose root mean
 * square is above the cap is scaled down to it (Stuffed Mamba's state
 * normalisation, arXiv:2410.07145, with one cap for all heads). Off unless a
 * node asks for it: a cap that a sound model reaches takes from what its
 * session remembers.
 *
 * It is a function of position and values alone, so a row stays the same bits
 * however work is scheduled; and it is part of the numerics id. The delta rule
 * is called up to each point of the grid, where its rings are empty and its
 * matrix is the whole state. What happens there: kernels/state_cap.h.
 */
#include "base/status.h"
#include "kernels/backend.h"

#include <stdbool.h>

struct batch;
struct device;
struct model;

#define STATE_CAP_GRID 1024u /* tokens; a multiple of GRID */
#define STATE_CAP_MIN 1e-6
#define STATE_CAP_MAX 1e6

/* Of spans whose rows are done those that have just come to a point of the
 * grid: to the front; returns how many. */
uint32_t state_cap_due(struct delta_span *span, uint32_t n_span);

/*
 * How many heads were scaled, where states lie, and where the host reads it;
 * without a device the same memory. Read there after a wait for read().
 *   RESOURCE_EXHAUSTED, UNAVAILABLE  as device_take()
 */
struct state_cap_count {
    uint64_t *n, *taken; /* NULL of a model without a cap */
};
MUST_CHECK enum status state_cap_count_init(const struct model *model,
                                            struct state_cap_count *out);
void state_cap_count_release(struct device *device,
                             struct state_cap_count *count);
void state_cap_count_read(struct device *device,
                          const struct state_cap_count *count);

/* Will states be scaled where rows of the batch come to a point of the grid? */
bool state_cap_is_due(const struct state_cap_count *count,
                      const struct batch *batch);

/* What of a span of `n_row` from `position` on the n-th call brings, as rows
 * behind its first: up to the next point of the grid. Empty: it is done. */
struct state_cap_part {
    uint32_t first, end;
};
struct state_cap_part state_cap_part(uint64_t position, uint32_t n_row,
                                     uint32_t n);
#endif
