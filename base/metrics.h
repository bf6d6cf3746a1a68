#ifndef BASE_METRICS_H
#define BASE_METRICS_H
/*
 * A registry of counters, gauges and histograms in Prometheus' text format.
 * Metrics are registered at start by their owners and then only touched with
 * relaxed atomics, from any thread. Names: base units, `_total` for counters.
 */
#include "base/status.h"

#include <stddef.h>

#define METRICS_MAX 256
#define METRICS_BUCKET_MAX 64 /* of one histogram, without +Inf */

struct metrics;
struct metric; /* borrowed from the registry */

MUST_CHECK enum status metrics_create(struct metrics **out);
void metrics_destroy(struct metrics *metrics);

/*
 * name: "godwit_generation_tokens_total"; labels: "reason=\"stop\"" or "", with
 * quotes in values already escaped. Texts are copied. The same name and labels
 * give the same metric, which must be of the same kind. NULL only when
 * METRICS_MAX is reached or memory is out; every metric_* call accepts NULL.
 * One thread registers, before others format.
 */
struct metric *metrics_counter(struct metrics *metrics, const char *name,
                               const char *labels, const char *help);
struct metric *metrics_gauge(struct metrics *metrics, const char *name,
                             const char *labels, const char *help);
/* Buckets double from `first` (seconds, say) n_bucket times, then +Inf. */
struct metric *metrics_histogram(struct metrics *metrics, const char *name,
                                 const char *labels, const char *help,
                                 double first, uint32_t n_bucket);

/* Of a counter, of a gauge, of a histogram (which drops NaN). Any thread. */
void metric_add(struct metric *metric, uint64_t n);
void metric_set(struct metric *metric, double value);
void metric_observe(struct metric *metric, double value);

/* Of a histogram: how many values were observed. 0 of NULL. */
double metric_value(const struct metric *metric);

/* The whole registry as text, NUL-terminated, free() it. NULL: no memory. */
char *metrics_format(const struct metrics *metrics);
#endif
