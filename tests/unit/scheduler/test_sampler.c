/*
 * Judges: for the choice a naive sampler in double written from the definitions
 * (filters, then Gumbel noise from libm); for the whole a chi-square test
 * against softmax.
 */
#include "scheduler/sampler.h"

#include "kernels/philox.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_VOCAB 97u

static struct sampler *created(uint32_t n_vocab)
{
    struct sampler *sampler = NULL;

    const struct backend *backend = NULL;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    cr_assert_eq(sampler_create(backend, n_vocab, &sampler), STATUS_OK);
    return sampler;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Logits on a grid of 1/8, so that there are ties. */
static void noise(float *logits, uint32_t n, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++)
        logits[i] = (float)(mix(seed * 1000 + i) % 96) / 8 - 6;
}

/* --- the oracle: everything in double, nothing shared but philox --- */

struct naive {
    double x[N_VOCAB];
    bool is_out[N_VOCAB];
};

static double naive_max(const struct naive *n)
{
    double max = -INFINITY;

    for (uint32_t i = 0; i < N_VOCAB; i++)
        if (!n->is_out[i] && n->x[i] > max)
            max = n->x[i];
    return max;
}

/* How many tokens stand before token i. */
static uint32_t naive_rank(const struct naive *n, uint32_t i)
{
    uint32_t rank = 0;

    for (uint32_t j = 0; j < N_VOCAB; j++)
        if (!n->is_out[j] &&
            (n->x[j] > n->x[i] || (n->x[j] == n->x[i] && j < i)))
            rank++;
    return rank;
}

static void naive_adjust(struct naive *n, const struct sampling *s,
                         const float *logits, const struct sampler_history *h)
{
    uint64_t n_output = h->n_token - h->output_start;

    for (uint32_t i = 0; i < N_VOCAB; i++) {
        double seen = 0, count = 0;
        n->is_out[i] = false;
        n->x[i] = (double)logits[i];
        for (uint32_t b = 0; b < s->n_bias; b++)
            if (s->bias[b].token == i)
                n->x[i] += (double)s->bias[b].bias;
        for (uint64_t t = 0; t < h->n_token; t++) {
            seen += h->token[t] == i;
            count += h->token[t] == i && t >= h->output_start;
        }
        if (seen > 0)
            n->x[i] = n->x[i] > 0 ? n->x[i] / (double)s->repetition_penalty
                                  : n->x[i] * (double)s->repetition_penalty;
        if (count > 0)
            n->x[i] -= (double)s->presence_penalty +
                       count * (double)s->frequency_penalty;
        for (uint32_t e = 0; e < h->n_end; e++)
            if (h->end[e] == i && n_output < s->min_tokens)
                n->is_out[i] = true;
    }
}

static void naive_filter(struct naive *n, const struct sampling *s)
{
    bool next[N_VOCAB];
    double max = naive_max(n), total = 0;

    for (uint32_t i = 0; i < N_VOCAB; i++)
        n->x[i] = (n->x[i] - max) / (double)s->temperature;
    for (uint32_t i = 0; i < N_VOCAB; i++)
        next[i] = n->is_out[i] ||
                  (s->top_k > 0 && naive_rank(n, i) >= (uint32_t)s->top_k);
    memcpy(n->is_out, next, sizeof(next));
    for (uint32_t i = 0; i < N_VOCAB; i++)
        total += n->is_out[i] ? 0 : exp(n->x[i]);
    for (uint32_t i = 0; i < N_VOCAB; i++) { /* mass in front of token i */
        double front = 0;
        for (uint32_t j = 0; j < N_VOCAB; j++)
            if (!n->is_out[j] &&
                (n->x[j] > n->x[i] || (n->x[j] == n->x[i] && j < i)))
                front += exp(n->x[j]);
        next[i] =
            n->is_out[i] || (s->top_p < 1 && front >= (double)s->top_p * total);
    }
    memcpy(n->is_out, next, sizeof(next));
    for (uint32_t i = 0; i < N_VOCAB; i++)
        if (exp(n->x[i]) < (double)s->min_p)
            n->is_out[i] = true;
}

