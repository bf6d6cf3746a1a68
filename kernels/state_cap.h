#ifndef KERNELS_STATE_CAP_H
#define KERNELS_STATE_CAP_H
/*
 * The operator state_cap of kernels/backend.h: scale the heads down whose root
 * mean square is above a cap. Per head of n = d_k d_v numbers, with r =
 * sqrt(sum s^2 / n) in double, the sum by state_sum_squares(): if r > cap,
 * every s = s * (float)(cap / r). A head with a number that is none is left
 * alone: no scale mends it, and the watch over norms shall see it. Where and
 * what for: model/state_cap.h.
 */
#include "kernels/backend.h"

struct state_cap_args {
    struct delta_shape shape;
    const struct delta_span *span; /* of their rows nothing is read */
    uint32_t n_span;
    float cap;
    uint64_t *n_scaled; /* heads that were are added here; with a device it
                           lies there, too */
};

/* Of n numbers: in double, eight sums side by side, number i in sum i % 8, then
 * one by one. */
double state_sum_squares(const float *s, size_t n);

/* On host memory, for all backends there. */
void state_cap(struct pool *pool, const struct state_cap_args *args);
#endif
