#include "scheduler/sampler.h"

#include <math.h>
#include <string.h>

#define TEMPERATURE_MAX 100.0f
#define REPETITION_MAX 10.0f
#define PENALTY_MAX 2.0f /* presence and frequency, both signs */
#define BIAS_MAX 100.0f

void sampling_init(struct sampling *sampling)
{
    memset(sampling, 0, sizeof(*sampling));
    sampling->temperature = 1.0f;
    sampling->top_p = 1.0f;
    sampling->repetition_penalty = 1.0f;
    sampling->n_logprob = -1;
}

/* Written so that NaN fails. */
static bool is_between(float x, float min, float max)
{
    return x >= min && x <= max;
}

static enum status range_fail(const char *name, double x, const char *range)
{
    char field[STATUS_WORD_SIZE] = "sampling_params.";

    status_fail(STATUS_INVALID_ARGUMENT, "%s is %g, expected %s", name, x,
                range);
    status_because("SAMPLING_OUT_OF_RANGE");
    strncat(field, name, sizeof(field) - strlen(field) - 1);
    return status_field(field);
}

static enum status check_numbers(const struct sampling *s)
{
    if (!is_between(s->temperature, 0, TEMPERATURE_MAX))
        return range_fail("temperature", s->temperature, "0 to 100");
    if (!(s->top_p > 0 && s->top_p <= 1))
        return range_fail("top_p", s->top_p, "more than 0, at most 1");
    if (!is_between(s->min_p, 0, 1))
        return range_fail("min_p", s->min_p, "0 to 1");
    if (s->top_k < 0)
        return range_fail("top_k", s->top_k, "0 or more");
    if (!(s->repetition_penalty > 0 && s->repetition_penalty <= REPETITION_MAX))
        return range_fail("repetition_penalty", s->repetition_penalty,
                          "more than 0, at most 10");
    if (!is_between(s->presence_penalty, -PENALTY_MAX, PENALTY_MAX))
        return range_fail("presence_penalty", s->presence_penalty, "-2 to 2");
    if (!is_between(s->frequency_penalty, -PENALTY_MAX, PENALTY_MAX))
        return range_fail("frequency_penalty", s->frequency_penalty, "-2 to 2");
    if (s->n_logprob < -1 || s->n_logprob > (int32_t)LOGPROBS_MAX)
        return range_fail("logprobs", s->n_logprob, "0 to 20");
    if (s->max_tokens && s->min_tokens > s->max_tokens)
        return range_fail("min_tokens", s->min_tokens, "at most max_tokens");
    return STATUS_OK;
}

static enum status check_stops(const struct sampling *s, uint32_t n_vocab)
{
    if (s->n_stop > STOP_MAX)
        return range_fail("stop", s->n_stop, "at most 16 strings");
    for (uint32_t i = 0; i < s->n_stop; i++) {
        size_t n = strnlen(s->stop[i], STOP_BYTES_MAX);
        if (n == 0 || n == STOP_BYTES_MAX)
            return range_fail("stop", (double)n, "strings of 1 to 127 bytes");
    }
    if (s->n_stop_id > STOP_ID_MAX)
        return range_fail("stop_token_ids", s->n_stop_id, "at most 64 ids");
    for (uint32_t i = 0; i < s->n_stop_id; i++)
        if (s->stop_id[i] >= n_vocab)
            return range_fail("stop_token_ids", s->stop_id[i],
                              "ids of the vocabulary");
    return STATUS_OK;
}

static enum status check_bias(const struct sampling *s, uint32_t n_vocab)
{
    if (s->n_bias > LOGIT_BIAS_MAX)
        return range_fail("logit_bias", s->n_bias, "at most 300 entries");
    for (uint32_t i = 0; i < s->n_bias; i++) {
        if (s->bias[i].token >= n_vocab)
            return range_fail("logit_bias", s->bias[i].token,
                              "ids of the vocabulary");
        if (!is_between(s->bias[i].bias, -BIAS_MAX, BIAS_MAX))
            return range_fail("logit_bias", s->bias[i].bias, "-100 to 100");
    }
    return STATUS_OK;
}

enum status sampling_check(const struct sampling *sampling, uint32_t n_vocab)
{
    enum status st = check_numbers(sampling);

    if (!st)
        st = check_stops(sampling, n_vocab);
    if (!st)
        st = check_bias(sampling, n_vocab);
    return st;
}
