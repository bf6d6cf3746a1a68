/*
 * The scheduler against traces of thousands of requests, in seconds.
 *
 *   sim make SCENARIO SEED         a trace, to stdout
 *   sim replay FILE [SCENARIO]     run a trace, as the scenario's node
 *   sim check FILE                 replay FILE, named as its scenario, twice;
 *                                  exit 1 unless all that must hold does
 *
 * A trace of one's own is a file as trace.h says; `sim replay` prints what
 * would become of each request, as TSV, and a summary to stderr.
 */
#include "scenario.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct run {
    const struct scenario *scenario;
    struct node_options options;
    struct trace trace;
    struct node_report report;
    int n_failed;
};

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* Sorts the values. */
static double quantile(double *value, uint64_t n, double q)
{
    qsort(value, n, sizeof(*value), ascending);
    return n ? value[(uint64_t)(q * (double)(n - 1) + 0.5)] : NAN;
}

static double first_us(const struct run *run, uint32_t i)
{
    return (double)run->report.result[i].first_us -
           (double)run->trace.request[i].arrive_us;
}

static bool is_served(const struct run *run, uint32_t i)
{
    return run->report.result[i].outcome == DONE;
}

static void claim(struct run *run, bool holds, const char *what, double value)
{
    printf("%s\t%s\t%s\t%.4g\n", run->scenario->name, holds ? "ok" : "FAILED",
           what, value);
    run->n_failed += !holds;
}

/* --- what must hold --- */

static void check_end(struct run *run)
{
    const struct node_report *report = &run->report;
    uint32_t n_open = 0;

    for (uint32_t i = 0; i < report->n; i++)
        n_open += report->result[i].outcome != DONE &&
                  report->result[i].outcome != REFUSED &&
                  report->result[i].outcome != EVICTED;
    claim(run, n_open == 0, "requests left open", n_open);
    claim(run, report->prompt_error < 0.1, "error of predicted prompt passes",
          report->prompt_error);
    claim(run, report->decode_error < 0.1, "error of predicted decode passes",
          report->decode_error);
}

/* Tokens served while all of four tenants have requests waiting. */
static void check_fairness(struct run *run)
{
    const struct node_report *report = &run->report;
    uint64_t from[4], to[4], n_good = 0;
    double least = INFINITY, most = 0;

    for (uint64_t i = 0; i + 4 <= report->n_mark; i++) {
        const struct tenant_mark *m = &report->mark[i];
        bool seen[4] = {false}, good = true;
        for (uint32_t k = 0; k < 4; k++) {
            good &= m[k].at_us == m[0].at_us && m[k].n_waiting > 0;
            if (m[k].tenant < 4)
                seen[m[k].tenant] = true;
        }
        if (!good || !seen[0] || !seen[1] || !seen[2] || !seen[3]) {
            if (n_good > 0 && m[0].at_us > report->mark[i - 1].at_us)
                break; /* the time with all of them is over */
            continue;
        }
        for (uint32_t k = 0; k < 4; k++)
            (n_good ? to : from)[m[k].tenant] = m[k].n_served;
        n_good++;
    }
    claim(run, n_good >= 60, "seconds with four tenants waiting",
          (double)n_good);
    for (uint32_t k = 0; k < 4 && n_good > 1; k++) {
        double served = (double)(to[k] - from[k]);
        least = served < least ? served : least;
        most = served > most ? served : most;
    }
    claim(run, most <= 1.1 * least, "most served tenant over least served",
          most / least);
}

/* Nobody who is not sheddable waits for more than some targets, each with so
 * many seconds added. */
static void check_starvation(struct run *run, double n_target, double seconds)
{
    double worst = 0, wait, target;

    for (uint32_t i = 0; i < run->trace.n; i++) {
        target = (double)run->report.result[i].target_us + seconds * 1e6;
        wait = first_us(run, i) / target;
        if (is_served(run, i) && run->trace.request[i].priority >= 0 &&
            wait > worst)
            worst = wait;
    }
    claim(run, worst <= n_target, "worst wait in targets", worst);
}

