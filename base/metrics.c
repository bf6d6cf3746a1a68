#include "base/metrics.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { COUNTER, GAUGE, HISTOGRAM };

struct metric {
    enum kind kind;
    char *name, *labels, *help; /* owned */
    _Atomic uint64_t count;     /* of a counter */
    _Atomic double value;       /* of a gauge; the sum of a histogram */
    double first;               /* upper bound of a histogram's bucket 0 */
    uint32_t n_bucket;          /* without +Inf */
    _Atomic uint64_t *bucket;   /* [n_bucket + 1], not cumulative; owned */
};

struct metrics {
    uint32_t n_metric;
    struct metric *metric[METRICS_MAX];
};

enum status metrics_create(struct metrics **out)
{
    struct metrics *metrics = calloc(1, sizeof(*metrics));

    if (!metrics)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for metrics");
    *out = metrics;
    return STATUS_OK;
}

static void metric_destroy(struct metric *metric)
{
    if (!metric)
        return;
    free(metric->name);
    free(metric->labels);
    free(metric->help);
    free(metric->bucket);
    free(metric);
}

void metrics_destroy(struct metrics *metrics)
{
    if (!metrics)
        return;
    for (uint32_t i = 0; i < metrics->n_metric; i++)
        metric_destroy(metrics->metric[i]);
    free(metrics);
}

static struct metric *find(const struct metrics *metrics, const char *name,
                           const char *labels)
{
    for (uint32_t i = 0; i < metrics->n_metric; i++)
        if (strcmp(metrics->metric[i]->name, name) == 0 &&
            strcmp(metrics->metric[i]->labels, labels) == 0)
            return metrics->metric[i];
    return NULL;
}

static struct metric *add(struct metrics *metrics, enum kind kind,
                          const char *name, const char *labels,
                          const char *help)
{
    struct metric *metric = find(metrics, name, labels);

    if (metric) {
        assert(metric->kind == kind);
        return metric;
    }
    if (metrics->n_metric == METRICS_MAX)
        return NULL;
    metric = calloc(1, sizeof(*metric));
    if (!metric)
        return NULL;
    metric->kind = kind;
    metric->name = strdup(name);
    metric->labels = strdup(labels);
    metric->help = strdup(help);
    if (!metric->name || !metric->labels || !metric->help) {
        metric_destroy(metric);
        return NULL;
    }
    metrics->metric[metrics->n_metric++] = metric;
    return metric;
}

struct metric *metrics_counter(struct metrics *metrics, const char *name,
                               const char *labels, const char *help)
{
    return add(metrics, COUNTER, name, labels, help);
}

struct metric *metrics_gauge(struct metrics *metrics, const char *name,
                             const char *labels, const char *help)
{
    return add(metrics, GAUGE, name, labels, help);
}

struct metric *metrics_histogram(struct metrics *metrics, const char *name,
                                 const char *labels, const char *help,
                                 double first, uint32_t n_bucket)
{
    struct metric *metric;
    _Atomic uint64_t *bucket;

    assert(first > 0 && n_bucket > 0 && n_bucket <= METRICS_BUCKET_MAX);
    bucket = calloc((size_t)n_bucket + 1, sizeof(*bucket));
    if (!bucket)
        return NULL;
    metric = add(metrics, HISTOGRAM, name, labels, help);
    if (!metric || metric->bucket) {
        free(bucket);
        return metric;
    }
    metric->first = first;
    metric->n_bucket = n_bucket;
    metric->bucket = bucket;
    return metric;
}

static void add_double(_Atomic double *to, double n)
{
    double old = atomic_load_explicit(to, memory_order_relaxed);

    while (!atomic_compare_exchange_weak_explicit(
        to, &old, old + n, memory_order_relaxed, memory_order_relaxed))
        ;
}

void metric_add(struct metric *metric, uint64_t n)
{
    if (!metric)
        return;
    assert(metric->kind == COUNTER);
    (void)atomic_fetch_add_explicit(&metric->count, n, memory_order_relaxed);
}

void metric_set(struct metric *metric, double value)
{
    if (!metric)
        return;
    assert(metric->kind == GAUGE);
    atomic_store_explicit(&metric->value, value, memory_order_relaxed);
}

