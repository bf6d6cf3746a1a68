#include "node/golden.h"

#include "node/golden_parts.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct golden_tolerance golden_tolerance_exact = {2e-3, 1e-2, 1e-3};
const struct golden_tolerance golden_tolerance_bf16 = {INFINITY, 0.05, 2e-3};
const struct golden_tolerance golden_tolerance_w8 = {INFINITY, 0.05, 5e-3};
const struct golden_tolerance golden_tolerance_f8 = {INFINITY, 0.1, 1e-2};

/* ------------------------------------------------------------------ tally */

void golden_add_row(struct golden_tally *tally, const float *logit,
                    const float *oracle, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n_vocab; i++) {
        double err = fabs((double)logit[i] - (double)oracle[i]);

        if (!(err <= tally->max_err)) /* also when it is NaN */
            tally->max_err = isnan(err) ? INFINITY : err;
        tally->sum_err += err;
    }
    tally->n_err += n_vocab;
}

void golden_add_tally(struct golden_tally *tally,
                      const struct golden_tally *more)
{
    if (more->max_err > tally->max_err)
        tally->max_err = more->max_err;
    tally->sum_err += more->sum_err;
    tally->n_err += more->n_err;
    tally->n_token += more->n_token;
    tally->n_equal += more->n_equal;
    tally->n_wrong += more->n_wrong;
    tally->near_tie = fmax(tally->near_tie, more->near_tie);
    tally->n_case += more->n_case;
    tally->n_case_good += more->n_case_good;
    tally->n_answer += more->n_answer;
    tally->n_answer_found += more->n_answer_found;
}

void golden_add_token(struct golden_tally *tally, bool is_equal, double margin,
                      const struct golden_tolerance *tolerance)
{
    tally->n_token++;
    tally->n_equal += is_equal;
    if (is_equal)
        return;
    tally->n_wrong += !(margin <= tolerance->margin);
    tally->near_tie = fmax(tally->near_tie, margin);
}

bool golden_is_within(const struct golden_tally *tally,
                      const struct golden_tolerance *tolerance)
{
    return tally->max_err <= tolerance->logit && tally->n_wrong == 0 &&
           tally->n_case == tally->n_case_good &&
           tally->n_answer == tally->n_answer_found;
}

void golden_print(const struct golden_tally *tally, FILE *to)
{
    fprintf(to, "max_abs_err=%.3g mean_abs_err=%.3g greedy=%lu/%lu",
            tally->max_err,
            tally->n_err ? tally->sum_err / (double)tally->n_err : 0.0,
            tally->n_equal, tally->n_token);
    if (tally->n_equal < tally->n_token)
        fprintf(to, " near_tie=%.3g", tally->near_tie);
    fputc('\n', to);
}

double golden_margin(const float *logit, uint32_t n_vocab)
{
    const uint32_t best = solo_argmax(logit, n_vocab);
    double second = -INFINITY;

    for (uint32_t i = 0; i < n_vocab; i++)
        if (i != best && logit[i] > second)
            second = logit[i];
    return (double)logit[best] - second;
}

/* ------------------------------------------------------------- one prompt */

/* The plain layout's tensors, copied so that they are aligned. */
struct prompt {
    uint32_t *input, *greedy; /* [n_input], [n_greedy]; owned, as all */
    float *logit, *greedy_logit;
    uint64_t n_input, n_greedy;
};

static enum status read_ids(const struct safetensors *file, const char *name,
                            uint32_t n_vocab, uint32_t **out, uint64_t *out_n)
{
    const struct tensor *tensor = safetensors_find(file, name);

    if (!tensor)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "golden.safetensors: no tensor '%s', expected I32 "
                           "[n]",
                           name);
    if (tensor->type != TENSOR_I32 || tensor->n_dim != 1 || !tensor->dim[0])
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "golden.safetensors: tensor '%s' has another type "
                           "or shape, expected I32 [n]",
                           name);
    *out = malloc(tensor->n_bytes);
    if (!*out)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for '%s'",
                           name);
    memcpy(*out, tensor->data, tensor->n_bytes);
    *out_n = tensor->dim[0];
    for (uint64_t i = 0; i < *out_n; i++)
        if ((*out)[i] >= n_vocab)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "golden.safetensors: %s[%lu] is %d, the model "
                               "has %u tokens",
                               name, i, (int)(*out)[i], n_vocab);
    return STATUS_OK;
}

