#ifndef OPS_SAMPLES_H
#define OPS_SAMPLES_H
/*
 * Measured times, kept whole so that a quantile is one of them and not an
 * estimate. Whoever adds knows how many there can be and asks for room before.
 */
#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

struct samples {
    uint64_t *us; /* [n]; owned */
    size_t n, capacity;
};

/* RESOURCE_EXHAUSTED  no memory for so many */
MUST_CHECK enum status samples_init(struct samples *samples, size_t capacity);
/* Room for so many in all, of one that may be zeroed; keeps what it has.
 *   RESOURCE_EXHAUSTED  no memory for so many */
MUST_CHECK enum status samples_reserve(struct samples *samples,
                                       size_t capacity);
/* Accepts a zeroed one. */
void samples_release(struct samples *samples);

/* What is beyond the capacity is dropped. */
void samples_add(struct samples *samples, uint64_t us);
void samples_clear(struct samples *samples);

/* Before quantiles are asked for. */
void samples_sort(struct samples *samples);

/*
 * The least sample that a share of `q` of all do not exceed (nearest rank), of
 * sorted ones; q in [0, 1], 1 is the largest. 0 if there is none.
 */
uint64_t samples_quantile(const struct samples *samples, double q);
#endif
