#ifndef NODE_BENCH_H
#define NODE_BENCH_H
/*
 * What the files of `godwitd bench` share: the machine with its bounds, a
 * measured point, and the row that is printed of it. bench_steps.c measures the
 * bare model, bench_node.c the whole node, cmd_bench.c chooses points.
 */
#include "kernels/pool.h"
#include "model/model.h"
#include "node/peak.h"
#include "node/stopwatch.h"

#include <stdbool.h>
#include <stdint.h>

#define BENCH_LIST_MAX 16u
#define BENCH_RUN_MAX 99u
#define BENCH_BATCH_MAX 64u

struct bench_options {
    const char *model, *synthetic; /* one of them is not empty */
    const char *data, *contexts, *batches, *threads, *sessions, *parts;
    struct model_choice choice;
    uint64_t runs, seconds, chunk;
};

struct bench {
    const struct bench_options *options;
    const struct model *model; /* of engine_parts or of the node; borrowed */
    struct pool *pool;         /* owned */
    const char *model_name;    /* last part of its path */
    bool
        is_loaded; /* what fails from here on is not the command line's fault */
    bool has_header;
    char machine[128];
    enum peak_kind kind; /* of the products */
    double peak;         /* flops per second of it */
    size_t read_bytes;   /* for which `bandwidth` was measured */
    double bandwidth;    /* bytes per second */
    uint64_t context[BENCH_LIST_MAX], batch[BENCH_LIST_MAX],
        session[BENCH_LIST_MAX];
    uint32_t n_context, n_batch, n_session;
};

#define BENCH_NONE (-1.0) /* not measured: printed as "-" */

struct latencies {
    double ttft_p50_ms, ttft_p99_ms, token_p50_ms, token_p99_ms;
};

/* One measured point. */
struct point {
    const char *what; /* "prefill", "decode" */
    uint64_t context; /* tokens before the measured ones, or of the prompt */
    uint32_t n_session;
    double rate, bound; /* tokens per second */
    const char *bound_kind;
    double share[N_STOPWATCH_PART]; /* of the time; or share[0] BENCH_NONE */
    double of_peak; /* products alone: share of their own bound */
    struct latencies latency;
};

/* A point whose optional parts are BENCH_NONE. */
struct point point_of(const char *what, uint64_t context, uint32_t n_session);

uint64_t bench_now_us(void);
double bench_median(double *value, uint32_t n); /* sorts */
/* Of n sorted values; BENCH_NONE of none. */
double bench_percentile(const double *value, size_t n, double share);
/* One row, the header in front of the first. */
void bench_print(struct bench *bench, const struct point *point);

/* Measure the peaks of the machine for the bench's pool and model. */
void bench_measure_peaks(struct bench *bench);

/*
 * Time that no program could go below, in seconds: all products, those of
 * attention and of recurrences too, at the peak of their instruction; or
 * reading all weights and memories once, if that takes longer.
 */
struct work {
    double flops, bytes;
};
double bench_seconds(const struct bench *bench, const struct work *work,
                     double bandwidth, const char **out_kind);
/* With the bandwidth measured now, or lately for as many bytes. */
MUST_CHECK enum status bench_bound(struct bench *bench, const struct work *work,
                                   double *out_seconds, const char **out_kind);

/* Of n_row rows, n_logit of them with logits, at positions from `position`. */
struct work bench_prefill_work(const struct model *model, uint64_t position,
                               uint64_t n_row);
struct work bench_decode_work(const struct model *model, uint64_t position,
                              uint32_t n_session);

/* Fill in the shares, and what the products reach of their own bound. */
void point_add_parts(struct point *point, const struct bench *bench,
                     const struct stopwatch *watch, double seconds,
                     double product_bytes);

/* Prefill and decode rows of the bare model.  as memory_reserve() */
MUST_CHECK enum status bench_prefills(struct bench *bench);
MUST_CHECK enum status bench_decodes(struct bench *bench);
#endif
