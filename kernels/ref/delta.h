#ifndef KERNELS_REF_DELTA_H
#define KERNELS_REF_DELTA_H
/* One v-head's view of one row of the delta rule: pointers into arguments and
 * state. */
#include "kernels/backend.h"

struct ref_delta_row {
    enum arithmetic arithmetic;
    size_t d_k, d_v, i; /* i: index in the grid chunk */
    float *s;           /* this head's part of the state, as the following */
    void *ring_k, *ring_u;
    double *ring_g;
    const float *q, *k, *v; /* q and k normalised, q scaled */
    float beta, log_decay;
    float *out;
};

/* The row in FP32, and in PAIR and TILE. */
void ref_delta_plain(const struct ref_delta_row *row);
void ref_delta_rounded(const struct ref_delta_row *row);

/* exp(G_i - G_j) */
float ref_delta_decay(const struct ref_delta_row *row, size_t j);
#endif
