#ifndef NODE_EVAL_RUN_H
#define NODE_EVAL_RUN_H
/*
 * Samples through a model, greedily. Samples of one length whose prompts begin
 * alike compute what they share once: the memory of the common part is forked,
 * which by the exact session changes no bit of what follows.
 */
#include "node/eval_fit.h"
#include "node/solo.h"

#define EVAL_SAMPLE_MAX 1000u
#define EVAL_ANSWER_MAX 128u

/* What one sample came to. */
struct eval_outcome {
    uint32_t n_hit, n_expected; /* strings, or positions */
    uint32_t n_prompt;          /* tokens */
    char *answer;               /* n_answer bytes and NUL; NULL of positions */
    size_t n_answer;
};
void eval_outcome_release(struct eval_outcome *outcome);

struct eval_runner {
    struct solo *solo; /* restarted as needed */
    const struct tokenizer *tokenizer;
    bool shares;            /* common beginnings are computed once */
    struct excerpt excerpt; /* that answers are made from; none: all */
    uint64_t n_token;       /* of prompts so far */
    uint64_t n_computed;    /* of these, how many went through the model */
};

/*
 * Run n prompts of one task; outcome[n] is to be zero before and released by
 * the caller, also after a failure.
 *   RESOURCE_EXHAUSTED  no memory, or beyond the model's context
 */
MUST_CHECK enum status eval_run(struct eval_runner *runner,
                                const struct eval_task *task,
                                const struct eval_prompt *prompt, uint32_t n,
                                struct eval_outcome *outcome);
#endif
