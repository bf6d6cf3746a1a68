/*
 * cases.json: continuations, needles and perplexity of a trained model. See
 * golden.h for the rules.
 */
#include "node/golden_parts.h"

#include "base/json.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NLL_HEAD 1024u /* tokens of nll_first_1024 */
#define ANSWER_BYTES_MAX 4096u

/* A case as the file has it. */
struct trial {
    uint32_t n;         /* its index: logits.N belong to it */
    uint32_t *input;    /* [n_input]; owned, as is greedy */
    uint32_t *greedy;   /* [n_greedy] or NULL */
    const char *answer; /* borrowed from the JSON, or NULL */
    uint64_t n_input, n_greedy;
    double mean_nll, head_nll;
};

struct run {
    struct solo *solo;
    const struct golden_options *options;
    const struct safetensors *file;
    uint32_t n_vocab;
};

/* ---------------------------------------------------------------- reading */

static enum status read_list(const json_t *object, uint32_t n, const char *key,
                             uint32_t n_vocab, uint32_t **out, uint64_t *out_n)
{
    const json_t *list = json_object_get(object, key);

    *out_n = json_array_size(list);
    if (!*out_n)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "cases.json: case %u: %s is missing or empty, "
                           "expected token ids",
                           n, key);
    *out = malloc(*out_n * sizeof(**out));
    if (!*out)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %lu tokens", *out_n);
    for (uint64_t i = 0; i < *out_n; i++) {
        const json_t *id = json_array_get(list, i);
        const json_int_t value = json_integer_value(id);

        if (!json_is_integer(id) || value < 0 || value >= n_vocab)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "cases.json: case %u: %s[%lu] is no token id "
                               "below %u",
                               n, key, i, n_vocab);
        (*out)[i] = (uint32_t)value;
    }
    return STATUS_OK;
}

static void trial_release(struct trial *trial)
{
    free(trial->input);
    free(trial->greedy);
}

static enum status trial_init(const json_t *object, uint32_t n,
                              const char *kind, uint32_t n_vocab,
                              struct trial *out)
{
    enum status st;

    out->n = n;
    out->mean_nll = out->head_nll = NAN;
    st = read_list(object, n, "input_ids", n_vocab, &out->input, &out->n_input);
    if (!st && strcmp(kind, "perplexity") != 0)
        st = read_list(object, n, "greedy_ids", n_vocab, &out->greedy,
                       &out->n_greedy);
    if (!st)
        st = json_get_string("cases.json", object, "answer", &out->answer);
    if (!st)
        st = json_get_double("cases.json", object, "mean_nll", &out->mean_nll);
    if (!st)
        st = json_get_double("cases.json", object, "nll_first_1024",
                             &out->head_nll);
    return st;
}

/* --------------------------------------------------------- continuations */

/* Row i of logits.N, read into out; false when the file has none. */
static bool read_row(const struct run *run, uint32_t n, uint64_t i, float *out)
{
    char name[32];
    const struct tensor *tensor;

    (void)snprintf(name, sizeof(name), "logits.%u", n);
    tensor = safetensors_find(run->file, name);
    if (!tensor || tensor->n_dim != 2 || tensor->dim[1] != run->n_vocab ||
        tensor->type != TENSOR_F32 || i >= tensor->dim[0])
        return false;
    tensor_read_f32(tensor, i * run->n_vocab, run->n_vocab, out);
    return true;
}

/* True when the tokens' text holds the answer. */
static bool has_answer(const struct run *run, const uint32_t *token, uint64_t n,
                       const char *answer)
{
    static char piece[DETOKENIZER_OUT_MAX];
    struct detokenizer detokenizer = {0};
    char text[ANSWER_BYTES_MAX + 1];
    size_t n_text = 0;

    for (uint64_t i = 0; i < n; i++) {
        const size_t bytes = detokenizer_push(
            &detokenizer, run->options->tokenizer, token[i], false, piece);

        if (bytes > ANSWER_BYTES_MAX - n_text)
            break;
        memcpy(text + n_text, piece, bytes);
        n_text += bytes;
    }
    text[n_text] = '\0';
    return strstr(text, answer) != NULL;
}

