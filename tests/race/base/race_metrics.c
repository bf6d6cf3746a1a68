/* Threads touch the same metrics while one formats: no count may be lost. */
#include "base/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_THREAD = 4, N_TOUCH = 50000 };

struct shared {
    struct metric *counter, *gauge, *histogram;
};

static void *touch(void *arg)
{
    const struct shared *shared = arg;

    for (int i = 0; i < N_TOUCH; i++) {
        metric_add(shared->counter, 2);
        metric_set(shared->gauge, i);
        metric_observe(shared->histogram, i % 8);
    }
    return NULL;
}

int main(void)
{
    struct metrics *metrics = NULL;
    pthread_t thread[N_THREAD];
    struct shared shared;
    char *text;
    int failed;

    if (metrics_create(&metrics))
        return 1;
    shared.counter = metrics_counter(metrics, "c_total", "", "h");
    shared.gauge = metrics_gauge(metrics, "g", "", "h");
    shared.histogram = metrics_histogram(metrics, "h", "", "h", 1, 3);
    for (int i = 0; i < N_THREAD; i++)
        if (pthread_create(&thread[i], NULL, touch, &shared))
            return 1;
    for (int i = 0; i < 100; i++) {
        text = metrics_format(metrics);
        if (!text)
            return 1;
        free(text);
    }
    for (int i = 0; i < N_THREAD; i++)
        (void)pthread_join(thread[i], NULL);
    failed = metric_value(shared.counter) != 2.0 * N_THREAD * N_TOUCH ||
             metric_value(shared.gauge) != N_TOUCH - 1 ||
             metric_value(shared.histogram) != (double)N_THREAD * N_TOUCH;
    text = metrics_format(metrics);
    /* 0 to 7, each as often: 3.5 on average. */
    if (!text || !strstr(text, "h_sum 700000\n"))
        failed = 1;
    if (failed)
        (void)fprintf(stderr, "race_metrics: counts are lost:\n%s\n", text);
    free(text);
    metrics_destroy(metrics);
    return failed;
}