void metric_observe(struct metric *metric, double value)
{
    double bound;
    uint32_t i = 0;

    if (!metric || isnan(value)) /* one NaN would spoil the sum for good */
        return;
    assert(metric->kind == HISTOGRAM);
    for (bound = metric->first; i < metric->n_bucket && value > bound; i++)
        bound *= 2;
    (void)atomic_fetch_add_explicit(&metric->bucket[i], 1,
                                    memory_order_relaxed);
    add_double(&metric->value, value);
}

double metric_value(const struct metric *metric)
{
    uint64_t n = 0;

    if (!metric)
        return 0;
    if (metric->kind == COUNTER)
        return (double)metric->count;
    if (metric->kind == GAUGE)
        return metric->value;
    for (uint32_t i = 0; i <= metric->n_bucket; i++)
        n += atomic_load_explicit(&metric->bucket[i], memory_order_relaxed);
    return (double)n;
}

/* The shortest decimal that reads back as the same double. */
static void put_double(FILE *to, double value)
{
    char text[32];

    if (isnan(value)) {
        (void)fputs("NaN", to);
        return;
    }
    if (isinf(value)) {
        (void)fputs(value > 0 ? "+Inf" : "-Inf", to);
        return;
    }
    for (int n_digit = 6; n_digit <= 17; n_digit++) {
        (void)snprintf(text, sizeof(text), "%.*g", n_digit, value);
        if (strtod(text, NULL) == value)
            break;
    }
    (void)fputs(text, to);
}

static void put_name(FILE *to, const struct metric *metric, const char *suffix)
{
    if (*metric->labels)
        (void)fprintf(to, "%s%s{%s} ", metric->name, suffix, metric->labels);
    else
        (void)fprintf(to, "%s%s ", metric->name, suffix);
}

/*
 * The count is the sum of the buckets as they are read here, so that it equals
 * the +Inf bucket even while others observe.
 */
static void put_histogram(FILE *to, const struct metric *metric)
{
    double bound = metric->first;
    uint64_t n = 0;

    for (uint32_t i = 0; i <= metric->n_bucket; i++, bound *= 2) {
        n += atomic_load_explicit(&metric->bucket[i], memory_order_relaxed);
        (void)fprintf(to, "%s_bucket{%s%sle=\"", metric->name, metric->labels,
                      *metric->labels ? "," : "");
        put_double(to, i < metric->n_bucket ? bound : INFINITY);
        (void)fprintf(to, "\"} %lu\n", n);
    }
    put_name(to, metric, "_sum");
    put_double(to, metric->value);
    (void)fputc('\n', to);
    put_name(to, metric, "_count");
    (void)fprintf(to, "%lu\n", n);
}

static void put_metric(FILE *to, const struct metric *metric)
{
    if (metric->kind == HISTOGRAM) {
        put_histogram(to, metric);
        return;
    }
    put_name(to, metric, "");
    if (metric->kind == COUNTER)
        (void)fprintf(to, "%lu", metric->count);
    else
        put_double(to, metric->value);
    (void)fputc('\n', to);
}

/* True when no metric before i has its name. */
static bool is_first(const struct metrics *metrics, uint32_t i)
{
    for (uint32_t j = 0; j < i; j++)
        if (strcmp(metrics->metric[j]->name, metrics->metric[i]->name) == 0)
            return false;
    return true;
}

/* All lines of one name stand together, as the format demands. */
static void put_family(FILE *to, const struct metrics *metrics, uint32_t first)
{
    static const char *const TYPE[] = {"counter", "gauge", "histogram"};
    const struct metric *metric = metrics->metric[first];

    (void)fprintf(to, "# HELP %s %s\n# TYPE %s %s\n", metric->name,
                  metric->help, metric->name, TYPE[metric->kind]);
    for (uint32_t i = first; i < metrics->n_metric; i++)
        if (strcmp(metrics->metric[i]->name, metric->name) == 0)
            put_metric(to, metrics->metric[i]);
}

char *metrics_format(const struct metrics *metrics)
{
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *to = open_memstream(&text, &n_bytes);
    bool is_cut;

    if (!to)
        return NULL;
    for (uint32_t i = 0; i < metrics->n_metric; i++)
        if (is_first(metrics, i))
            put_family(to, metrics, i);
    is_cut = ferror(to) != 0;
    if (fclose(to) != 0 || is_cut) {
        free(text);
        return NULL;
    }
    return text;
}