/* What the model said, and room for a row of the oracle's. */
struct reply {
    float *oracle;  /* [n_vocab] */
    uint32_t *said; /* [n_greedy], n_said of them so far */
    uint64_t n_said;
};

/*
 * Where the file has no row of the oracle's, our own margin says whether a
 * difference was a near-tie: fp32 agrees with the oracle or fails above.
 */
static enum status follow(const struct run *run, const struct trial *trial,
                          const float *logit, struct reply *reply,
                          struct golden_tally *tally)
{
    for (uint64_t i = 0; i < trial->n_greedy; i++) {
        const bool has_row = read_row(run, trial->n, i, reply->oracle);
        bool is_equal;
        enum status st;

        if (has_row)
            golden_add_row(tally, logit, reply->oracle, run->n_vocab);
        reply->said[i] = solo_argmax(logit, run->n_vocab);
        reply->n_said = i + 1;
        is_equal = reply->said[i] == trial->greedy[i];
        golden_add_token(
            tally, is_equal,
            golden_margin(has_row ? reply->oracle : logit, run->n_vocab),
            run->options->tolerance);
        if (!is_equal || i + 1 == trial->n_greedy)
            return STATUS_OK;
        st = solo_feed(run->solo, &trial->greedy[i], 1, &logit);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status check_continuation(const struct run *run,
                                      const struct trial *trial,
                                      struct golden_tally *out)
{
    struct reply reply = {.oracle = malloc(run->n_vocab * sizeof(float)),
                          .said = malloc(trial->n_greedy * sizeof(uint32_t))};
    const float *logit;
    enum status st;

    st = reply.oracle && reply.said
             ? solo_restart(run->solo)
             : status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a case");
    if (!st)
        st = solo_feed(run->solo, trial->input, trial->n_input, &logit);
    if (!st)
        st = follow(run, trial, logit, &reply, out);
    if (!st && trial->answer && run->options->tokenizer) {
        out->n_answer = 1;
        out->n_answer_found =
            has_answer(run, reply.said, reply.n_said, trial->answer);
    }
    free(reply.oracle);
    free(reply.said);
    return st;
}

/* ------------------------------------------------------------- perplexity */

struct likelihood {
    const struct trial *trial;
    uint32_t n_vocab;
    double sum, head_sum; /* of -log p of the tokens that came */
};

static double negative_log(const float *logit, uint32_t n_vocab, uint32_t token)
{
    const double top = (double)logit[solo_argmax(logit, n_vocab)];
    double sum = 0;

    for (uint32_t i = 0; i < n_vocab; i++)
        sum += exp((double)logit[i] - top);
    return log(sum) + top - (double)logit[token];
}

static void add_likelihood(void *arg, uint64_t first_token, uint32_t n_row,
                           const float *logit)
{
    struct likelihood *l = arg;

    for (uint32_t i = 0; i < n_row; i++) {
        const uint64_t t = first_token + i;
        double nll;

        if (t + 1 >= l->trial->n_input)
            return;
        nll = negative_log(logit + (size_t)i * l->n_vocab, l->n_vocab,
                           l->trial->input[t + 1]);
        l->sum += nll;
        l->head_sum += t < NLL_HEAD ? nll : 0;
    }
}

static enum status check_perplexity(const struct run *run,
                                    const struct trial *trial, double *out_err)
{
    struct likelihood l = {.trial = trial, .n_vocab = run->n_vocab};
    enum status st;
    double err;

    if (trial->n_input <= NLL_HEAD || isnan(trial->mean_nll) ||
        isnan(trial->head_nll))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "cases.json: case %u has %lu tokens or lacks a "
                           "likelihood, expected more than %u tokens, mean_nll "
                           "and nll_first_1024",
                           trial->n, trial->n_input, NLL_HEAD);
    st = solo_restart(run->solo);
    if (!st)
        st = solo_feed_all(run->solo, trial->input, trial->n_input,
                           add_likelihood, &l);
    if (st)
        return st;
    *out_err = fabs(l.sum / (double)(trial->n_input - 1) - trial->mean_nll);
    err = fabs(l.head_sum / NLL_HEAD - trial->head_nll);
    if (!(err <= *out_err)) /* also when it is NaN */
        *out_err = err;
    return STATUS_OK;
}

/* ------------------------------------------------------------------ cases */

enum kind { KIND_GREEDY, KIND_NIAH, KIND_PERPLEXITY, N_KIND };
static const char *const KIND[N_KIND] = {"greedy", "niah", "perplexity"};

/* What came out, per kind. */
struct results {
    struct golden_tally kind[N_KIND];
    double nll_err; /* largest of the perplexity cases */
};

static enum status check_case(const struct run *run, const json_t *object,
                              uint32_t n, struct results *results)
{
    const char *name = "";
    struct trial trial = {0};
    struct golden_tally one = {.n_case = 1};
    uint32_t kind = 0;
    double nll_err = 0;
    enum status st;

    st = json_get_string("cases.json", object, "kind", &name);
    if (st)
        return st;
    while (kind < N_KIND && strcmp(KIND[kind], name) != 0)
        kind++;
    if (kind == N_KIND)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "cases.json: case %u: kind is '%.40s', known: "
                           "greedy, niah, perplexity",
                           n, name);
    st = trial_init(object, n, name, run->n_vocab, &trial);
    if (st)
        goto out;
    if (run->options->max_length && trial.n_input > run->options->max_length)
        goto out;
    if (kind == KIND_PERPLEXITY)
        st = check_perplexity(run, &trial, &nll_err);
    else
        st = check_continuation(run, &trial, &one);
    if (st)
        goto out;
    one.n_case_good = one.max_err <= run->options->tolerance->logit &&
                      !one.n_wrong && one.n_answer == one.n_answer_found &&
                      nll_err <= run->options->tolerance->nll;
    if (!(nll_err <= results->nll_err))
        results->nll_err = nll_err;
    golden_add_tally(&results->kind[kind], &one);
out:
    trial_release(&trial);
    return st;
}

