#include "trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const head =
    "arrive_us\ttenant\tpriority\tprompt_tokens\toutput_tokens\tdeadline_us\n";

void trace_add(struct trace *trace, const struct trace_request *request)
{
    if (trace->n == trace->capacity) {
        trace->capacity = trace->capacity ? 2 * trace->capacity : 1024;
        trace->request =
            realloc(trace->request, trace->capacity * sizeof(*trace->request));
        if (!trace->request)
            abort();
    }
    trace->request[trace->n++] = *request;
}

/* Insertion from the back: parts are in order already. Merge would be more. */
void trace_sort(struct trace *trace)
{
    struct trace_request *r = trace->request;

    for (uint32_t i = 1; i < trace->n; i++) {
        struct trace_request moving = r[i];
        uint32_t at = i;
        for (; at > 0 && r[at - 1].arrive_us > moving.arrive_us; at--)
            r[at] = r[at - 1];
        r[at] = moving;
    }
}

void trace_write(const struct trace *trace, FILE *file)
{
    fputs(head, file);
    for (uint32_t i = 0; i < trace->n; i++) {
        const struct trace_request *r = &trace->request[i];
        fprintf(file, "%lu\t%s\t%d\t%u\t%u\t%lu\n", r->arrive_us,
                r->tenant[0] ? r->tenant : "-", r->priority, r->n_prompt,
                r->n_output, r->deadline_us);
    }
}

static int bad(const char *name, uint32_t line, const char *why)
{
    fprintf(stderr, "%s:%u: %s\n", name, line, why);
    return 0;
}

int trace_read(struct trace *trace, FILE *file, const char *name)
{
    char line[256];
    uint32_t n_line = 1;

    if (!fgets(line, sizeof(line), file) || strcmp(line, head) != 0)
        return bad(name, 1, "not the head line of a trace");
    while (fgets(line, sizeof(line), file)) {
        struct trace_request r = {0};
        int end = 0;
        n_line++;
        if (sscanf(line, "%lu\t%31s\t%d\t%u\t%u\t%lu%n", &r.arrive_us, r.tenant,
                   &r.priority, &r.n_prompt, &r.n_output, &r.deadline_us,
                   &end) != 6 ||
            strcmp(line + end, "\n") != 0)
            return bad(name, n_line, "not six fields");
        if (r.n_prompt == 0 || r.n_output == 0)
            return bad(name, n_line, "a count of tokens is 0");
        if (trace->n && r.arrive_us < trace->request[trace->n - 1].arrive_us)
            return bad(name, n_line, "arrives before the line above");
        if (trace->n == TRACE_REQUEST_MAX)
            return bad(name, n_line, "too many requests");
        if (strcmp(r.tenant, "-") == 0)
            r.tenant[0] = 0;
        trace_add(trace, &r);
    }
    return 1;
}

void trace_release(struct trace *trace)
{
    free(trace->request);
    *trace = (struct trace){0};
}

uint64_t trace_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u); /* splitmix64 */

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

double trace_uniform(uint64_t *state)
{
    return (double)(trace_random(state) >> 11) * 0x1p-53;
}

double trace_exponential(uint64_t *state, double mean)
{
    return -mean * log(1 - trace_uniform(state));
}

double trace_heavy(uint64_t *state, double shape, double least, double most)
{
    double x = least * pow(1 - trace_uniform(state), -1 / shape);

    return x < most ? x : most;
}