static void check_overload(struct run *run)
{
    uint32_t n_due = 0, n_late = 0, n[3] = {0}, n_done[3] = {0}, n_retry = 0;

    for (uint32_t i = 0; i < run->trace.n; i++) {
        const struct trace_request *t = &run->trace.request[i];
        const struct result *result = &run->report.result[i];
        uint32_t kind = t->priority < 0 ? 0 : t->priority == 0 ? 1 : 2;
        n[kind]++;
        n_done[kind] += is_served(run, i);
        n_retry += result->outcome == REFUSED && result->retry_ms == 0;
        if (t->deadline_us && is_served(run, i)) {
            n_due++;
            n_late += first_us(run, i) > (double)t->deadline_us;
        }
    }
    claim(run, n_due > 100, "admitted requests with a deadline", n_due);
    claim(run, n_late == 0, "of them late", n_late);
    claim(run, n_retry == 0, "refused without a time to come back", n_retry);
    claim(run, n_done[0] * 10 < n[0], "share of sheddable ones served",
          (double)n_done[0] / n[0]);
    claim(run, n_done[1] * 8 > n[1], "share of usual ones served",
          (double)n_done[1] / n[1]);
    claim(run, n_done[2] * 10 > n[2] * 9, "share of critical ones served",
          (double)n_done[2] / n[2]);
    claim(run, run->report.shed_out_of_turn == 0,
          "refused for the queue while a sheddable one waited",
          (double)run->report.shed_out_of_turn);
    claim(run, run->report.most_waiting <= run->options.limits.max_queue,
          "most that waited", run->report.most_waiting);
}

/* Of the prompts of at most n_max tokens: first tokens, worst of a hundred. */
static void check_short(struct run *run, uint32_t n_max, double most_us)
{
    double *us = calloc(run->trace.n, sizeof(*us)), p99;
    uint64_t n = 0;

    if (!us)
        abort();
    for (uint32_t i = 0; i < run->trace.n; i++)
        if (run->trace.request[i].n_prompt <= n_max && is_served(run, i))
            us[n++] = first_us(run, i);
    p99 = quantile(us, n, 0.99);
    free(us);
    claim(run, n > 100, "short prompts", (double)n);
    claim(run, p99 <= most_us, "p99 to their first token, seconds", p99 / 1e6);
}

static void check_streams(struct run *run)
{
    struct node_report alone;
    struct trace trace = run->trace;
    double quiet, busy;
    uint64_t n_busy = 0;
    const struct result *prompt = &run->report.result[8];
    double seconds = first_us(run, 8) / 1e6;

    trace.n = 8;
    node_run(&trace, &run->options, &alone);
    quiet = quantile(alone.gap_us, alone.n_gap, 0.99);
    /* Gaps of the eight while the prompt is under way: they come in order. */
    for (uint64_t i = 0, at = 0; i < run->report.n_gap; i++) {
        at += (uint64_t)run->report.gap_us[i];
        if (at / 8 > prompt->start_us && at / 8 < prompt->first_us)
            run->report.gap_us[n_busy++] = run->report.gap_us[i];
    }
    busy = quantile(run->report.gap_us, n_busy, 0.99);
    claim(run, n_busy > 1000, "tokens beside the prompt", (double)n_busy);
    claim(run, busy <= 2 * quiet, "p99 between tokens, over that without it",
          busy / quiet);
    claim(run, seconds < 300, "seconds to the prompt's first token", seconds);
    node_report_release(&alone);
}

static void check(struct run *run)
{
    const char *name = run->scenario->name;

    check_end(run);
    if (strcmp(name, "skewed") == 0) {
        check_fairness(run);
    } else if (strcmp(name, "overload") == 0) {
        check_overload(run);
        check_starvation(run, 2, 120);
    } else if (strcmp(name, "mixed") == 0) {
        check_starvation(run, 2, 10);
        check_short(run, 200, 3e6);
    } else if (strcmp(name, "streams") == 0) {
        check_streams(run);
    } else if (strcmp(name, "convoy") == 0) {
        check_starvation(run, 8, 0);
        check_short(run, 600, 3e6);
    }
}

/* --- the program --- */