static uint32_t naive_pick(const struct sampling *s, const float *logits,
                           const struct sampler_history *h)
{
    struct naive n;
    double most = -INFINITY;
    uint32_t winner = 0;

    naive_adjust(&n, s, logits, h);
    if (s->temperature > 0)
        naive_filter(&n, s);
    for (uint32_t i = 0; i < N_VOCAB; i++) {
        double x = n.x[i];
        if (n.is_out[i])
            continue;
        if (s->temperature > 0) {
            uint32_t key[2] = {(uint32_t)s->seed, (uint32_t)(s->seed >> 32)};
            uint32_t counter[4] = {(uint32_t)h->n_token, 0, i / 4, 0}, word[4];
            philox(counter, key, word);
            x -= log(-log(((word[i % 4] >> 9) + 0.5) / 8388608.0));
        }
        if (x > most) {
            most = x;
            winner = i;
        }
    }
    return winner;
}

static void expect_oracle(const struct sampling *base, const char *what)
{
    struct sampler *sampler = created(N_VOCAB);
    static const uint32_t end[] = {3, 50};
    uint32_t token[40];

    for (uint64_t round = 0; round < 400; round++) {
        struct sampling s = *base;
        struct sampler_history h = {token, 10 + round % 30, 8, end, 2};
        float logits[N_VOCAB], before[N_VOCAB];
        noise(logits, N_VOCAB, round);
        for (uint32_t i = 0; round % 2 && i < N_VOCAB; i++)
            logits[i] -= 7; /* all negative */
        memcpy(before, logits, sizeof(logits));
        for (uint32_t t = 0; t < 40; t++)
            token[t] = (uint32_t)(mix(round * 77 + t) % 12) * 8;
        s.seed = mix(round);
        cr_assert_eq(sampler_pick(sampler, &s, logits, &h, NULL),
                     naive_pick(&s, logits, &h), "%s, round %lu", what, round);
        cr_assert_eq(memcmp(logits, before, sizeof(logits)), 0);
    }
    sampler_destroy(sampler);
}

Test(sampler, every_parameter_alone_and_together_agrees_with_the_oracle)
{
    struct sampling s;

    sampling_init(&s);
    expect_oracle(&s, "plain");
    s.temperature = 0;
    expect_oracle(&s, "greedy");
    s.temperature = 1.7f;
    expect_oracle(&s, "temperature");
    s.top_k = 5;
    expect_oracle(&s, "top_k");
    s.top_k = 1;
    expect_oracle(&s, "top_k of one");
    s.top_k = 0, s.top_p = 0.7f;
    expect_oracle(&s, "top_p");
    s.top_p = 1, s.min_p = 0.1f;
    expect_oracle(&s, "min_p");
    s.top_k = 30, s.top_p = 0.9f, s.min_p = 0.05f;
    expect_oracle(&s, "three filters");
    s.repetition_penalty = 1.5f;
    expect_oracle(&s, "repetition");
    s.repetition_penalty = 1, s.presence_penalty = 1.5f;
    expect_oracle(&s, "presence");
    s.presence_penalty = 0, s.frequency_penalty = -0.75f;
    expect_oracle(&s, "frequency");
    s.n_bias = 3;
    s.bias[0] = (struct logit_bias){7, 9.5f};
    s.bias[1] = (struct logit_bias){96, -100};
    s.bias[2] = (struct logit_bias){0, 2.25f};
    expect_oracle(&s, "bias");
    s.min_tokens = 20;
    s.repetition_penalty = 1.25f, s.presence_penalty = 0.5f;
    expect_oracle(&s, "everything");
    s.temperature = 0;
    expect_oracle(&s, "everything, greedy");
}

