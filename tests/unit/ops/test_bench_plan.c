/*
 * Arrivals are held to what a Poisson process is known to have: the mean and
 * the variance of its gaps, and of its counts; traces to a file by hand. The
 * bounds are five standard errors of 20,000 draws, so a right generator passes
 * whatever its seed.
 */
#include "ops/bench_plan.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct bench_mix mix_of(uint32_t n_request)
{
    return (struct bench_mix){.rate = 50,
                              .n_request = n_request,
                              .seconds = 1e9,
                              .prompt = {10, 20},
                              .reply = {3, 3},
                              .deadline_ms = {100, 200},
                              .n_tenant = 3,
                              .sheddable = 0.25,
                              .seed = 42};
}

Test(bench_plan, poisson_arrivals_have_its_mean_and_variance)
{
    enum { N = 20000 };
    struct bench_mix mix = mix_of(N);
    struct bench_plan plan;
    double sum = 0, square = 0, mean, variance;

    cr_assert(bench_plan_draw(&mix, &plan) == STATUS_OK);
    cr_assert(plan.n == N && plan.request[0].arrive_us == 0);
    for (uint32_t i = 1; i < N; i++) {
        double gap = (double)plan.request[i].arrive_us -
                     (double)plan.request[i - 1].arrive_us;

        cr_assert(gap >= 0, "in order of arrival");
        sum += gap;
        square += gap * gap;
    }
    mean = sum / (N - 1);
    variance = square / (N - 1) - mean * mean;
    cr_expect(fabs(mean / 2e4 - 1) < 5 / sqrt(N), "mean %g us", mean);
    /* The fourth moment of an exponential: 9 var^2, so 8 var^2 / N. */
    cr_expect(fabs(variance / 4e8 - 1) < 5 * sqrt(8.0 / N), "variance %g",
              variance);
    bench_plan_release(&plan);
}

Test(bench_plan, draws_keep_to_the_mix_and_to_the_seed)
{
    enum { N = 20000 };
    struct bench_mix mix = mix_of(N);
    struct bench_plan plan, again, other;
    uint32_t n_shed = 0, n_tenant[3] = {0}, n_length[11] = {0};

    cr_assert(bench_plan_draw(&mix, &plan) == STATUS_OK);
    cr_assert(bench_plan_draw(&mix, &again) == STATUS_OK);
    cr_expect(
        memcmp(plan.request, again.request, N * sizeof(plan.request[0])) == 0);
    mix.seed++;
    cr_assert(bench_plan_draw(&mix, &other) == STATUS_OK);
    cr_expect(
        memcmp(plan.request, other.request, N * sizeof(plan.request[0])) != 0);
    for (uint32_t i = 0; i < N; i++) {
        const struct bench_request *r = &plan.request[i];

        cr_assert(r->n_prompt >= 10 && r->n_prompt <= 20 && r->n_reply == 3);
        cr_assert(r->deadline_ms >= 100 && r->deadline_ms <= 200);
        cr_assert(r->priority == 0 || r->priority == -1);
        cr_assert(r->tenant[0] == 't' && r->tenant[1] >= '0' &&
                  r->tenant[1] <= '2' && r->tenant[2] == 0);
        n_shed += r->priority == -1;
        n_tenant[r->tenant[1] - '0']++;
        n_length[r->n_prompt - 10]++;
    }
    cr_expect(fabs(n_shed - 0.25 * N) < 5 * sqrt(N * 0.25 * 0.75));
    for (int i = 0; i < 3; i++)
        cr_expect(fabs(n_tenant[i] - N / 3.0) < 5 * sqrt(N * 2 / 9.0));
    for (int i = 0; i < 11; i++)
        cr_expect(fabs(n_length[i] - N / 11.0) < 5 * sqrt(N * 10 / 121.0));
    bench_plan_release(&plan);
    bench_plan_release(&again);
    bench_plan_release(&other);
}

Test(bench_plan, count_and_time_end_it)
{
    struct bench_mix mix = mix_of(1000);
    struct bench_plan plan;

    mix.is_even = true; /* one every 20 ms */
    mix.seconds = 1;
    cr_assert(bench_plan_draw(&mix, &plan) == STATUS_OK);
    cr_expect(plan.n == 51, "%u", plan.n);
    cr_expect(plan.request[50].arrive_us == 1000000 ||
              plan.request[50].arrive_us == 999999);
    bench_plan_release(&plan);
    mix.n_request = 7;
    cr_assert(bench_plan_draw(&mix, &plan) == STATUS_OK);
    cr_expect(plan.n == 7);
    bench_plan_release(&plan);
    mix.n_request = BENCH_REQUEST_MAX;
    mix.reply.most = BENCH_TOKEN_MAX / BENCH_REQUEST_MAX + 1;
    memset(&plan, 1, sizeof(plan));
    cr_expect(bench_plan_draw(&mix, &plan) == STATUS_INVALID_ARGUMENT);
    cr_expect(plan.n == 0x01010101, "out is untouched");
}

