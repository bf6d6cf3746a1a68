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
 * matrix is the whole state.
 */
#include "kernels/backend.h"

#include <stddef.h>

#define STATE_CAP_GRID 1024u /* tokens; a multiple of GRID */
#define STATE_CAP_MIN 1e-6
#define STATE_CAP_MAX 1e6

/*
 * Scale the heads of those spans that have just come to a point of the grid.
 * Per head of n = d_k d_v numbers, with r = sqrt(sum s^2 / n) in double by
 * state_sum_squares(): if r > cap, every s = s * (float)(cap / r). A head with
 * a number that is none is left alone: no scale mends it, and the watch over
 * norms shall see it. Returns how many heads were scaled.
 */
uint64_t state_cap_apply(struct pool *pool, struct delta_shape shape,
                         const struct delta_span *span, uint32_t n_span,
                         float cap);

/* What of a span of `n_row` from `position` on the n-th call brings, as rows
 * behind its first: up to the next point of the grid. Empty: it is done. */
struct state_cap_part {
    uint32_t first, end;
};
struct state_cap_part state_cap_part(uint64_t position, uint32_t n_row,
                                     uint32_t n);
#endif
