#include "scheduler/sampler.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * u is (x + 1/2) 2^-23 for a word's upper 23 bits x, exact in float and never
 * 0 or 1. g grows with the word, so the word's upper 8 bits bound it; most
 * tokens are seen to lose by that alone, without the two logarithms.
 */
#define N_BOUND 256u
#define BOUND_SLACK 0x1p-10f /* far above what rounding could do to g */

struct sampler {
    uint32_t n_vocab;
    float *x;        /* [n_vocab] logits as changed, then (x - max) / T */
    uint32_t *left;  /* [n_left] ids still in play, ascending */
    uint32_t *heap;  /* [n_vocab] scratch of the filters */
    uint32_t *count; /* [n_vocab] scratch of the penalties; all 0 outside */
    uint32_t n_left;
    float bound[N_BOUND]; /* g is below, by a word's upper 8 bits */
};

static float gumbel(uint32_t word)
{
    float u = ((float)(word >> 9) + 0.5f) * 0x1p-23f;

    return -scalar_log(-scalar_log(u));
}

enum status sampler_create(uint32_t n_vocab, struct sampler **out)
{
    struct sampler *sampler = calloc(1, sizeof(*sampler));

    if (sampler) {
        sampler->n_vocab = n_vocab;
        sampler->x = calloc(n_vocab, sizeof(*sampler->x));
        sampler->left = calloc(n_vocab, sizeof(*sampler->left));
        sampler->heap = calloc(n_vocab, sizeof(*sampler->heap));
        sampler->count = calloc(n_vocab, sizeof(*sampler->count));
    }
    if (!sampler || !sampler->x || !sampler->left || !sampler->heap ||
        !sampler->count) {
        sampler_destroy(sampler);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to sample from %u tokens", n_vocab);
    }
    for (uint32_t i = 0; i < N_BOUND; i++)
        sampler->bound[i] = gumbel(i << 24 | 0xffffffu) + BOUND_SLACK;
    *out = sampler;
    return STATUS_OK;
}

void sampler_destroy(struct sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->x);
    free(sampler->left);
    free(sampler->heap);
    free(sampler->count);
    free(sampler);
}

void sampler_philox(const uint32_t counter[4], const uint32_t key[2],
                    uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1];
    uint32_t c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The total order of tokens: higher value first, then lower id. */
static bool is_before(const float *x, uint32_t a, uint32_t b)
{
    return x[a] > x[b] || (x[a] == x[b] && a < b);
}

static void repetition(struct sampler *sampler, float penalty,
                       const uint32_t *token, uint64_t n_token)
{
    for (uint64_t t = 0; t < n_token; t++) {
        uint32_t id = token[t];
        float *x = &sampler->x[id];
        if (sampler->count[id]++ == 0)
            *x = *x > 0 ? *x / penalty : *x * penalty;
    }
    for (uint64_t t = 0; t < n_token; t++)
        sampler->count[token[t]] = 0;
}

static void presence(struct sampler *sampler, const struct sampling *sampling,
                     const uint32_t *token, uint64_t n_token)
{
    for (uint64_t t = 0; t < n_token; t++)
        sampler->count[token[t]]++;
    for (uint64_t t = 0; t < n_token; t++) {
        uint32_t id = token[t], n = sampler->count[id];
        if (n == 0) /* done at its first place */
            continue;
        sampler->x[id] -=
            sampling->presence_penalty + sampling->frequency_penalty * (float)n;
        sampler->count[id] = 0;
    }
}

static void adjust(struct sampler *sampler, const struct sampling *sampling,
                   const float *logits, const struct sampler_history *history)
{
    float *x = sampler->x;
    uint64_t n_output = history->n_token - history->output_start;

    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        x[id] = isnan(logits[id]) ? -INFINITY : logits[id];
    for (uint32_t i = 0; i < sampling->n_bias; i++)
        x[sampling->bias[i].token] += sampling->bias[i].bias;
    if (sampling->repetition_penalty != 1.0f)
        repetition(sampler, sampling->repetition_penalty, history->token,
                   history->n_token);
    if (sampling->presence_penalty != 0 || sampling->frequency_penalty != 0)
        presence(sampler, sampling, history->token + history->output_start,
                 n_output);
    if (n_output < sampling->min_tokens)
        for (uint32_t i = 0; i < history->n_end; i++)
            x[history->end[i]] = -INFINITY;
}

static uint32_t best(const struct sampler *sampler)
{
    uint32_t best = 0;

    for (uint32_t id = 1; id < sampler->n_vocab; id++)
        if (sampler->x[id] > sampler->x[best])
            best = id;
    return best;
}

/* Scale to (x - max) / T <= 0 and put all finite ids into play. */
static void heat(struct sampler *sampler, float temperature, uint32_t top)
{
    float max = sampler->x[top];

    sampler->n_left = 0;
    for (uint32_t id = 0; id < sampler->n_vocab; id++) {
        float x = (sampler->x[id] - max) / temperature;
        if (x == -INFINITY || isnan(x)) /* NaN: infinity less infinity */
            continue;
        sampler->x[id] = x;
        sampler->left[sampler->n_left++] = id;
    }
    if (sampler->n_left == 0) { /* every token is barred: the lowest id */
        sampler->x[top] = 0;
        sampler->left[sampler->n_left++] = top;
    }
}

