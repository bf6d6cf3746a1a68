/*
 * Judge: sampler_pick() of all the logits, which has an oracle of its own
 * (test_sampler.c). Whatever the best logits decide is the same, to the last
 * bit, and what they cannot decide they leave alone.
 */
#include "kernels/ref/ref.h"
#include "scheduler/sampler.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_VOCAB 5000u
#define FEW 60u /* a vocabulary that is listed whole */

struct setting {
    struct sampler *sampler;
    float logits[N_VOCAB];
    struct tops tops;
    struct sampling sampling;
    struct sampler_history history;
    uint32_t n;
};

static const uint32_t SEEN[3] = {5, 6, 5};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Logits on a grid, so that there are ties, or hardly on one. */
static void open_setting(struct setting *s, uint32_t n, uint64_t seed)
{
    const struct backend *backend = NULL;
    const uint32_t n_value = seed % 2 ? 4000 : 1u << 23;

    memset(s, 0, sizeof(*s));
    s->n = n;
    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    cr_assert_eq(sampler_create(backend, n, &s->sampler), STATUS_OK);
    for (uint32_t i = 0; i < n; i++) {
        const float u = (float)(mix(seed * N_VOCAB + i) % n_value + 1) /
                        (float)(n_value + 1);

        s->logits[i] = i % 101 == 3 ? NAN : -3.0f * logf(u) - 4.0f;
    }
    sampling_init(&s->sampling);
    s->sampling.seed = seed;
    s->history = (struct sampler_history){SEEN, 3, 1, NULL, 0};
    ref_tops(NULL, &(struct tops_args){&s->tops, s->logits, N_VOCAB, 1, n});
}

static bool same_logprob(struct token_logprob a, struct token_logprob b)
{
    return a.token == b.token && a.logprob == b.logprob;
}

static bool same_logprobs(const struct logprobs *a, const struct logprobs *b)
{
    if (a->n_top != b->n_top || !same_logprob(a->chosen, b->chosen))
        return false;
    for (uint32_t i = 0; i < a->n_top; i++)
        if (!same_logprob(a->top[i], b->top[i]))
            return false;
    return true;
}

/* True if the best logits decided; then they did so rightly. */
static bool is_decided(struct setting *s)
{
    struct logprobs few, all;
    uint32_t token = UINT32_MAX, want;

    memset(&few, 0, sizeof(few));
    memset(&all, 0, sizeof(all));
    want = sampler_pick(s->sampler, &s->sampling, s->logits, &s->history, &all);
    if (!sampler_pick_tops(s->sampler, &s->sampling, &s->tops, &s->history,
                           &few, &token)) {
        cr_assert_eq(token, UINT32_MAX);
        return false;
    }
    cr_assert_eq(token, want);
    cr_assert(same_logprobs(&few, &all));
    return true;
}

/* Each setting at 40 positions; true if all of them were decided. */
static bool are_decided(struct setting *s)
{
    bool are = true;

    for (uint64_t position = 2; position < 42; position++) {
        s->history.n_token = position % 3 + 1;
        s->sampling.seed = position;
        are &= is_decided(s);
    }
    return are;
}

Test(sampler_tops, the_best_logits_decide_as_all_do)
{
    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k, n_logprob;
        bool is_decided;
    } CASE[] = {
        {0, 1, 0, 0, -1, true},
        {0, 0.5f, 0, 7, 20, true},
        {1, 1, 0, 20, -1, true},
        {0.7f, 0.8f, 0, 20, 5, true},
        {1.5f, 0.95f, 0.05f, 64, 0, true},
        {0.6f, 1, 0.2f, 0, -1, true},
        {1, 1, 0.1f, 100, 20, true},
        {1, 1, 0, 0, -1, false},
        {1, 0.9f, 0, 0, -1, false},
        {1, 1, 0, 128, -1, false},
        {9, 1, 1e-4f, 0, -1, false},
    };

    for (uint64_t seed = 1; seed <= 6; seed++)
        for (size_t i = 0; i < sizeof(CASE) / sizeof(*CASE); i++) {
            struct setting s;

            open_setting(&s, N_VOCAB, seed);
            s.sampling.temperature = CASE[i].temperature;
            s.sampling.top_p = CASE[i].top_p;
            s.sampling.min_p = CASE[i].min_p;
            s.sampling.top_k = CASE[i].top_k;
            s.sampling.n_logprob = CASE[i].n_logprob;
            cr_assert_eq(are_decided(&s), CASE[i].is_decided, "case %zu", i);
            sampler_destroy(s.sampler);
        }
}

Test(sampler_tops, of_a_small_vocabulary_they_decide_whatever_is_asked)
{
    struct setting s;

    open_setting(&s, FEW, 3);
    s.sampling.top_p = 0.9f;
    s.sampling.n_logprob = 9;
    cr_assert(are_decided(&s));
    s.sampling.top_p = 1;
    s.sampling.temperature = 1.3f;
    cr_assert(are_decided(&s));
    sampler_destroy(s.sampler);
}

Test(sampler_tops, ties_across_the_end_of_the_list_are_left_alone)
{
    struct setting s;

    open_setting(&s, N_VOCAB, 1);
    for (uint32_t i = 0; i < N_VOCAB; i++)
        s.logits[i] = i < 10 ? 2.0f : 1.0f;
    ref_tops(NULL, &(struct tops_args){&s.tops, s.logits, N_VOCAB, 1, N_VOCAB});
    s.sampling.top_k = 10;
    cr_assert(are_decided(&s));
    s.sampling.top_k = 11;
    cr_assert_not(is_decided(&s));
    sampler_destroy(s.sampler);
}

Test(sampler_tops, changed_logits_and_rows_of_no_number_are_left_alone)
{
    struct setting s;

    open_setting(&s, N_VOCAB, 2);
    s.sampling.temperature = 0;
    s.sampling.repetition_penalty = 1.1f;
    cr_assert_not(is_decided(&s));
    s.sampling.repetition_penalty = 1;
    s.sampling.min_tokens = 9;
    cr_assert_not(is_decided(&s));
    s.sampling.min_tokens = 0;
    cr_assert(is_decided(&s));
    s.logits[17] = INFINITY;
    ref_tops(NULL, &(struct tops_args){&s.tops, s.logits, N_VOCAB, 1, N_VOCAB});
    cr_assert_not(is_decided(&s));
    for (uint32_t i = 0; i < N_VOCAB; i++)
        s.logits[i] = i % 2 ? NAN : -INFINITY;
    ref_tops(NULL, &(struct tops_args){&s.tops, s.logits, N_VOCAB, 1, N_VOCAB});
    cr_assert_not(is_decided(&s));
    sampler_destroy(s.sampler);
}
