#ifndef KERNELS_ROUTING_H
#define KERNELS_ROUTING_H
/*
 * The part of route() that compares and counts but rounds nothing: every CPU
 * backend shares it.
 */
#include "kernels/backend.h"

/*
 * Choose experts for one row of the routing by these weights [n_expert] and,
 * if so asked, renormalise.
 */
void routing_choose(const struct route_args *args, uint32_t row,
                    const float *weight);

/* From everybody's experts to rows in order of experts. */
void routing_group(const struct routing *routing);
#endif