Test(sampler, frequencies_are_those_of_softmax)
{
    enum { N = 10, DRAWS = 40000 };
    static const float logits[N] = {0, 1, 2, -1, 0.5f, 1.5f, -2, 0, 1, -0.5f};
    struct sampler *sampler = created(N);
    struct sampling s;
    double count[N] = {0}, total = 0, chi = 0;

    sampling_init(&s);
    s.temperature = 0.9f;
    s.seed = 42;
    for (uint64_t i = 0; i < DRAWS; i++) {
        struct sampler_history h = {NULL, i, i, NULL, 0};
        count[sampler_pick(sampler, &s, logits, &h, NULL)]++;
    }
    for (int i = 0; i < N; i++)
        total += exp((double)logits[i] / 0.9);
    for (int i = 0; i < N; i++) {
        double want = exp((double)logits[i] / 0.9) / total * DRAWS;
        chi += (count[i] - want) * (count[i] - want) / want;
    }
    cr_assert_lt(chi, 27.9, "chi-square %g", chi); /* 9 degrees, p 0.001 */
    sampler_destroy(sampler);
}

Test(sampler, noise_of_seeds_and_positions_is_independent)
{
    static const float flat[16] = {0};
    struct sampler *sampler = created(16);
    struct sampling s;
    uint32_t n_same = 0;

    sampling_init(&s);
    for (uint64_t i = 0; i < 4000; i++) {
        struct sampler_history a = {NULL, i, i, NULL, 0};
        struct sampler_history b = {NULL, i + 1, i + 1, NULL, 0};
        uint32_t first, again, seed, place;
        s.seed = i * 3;
        first = sampler_pick(sampler, &s, flat, &a, NULL);
        again = sampler_pick(sampler, &s, flat, &a, NULL);
        place = sampler_pick(sampler, &s, flat, &b, NULL);
        s.seed = i * 3 + (1ull << 40);
        seed = sampler_pick(sampler, &s, flat, &a, NULL);
        cr_assert_eq(first, again);
        n_same += (first == place) + (first == seed);
    }
    cr_assert_float_eq((double)n_same, 8000 / 16, 100, "%u",
                       n_same); /* sigma is 22 */
    sampler_destroy(sampler);
}

Test(sampler, ties_go_to_the_lower_id_and_bad_logits_never_win)
{
    struct sampler *sampler = created(8);
    struct sampler_history h = {NULL, 5, 5, NULL, 0};
    float logits[8] = {NAN, 2, 7, 7, -INFINITY, 7, NAN, 1};
    struct sampling s;

    sampling_init(&s);
    s.top_k = 1;
    cr_assert_eq(sampler_pick(sampler, &s, logits, &h, NULL), 2);
    s.temperature = 0;
    cr_assert_eq(sampler_pick(sampler, &s, logits, &h, NULL), 2);
    sampling_init(&s);
    s.temperature = 100;
    for (uint32_t i = 0; i < 500; i++) {
        uint32_t id;
        h.n_token = h.output_start = i;
        id = sampler_pick(sampler, &s, logits, &h, NULL);
        cr_assert(id != 0 && id != 4 && id != 6);
    }
    for (int i = 0; i < 8; i++)
        logits[i] = -INFINITY;
    cr_assert_lt(sampler_pick(sampler, &s, logits, &h, NULL), 8);
    sampler_destroy(sampler);
}

