#include "ops/bench_report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Reasons that have a column of their own; others share the last one. */
static const char *const REASON[] = {"QUEUE_FULL", "TENANT_QUOTA", "SHED",
                                     "DEADLINE", "KV_MEMORY"};
static const char *const REASON_NAME[] = {
    "queue_full", "tenant_quota", "shed", "deadline", "kv_memory", "other"};
#define CLASS_MAX 8u /* priorities that have a row */
#define N_REASON (sizeof(REASON) / sizeof(REASON[0]))

/* All requests of a class, counted. */
struct tally {
    uint32_t n_outcome[BENCH_FAILED + 1], n_reason[N_REASON + 1];
    uint32_t n_sent, n_retry;
    uint64_t n_prompt, n_token, n_cached;
    uint32_t n_check[BENCH_DIFFERING + 1];
    struct samples first, total, gaps;
};

double bench_ms(uint64_t us)
{
    return (double)us / 1e3;
}

static size_t reason_index(const char *reason)
{
    size_t i = 0;

    while (i < N_REASON && strcmp(REASON[i], reason) != 0)
        i++;
    return i;
}

static void count(struct tally *tally, const struct bench_reply *reply)
{
    tally->n_outcome[reply->outcome]++;
    if (reply->outcome == BENCH_UNSENT || reply->outcome == BENCH_SKIPPED)
        return;
    tally->n_sent++;
    tally->n_token += reply->n_token;
    tally->n_prompt += reply->n_prompt;
    tally->n_cached += reply->n_cached;
    if (reply->outcome == BENCH_REFUSED) {
        tally->n_reason[reason_index(reply->reason)]++;
        tally->n_retry += reply->retry_ms > 0;
    }
    for (size_t i = 0; i < reply->gaps.n; i++)
        samples_add(&tally->gaps, reply->gaps.us[i]);
    if (reply->outcome != BENCH_OK)
        return;
    samples_add(&tally->first, reply->first_us - reply->begin_us);
    samples_add(&tally->total, reply->end_us - reply->begin_us);
}

static void put_quantile(struct output *output, const char *name,
                         const struct samples *samples, double q)
{
    output_real(output, name, bench_ms(samples_quantile(samples, q)), 2);
}

static void put_times(struct output *output, struct tally *tally,
                      const struct bench_run *run)
{
    double seconds = (double)(run->end_us - run->begin_us) / 1e6;

    seconds = seconds > 0 ? seconds : 1e-6;
    samples_sort(&tally->first);
    samples_sort(&tally->total);
    samples_sort(&tally->gaps);
    output_real(output, "seconds", seconds, 2);
    output_real(output, "ok_per_s", tally->n_outcome[BENCH_OK] / seconds, 2);
    output_real(output, "prompt_tokens_per_s",
                (double)tally->n_prompt / seconds, 1);
    output_real(output, "reply_tokens_per_s", (double)tally->n_token / seconds,
                1);
    output_number(output, "cached_tokens", tally->n_cached);
    put_quantile(output, "ttft_p50_ms", &tally->first, 0.5);
    put_quantile(output, "ttft_p90_ms", &tally->first, 0.9);
    put_quantile(output, "ttft_p99_ms", &tally->first, 0.99);
    put_quantile(output, "gap_p50_ms", &tally->gaps, 0.5);
    put_quantile(output, "gap_p99_ms", &tally->gaps, 0.99);
    put_quantile(output, "gap_max_ms", &tally->gaps, 1);
    put_quantile(output, "total_p50_ms", &tally->total, 0.5);
    put_quantile(output, "total_p99_ms", &tally->total, 0.99);
}

static void put_tally(struct output *output, struct tally *tally,
                      const struct bench_run *run)
{
    const uint32_t *n = tally->n_outcome;
    char column[32];

    output_number(output, "sent", tally->n_sent);
    output_number(output, "ok", n[BENCH_OK]);
    output_number(output, "refused", n[BENCH_REFUSED]);
    for (size_t i = 0; i <= N_REASON; i++) {
        (void)snprintf(column, sizeof(column), "refused_%s", REASON_NAME[i]);
        output_number(output, column, tally->n_reason[i]);
    }
    output_number(output, "retry_info", tally->n_retry);
    output_number(output, "late", n[BENCH_LATE]);
    output_number(output, "failed", n[BENCH_FAILED] + n[BENCH_STOPPED]);
    output_number(output, "skipped", n[BENCH_SKIPPED]);
    output_number(output, "unsent", n[BENCH_UNSENT]);
    output_number(output, "verified",
                  tally->n_check[BENCH_SAME] + tally->n_check[BENCH_DIFFERING]);
    output_number(output, "differing", tally->n_check[BENCH_DIFFERING]);
    put_times(output, tally, run);
}

