/*
 * bench streams: what a long prompt does to replies that run beside it. A gap
 * is the time between two messages with tokens of one reply, as its client sees
 * them; a message of several tokens, which a client gets that lags behind,
 * counts once.
 *
 * A reply that has had its tokens is followed by the next one, so that replies
 * are as long in one window as in another: what a reply grows by costs pace,
 * too, and that is not the long prompt's doing. The first ones have different
 * lengths, or all would begin anew at once.
 */
#include "ops/bench_report.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

#define LOOK_US 100000u
#define FIRST_WAIT_US UINT64_C(120000000) /* for all streams' first tokens */
#define LONG_WAIT_US UINT64_C(3600000000) /* for the long prompt's */
#define STREAM_PROMPT 64u                 /* tokens */

struct window {
    const char *name;
    uint64_t us;
    struct samples gaps; /* owned */
};

struct held {
    struct ctl *ctl;
    struct bench_words words;
    uint64_t seed;
    const float *temperature;
    float temperature_value;
    uint32_t n_stream, n_sent;
    struct bench_reply *stream; /* [n_stream]; owned */
    bool *had_token;            /* [n_stream]: one of its replies; owned */
    struct bench_reply long_one;
    struct window window[3];
};

static uint64_t now_us(void)
{
    return clock_real()->now_us(clock_real());
}

/* Behind the gaps that the reply has. No two prompts are the same. */
static enum status send(struct held *held, uint32_t n_prompt, uint32_t n_reply,
                        struct bench_reply *reply)
{
    struct bench_prompt prompt = {
        .seed = held->seed, .number = held->n_sent++, .n_token = n_prompt};
    struct bench_ask ask = {.id = bench_prompt_ids(&held->words, &prompt),
                            .n_id = n_prompt,
                            .tenant = "",
                            .n_reply = n_reply,
                            .temperature = held->temperature,
                            .seed = held->seed + prompt.number};
    enum status st;

    if (!ask.id)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    *reply = (struct bench_reply){.gaps = reply->gaps};
    st = samples_reserve(&reply->gaps, reply->gaps.n + n_reply);
    reply->begin_us = now_us();
    if (!st)
        st = bench_reply_begin(held->ctl->client, &ask, reply);
    free((uint32_t *)ask.id);
    return st;
}

/* One that is over is followed by the next. */
static enum status check_streams(struct held *held)
{
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < held->n_stream && !st; i++) {
        struct bench_reply *stream = &held->stream[i];

        if (stream->exchange)
            continue;
        st = bench_reply_judge(stream);
        held->had_token[i] = true;
        if (!st)
            st = send(held, STREAM_PROMPT,
                      (uint32_t)held->ctl->options.stream_tokens, stream);
    }
    return st;
}

/* Short replies may never run all at once. */
static bool have_all_begun(const struct held *held)
{
    for (uint32_t i = 0; i < held->n_stream; i++)
        if (!held->stream[i].first_us && !held->had_token[i])
            return false;
    return true;
}

static bool has_long_begun(const struct held *held)
{
    return held->long_one.first_us || !held->long_one.exchange;
}

static bool never(const struct held *held)
{
    (void)held;
    return false;
}

/* Poll for so long, or until a claim holds. */
static enum status poll(struct held *held, uint64_t us,
                        bool (*is_done)(const struct held *held))
{
    uint64_t until_us = now_us() + us;
    enum status st = STATUS_OK;

    while (!st && !is_done(held)) {
        uint64_t now = now_us();

        if (now >= until_us)
            break;
        (void)client_poll(held->ctl->client,
                          until_us - now < LOOK_US ? until_us - now : LOOK_US);
        st = check_streams(held);
    }
    return st;
}

/* Gaps that end in this window, also when it breaks off. */
static enum status measure(struct held *held, struct window *window,
                           uint64_t us,
                           bool (*is_done)(const struct held *held))
{
    uint64_t begin_us = now_us();
    size_t n = 0;
    enum status st;

    for (uint32_t i = 0; i < held->n_stream; i++)
        samples_clear(&held->stream[i].gaps);
    st = poll(held, us, is_done);
    window->us = now_us() - begin_us;
    for (uint32_t i = 0; i < held->n_stream; i++)
        n += held->stream[i].gaps.n;
    if (samples_init(&window->gaps, n))
        return STATUS_RESOURCE_EXHAUSTED;
    for (uint32_t i = 0; i < held->n_stream; i++)
        for (size_t k = 0; k < held->stream[i].gaps.n; k++)
            samples_add(&window->gaps, held->stream[i].gaps.us[k]);
    samples_sort(&window->gaps);
    return st;
}

