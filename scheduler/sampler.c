#include "scheduler/sampler.h"

#include "kernels/philox.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* exp() is zero below; such tokens add nothing to any mass. */
#define EXP_ZERO (-87.5f)
/* Far above what rounding does to a logarithm near a filter's edge. */
#define EDGE_SLACK 0.01f

struct sampler {
    const struct backend *backend;
    uint32_t n_vocab, n_block;
    float *x;        /* [n_vocab] logits as changed; in play: (x - max) / T */
    float *peak;     /* [n_block] the largest of each PEAK_BLOCK logits */
    float *rank;     /* [n_block] scratch of floor_of() */
    uint32_t *left;  /* [n_left] ids in play, ascending */
    uint32_t *heap;  /* [n_vocab] scratch of the filters */
    uint32_t *count; /* [n_vocab] scratch of the penalties; all 0 outside */
    uint32_t n_left;
};

enum status sampler_create(const struct backend *backend, uint32_t n_vocab,
                           struct sampler **out)
{
    struct sampler *sampler = calloc(1, sizeof(*sampler));
    uint32_t n_block = (n_vocab + PEAK_BLOCK - 1) / PEAK_BLOCK;

    if (sampler) {
        sampler->backend = backend;
        sampler->n_vocab = n_vocab;
        sampler->n_block = n_block;
        sampler->x = calloc(n_vocab, sizeof(*sampler->x));
        sampler->peak = calloc(n_block, sizeof(*sampler->peak));
        sampler->rank = calloc(n_block, sizeof(*sampler->rank));
        sampler->left = calloc(n_vocab, sizeof(*sampler->left));
        sampler->heap = calloc(n_vocab, sizeof(*sampler->heap));
        sampler->count = calloc(n_vocab, sizeof(*sampler->count));
    }
    if (!sampler || !sampler->x || !sampler->peak || !sampler->rank ||
        !sampler->left || !sampler->heap || !sampler->count) {
        sampler_destroy(sampler);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to sample from %u tokens", n_vocab);
    }
    *out = sampler;
    return STATUS_OK;
}

void sampler_destroy(struct sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->x);
    free(sampler->peak);
    free(sampler->rank);
    free(sampler->left);
    free(sampler->heap);
    free(sampler->count);
    free(sampler);
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

static bool is_barred(const struct sampling *sampling,
                      const struct sampler_history *history)
{
    return history->n_token - history->output_start < sampling->min_tokens;
}

/* Do the parameters change any logit before the temperature? */
static bool changes(const struct sampling *sampling,
                    const struct sampler_history *history)
{
    return sampling->n_bias || sampling->repetition_penalty != 1.0f ||
           sampling->presence_penalty != 0 ||
           sampling->frequency_penalty != 0 || is_barred(sampling, history);
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
    if (is_barred(sampling, history))
        for (uint32_t i = 0; i < history->n_end; i++)
            x[history->end[i]] = -INFINITY;
}

/* The first of the largest; a logit that is NaN is never it. */
static uint32_t best(const struct sampler *sampler, const float *x)
{
    float most = -INFINITY;
    uint32_t block = 0, id;

    for (uint32_t b = 0; b < sampler->n_block; b++)
        if (sampler->peak[b] > most) {
            most = sampler->peak[b];
            block = b;
        }
    if (most == -INFINITY)
        return 0;
    for (id = block * PEAK_BLOCK; x[id] != most; id++)
        ;
    return id;
}