static void print_results(const struct results *results,
                          const struct golden_tolerance *tolerance, FILE *to,
                          bool *out_is_within)
{
    struct golden_tally all = {0};

    for (uint32_t k = 0; k < N_KIND; k++) {
        const struct golden_tally *t = &results->kind[k];

        golden_add_tally(&all, t);
        if (!t->n_case)
            continue;
        fprintf(to, "%s cases=%lu/%lu ", KIND[k], t->n_case_good, t->n_case);
        if (t->n_answer)
            fprintf(to, "answers=%lu/%lu ", t->n_answer_found, t->n_answer);
        if (k == KIND_PERPLEXITY)
            fprintf(to, "mean_nll_err=%.3g\n", results->nll_err);
        else
            golden_print(t, to);
    }
    fprintf(to, "total cases=%lu/%lu ", all.n_case_good, all.n_case);
    golden_print(&all, to);
    *out_is_within = golden_is_within(&all, tolerance);
}

enum status golden_check_cases(struct solo *solo,
                               const struct golden_options *options,
                               const struct safetensors *file, FILE *to,
                               bool *out_is_within)
{
    const struct run run = {.solo = solo,
                            .options = options,
                            .file = file,
                            .n_vocab = model_config(solo->model)->n_vocab};
    struct results results = {0};
    char path[PATH_MAX + 16];
    json_t *list = NULL;
    enum status st;

    (void)snprintf(path, sizeof(path), "%s/cases.json", options->dir);
    st = json_load(path, &list);
    if (st)
        return st;
    if (!json_array_size(list) || json_array_size(list) > GOLDEN_CASE_MAX)
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "cases.json has %zu cases, expected a list of 1 to %u",
                         json_array_size(list), GOLDEN_CASE_MAX);
    for (uint32_t i = 0; i < json_array_size(list) && !st; i++)
        st = check_case(&run, json_array_get(list, i), i, &results);
    if (!st)
        print_results(&results, options->tolerance, to, out_is_within);
    json_decref(list);
    return st;
}