Test(sampler, logprobs_are_the_models_and_sum_to_one)
{
    struct sampler *sampler = created(20);
    struct sampler_history h = {NULL, 5, 5, NULL, 0};
    float logits[20];
    struct sampling s;
    struct logprobs out;
    double total = 0, sum = 0;

    noise(logits, 20, 3);
    sampling_init(&s);
    s.temperature = 0.3f; /* must not show */
    s.top_k = 3;
    s.n_logprob = 20;
    for (int i = 0; i < 20; i++)
        total += exp((double)logits[i]);
    uint32_t id = sampler_pick(sampler, &s, logits, &h, &out);
    cr_assert_eq(out.n_top, 20);
    cr_assert_eq(out.chosen.token, id);
    cr_assert_float_eq((double)out.chosen.logprob,
                       (double)logits[id] - log(total), 1e-5);
    for (uint32_t i = 0; i < 20; i++) {
        const struct token_logprob *now = &out.top[i];
        sum += exp((double)now->logprob);
        cr_assert_float_eq((double)now->logprob,
                           (double)logits[now->token] - log(total), 1e-5);
        if (i > 0)
            cr_assert(now[-1].logprob > now->logprob ||
                      (now[-1].logprob == now->logprob &&
                       now[-1].token < now->token));
    }
    cr_assert_float_eq(sum, 1, 1e-5);
    s.n_logprob = 0;
    sampler_pick(sampler, &s, logits, &h, &out);
    cr_assert_eq(out.n_top, 0);
    s.n_logprob = 4;
    sampler_pick(sampler, &s, logits, &h, &out);
    cr_assert_eq(out.n_top, 4);
    sampler_destroy(sampler);
}

Test(sampler, values_out_of_range_are_refused_by_name)
{
    static const struct {
        const char *field;
        size_t offset;
        float value;
    } bad[] = {
#define BAD(name, value)                                                       \
    {"sampling_params." #name, offsetof(struct sampling, name), value}
        BAD(temperature, -1),
        BAD(temperature, NAN),
        BAD(temperature, 101),
        BAD(top_p, 0),
        BAD(top_p, 1.5f),
        BAD(top_p, NAN),
        BAD(min_p, -0.1f),
        BAD(min_p, 1.1f),
        BAD(repetition_penalty, 0),
        BAD(repetition_penalty, INFINITY),
        BAD(presence_penalty, 2.1f),
        BAD(presence_penalty, NAN),
        BAD(frequency_penalty, -3),
    };
    struct sampling s;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        sampling_init(&s);
        cr_assert_eq(sampling_check(&s, 100), STATUS_OK);
        memcpy((char *)&s + bad[i].offset, &bad[i].value, sizeof(float));
        cr_assert_eq(sampling_check(&s, 100), STATUS_INVALID_ARGUMENT);
        cr_assert_str_eq(status_cause()->field, bad[i].field);
        cr_assert_str_eq(status_cause()->reason, "SAMPLING_OUT_OF_RANGE");
    }
}

static void refused(const struct sampling *s, const char *field)
{
    cr_assert_eq(sampling_check(s, 100), STATUS_INVALID_ARGUMENT, "%s", field);
    cr_assert_str_eq(status_cause()->field, field);
}

Test(sampler, lists_and_counts_out_of_range_are_refused_by_name)
{
    struct sampling s;

    sampling_init(&s);
    s.top_k = -1;
    refused(&s, "sampling_params.top_k");
    sampling_init(&s);
    s.n_logprob = 21;
    refused(&s, "sampling_params.logprobs");
    sampling_init(&s);
    s.max_tokens = 3, s.min_tokens = 4;
    refused(&s, "sampling_params.min_tokens");
    sampling_init(&s);
    s.n_stop = STOP_MAX + 1;
    refused(&s, "sampling_params.stop");
    s.n_stop = 1; /* empty */
    refused(&s, "sampling_params.stop");
    memset(s.stop[0], 'x', STOP_BYTES_MAX); /* unterminated */
    refused(&s, "sampling_params.stop");
    sampling_init(&s);
    s.n_stop_id = STOP_ID_MAX + 1;
    refused(&s, "sampling_params.stop_token_ids");
    s.n_stop_id = 1, s.stop_id[0] = 100;
    refused(&s, "sampling_params.stop_token_ids");
    sampling_init(&s);
    s.n_bias = LOGIT_BIAS_MAX + 1;
    refused(&s, "sampling_params.logit_bias");
    s.n_bias = 1, s.bias[0] = (struct logit_bias){100, 1};
    refused(&s, "sampling_params.logit_bias");
    s.bias[0] = (struct logit_bias){1, NAN};
    refused(&s, "sampling_params.logit_bias");
    s.bias[0].bias = 5;
    cr_assert_eq(sampling_check(&s, 100), STATUS_OK);
}
