#include "node/eval_fit.h"

#include <stdlib.h>
#include <string.h>

#define FIT_STEPS_MAX 64u

void eval_prompt_release(struct eval_prompt *prompt)
{
    ids_release(&prompt->ids);
    free(prompt->text);
    memset(prompt, 0, sizeof(*prompt));
}

/* The prompt of n_unit units, whatever its length. */
static enum status write_units(const struct tokenizer *tokenizer,
                               const struct eval_item *item, uint32_t n_unit,
                               struct eval_prompt *out)
{
    struct eval_prompt prompt = {.n_unit = n_unit};
    uint32_t n_opening;
    const uint32_t *opening = tokenizer_opening(tokenizer, &n_opening);
    FILE *to = open_memstream(&prompt.text, &prompt.n_text);
    enum status st = STATUS_OK;
    bool is_written;

    if (!to)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    item->task->write(item, n_unit, to, &prompt.expected);
    is_written = !ferror(to);
    is_written = !fclose(to) && is_written;
    if (!is_written)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    else if (n_opening)
        st = ids_append(&prompt.ids, opening, n_opening, TOKENIZER_TEXT_MAX);
    /* All of the text is ours, and some forms speak in turns. */
    if (!st)
        st = tokenizer_encode(tokenizer, prompt.text, prompt.n_text, true,
                              TOKENIZER_TEXT_MAX, &prompt.ids);
    if (st) {
        eval_prompt_release(&prompt);
        return st;
    }
    eval_prompt_release(out);
    *out = prompt;
    return STATUS_OK;
}

/* Units between which the answer lies, and their tokens. */
struct bracket {
    uint32_t low, high;     /* low fits; high does not, or is the limit */
    uint64_t n_low, n_high; /* n_high 0: none was tried that does not fit */
};

/*
 * The next number to try: doubled until one does not fit, then along the line
 * through both ends, but every third step halves, so that a text of uneven
 * units cannot make it crawl. Between low and high, which are not neighbours.
 */
static uint32_t guess(const struct bracket *bracket, uint64_t n_token,
                      uint32_t step)
{
    const uint32_t width = bracket->high - bracket->low;
    uint64_t forward = width / 2;

    if (!bracket->n_high)
        forward = bracket->low;
    else if (step % 3)
        forward = (n_token - bracket->n_low) * width /
                  (bracket->n_high - bracket->n_low);
    if (forward < 1)
        forward = 1;
    if (forward >= width)
        forward = width - 1;
    return bracket->low + (uint32_t)forward;
}

static enum status fit_text(const struct tokenizer *tokenizer,
                            const struct eval_item *item,
                            struct eval_prompt *out)
{
    const struct eval_task *task = item->task;
    struct bracket bracket = {.low = task->min_unit, .high = task->max_unit};
    struct eval_prompt tried = {0};
    enum status st = write_units(tokenizer, item, bracket.low, out);

    if (st)
        return st;
    if (out->ids.n > item->length)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s needs %zu tokens at least, the length is %u",
                           task->name, out->ids.n, item->length);
    bracket.n_low = out->ids.n;
    for (uint32_t step = 0;
         step < FIT_STEPS_MAX && bracket.high - bracket.low > 1 && !st;
         step++) {
        const uint32_t n_unit = guess(&bracket, item->length, step);

        st = write_units(tokenizer, item, n_unit, &tried);
        if (st)
            break;
        if (tried.ids.n > item->length) {
            bracket.high = n_unit;
            bracket.n_high = tried.ids.n;
        } else {
            const struct eval_prompt shorter = *out;

            bracket.low = n_unit;
            bracket.n_low = tried.ids.n;
            *out = tried;
            tried = shorter;
        }
    }
    eval_prompt_release(&tried);
    return st;
}

/* Numbers of the task become the first ids that are no special tokens. */
static enum status fit_ids(const struct tokenizer *tokenizer,
                           const struct eval_item *item,
                           struct eval_prompt *out)
{
    const uint32_t n_all = tokenizer_n_token(tokenizer), n = item->length;
    uint32_t *ordinary = malloc(EVAL_MQAR_VOCABULARY * sizeof(*ordinary));
    uint32_t *token = malloc((n ? n : 1) * sizeof(*token));
    uint32_t n_ordinary = 0;
    enum status st = STATUS_OK;
    size_t n_bytes;

    if (!ordinary || !token) {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                         "no memory for %u tokens of a prompt", n);
        goto out;
    }
    for (uint32_t id = 0; id < n_all && n_ordinary < EVAL_MQAR_VOCABULARY; id++)
        if (!tokenizer_is_special(tokenizer, id) &&
            tokenizer_bytes(tokenizer, id, &n_bytes))
            ordinary[n_ordinary++] = id;
    if (n % 2 || n < EVAL_LENGTH_MIN || n_ordinary < EVAL_MQAR_VOCABULARY_MIN) {
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "%s needs an even length of %u tokens at least and a "
                         "vocabulary of %u: length %u, vocabulary %u",
                         item->task->name, EVAL_LENGTH_MIN,
                         EVAL_MQAR_VOCABULARY_MIN, n, n_ordinary);
        goto out;
    }
    eval_make_mqar(item, n_ordinary, token, &out->mqar);
    for (uint32_t i = 0; i < n; i++)
        token[i] = ordinary[token[i]];
    for (uint32_t i = 0; i < out->mqar.n_pair; i++) {
        out->mqar.key[i] = ordinary[out->mqar.key[i]];
        out->mqar.value[i] = ordinary[out->mqar.value[i]];
    }
    st = ids_append(&out->ids, token, n, n);
out:
    free(token);
    free(ordinary);
    return st;
}

enum status eval_fit(const struct tokenizer *tokenizer,
                     const struct eval_item *item, struct eval_prompt *out)
{
    struct eval_prompt prompt = {0};
    const enum status st = item->task->write
                               ? fit_text(tokenizer, item, &prompt)
                               : fit_ids(tokenizer, item, &prompt);

    if (st) {
        eval_prompt_release(&prompt);
        return st;
    }
    *out = prompt;
    return STATUS_OK;
}
