#ifndef TESTS_SIM_NODE_H
#define TESTS_SIM_NODE_H
/*
 * A node without a model: the scheduler's pure parts (plan, cost, fair, admit)
 * do what the engine does with them, on a clock that jumps; how long a pass
 * takes is made up, with noise and stalls, and the cost model has to find out.
 */
#include "scheduler/admit.h"
#include "trace.h"

enum outcome { WAITING, PREFILLING, DECODING, DONE, REFUSED, EVICTED };

struct machine { /* the truth, microseconds */
    double decode_fixed, decode_row, decode_attended;
    double prompt_fixed, prompt_row, prompt_attended, logit;
    double noise;        /* relative, of each pass */
    double stall;        /* probability of a pass that takes ten times */
    double prior_factor; /* the first guess is so many times the truth */
};

struct node_options {
    struct machine machine;
    uint32_t max_running;
    uint64_t max_tokens; /* of all that run: their memory */
    uint32_t pass_rows, least_rows;
    double pass_us, base_us, target_factor;
    struct plan_pace pace;
    struct admit_limits limits;
    uint64_t seed;
};

struct result { /* of one request of the trace; 0: never */
    enum outcome outcome;
    enum admit_reason reason;
    uint32_t retry_ms;
    double predicted_us; /* to its first token */
    uint64_t target_us;  /* from arrival */
    uint64_t start_us, first_us, end_us;
    uint32_t n_preempted;
    uint64_t worst_gap_us; /* between two tokens */
};

struct tenant_mark { /* what a tenant was served at some moment */
    uint64_t at_us;
    uint32_t tenant;
    uint64_t n_served; /* weighted tokens */
    uint32_t n_waiting;
};

struct node_report {
    struct result *result; /* [n] as in the trace; owned */
    uint32_t n;
    double *gap_us; /* [n_gap] every time between two tokens; owned */
    uint64_t n_gap, gap_capacity;
    struct tenant_mark *mark; /* [n_mark], every second; owned */
    uint64_t n_mark, mark_capacity;
    uint64_t digest; /* of every decision */
    uint64_t end_us, n_pass, n_decode_pass;
    double prompt_error, decode_error; /* mean relative, of predictions */
    uint32_t most_waiting;
    uint64_t shed_out_of_turn; /* others refused for the queue while a
                                  sheddable one waited */
};

void node_run(const struct trace *trace, const struct node_options *options,
              struct node_report *out);
void node_report_release(struct node_report *report);

/* Predicted by the truth: a prompt alone, in microseconds. */
double node_alone_us(const struct node_options *options, uint32_t n_prompt);
#endif