static void print_results(const struct run *run)
{
    static const char *const text[] = {"waiting", "prefilling", "decoding",
                                       "done",    "refused",    "evicted"};

    puts("request\toutcome\treason\tretry_ms\tpredicted_us\ttarget_us\t"
         "first_us\tend_us\tpreemptions\tworst_gap_us");
    for (uint32_t i = 0; i < run->trace.n; i++) {
        const struct result *r = &run->report.result[i];
        uint64_t arrive = run->trace.request[i].arrive_us;
        printf("%u\t%s\t%s\t%u\t%.0f\t%lu\t%lu\t%lu\t%u\t%lu\n", i,
               text[r->outcome], admit_reason_text(r->reason), r->retry_ms,
               r->predicted_us, r->target_us,
               r->first_us ? r->first_us - arrive : 0, r->end_us - arrive,
               r->n_preempted, r->worst_gap_us);
    }
}

static void print_summary(const struct run *run)
{
    const struct node_report *r = &run->report;
    uint32_t n_done = 0, n_reason[ADMIT_SHED + 1] = {0}, n_evicted = 0;

    for (uint32_t i = 0; i < r->n; i++) {
        n_done += is_served(run, i);
        n_evicted += r->result[i].outcome == EVICTED;
        n_reason[r->result[i].reason]++;
    }
    fprintf(stderr, "%u requests in %.1f s: %u done, %u evicted", r->n,
            (double)r->end_us / 1e6, n_done, n_evicted);
    for (uint32_t k = 1; k <= ADMIT_SHED; k++)
        if (n_reason[k])
            fprintf(stderr, ", %u %s", n_reason[k], admit_reason_text(k));
    fprintf(stderr, "; %lu prompt passes, %lu decode passes, digest %016lx\n",
            r->n_pass, r->n_decode_pass, r->digest);
}

static bool load(struct run *run, const char *path)
{
    FILE *file = fopen(path, "r");
    bool is_read;

    if (!file) {
        perror(path);
        return false;
    }
    is_read = trace_read(&run->trace, file, path);
    (void)fclose(file);
    return is_read;
}

static int replay(struct run *run, const char *path, bool checks)
{
    struct node_report again = {0};
    bool is_same;

    scenario_options(&run->options);
    if (run->scenario && run->scenario->tune)
        run->scenario->tune(&run->options);
    if (!load(run, path)) {
        trace_release(&run->trace);
        return 1;
    }
    node_run(&run->trace, &run->options, &run->report);
    print_summary(run);
    if (checks) {
        node_run(&run->trace, &run->options, &again);
        is_same = again.digest == run->report.digest;
        node_report_release(&again);
        claim(run, is_same, "the same again", is_same);
        check(run);
    } else {
        print_results(run);
    }
    trace_release(&run->trace);
    node_report_release(&run->report);
    return run->n_failed > 0;
}

/* "path/skewed.tsv" names its scenario. */
static const struct scenario *scenario_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char name[32];

    snprintf(name, sizeof(name), "%s", slash ? slash + 1 : path);
    name[strcspn(name, ".")] = 0;
    return scenario_find(name);
}

int main(int n, char **word)
{
    struct run run = {0};
    const char *verb = n > 2 ? word[1] : "";

    if (strcmp(verb, "make") == 0 && n == 4) {
        struct trace trace = {0};
        run.scenario = scenario_find(word[2]);
        if (run.scenario) {
            run.scenario->make(&trace, strtoull(word[3], NULL, 10));
            trace_write(&trace, stdout);
            trace_release(&trace);
            return 0;
        }
    } else if (strcmp(verb, "check") == 0 && n == 3) {
        run.scenario = scenario_of(word[2]);
        if (run.scenario)
            return replay(&run, word[2], true);
    } else if (strcmp(verb, "replay") == 0 && (n == 3 || n == 4)) {
        run.scenario = n == 4 ? scenario_find(word[3]) : NULL;
        if (n == 3 || run.scenario)
            return replay(&run, word[2], false);
    }
    fputs("usage: sim make SCENARIO SEED | check FILE | replay FILE "
          "[SCENARIO]\nscenarios:\n",
          stderr);
    for (uint32_t i = 0; i < n_scenario; i++)
        fprintf(stderr, "  %-10s %s\n", scenarios[i].name, scenarios[i].what);
    return 2;
}
