#ifndef OPS_BENCH_LOAD_H
#define OPS_BENCH_LOAD_H
/*
 * Drive a node by a plan: every request is sent when its time comes, whatever
 * became of those before it (open loop), or so many at a time (closed loop).
 * What the node cannot take shows as refusals and waiting, not as a slower
 * client: times count from when a request was to be sent.
 */
#include "ops/bench_plan.h"
#include "ops/bench_prompt.h"
#include "ops/bench_reply.h"

#define BENCH_FLIGHT_MAX 1000u /* a connection's calls at once, by default */

struct bench_load {
    const struct bench_plan *plan;
    const struct bench_words *words;
    uint64_t seed;            /* of prompts and of sampling */
    uint32_t n_shared;        /* leading tokens that all prompts share */
    bool is_text;             /* send text, not ids */
    const float *temperature; /* NULL: the model's own */
    uint32_t at_once;         /* 0: by arrival */
    uint32_t max_flight;      /* an arrival beyond is skipped */
    double drain_s;           /* wait for the last replies, then cancel them */
};

enum bench_check { BENCH_UNCHECKED, BENCH_SAME, BENCH_DIFFERING };

struct bench_run {
    struct bench_reply *reply; /* [n]; owned */
    enum bench_check *check;   /* [n] of replies that were asked again; owned */
    uint32_t n;
    uint64_t begin_us, end_us;
};

/*
 * Send all, wait for all. Refusals and failures are results: the run is filled
 * whatever is returned, bench_run_release() it.
 *   UNAVAILABLE         the node is not there, or went away: nothing more was
 *                       sent
 *   CANCELLED           client_cancel()
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status bench_run(struct ctl *ctl, const struct bench_load *load,
                                 struct bench_run *out);

/*
 * Ask again, one at a time and without a deadline, for every reply that was
 * OK, and note which have other tokens. Errors as above, and whatever
 * the node answers.
 */
MUST_CHECK enum status bench_run_verify(struct ctl *ctl,
                                        const struct bench_load *load,
                                        struct bench_run *run);
void bench_run_release(struct bench_run *run);
#endif
