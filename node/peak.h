#ifndef NODE_PEAK_H
#define NODE_PEAK_H
/*
 * What this machine can do at most, measured, for `bench` to set beside what
 * the model reaches. The loops do nothing else, so that a bound is a bound:
 * the best of several short runs.
 */
#include "kernels/pool.h"

#include <stddef.h>

/*
 * float fma operations per second times two, over all threads of the pool, with
 * the vectors of the backend of this name ("avx512", "avx2"; others: scalar).
 */
double peak_flops(struct pool *pool, const char *backend);

/*
 * Bytes per second when all threads together read n_bytes again and again, as
 * a decode step reads its weights: from the cache that holds them, or memory.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status peak_read_bytes(struct pool *pool, size_t n_bytes,
                                       double *out);
#endif