static void sink(const float *x, uint32_t *heap, uint32_t n, uint32_t i)
{
    for (;;) {
        uint32_t child = 2 * i + 1, top = i;
        if (child < n && is_before(x, heap[child], heap[top]))
            top = child;
        if (child + 1 < n && is_before(x, heap[child + 1], heap[top]))
            top = child + 1;
        if (top == i)
            return;
        uint32_t swap = heap[i];
        heap[i] = heap[top];
        heap[top] = swap;
        i = top;
    }
}

static uint32_t heap_make(struct sampler *sampler)
{
    uint32_t n = sampler->n_left;

    memcpy(sampler->heap, sampler->left, n * sizeof(*sampler->heap));
    for (uint32_t i = n / 2; i-- > 0;)
        sink(sampler->x, sampler->heap, n, i);
    return n;
}

static uint32_t heap_take(struct sampler *sampler, uint32_t *n)
{
    uint32_t top = sampler->heap[0];

    sampler->heap[0] = sampler->heap[--*n];
    sink(sampler->x, sampler->heap, *n, 0);
    return top;
}

/* Keep what does not stand behind `last`, in ascending order of id. */
static void keep_until(struct sampler *sampler, uint32_t last)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < sampler->n_left; i++)
        if (!is_before(sampler->x, last, sampler->left[i]))
            sampler->left[n++] = sampler->left[i];
    sampler->n_left = n;
}

static void top_k(struct sampler *sampler, uint32_t k)
{
    uint32_t n, last = 0;

    if (k >= sampler->n_left)
        return;
    n = heap_make(sampler);
    for (uint32_t i = 0; i < k; i++)
        last = heap_take(sampler, &n);
    keep_until(sampler, last);
}

static void top_p(struct sampler *sampler, float p)
{
    uint32_t n = heap_make(sampler), last = sampler->heap[0];
    double total = 0, mass = 0; /* double: the sum of 1e5 floats decides */

    for (uint32_t i = 0; i < sampler->n_left; i++)
        total += (double)scalar_exp(sampler->x[sampler->left[i]]);
    while (n > 0 && mass < (double)p * total) {
        last = heap_take(sampler, &n);
        mass += (double)scalar_exp(sampler->x[last]);
    }
    keep_until(sampler, last);
}

static void min_p(struct sampler *sampler, float p)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < sampler->n_left; i++)
        if (scalar_exp(sampler->x[sampler->left[i]]) >= p)
            sampler->left[n++] = sampler->left[i];
    sampler->n_left = n; /* at least the best: its exp is 1 */
}

static uint32_t gumbel_max(const struct sampler *sampler, uint64_t seed,
                           uint64_t position)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4], group = UINT32_MAX, winner = sampler->left[0];
    float most = -INFINITY;

    for (uint32_t i = 0; i < sampler->n_left; i++) {
        uint32_t id = sampler->left[i];
        float x = sampler->x[id];
        if (x + sampler->bound[N_BOUND - 1] <= most)
            continue;
        if (id / 4 != group) {
            uint32_t counter[4] = {(uint32_t)position,
                                   (uint32_t)(position >> 32), id / 4, 0};
            group = id / 4;
            sampler_philox(counter, key, word);
        }
        if (x + sampler->bound[word[id % 4] >> 24] <= most)
            continue;
        x += gumbel(word[id % 4]);
        if (x > most) {
            most = x;
            winner = id;
        }
    }
    return winner;
}

/* Keep the n best in falling order by insertion; n is at most 20. */
static void top_insert(struct logprobs *out, uint32_t n, uint32_t id, float x)
{
    uint32_t i = out->n_top;

    if (i == n && !(x > out->top[n - 1].logprob))
        return;
    if (i == n)
        i--;
    else
        out->n_top++;
    for (; i > 0 && x > out->top[i - 1].logprob; i--)
        out->top[i] = out->top[i - 1];
    out->top[i].token = id;
    out->top[i].logprob = x;
}

static void measure(const struct sampler *sampler, const float *logits,
                    uint32_t chosen, uint32_t n_top, struct logprobs *out)
{
    float max = -INFINITY, norm;
    double sum = 0;

    memset(out, 0, sizeof(*out));
    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        if (logits[id] > max)
            max = logits[id];
    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        if (logits[id] > -INFINITY)
            sum += (double)scalar_exp(logits[id] - max);
    norm = sum > 0 ? scalar_log((float)sum) : 0;
    out->chosen.token = chosen;
    out->chosen.logprob = (logits[chosen] - max) - norm;
    if (n_top == 0)
        return;
    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        if (!isnan(logits[id]))
            top_insert(out, n_top, id, logits[id]);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i].logprob = (out->top[i].logprob - max) - norm;
}

uint32_t sampler_pick(struct sampler *sampler, const struct sampling *sampling,
                      const float *logits,
                      const struct sampler_history *history,
                      struct logprobs *out_logprobs)
{
    uint32_t chosen;

    assert(history->output_start <= history->n_token);
    adjust(sampler, sampling, logits, history);
    chosen = best(sampler);
    if (sampling->temperature > 0) {
        heat(sampler, sampling->temperature, chosen);
        if (sampling->top_k > 0)
            top_k(sampler, (uint32_t)sampling->top_k);
        if (sampling->top_p < 1)
            top_p(sampler, sampling->top_p);
        if (sampling->min_p > 0)
            min_p(sampler, sampling->min_p);
        chosen = gumbel_max(sampler, sampling->seed, history->n_token);
    }
    if (out_logprobs && sampling->n_logprob >= 0)
        measure(sampler, logits, chosen, (uint32_t)sampling->n_logprob,
                out_logprobs);
    return chosen;
}