/* The k-th largest of x[0 .. n), 1 <= k <= n, whose order is lost. */
static float kth_largest(float *x, uint32_t n, uint32_t k)
{
    uint32_t first = 0, last = n - 1;

    while (first < last) {
        float pivot = x[first + (last - first) / 2];
        uint32_t i = first, j = last;

        for (;;) {
            while (x[i] > pivot)
                i++;
            while (pivot > x[j])
                j--;
            if (i >= j)
                break;
            float swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        /* x[first .. j] >= pivot >= x[j + 1 .. last] */
        if (k - 1 <= j)
            last = j;
        else
            first = j + 1;
    }
    return x[first];
}

/*
 * A value of (x - max) / T below which no token can pass the filters. The k
 * best blocks hold k tokens at least as good as the k-th best peak.
 */
static float floor_of(struct sampler *sampler, const struct sampling *sampling,
                      float max)
{
    const uint32_t n = sampler->n_block, k = (uint32_t)sampling->top_k;

    if (sampling->top_k > 0 && k <= n) {
        for (uint32_t b = 0; b < n; b++) {
            float x = (sampler->peak[b] - max) / sampling->temperature;
            sampler->rank[b] = isnan(x) ? -INFINITY : x;
        }
        return kth_largest(sampler->rank, n, k);
    }
    if (sampling->top_k > 0)
        return -INFINITY;
    if (sampling->top_p < 1)
        return EXP_ZERO;
    return scalar_log(sampling->min_p) - EDGE_SLACK;
}

/* Scale to (x - max) / T <= 0 and put what may pass the filters into play. */
static void heat(struct sampler *sampler, const struct sampling *sampling,
                 const float *logits, uint32_t top)
{
    const float max = logits[top], temperature = sampling->temperature;
    const float floor = floor_of(sampler, sampling, max);

    sampler->n_left = 0;
    for (uint32_t b = 0; b < sampler->n_block; b++) {
        uint32_t id = b * PEAK_BLOCK, end = id + PEAK_BLOCK;

        if ((sampler->peak[b] - max) / temperature < floor)
            continue;
        if (end > sampler->n_vocab)
            end = sampler->n_vocab;
        for (; id < end; id++) {
            float x = (logits[id] - max) / temperature;
            if (x == -INFINITY || isnan(x) || x < floor)
                continue; /* NaN: infinity less infinity */
            sampler->x[id] = x;
            sampler->left[sampler->n_left++] = id;
        }
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

/* As backend's draw, among the tokens in play. */
static uint32_t draw_left(const struct sampler *sampler, uint64_t seed,
                          uint64_t position)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4], group = UINT32_MAX, winner = sampler->left[0];
    float most = -INFINITY;

    for (uint32_t i = 0; i < sampler->n_left; i++) {
        uint32_t id = sampler->left[i];
        float x = sampler->x[id];

        if (id / 4 != group) {
            uint32_t counter[4] = {(uint32_t)position,
                                   (uint32_t)(position >> 32), id / 4, 0};
            group = id / 4;
            philox(counter, key, word);
        }
        x += -scalar_log(-scalar_log(philox_unit(word[id % 4])));
        if (x > most) {
            most = x;
            winner = id;
        }
    }
    return winner;
}

/* What top-k, top-p and min-p leave, in this order, is drawn from. */
static uint32_t draw_filtered(struct sampler *sampler,
                              const struct sampling *sampling,
                              uint64_t position)
{
    if (sampling->top_k > 0)
        top_k(sampler, (uint32_t)sampling->top_k);
    if (sampling->top_p < 1)
        top_p(sampler, sampling->top_p);
    if (sampling->min_p > 0)
        min_p(sampler, sampling->min_p);
    return draw_left(sampler, sampling->seed, position);
}

static uint32_t draw(struct sampler *sampler, const struct sampling *sampling,
                     const float *x, uint32_t top, uint64_t position)
{
    uint32_t chosen;

    if (sampling->top_k <= 0 && sampling->top_p >= 1 && sampling->min_p <= 0) {
        chosen = sampler->backend->draw(
            &(struct draw_args){.x = x,
                                .n = sampler->n_vocab,
                                .max = x[top],
                                .temperature = sampling->temperature,
                                .seed = sampling->seed,
                                .position = position});
        return chosen == DRAW_NONE ? top : chosen;
    }
    heat(sampler, sampling, x, top);
    return draw_filtered(sampler, sampling, position);
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

/* ---------------------------------------------------------------- best logits
 */

static int by_id(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/*
 * Put those into play among which are all that pass the first filter; false if
 * one of them may not be listed. What is not listed is no larger than the last
 * that is, before and after it is scaled.
 */
static bool heat_tops(struct sampler *sampler, const struct sampling *sampling,
                      const struct tops *tops)
{
    const float max = tops->value[0], temperature = sampling->temperature;
    const float last = (tops->value[tops->n - 1] - max) / temperature;
    const uint32_t k = (uint32_t)sampling->top_k;

    if (!tops->is_all) {
        if (sampling->top_k > 0 && k >= tops->n)
            return false;
        if (sampling->top_k > 0 &&
            !(last < (tops->value[k - 1] - max) / temperature))
            return false;
        if (sampling->top_k <= 0 &&
            (sampling->top_p < 1 || sampling->min_p <= 0 ||
             !(last < scalar_log(sampling->min_p) - EDGE_SLACK)))
            return false;
    }
    sampler->n_left = 0;
    for (uint32_t i = 0; i < tops->n; i++) {
        const float x = (tops->value[i] - max) / temperature;

        if (x == -INFINITY || isnan(x))
            continue;
        sampler->x[tops->id[i]] = x;
        sampler->left[sampler->n_left++] = tops->id[i];
    }
    qsort(sampler->left, sampler->n_left, sizeof(*sampler->left), by_id);
    return true;
}

/* As measure(). The mass is a sum of as many terms in another order, so the two
 * differ by less than `slack` of it: is it one float all the same? */
static bool measure_tops(const struct sampler *sampler, const struct tops *tops,
                         float chosen, uint32_t n_top, struct logprobs *out)
{
    const double slack = (double)sampler->n_vocab * 0x1p-51;
    const float low = (float)(tops->mass * (1 - slack));
    const float high = (float)(tops->mass * (1 + slack));
    const float norm = scalar_log(low);

    if (low != high || n_top > tops->n)
        return false;
    out->chosen.logprob = (chosen - tops->value[0]) - norm;
    out->n_top = n_top;
    for (uint32_t i = 0; i < n_top; i++) {
        out->top[i].token = tops->id[i];
        out->top[i].logprob = (tops->value[i] - tops->value[0]) - norm;
    }
    return true;
}

/* The place of the token in the list. */
static uint32_t draw_tops(struct sampler *sampler,
                          const struct sampling *sampling,
                          const struct tops *tops, uint64_t position)
{
    uint32_t token, i = 0;

    token = draw_filtered(sampler, sampling, position);
    while (tops->id[i] != token)
        i++;
    return i;
}

bool sampler_pick_tops(struct sampler *sampler, const struct sampling *sampling,
                       const struct tops *tops,
                       const struct sampler_history *history,
                       struct logprobs *out_logprobs, uint32_t *out_token)
{
    uint32_t at = 0;

    if (tops->n == 0 || tops->value[0] == INFINITY ||
        changes(sampling, history))
        return false;
    if (sampling->temperature > 0) {
        if (!heat_tops(sampler, sampling, tops))
            return false;
        at = draw_tops(sampler, sampling, tops, history->n_token);
    }
    if (out_logprobs && sampling->n_logprob >= 0) {
        memset(out_logprobs, 0, sizeof(*out_logprobs));
        out_logprobs->chosen.token = tops->id[at];
        if (!measure_tops(sampler, tops, tops->value[at],
                          (uint32_t)sampling->n_logprob, out_logprobs))
            return false;
    }
    *out_token = tops->id[at];
    return true;
}

uint32_t sampler_pick(struct sampler *sampler, const struct sampling *sampling,
                      const float *logits,
                      const struct sampler_history *history,
                      struct logprobs *out_logprobs)
{
    const float *x = logits;
    uint32_t chosen;

    assert(history->output_start <= history->n_token);
    if (changes(sampling, history)) {
        adjust(sampler, sampling, logits, history);
        x = sampler->x;
    }
    sampler->backend->peaks(&(struct peaks_args){
        .peak = sampler->peak, .x = x, .n = sampler->n_vocab});
    chosen = best(sampler, x);
    if (sampling->temperature > 0)
        chosen = draw(sampler, sampling, x, chosen, history->n_token);
    if (out_logprobs && sampling->n_logprob >= 0)
        measure(sampler, logits, chosen, (uint32_t)sampling->n_logprob,
                out_logprobs);
    return chosen;
}
