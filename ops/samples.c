#include "ops/samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status samples_init(struct samples *samples, size_t capacity)
{
    uint64_t *us = calloc(capacity ? capacity : 1, sizeof(*us));

    if (!us)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu samples", capacity);
    *samples = (struct samples){.us = us, .capacity = capacity};
    return STATUS_OK;
}

enum status samples_reserve(struct samples *samples, size_t capacity)
{
    uint64_t *us;

    if (capacity <= samples->capacity)
        return STATUS_OK;
    us = realloc(samples->us, capacity * sizeof(*us));
    if (!us)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu samples", capacity);
    samples->us = us;
    samples->capacity = capacity;
    return STATUS_OK;
}

void samples_release(struct samples *samples)
{
    free(samples->us);
    memset(samples, 0, sizeof(*samples));
}

void samples_add(struct samples *samples, uint64_t us)
{
    if (samples->n < samples->capacity)
        samples->us[samples->n++] = us;
}

void samples_clear(struct samples *samples)
{
    samples->n = 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void samples_sort(struct samples *samples)
{
    if (samples->n > 1)
        qsort(samples->us, samples->n, sizeof(*samples->us), compare);
}

uint64_t samples_quantile(const struct samples *samples, double q)
{
    size_t rank = (size_t)ceil(q * (double)samples->n);

    if (samples->n == 0)
        return 0;
    if (rank > samples->n)
        rank = samples->n;
    return samples->us[rank > 0 ? rank - 1 : 0];
}
