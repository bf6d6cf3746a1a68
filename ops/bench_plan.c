#include "ops/bench_plan.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TRACE_HEAD                                                             \
    "arrive_us\ttenant\tpriority\tprompt_tokens\toutput_tokens\tdeadline_us\n"
#define TRACE_FIELD 6

uint64_t bench_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint32_t bench_random_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)((bench_random(state) >> 32) * n >> 32);
}

/* In [0, 1). */
static double uniform(uint64_t *state)
{
    return (double)(bench_random(state) >> 11) * 0x1p-53;
}

static uint32_t draw(uint64_t *state, struct bench_range range)
{
    return range.least +
           bench_random_below(state, range.most - range.least + 1);
}

/* Digits up to a '-' or the end. */
static bool parse_count(const char **text, uint32_t *out)
{
    char *end;
    unsigned long value;

    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    value = strtoul(*text, &end, 10);
    *text = end;
    *out = (uint32_t)value;
    return !errno && value < UINT32_MAX;
}

enum status bench_range_parse(const char *name, const char *text,
                              struct bench_range limits,
                              struct bench_range *out)
{
    struct bench_range range = {0};
    const char *at = text;
    bool is_good = parse_count(&at, &range.least);

    range.most = range.least;
    if (is_good && *at == '-') {
        at++;
        is_good = parse_count(&at, &range.most);
    }
    if (!is_good || *at || range.least < limits.least ||
        range.most > limits.most || range.least > range.most)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--%s is '%s', expected %u to %u, or two of them "
                           "as LEAST-MOST",
                           name, text, limits.least, limits.most);
    *out = range;
    return STATUS_OK;
}

static enum status check_tokens(uint64_t n_token)
{
    if (n_token > BENCH_TOKEN_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "replies may come to %" PRIu64
                           " tokens, limit %u; ask for fewer or shorter ones",
                           n_token, BENCH_TOKEN_MAX);
    return STATUS_OK;
}

/* Room for n requests; a plan has at least one place. */
static enum status allocate(struct bench_plan *plan, uint32_t n)
{
    plan->n = 0;
    plan->request = calloc(n ? n : 1, sizeof(*plan->request));
    if (!plan->request)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u requests", n);
    return STATUS_OK;
}

enum status bench_plan_draw(const struct bench_mix *mix, struct bench_plan *out)
{
    uint64_t state = mix->seed;
    struct bench_plan plan;
    double at_s = 0;
    enum status st = check_tokens((uint64_t)mix->n_request * mix->reply.most);

    if (!st)
        st = allocate(&plan, mix->n_request);
    if (st)
        return st;
    /* Every request takes the same number of draws: one more option does not
       make another load of the others. */
    for (; plan.n < mix->n_request; plan.n++) {
        struct bench_request *request = &plan.request[plan.n];
        double gap = -log(1 - uniform(&state));
        double shed = uniform(&state);

        if (mix->is_even)
            at_s = plan.n / mix->rate;
        else if (plan.n > 0)
            at_s += gap / mix->rate;
        if (at_s > mix->seconds)
            break;
        request->arrive_us = (uint64_t)(at_s * 1e6);
        request->priority = shed < mix->sheddable ? -1 : 0;
        request->n_prompt = draw(&state, mix->prompt);
        request->n_reply = draw(&state, mix->reply);
        request->deadline_ms = draw(&state, mix->deadline_ms);
        gap = uniform(&state) * mix->n_tenant;
        if (mix->n_tenant > 0)
            (void)snprintf(request->tenant, BENCH_NAME_SIZE, "t%u",
                           (uint32_t)gap);
    }
    *out = plan;
    return STATUS_OK;
}

/* NULL, or why the line is none of a trace. */
static const char *read_line(const char *line, uint64_t before_us,
                             struct bench_request *out)
{
    struct bench_request r = {0};
    uint64_t deadline_us;
    int end = 0;

    if (sscanf(line,
               "%" SCNu64 "\t%31s\t%" SCNd32 "\t%" SCNu32 "\t%" SCNu32
               "\t%" SCNu64 "%n",
               &r.arrive_us, r.tenant, &r.priority, &r.n_prompt, &r.n_reply,
               &deadline_us, &end) != TRACE_FIELD ||
        strcmp(line + end, "\n") != 0)
        return "it has not six fields";
    if (r.n_prompt == 0 || r.n_reply == 0)
        return "a count of tokens is 0";
    if (r.arrive_us < before_us)
        return "it arrives before the line above";
    if (deadline_us / 1000 > UINT32_MAX)
        return "its deadline is too far away";
    r.deadline_ms = (uint32_t)((deadline_us + 999) / 1000);
    if (strcmp(r.tenant, "-") == 0)
        r.tenant[0] = '\0';
    *out = r;
    return NULL;
}

enum status bench_plan_read(const struct bench_mix *mix, FILE *file,
                            const char *name, struct bench_plan *out)
{
    struct bench_plan plan;
    uint64_t before_us = 0, n_token = 0;
    const char *why = NULL;
    char line[256];
    enum status st;

    if (!fgets(line, sizeof(line), file) || strcmp(line, TRACE_HEAD) != 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s:1: not the head line of a trace", name);
    st = allocate(&plan, mix->n_request);
    if (st)
        return st;
    while (plan.n < mix->n_request && fgets(line, sizeof(line), file)) {
        struct bench_request *request = &plan.request[plan.n];

        why = read_line(line, before_us, request);
        if (why || (double)request->arrive_us > mix->seconds * 1e6)
            break;
        before_us = request->arrive_us;
        n_token += request->n_reply;
        plan.n++;
    }
    st = why ? status_fail(STATUS_INVALID_ARGUMENT, "%s:%u: %s", name,
                           plan.n + 2, why)
             : check_tokens(n_token);
    if (st) {
        bench_plan_release(&plan);
        return st;
    }
    *out = plan;
    return STATUS_OK;
}

void bench_plan_release(struct bench_plan *plan)
{
    free(plan->request);
    memset(plan, 0, sizeof(*plan));
}
