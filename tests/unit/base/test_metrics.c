/* The judge is Prometheus' text format, version 0.0.4, written by hand here. */
#include "base/metrics.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

static void assert_text(const struct metrics *metrics, const char *want)
{
    char *text = metrics_format(metrics);

    cr_assert_str_eq(text, want);
    free(text);
}

Test(metrics, text_is_prometheus)
{
    struct metrics *metrics = NULL;
    struct metric *stop, *length, *slots, *wait;

    must(metrics_create(&metrics));
    stop = metrics_counter(metrics, "godwit_replies_total", "reason=\"stop\"",
                           "Replies by their end.");
    slots = metrics_gauge(metrics, "godwit_slots", "", "Slots in use.");
    length = metrics_counter(metrics, "godwit_replies_total",
                             "reason=\"length\"", "Replies by their end.");
    wait = metrics_histogram(metrics, "godwit_wait_seconds", "queue=\"a\"",
                             "Time in the queue.", 0.001, 3);
    metric_add(stop, 2);
    metric_add(stop, 3);
    metric_add(length, 1);
    metric_set(slots, 0.5);
    metric_observe(wait, 0.0005);
    metric_observe(wait, 0.001); /* a bound belongs to its bucket */
    metric_observe(wait, 0.0025);
    metric_observe(wait, 7);
    assert_text(metrics,
                "# HELP godwit_replies_total Replies by their end.\n"
                "# TYPE godwit_replies_total counter\n"
                "godwit_replies_total{reason=\"stop\"} 5\n"
                "godwit_replies_total{reason=\"length\"} 1\n"
                "# HELP godwit_slots Slots in use.\n"
                "# TYPE godwit_slots gauge\n"
                "godwit_slots 0.5\n"
                "# HELP godwit_wait_seconds Time in the queue.\n"
                "# TYPE godwit_wait_seconds histogram\n"
                "godwit_wait_seconds_bucket{queue=\"a\",le=\"0.001\"} 2\n"
                "godwit_wait_seconds_bucket{queue=\"a\",le=\"0.002\"} 2\n"
                "godwit_wait_seconds_bucket{queue=\"a\",le=\"0.004\"} 3\n"
                "godwit_wait_seconds_bucket{queue=\"a\",le=\"+Inf\"} 4\n"
                "godwit_wait_seconds_sum{queue=\"a\"} 7.004\n"
                "godwit_wait_seconds_count{queue=\"a\"} 4\n");
    metrics_destroy(metrics);
}

Test(metrics, a_histogram_without_labels_has_only_le)
{
    struct metrics *metrics = NULL;
    struct metric *wait;

    must(metrics_create(&metrics));
    wait = metrics_histogram(metrics, "w", "", "h", 0.25, 1);
    metric_observe(wait, 0.5);
    assert_text(metrics, "# HELP w h\n"
                         "# TYPE w histogram\n"
                         "w_bucket{le=\"0.25\"} 0\n"
                         "w_bucket{le=\"+Inf\"} 1\n"
                         "w_sum 0.5\n"
                         "w_count 1\n");
    metrics_destroy(metrics);
}

Test(metrics, numbers_read_back_as_the_same_double)
{
    static const struct {
        double value;
        const char *text;
    } CASE[] = {
        {0, "0"},
        {-1.5, "-1.5"},
        {0.1, "0.1"},
        {1e300, "1e+300"},
        {1.0 / 3, "0.3333333333333333"},
        {INFINITY, "+Inf"},
        {-INFINITY, "-Inf"},
        {NAN, "NaN"},
        {1048576, "1048576"},
    };
    struct metrics *metrics = NULL;
    struct metric *gauge;
    char want[128];

    must(metrics_create(&metrics));
    gauge = metrics_gauge(metrics, "g", "", "h");
    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        metric_set(gauge, CASE[i].value);
        snprintf(want, sizeof(want), "# HELP g h\n# TYPE g gauge\ng %s\n",
                 CASE[i].text);
        assert_text(metrics, want);
    }
    metrics_destroy(metrics);
}

Test(metrics, the_same_name_and_labels_are_one_metric)
{
    struct metrics *metrics = NULL;
    struct metric *a, *b, *other;
    char name[] = "a_total";

    must(metrics_create(&metrics));
    a = metrics_counter(metrics, name, "", "h");
    name[0] = 'b'; /* texts are copied */
    b = metrics_counter(metrics, "a_total", "", "h");
    other = metrics_counter(metrics, "a_total", "x=\"1\"", "h");
    cr_assert(eq(ptr, a, b));
    cr_assert(ne(ptr, a, other));
    metric_add(a, 1);
    cr_assert(eq(dbl, metric_value(b), 1.0));
    cr_assert(eq(dbl, metric_value(other), 0.0));
    a = metrics_histogram(metrics, "h", "", "h", 1, 2);
    cr_assert(eq(ptr, metrics_histogram(metrics, "h", "", "h", 1, 2), a));
    metrics_destroy(metrics);
}

Test(metrics, values_are_read_by_kind)
{
    struct metrics *metrics = NULL;
    struct metric *counter, *gauge, *histogram;

    must(metrics_create(&metrics));
    counter = metrics_counter(metrics, "c", "", "");
    gauge = metrics_gauge(metrics, "g", "", "");
    histogram = metrics_histogram(metrics, "h", "", "", 1, METRICS_BUCKET_MAX);
    metric_add(counter, 7);
    metric_set(gauge, -2.25);
    metric_observe(histogram, 100);
    metric_observe(histogram, 1e300);
    metric_observe(histogram, NAN);
    cr_assert(eq(dbl, metric_value(counter), 7.0));
    cr_assert(eq(dbl, metric_value(gauge), -2.25));
    cr_assert(eq(dbl, metric_value(histogram), 2.0));
    metrics_destroy(metrics);
}

Test(metrics, a_full_registry_gives_null_and_null_is_harmless)
{
    struct metrics *metrics = NULL;
    char name[32];

    must(metrics_create(&metrics));
    for (int i = 0; i < METRICS_MAX; i++) {
        snprintf(name, sizeof(name), "m%d_total", i);
        cr_assert(ne(ptr, metrics_counter(metrics, name, "", "h"), NULL));
    }
    cr_assert(eq(ptr, metrics_counter(metrics, "more", "", ""), NULL));
    cr_assert(eq(ptr, metrics_gauge(metrics, "more", "", ""), NULL));
    cr_assert(eq(ptr, metrics_histogram(metrics, "more", "", "", 1, 1), NULL));
    cr_assert(ne(ptr, metrics_counter(metrics, "m0_total", "", "h"), NULL));
    metric_add(NULL, 1);
    metric_set(NULL, 1);
    metric_observe(NULL, 1);
    cr_assert(eq(dbl, metric_value(NULL), 0.0));
    metrics_destroy(metrics);
    metrics_destroy(NULL);
}

Test(metrics, an_empty_registry_is_an_empty_text)
{
    struct metrics *metrics = NULL;

    must(metrics_create(&metrics));
    assert_text(metrics, "");
    metrics_destroy(metrics);
}