static enum status begin(struct held *held)
{
    const uint64_t n_token = held->ctl->options.stream_tokens;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < held->n_stream; i++) {
        uint64_t n = n_token * (i + 1) / held->n_stream;

        st = send(held, STREAM_PROMPT, (uint32_t)(n ? n : 1), &held->stream[i]);
    }
    if (!st)
        st = poll(held, FIRST_WAIT_US, have_all_begun);
    if (!st && !have_all_begun(held))
        st = status_fail(STATUS_DEADLINE_EXCEEDED,
                         "not all streams began within %u s; has the node "
                         "places for %u?",
                         (unsigned)(FIRST_WAIT_US / 1000000), held->n_stream);
    return st;
}

static enum status run(struct held *held)
{
    const struct ctl_options *options = &held->ctl->options;
    uint64_t window_us = (uint64_t)(options->window * 1e6);
    enum status st = begin(held);

    if (!st)
        st = measure(held, &held->window[0], window_us, never);
    if (!st)
        st = send(held, (uint32_t)options->long_tokens, 1, &held->long_one);
    if (!st)
        st = measure(held, &held->window[1], LONG_WAIT_US, has_long_begun);
    if (!st && !held->long_one.first_us)
        st = held->long_one.exchange
                 ? status_fail(STATUS_DEADLINE_EXCEEDED,
                               "the long prompt had no token within %u s",
                               (unsigned)(LONG_WAIT_US / 1000000))
                 : bench_reply_judge(&held->long_one);
    if (!st)
        st = measure(held, &held->window[2], window_us, never);
    return st;
}

/* Nothing of ours is left on the node. */
static void stop(struct held *held)
{
    bench_reply_stop(&held->long_one);
    bench_reply_await(held->ctl->client, &held->long_one);
    for (uint32_t i = 0; held->stream && i < held->n_stream; i++)
        bench_reply_stop(&held->stream[i]);
    for (uint32_t i = 0; held->stream && i < held->n_stream; i++)
        bench_reply_await(held->ctl->client, &held->stream[i]);
}

static void put_window(struct output *output, const struct window *window,
                       const struct window *alone)
{
    double p99 = (double)samples_quantile(&window->gaps, 0.99);
    double alone_p99 = (double)samples_quantile(&alone->gaps, 0.99);

    output_row(output);
    output_text(output, "window", window->name);
    output_real(output, "seconds", (double)window->us / 1e6, 2);
    output_number(output, "gaps", window->gaps.n);
    output_real(output, "gap_p50_ms",
                bench_ms(samples_quantile(&window->gaps, 0.5)), 2);
    output_real(output, "gap_p90_ms",
                bench_ms(samples_quantile(&window->gaps, 0.9)), 2);
    output_real(output, "gap_p99_ms", p99 / 1e3, 2);
    output_real(output, "gap_max_ms",
                bench_ms(samples_quantile(&window->gaps, 1)), 2);
    output_real(output, "p99_ratio", alone_p99 > 0 ? p99 / alone_p99 : 0, 2);
}

static enum status report(const struct held *held)
{
    struct output *output;
    enum status st =
        output_create(ctl_format(held->ctl), "BenchWindowList", true, &output);

    if (st)
        return st;
    for (size_t i = 0; i < 3 && held->window[i].us > 0; i++)
        put_window(output, &held->window[i], &held->window[0]);
    st = output_write(output);
    output_destroy(output);
    return st;
}

static enum status prepare(struct held *held)
{
    const struct ctl_options *options = &held->ctl->options;
    enum status st = STATUS_OK;

    if (*options->seed)
        st = ctl_parse_u64("seed", options->seed, &held->seed);
    if (!st && *options->temperature) {
        st = ctl_parse_float("temperature", options->temperature,
                             &held->temperature_value);
        held->temperature = &held->temperature_value;
    }
    if (st)
        return st;
    held->stream = calloc(held->n_stream, sizeof(*held->stream));
    held->had_token = calloc(held->n_stream, sizeof(*held->had_token));
    if (!held->stream || !held->had_token)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u streams", held->n_stream);
    return bench_words_fetch(held->ctl, &held->words);
}

enum status ctl_bench_streams(struct ctl *ctl)
{
    struct held held = {
        .ctl = ctl,
        .seed = 1,
        .n_stream = (uint32_t)ctl->options.streams,
        .window = {{.name = "before"}, {.name = "prefill"}, {.name = "after"}}};
    struct cause cause;
    enum status st = prepare(&held), shown = STATUS_OK;

    if (!st)
        st = run(&held);
    cause = *status_cause();
    stop(&held);
    if (held.window[0].us > 0)
        shown = report(&held);
    st = st ? status_adopt(&cause) : shown;
    for (uint32_t i = 0; held.stream && i < held.n_stream; i++)
        samples_release(&held.stream[i].gaps);
    for (size_t i = 0; i < 3; i++)
        samples_release(&held.window[i].gaps);
    samples_release(&held.long_one.gaps);
    bench_words_release(&held.words);
    free(held.stream);
    free(held.had_token);
    return st;
}