/* The row of one priority, or of all. */
static enum status put_class(struct output *output,
                             const struct bench_plan *plan,
                             const struct bench_run *run,
                             const int32_t *priority)
{
    struct tally tally = {0};
    char name[16] = "all";
    size_t n_gap = 0;
    enum status st = samples_init(&tally.first, plan->n);

    for (uint32_t i = 0; i < plan->n; i++)
        n_gap += run->reply[i].gaps.n;
    if (!st)
        st = samples_init(&tally.total, plan->n);
    if (!st)
        st = samples_init(&tally.gaps, n_gap);
    for (uint32_t i = 0; !st && i < plan->n; i++) {
        if (priority && plan->request[i].priority != *priority)
            continue;
        count(&tally, &run->reply[i]);
        tally.n_check[run->check[i]]++;
    }
    if (!st) {
        if (priority)
            (void)snprintf(name, sizeof(name), "%" PRId32, *priority);
        output_row(output);
        output_text(output, "priority", name);
        put_tally(output, &tally, run);
    }
    samples_release(&tally.first);
    samples_release(&tally.total);
    samples_release(&tally.gaps);
    return st;
}

/* The least priority above `than`; false if there is none. */
static bool next_priority(const struct bench_plan *plan, int64_t than,
                          int32_t *out)
{
    bool has_one = false;

    for (uint32_t i = 0; i < plan->n; i++) {
        int32_t priority = plan->request[i].priority;

        if (priority > than && (!has_one || priority < *out)) {
            *out = priority;
            has_one = true;
        }
    }
    return has_one;
}

enum status bench_report(enum output_format format,
                         const struct bench_plan *plan,
                         const struct bench_run *run)
{
    struct output *output;
    int64_t than = INT64_MIN;
    int32_t priority;
    enum status st = output_create(format, "BenchList", true, &output);

    if (st)
        return st;
    st = put_class(output, plan, run, NULL);
    for (uint32_t n = 0; !st && n < CLASS_MAX; n++) {
        if (!next_priority(plan, than, &priority))
            break;
        if (n == 0 && !next_priority(plan, priority, &(int32_t){0}))
            break; /* one priority: the first row says it all */
        st = put_class(output, plan, run, &priority);
        than = priority;
    }
    if (!st)
        st = output_write(output);
    output_destroy(output);
    return st;
}

static void write_reply(FILE *file, const struct bench_plan *plan,
                        const struct bench_run *run, uint32_t i)
{
    static const char *const CHECK[] = {[BENCH_UNCHECKED] = "-",
                                        [BENCH_SAME] = "same",
                                        [BENCH_DIFFERING] = "differing"};
    const struct bench_request *request = &plan->request[i];
    const struct bench_reply *reply = &run->reply[i];
    char digest[DIGEST_TEXT_SIZE];

    digest_format(reply->tokens, digest);
    (void)fprintf(
        file,
        "%u\t%" PRIu64 "\t%s\t%" PRId32 "\t%u\t%u\t%u\t%s\t%s\t%u\t%.3f\t"
        "%.3f\t%u\t%s\t%s\n",
        i, request->arrive_us, *request->tenant ? request->tenant : "-",
        request->priority, request->deadline_ms, request->n_prompt,
        request->n_reply, bench_outcome_name(reply->outcome),
        *reply->reason ? reply->reason : "-", reply->retry_ms,
        reply->first_us ? bench_ms(reply->first_us - reply->begin_us) : 0,
        reply->end_us ? bench_ms(reply->end_us - reply->begin_us) : 0,
        reply->n_token, digest, CHECK[run->check[i]]);
}

enum status bench_report_replies(const char *path,
                                 const struct bench_plan *plan,
                                 const struct bench_run *run)
{
    FILE *file = fopen(path, "we");
    bool has_failed;

    if (!file)
        return status_fail(STATUS_INTERNAL, "cannot write %s: %s", path,
                           strerror(errno));
    (void)fputs("number\tarrive_us\ttenant\tpriority\tdeadline_ms\t"
                "prompt_tokens\treply_tokens\toutcome\treason\tretry_ms\t"
                "ttft_ms\ttotal_ms\ttokens\tdigest\tcheck\n",
                file);
    for (uint32_t i = 0; run->reply && i < plan->n; i++)
        write_reply(file, plan, run, i);
    has_failed = ferror(file) != 0;
    has_failed |= fclose(file) != 0;
    return has_failed ? status_fail(STATUS_INTERNAL, "cannot write %s", path)
                      : STATUS_OK;
}
