#ifndef SCHEDULER_PLAN_H
#define SCHEDULER_PLAN_H
/*
 * Which rows the next pass of the model brings: pure functions of what waits.
 * Where a chunk ends cannot be seen in any result (E2); ends on the grid only
 * save work. Chunked prefill and stall-free batching: Agrawal et al. 2024,
 * arXiv:2403.02310.
 *
 * Decode rows run as one pass; a pass of prompts runs in slices between decode
 * passes (model/pass.h), so a long prompt delays no running reply by more than
 * plan_slice_us(). When none is under way, plan_prompt() fills the next one.
 *
 * Prompts go in this order: priority; the tenant that was served least
 * (scheduler/fair.h); relative slack: the share of its target for the first
 * token that a prompt has to spare, where the target shrinks with what is left
 * to compute, by half at most. So a short prompt passes a long one at once, and
 * does so to the end; of two equals one is done before the other is begun; and
 * the slack of whatever waits falls without end, so nobody starves (relative
 * slack: Agrawal et al. 2024, Medha, arXiv:2409.17264; response ratio: Brinch
 * Hansen 1971). Two kinds of request count as of the highest priority, unless
 * they are sheddable (below 0). First, by deadline, those whose deadline can be
 * kept and is near: PLAN_DUE of the time is spent, or PLAN_HASTE times all
 * prompts with deadlines up to some later one, or its own, fill the time until
 * then. So who was admitted is in time, because admit() lets nobody in with
 * whom this order could not keep every deadline (earliest deadline first: Liu
 * and Layland 1973). Then those that have waited for patience_us beyond their
 * target.
 */
#include "scheduler/cost.h"
#include "scheduler/fair.h"

#include <stdbool.h>
#include <stdint.h>

#define PLAN_DUE 0.5
/* Above admit_limits.margin, so that who was just let in is urgent when full.
 */
#define PLAN_HASTE 1.6
#define PLAN_SHARE_LEAST 0.5
/* A pass may cost so many times its fixed part, whatever pass_us says. */
#define PLAN_WORTH 8.0

struct plan_chunk {
    uint32_t entry;
    uint32_t n_token; /* the entry's next so many tokens, at least 1 */
};

struct plan_request {   /* one request with something to consume, or waiting */
    uint64_t begin;     /* where it began: tokens that were there, computed */
    uint64_t position;  /* tokens that its memory has consumed, >= begin */
    uint64_t n_pending; /* tokens to consume, at least 1 */
    uint64_t arrive_us;
    uint64_t target_us;   /* when its first token should be there, > arrive_us:
                             plan_target_us(), or its caller's earlier deadline */
    uint64_t deadline_us; /* for its first token; 0: none */
    int32_t priority;     /* below 0: sheddable */
    uint32_t tenant;      /* of rules->fair */
};

struct plan_claim { /* of one request with a deadline that can be kept */
    uint64_t deadline_us;
    double us; /* what it takes, at the share of time that prompts get */
    uint32_t entry;
};

struct plan_rules {
    uint64_t now_us;
    uint32_t pass_rows;  /* prompt tokens in a pass at most */
    uint32_t least_rows; /* and so many may be whatever they cost, >= 1: a
                            pass of few rows costs hardly less */
    double pass_us;      /* predicted time of a pass at most, otherwise */
    uint32_t cut_grid;   /* no chunk crosses a multiple of this */
    double base_us;      /* part of a target that all have: plan_target_us() */
    double patience_us;  /* later than its target by this, a request goes before
                            those of higher priority; 0: never */
    double prompt_share; /* of the time is prompts': plan_prompt_share(), > 0 */
    double place_us; /* beside that, one starts every so often; 0: at once */
    struct plan_claim *claim; /* scratch of as many as there are requests; NULL:
                                 a deadline alone says when it is due */
    const struct cost *cost;
    const struct fair *fair; /* NULL: tenants do not matter */
};

struct plan_rank { /* scratch of one request */
    int32_t priority;
    uint64_t counter;
    double slack;
    uint64_t due_us; /* of those that are due: by when; else UINT64_MAX */
    bool is_taken;
};

/*
 * Target for the first token of a prompt whose tokens [begin, end) are to be
 * computed: base_us, and factor times what they take alone.
 */
uint64_t plan_target_us(const struct cost *cost, uint64_t begin, uint64_t end,
                        const struct plan_rules *rules, double factor);

/* 1: just arrived and tiny; 0: has to run alone from now on; below: late. */
double plan_slack(const struct plan_request *request,
                  const struct plan_rules *rules);

/*
 * Fills rules->claim with those of n requests that are not sheddable and whose
 * deadline can be kept, by deadline; returns how many.
 */
uint32_t plan_claims(const struct plan_request *request, uint32_t n,
                     const struct plan_rules *rules);

/*
 * The first n_start of n waiting requests, in order: who gets a place in the
 * batch next. out: [n_start]; returns how many, n at most. rank: [n].
 */
uint32_t plan_start(const struct plan_request *request, uint32_t n,
                    const struct plan_rules *rules, struct plan_rank *rank,
                    uint32_t n_start, uint32_t *out);

/*
 * The next pass of prompts: chunks of requests with more than one token
 * pending, at most one each; out: [n] ascending; rank: [n]. 0 only if there is
 * no such request.
 */
uint32_t plan_prompt(const struct plan_request *request, uint32_t n,
                     const struct plan_rules *rules, struct plan_rank *rank,
                     struct plan_chunk *out);

struct plan_pace {
    double stretch;  /* a slice lasts so many decode passes at most */
    double token_us; /* time between two tokens to keep, if that is less */
    double least_us; /* but a slice is at least so long */
};
/* How long a slice may be beside decode passes of decode_us. */
double plan_slice_us(const struct plan_pace *pace, double decode_us);
/*
 * The same for one step, so that the step, not the slice, is as long as it
 * should be: a decode pass that was to take decode_us took took_us, and steps
 * have lately been lag_us longer than their pass and their slice (a slice ends
 * with a part of its work). A quarter of a slice it is in any case.
 */
double plan_step_slice_us(const struct plan_pace *pace, double decode_us,
                          double took_us, double lag_us);
/* Share of the time that prompts get then; 1 for decode_us 0. */
double plan_prompt_share(const struct plan_pace *pace, double decode_us);
#endif
