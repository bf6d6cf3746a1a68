/*
 * bench: arrivals at their own times. Limits of count, time and of calls under
 * way are always there, so that a slip of a digit does not flood a node.
 */
#include "ops/bench_report.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define REPLY_MAX 65536u          /* tokens of one reply */
#define DEADLINE_MAX_MS 86400000u /* a day */

/* Everything that a load points into. */
struct bench {
    struct bench_mix mix;
    struct bench_plan plan;
    struct bench_words words;
    struct bench_load load;
    float temperature;
};

static enum status read_ranges(const struct ctl_options *options,
                               struct bench_mix *mix)
{
    struct bench_range prompt = {1, BENCH_PROMPT_MAX}, reply = {1, REPLY_MAX};
    struct bench_range deadline = {0, DEADLINE_MAX_MS};
    enum status st = bench_range_parse("prompt-tokens", options->prompt_tokens,
                                       prompt, &mix->prompt);

    if (!st)
        st = bench_range_parse("reply-tokens", options->reply_tokens, reply,
                               &mix->reply);
    if (!st)
        st = bench_range_parse("deadline-ms", options->deadline_ms, deadline,
                               &mix->deadline_ms);
    return st;
}

static enum status read_trace(const char *path, struct bench *bench)
{
    FILE *file = fopen(path, "re");
    enum status st;

    if (!file)
        return status_fail(STATUS_INTERNAL, "cannot read trace %s: %s", path,
                           strerror(errno));
    st = bench_plan_read(&bench->mix, file, path, &bench->plan);
    (void)fclose(file);
    return st;
}

/* Of all prompts at once there are never more than under way. */
static enum status check_lengths(const struct bench_plan *plan)
{
    for (uint32_t i = 0; i < plan->n; i++)
        if (plan->request[i].n_prompt > BENCH_PROMPT_MAX)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "request %u has a prompt of %u tokens, limit "
                               "%u",
                               i, plan->request[i].n_prompt, BENCH_PROMPT_MAX);
    return STATUS_OK;
}

static enum status make_plan(const struct ctl_options *options,
                             struct bench *bench)
{
    struct bench_mix *mix = &bench->mix;
    enum status st;

    *mix = (struct bench_mix){.rate = options->rate,
                              .is_even = strcmp(options->arrivals, "even") == 0,
                              .n_request = (uint32_t)options->requests,
                              .seconds = options->seconds,
                              .n_tenant = (uint32_t)options->tenants,
                              .sheddable = options->sheddable,
                              .seed = 1};
    st = read_ranges(options, mix);
    if (!st && *options->seed)
        st = ctl_parse_u64("seed", options->seed, &mix->seed);
    if (st)
        return st;
    if (*options->trace)
        st = read_trace(options->trace, bench);
    else
        st = bench_plan_draw(mix, &bench->plan);
    return st ? st : check_lengths(&bench->plan);
}

static enum status make_load(struct ctl *ctl, struct bench *bench)
{
    const struct ctl_options *options = &ctl->options;
    enum status st = make_plan(options, bench);

    if (!st && *options->temperature)
        st = ctl_parse_float("temperature", options->temperature,
                             &bench->temperature);
    if (!st)
        st = bench_words_fetch(ctl, &bench->words);
    bench->load = (struct bench_load){
        .plan = &bench->plan,
        .words = &bench->words,
        .seed = bench->mix.seed,
        .n_shared = (uint32_t)options->shared_tokens,
        .is_text = strcmp(options->input, "text") == 0,
        .temperature = *options->temperature ? &bench->temperature : NULL,
        .at_once = (uint32_t)(options->at_once < options->max_flight
                                  ? options->at_once
                                  : options->max_flight),
        .max_flight = (uint32_t)options->max_flight,
        .drain_s = options->drain};
    return st;
}

/* Whatever failed for another reason than load, or was answered otherwise. */
static enum status judge(const struct bench_run *run)
{
    uint32_t n_differing = 0, n_check = 0;

    for (uint32_t i = 0; i < run->n; i++) {
        const struct bench_reply *reply = &run->reply[i];

        if (reply->outcome == BENCH_FAILED || reply->outcome == BENCH_STOPPED)
            return bench_reply_judge(reply);
        n_check += run->check[i] != BENCH_UNCHECKED;
        n_differing += run->check[i] == BENCH_DIFFERING;
    }
    if (n_differing > 0)
        return status_fail(STATUS_INTERNAL,
                           "%u of %u replies have other tokens when asked for "
                           "alone",
                           n_differing, n_check);
    return STATUS_OK;
}

/* What was measured is shown, also when the run broke off. */
enum status ctl_bench(struct ctl *ctl)
{
    const struct ctl_options *options = &ctl->options;
    struct bench bench = {0};
    struct bench_run run = {0};
    struct cause cause;
    enum status st = make_load(ctl, &bench), shown = STATUS_OK;

    if (st)
        goto out;
    st = bench_run(ctl, &bench.load, &run);
    if (!st && options->verifies)
        st = bench_run_verify(ctl, &bench.load, &run);
    if (!st)
        st = judge(&run);
    cause = *status_cause();
    if (run.check)
        shown = bench_report(ctl_format(ctl), &bench.plan, &run);
    if (!shown && run.check && *options->replies)
        shown = bench_report_replies(options->replies, &bench.plan, &run);
    st = st ? status_adopt(&cause) : shown;
out:
    bench_run_release(&run);
    bench_words_release(&bench.words);
    bench_plan_release(&bench.plan);
    return st;
}