Test(bench_plan, a_range_is_a_number_or_two)
{
    static const struct {
        const char *text;
        struct bench_range range; /* 0, 0: refused */
    } cases[] = {{"5", {5, 5}},
                 {"5-9", {5, 9}},
                 {"9-9", {9, 9}},
                 {"1-99", {1, 99}},
                 {"", {0, 0}},
                 {"0", {0, 0}},
                 {"100", {0, 0}},
                 {"9-5", {0, 0}},
                 {"5-", {0, 0}},
                 {"-5", {0, 0}},
                 {"5-9-", {0, 0}},
                 {"5 9", {0, 0}},
                 {"5-x", {0, 0}},
                 {"+5", {0, 0}},
                 {"1-4294967295", {0, 0}},
                 {"99999999999999999999", {0, 0}}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench_range range = {0, 0};
        enum status st = bench_range_parse("x", cases[i].text,
                                           (struct bench_range){1, 99}, &range);

        cr_expect((st == STATUS_OK) == (cases[i].range.most > 0), "%s",
                  cases[i].text);
        cr_expect(range.least == cases[i].range.least &&
                      range.most == cases[i].range.most,
                  "%s", cases[i].text);
    }
}

#define HEAD                                                                   \
    "arrive_us\ttenant\tpriority\tprompt_tokens\toutput_tokens\tdeadline_us\n"

static enum status read_text(const struct bench_mix *mix, const char *text,
                             struct bench_plan *out)
{
    FILE *file = fmemopen((void *)text, strlen(text), "r");
    enum status st = bench_plan_read(mix, file, "a.tsv", out);

    fclose(file);
    return st;
}

Test(bench_plan, a_trace_is_taken_as_it_stands)
{
    struct bench_mix mix = mix_of(10);
    struct bench_plan plan;

    cr_assert(read_text(&mix,
                        HEAD "0\tant\t-1\t100\t5\t0\n"
                             "1500\t-\t2\t7\t9\t2500001\n",
                        &plan) == STATUS_OK);
    cr_assert(plan.n == 2);
    cr_expect_str_eq(plan.request[0].tenant, "ant");
    cr_expect(plan.request[0].priority == -1 &&
              plan.request[0].n_prompt == 100 && plan.request[0].n_reply == 5 &&
              plan.request[0].deadline_ms == 0);
    cr_expect_str_eq(plan.request[1].tenant, "");
    cr_expect(plan.request[1].arrive_us == 1500 &&
              plan.request[1].deadline_ms == 2501);
    bench_plan_release(&plan);
    mix.n_request = 1;
    cr_assert(read_text(&mix, HEAD "0\ta\t0\t1\t1\t0\n1\ta\t0\t1\t1\t0\n",
                        &plan) == STATUS_OK);
    cr_expect(plan.n == 1);
    bench_plan_release(&plan);
}

Test(bench_plan, what_is_no_trace_is_refused_with_its_line)
{
    static const struct {
        const char *text, *line;
    } cases[] = {{"x\n", "a.tsv:1:"},
                 {HEAD "0\ta\t0\t1\t1\n", "a.tsv:2:"},
                 {HEAD "0\ta\t0\t1\t1\t0\t9\n", "a.tsv:2:"},
                 {HEAD "0\ta\t0\t0\t1\t0\n", "a.tsv:2:"},
                 {HEAD "0\ta\t0\t1\t0\t0\n", "a.tsv:2:"},
                 {HEAD "5\ta\t0\t1\t1\t0\n4\ta\t0\t1\t1\t0\n", "a.tsv:3:"},
                 {HEAD "0\ta\t0\t1\t1\t99999999999999999\n", "a.tsv:2:"}};
    struct bench_mix mix = mix_of(10);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench_plan plan = {.n = 77};

        cr_expect(read_text(&mix, cases[i].text, &plan) ==
                  STATUS_INVALID_ARGUMENT);
        cr_expect(plan.n == 77 && strstr(status_reason(), cases[i].line),
                  "%zu: %s", i, status_reason());
    }
}
