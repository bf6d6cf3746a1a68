/*
 * bench reuse: is a prompt ever slower because something of it was found? Cold
 * and warm prompts of the same length take turns, one at a time, so that what
 * else the machine does meets both; a warm one shares its beginning with
 * earlier ones, a cold one with none.
 */
#include "ops/bench_plan.h"
#include "ops/bench_report.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

#define PREFIX_MAX 16u
/* A prefix is stored where the second prompt leaves the first, by whoever comes
   third; one more lets that be written. */
#define N_PRIMER 4u

struct pair {                          /* of one length */
    struct samples first[2], total[2]; /* cold, warm; owned */
    struct samples cached;             /* tokens of warm ones; owned */
    char reason[STATUS_WORD_SIZE];     /* of the last warm one */
};

struct duel {
    struct ctl *ctl;
    struct bench_words words;
    uint64_t seed;
    const float *temperature;
    float temperature_value;
    uint32_t prefix[PREFIX_MAX], n_prefix;
    uint32_t n_sent; /* no two prompts are alike */
};

static enum status read_prefixes(const char *text, struct duel *duel)
{
    const struct bench_range limits = {0, BENCH_PROMPT_MAX / 2};
    char word[16];

    for (const char *at = text; *at;) {
        size_t n = strcspn(at, ",");
        struct bench_range range;
        enum status st;

        if (duel->n_prefix == PREFIX_MAX || n >= sizeof(word))
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--prefixes is '%s', expected up to %u numbers "
                               "with commas between",
                               text, PREFIX_MAX);
        memcpy(word, at, n);
        word[n] = '\0';
        st = bench_range_parse("prefixes", word, limits, &range);
        if (st)
            return st;
        duel->prefix[duel->n_prefix++] = range.least;
        at += n + (at[n] == ',');
    }
    return STATUS_OK;
}

/* One prompt from its sending to its end. */
static enum status ask_one(struct duel *duel, uint32_t n_shared, bool is_warm,
                           struct bench_reply *reply)
{
    const struct ctl_options *options = &duel->ctl->options;
    uint32_t n = n_shared + (uint32_t)options->tail_tokens;
    struct bench_prompt prompt = {
        .seed = duel->seed + n_shared,
        .number = duel->n_sent++,
        .n_token = n,
        .n_shared = is_warm ? n_shared : 0,
    };
    struct bench_ask ask = {.id = bench_prompt_ids(&duel->words, &prompt),
                            .n_id = n,
                            .tenant = "",
                            .n_reply = (uint32_t)options->answer_tokens,
                            .temperature = duel->temperature,
                            .seed = duel->seed};
    enum status st;

    if (!ask.id)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    *reply =
        (struct bench_reply){.begin_us = clock_real()->now_us(clock_real())};
    st = bench_reply_begin(duel->ctl->client, &ask, reply);
    free((uint32_t *)ask.id);
    if (st)
        return st;
    bench_reply_await(duel->ctl->client, reply);
    return bench_reply_judge(reply);
}

static enum status measure(struct duel *duel, uint32_t n_shared,
                           struct pair *pair)
{
    struct bench_reply reply;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < N_PRIMER; i++)
        st = ask_one(duel, n_shared, true, &reply);
    for (uint32_t i = 0; !st && i < 2 * duel->ctl->options.repeats; i++) {
        bool is_warm = i % 2 == 1;

        st = ask_one(duel, n_shared, is_warm, &reply);
        samples_add(&pair->first[is_warm], reply.first_us - reply.begin_us);
        samples_add(&pair->total[is_warm], reply.end_us - reply.begin_us);
        if (!is_warm)
            continue;
        samples_add(&pair->cached, reply.n_cached);
        memcpy(pair->reason, reply.reason, sizeof(pair->reason));
    }
    return st;
}

static double median(struct samples *samples)
{
    samples_sort(samples);
    return (double)samples_quantile(samples, 0.5);
}

static void put_pair(struct output *output, uint32_t n_shared,
                     struct pair *pair)
{
    double first[2] = {median(&pair->first[0]), median(&pair->first[1])};
    double total[2] = {median(&pair->total[0]), median(&pair->total[1])};

    output_row(output);
    output_number(output, "shared_tokens", n_shared);
    output_real(output, "cold_ttft_ms", first[0] / 1e3, 2);
    output_real(output, "warm_ttft_ms", first[1] / 1e3, 2);
    output_real(output, "ttft_ratio", first[0] > 0 ? first[1] / first[0] : 0,
                3);
    output_real(output, "cold_total_ms", total[0] / 1e3, 2);
    output_real(output, "warm_total_ms", total[1] / 1e3, 2);
    output_real(output, "total_ratio", total[0] > 0 ? total[1] / total[0] : 0,
                3);
    output_number(output, "cached_tokens", (uint64_t)median(&pair->cached));
    output_text(output, "reason", pair->reason);
}

static enum status run_length(struct duel *duel, uint32_t n_shared,
                              struct output *output)
{
    size_t n = duel->ctl->options.repeats;
    struct pair pair = {0};
    enum status st = samples_init(&pair.cached, n);

    for (int i = 0; !st && i < 2; i++) {
        st = samples_init(&pair.first[i], n);
        if (!st)
            st = samples_init(&pair.total[i], n);
    }
    if (!st)
        st = measure(duel, n_shared, &pair);
    if (!st)
        put_pair(output, n_shared, &pair);
    for (int i = 0; i < 2; i++) {
        samples_release(&pair.first[i]);
        samples_release(&pair.total[i]);
    }
    samples_release(&pair.cached);
    return st;
}

static enum status prepare(struct duel *duel)
{
    const struct ctl_options *options = &duel->ctl->options;
    enum status st = read_prefixes(options->prefixes, duel);

    if (!st && *options->seed)
        st = ctl_parse_u64("seed", options->seed, &duel->seed);
    if (!st && *options->temperature) {
        st = ctl_parse_float("temperature", options->temperature,
                             &duel->temperature_value);
        duel->temperature = &duel->temperature_value;
    }
    return st ? st : bench_words_fetch(duel->ctl, &duel->words);
}

enum status ctl_bench_reuse(struct ctl *ctl)
{
    struct duel duel = {.ctl = ctl, .seed = 1};
    struct output *output = NULL;
    struct cause cause;
    enum status st = prepare(&duel), shown = STATUS_OK;
    uint32_t n_done = 0;

    if (!st)
        st = output_create(ctl_format(ctl), "BenchReuseList", true, &output);
    while (!st && n_done < duel.n_prefix) {
        st = run_length(&duel, duel.prefix[n_done], output);
        n_done += !st;
    }
    cause = *status_cause();
    if (n_done > 0) /* also what was measured before it broke off */
        shown = output_write(output);
    st = st ? status_adopt(&cause) : shown;
    output_destroy(output);
    bench_words_release(&duel.words);
    return st;
}