static enum status read_logits(const struct safetensors *file, const char *name,
                               uint64_t n_row, uint32_t n_vocab, float **out)
{
    const uint64_t dim[2] = {n_row, n_vocab};
    const struct tensor *tensor;
    const enum status st = safetensors_need(file, name, 2, dim, &tensor);

    if (st)
        return st;
    *out = malloc(n_row * n_vocab * sizeof(float));
    if (!*out)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for '%s'",
                           name);
    tensor_read_f32(tensor, 0, n_row * n_vocab, *out);
    return STATUS_OK;
}

static enum status prompt_init(const struct safetensors *file, uint32_t n_vocab,
                               struct prompt *out)
{
    enum status st;

    st = read_ids(file, "input_ids", n_vocab, &out->input, &out->n_input);
    if (!st)
        st =
            read_ids(file, "greedy_ids", n_vocab, &out->greedy, &out->n_greedy);
    if (!st)
        st = read_logits(file, "logits", out->n_input, n_vocab, &out->logit);
    if (!st)
        st = read_logits(file, "greedy_logits", out->n_greedy, n_vocab,
                         &out->greedy_logit);
    return st;
}

static void prompt_release(struct prompt *prompt)
{
    free(prompt->input);
    free(prompt->greedy);
    free(prompt->logit);
    free(prompt->greedy_logit);
}

struct comparison {
    const struct golden_tolerance *tolerance;
    struct golden_tally *tally;
    const struct prompt *prompt;
    uint32_t n_vocab;
    float *last; /* [n_vocab] logits of the newest row */
};

static void compare_chunk(void *arg, uint64_t first_token, uint32_t n_row,
                          const float *logit)
{
    const struct comparison *c = arg;
    const uint32_t n = c->n_vocab;

    for (uint32_t i = 0; i < n_row; i++)
        golden_add_row(c->tally, logit + (size_t)i * n,
                       c->prompt->logit + (first_token + i) * n, n);
    memcpy(c->last, logit + (size_t)(n_row - 1) * n, n * sizeof(float));
}

static enum status compare_greedy(struct solo *solo, const struct comparison *c)
{
    const struct prompt *prompt = c->prompt;
    const float *logit = c->last;

    for (uint64_t i = 0; i < prompt->n_greedy; i++) {
        const float *oracle = prompt->greedy_logit + i * c->n_vocab;
        enum status st;

        golden_add_row(c->tally, logit, oracle, c->n_vocab);
        golden_add_token(c->tally,
                         solo_argmax(logit, c->n_vocab) == prompt->greedy[i],
                         golden_margin(oracle, c->n_vocab), c->tolerance);
        st = solo_feed(solo, &prompt->greedy[i], 1, &logit);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status check_prompt(struct solo *solo,
                                const struct golden_options *options,
                                const struct safetensors *file, FILE *to,
                                bool *out_is_within)
{
    const uint32_t n_vocab = model_config(solo->model)->n_vocab;
    struct prompt prompt = {0};
    struct golden_tally tally = {0};
    struct comparison c = {.tolerance = options->tolerance,
                           .tally = &tally,
                           .prompt = &prompt,
                           .n_vocab = n_vocab};
    enum status st;

    st = prompt_init(file, n_vocab, &prompt);
    if (st)
        goto out;
    c.last = malloc(n_vocab * sizeof(float));
    st = c.last ? solo_restart(solo)
                : status_fail(STATUS_RESOURCE_EXHAUSTED,
                              "no memory for %u "
                              "logits",
                              n_vocab);
    if (!st)
        st = solo_feed_all(solo, prompt.input, prompt.n_input, compare_chunk,
                           &c);
    if (!st)
        st = compare_greedy(solo, &c);
    if (!st) {
        golden_print(&tally, to);
        *out_is_within = golden_is_within(&tally, options->tolerance);
    }
out:
    free(c.last);
    prompt_release(&prompt);
    return st;
}

enum status golden_check(struct solo *solo,
                         const struct golden_options *options, FILE *to,
                         bool *out_is_within)
{
    char path[PATH_MAX];
    struct safetensors *file = NULL;
    enum status st;

    if (snprintf(path, sizeof(path), "%s/golden.safetensors", options->dir) >=
        (int)sizeof(path))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "the golden directory's name has more than %d bytes",
                           PATH_MAX);
    st = safetensors_open(path, &file);
    if (st)
        return st;
    (void)snprintf(path, sizeof(path), "%s/cases.json", options->dir);
    if (access(path, F_OK) == 0)
        st = golden_check_cases(solo, options, file, to, out_is_within);
    else
        st = check_prompt(solo, options, file, to, out_is_within);
    safetensors_close(file);
    return st;
}
