#ifndef OPS_BENCH_PLAN_H
#define OPS_BENCH_PLAN_H
/*
 * What a bench sends and when: a pure function of a mix and its seed, made
 * before anything is sent, so that a slow node cannot slow the arrivals down.
 * A plan may also come from a trace, in the format of tests/sim/trace.h.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define BENCH_REQUEST_MAX 100000u
#define BENCH_TOKEN_MAX (UINT32_C(1) << 24) /* of all replies together */
#define BENCH_NAME_SIZE 32u

struct bench_range {
    uint32_t least, most;
};

struct bench_request {
    uint64_t arrive_us;           /* since the beginning */
    char tenant[BENCH_NAME_SIZE]; /* "": none */
    int32_t priority;
    uint32_t n_prompt, n_reply;
    uint32_t deadline_ms; /* from the arrival; 0: none */
};

struct bench_mix {
    double rate;        /* arrivals a second, > 0 */
    bool is_even;       /* one every 1/rate; else a Poisson process */
    uint32_t n_request; /* at most */
    double seconds;     /* no arrival after this */
    struct bench_range prompt, reply; /* tokens, any number alike likely */
    struct bench_range deadline_ms;
    uint32_t n_tenant; /* names t0, t1, ... alike likely; 0: no name */
    double sheddable;  /* share whose priority is -1, of others it is 0 */
    uint64_t seed;
};

struct bench_plan {
    struct bench_request *request; /* [n] in order of arrival; owned */
    uint32_t n;
};

/*
 * "512" or "64-1024".
 *   INVALID_ARGUMENT  something else, or a number outside [least, most]
 */
MUST_CHECK enum status bench_range_parse(const char *name, const char *text,
                                         struct bench_range limits,
                                         struct bench_range *out);

/*
 *   INVALID_ARGUMENT    replies may come to more than BENCH_TOKEN_MAX tokens
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status bench_plan_draw(const struct bench_mix *mix,
                                       struct bench_plan *out);

/*
 * The requests of a trace, as long as the mix's count and time allow.
 *   INVALID_ARGUMENT    it is no trace (names the line); as above
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status bench_plan_read(const struct bench_mix *mix, FILE *file,
                                       const char *name,
                                       struct bench_plan *out);
void bench_plan_release(struct bench_plan *plan);

/* splitmix64, and a number in [0, n). */
uint64_t bench_random(uint64_t *state);
uint32_t bench_random_below(uint64_t *state, uint32_t n);
#endif
