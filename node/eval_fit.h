#ifndef NODE_EVAL_FIT_H
#define NODE_EVAL_FIT_H
/*
 * A sample as a prompt of one tokenizer: as many units as make at most
 * item->length tokens.
 */
#include "model/tokenizer.h"
#include "node/eval_mqar.h"
#include "node/eval_task.h"

struct eval_prompt {
    struct ids ids;
    char *text; /* n_text bytes and NUL; NULL of a task of token ids */
    size_t n_text;
    uint32_t n_unit;
    struct eval_expected expected;
    struct eval_mqar mqar; /* of a task of token ids: with the tokenizer's */
};

/*
 * Zero-initialised or released before; eval_prompt_release() it. The tokens
 * that open a session (BOS) are counted in.
 *   INVALID_ARGUMENT    the task's shortest text has more tokens; or an odd
 *                       length, or too few tokens in the vocabulary, for MQAR
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status eval_fit(const struct tokenizer *tokenizer,
                                const struct eval_item *item,
                                struct eval_prompt *out);
void eval_prompt_release(struct eval_prompt *prompt);
#endif
