#include "scenario.h"

#include <string.h>

#define BATCH 16.0 /* replies that share a decode pass, for estimates */

void scenario_options(struct node_options *out)
{
    *out = (struct node_options){
        .machine = {.decode_fixed = 30000,
                    .decode_row = 1500,
                    .decode_attended = 0.02,
                    .prompt_fixed = 20000,
                    .prompt_row = 400,
                    .prompt_attended = 0.004,
                    .logit = 500,
                    .noise = 0.1,
                    .stall = 0.0005,
                    .prior_factor = 3},
        .max_running = 32,
        .max_tokens = 1000000,
        .pass_rows = 512,
        .least_rows = 64,
        .pass_us = 100000,
        .base_us = 200000,
        .target_factor = 4,
        .pace = {.stretch = 0.7, .token_us = 200000, .least_us = 200},
        .limits = {.max_queue = 256,
                   .tenant_free = 4,
                   .max_wait_us = 30e6,
                   .shed_wait_us = 2e6,
                   .margin = 1.2,
                   .max_bytes = 1000000},
        .seed = 1};
}

/* Time that a request takes of the machine beside others. */
static double work_us(const struct trace_request *r)
{
    struct node_options o;

    scenario_options(&o);
    return node_alone_us(&o, r->n_prompt) +
           r->n_output *
               (o.machine.decode_fixed / BATCH + o.machine.decode_row +
                o.machine.logit + o.machine.decode_attended * r->n_prompt);
}

/* Arrivals at random so that the work offered is `load` times what fits. */
static void spread(struct trace *trace, uint64_t *random, double load)
{
    double total = 0, at = 0;

    for (uint32_t i = 0; i < trace->n; i++)
        total += work_us(&trace->request[i]);
    for (uint32_t i = 0; i < trace->n; i++) {
        at += trace_exponential(random, total / trace->n / load);
        trace->request[i].arrive_us = (uint64_t)at;
    }
}

static struct trace_request draw(uint64_t *random, double most)
{
    return (struct trace_request){
        .n_prompt = (uint32_t)trace_heavy(random, 0.8, 20, most),
        .n_output = 1 + (uint32_t)trace_heavy(random, 1.5, 20, 1000)};
}

static void name_tenant(struct trace_request *r, uint64_t number)
{
    snprintf(r->tenant, sizeof(r->tenant), "t%lu", number);
}

/* One tenant asks ten times as often as each of three others; all of them
 * more than a quarter of the machine. */
static void make_skewed(struct trace *trace, uint64_t seed)
{
    for (uint32_t i = 0; i < 2000; i++) {
        struct trace_request r = draw(&seed, 20000);
        uint64_t who = trace_random(&seed) % 13;
        name_tenant(&r, who < 10 ? 0 : who - 9);
        trace_add(trace, &r);
    }
    spread(trace, &seed, 12);
}

static void tune_skewed(struct node_options *o)
{
    o->limits.max_queue = 2000; /* everybody who comes waits */
    o->limits.tenant_free = 0;
    o->limits.max_wait_us = 0;
}

/* Four times what fits: sheddable, usual and critical, some with deadlines;
 * every tenth comes with a burst of others. */
static void make_overload(struct trace *trace, uint64_t seed)
{
    for (uint32_t i = 0; i < 4000; i++) {
        struct trace_request r = draw(&seed, 100000);
        uint64_t kind = trace_random(&seed) % 20;
        r.priority = kind < 5 ? -1 : kind < 18 ? 0 : 100;
        if (trace_random(&seed) % 3 == 0)
            r.deadline_us =
                (uint64_t)(2e6 + 28e6 * trace_uniform(&seed) + 4 * work_us(&r));
        name_tenant(&r, trace_random(&seed) % 6);
        trace_add(trace, &r);
    }
    spread(trace, &seed, 4);
    for (uint32_t i = 0; i + 20 < trace->n; i += 200)
        for (uint32_t j = 1; j < 20; j++)
            trace->request[i + j].arrive_us = trace->request[i].arrive_us;
}

/* What a healthy node sees: nearly full, short and long, no deadlines. */
static void make_mixed(struct trace *trace, uint64_t seed)
{
    for (uint32_t i = 0; i < 3000; i++) {
        struct trace_request r = draw(&seed, 100000);
        name_tenant(&r, trace_random(&seed) % 4);
        trace_add(trace, &r);
    }
    spread(trace, &seed, 0.35);
}

/* Eight replies without end; a prompt of 100,000 tokens comes between. */
static void make_streams(struct trace *trace, uint64_t seed)
{
    struct trace_request r = {.n_prompt = 100, .n_output = 12000};

    (void)seed;
    for (uint32_t i = 0; i < 8; i++)
        trace_add(trace, &r);
    r = (struct trace_request){
        .arrive_us = 200000000, .n_prompt = 100000, .n_output = 10};
    trace_add(trace, &r);
}

/* Long prompts, each of them beside short ones that take most of the time. */
static void make_convoy(struct trace *trace, uint64_t seed)
{
    for (uint32_t i = 0; i < 3000; i++) {
        struct trace_request r = {
            .n_prompt = 200 + (uint32_t)(trace_random(&seed) % 400),
            .n_output = 1};
        if (i % 500 == 100)
            r.n_prompt = 60000;
        trace_add(trace, &r);
    }
    spread(trace, &seed, 0.8);
}

const struct scenario scenarios[] = {
    {"skewed", "tenants 10:1, all with more than their share", make_skewed,
     tune_skewed},
    {"overload", "four times what fits, in bursts", make_overload, NULL},
    {"mixed", "a third of what fits, 20 to 100,000 tokens", make_mixed, NULL},
    {"streams", "eight replies and a prompt of 100,000", make_streams, NULL},
    {"convoy", "short prompts beside 60,000 tokens", make_convoy, NULL},
};
const uint32_t n_scenario = sizeof(scenarios) / sizeof(scenarios[0]);

const struct scenario *scenario_find(const char *name)
{
    for (uint32_t i = 0; i < n_scenario; i++)
        if (strcmp(scenarios[i].name, name) == 0)
            return &scenarios[i];
    return NULL;
}
