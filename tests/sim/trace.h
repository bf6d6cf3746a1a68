#ifndef TESTS_SIM_TRACE_H
#define TESTS_SIM_TRACE_H
/*
 * A trace: who asks for what, when. As a file, one line per request in order
 * of arrival, TAB between fields, after a line with their names:
 *
 *   arrive_us tenant priority prompt_tokens output_tokens deadline_us
 *
 * deadline_us counts from the arrival, to the first token; 0: none. The tenant
 * is a name without blanks, "-" for none.
 */
#include <stdint.h>
#include <stdio.h>

#define TRACE_NAME_SIZE 32u
#define TRACE_REQUEST_MAX 100000u

struct trace_request {
    uint64_t arrive_us;
    char tenant[TRACE_NAME_SIZE];
    int32_t priority;
    uint32_t n_prompt, n_output;
    uint64_t deadline_us;
};
struct trace {
    struct trace_request *request; /* [n]; owned */
    uint32_t n, capacity;
};

void trace_add(struct trace *trace, const struct trace_request *request);
void trace_sort(struct trace *trace); /* by arrival; stable */
void trace_write(const struct trace *trace, FILE *file);
/* False, and a line on stderr, if the file is not a trace. */
int trace_read(struct trace *trace, FILE *file, const char *name);
void trace_release(struct trace *trace);

uint64_t trace_random(uint64_t *state);
/* In [0, 1). */
double trace_uniform(uint64_t *state);
double trace_exponential(uint64_t *state, double mean);
/* A Pareto number in [least, most]: half of them below 2^(1/shape) * least. */
double trace_heavy(uint64_t *state, double shape, double least, double most);
#endif
