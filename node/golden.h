#ifndef NODE_GOLDEN_H
#define NODE_GOLDEN_H
/*
 * A model held to numbers that someone else's program computed (Hugging Face
 * transformers in float32). Two layouts of a golden directory:
 *
 *   golden.safetensors alone: input_ids [n], logits [n, n_vocab], greedy_ids
 *     [m], greedy_logits [m, n_vocab]; row i of the last gave greedy_ids[i].
 *   cases.json beside it: a list of cases of kind greedy, niah (a needle in a
 *     haystack) and perplexity; logits.N are the first rows of case N.
 *
 * A token that differs counts as wrong only where the oracle itself is sure:
 * its first two logits are more than a margin apart. Continuations are
 * compared with the oracle's tokens as input, so one near-tie does not hide
 * what follows; in a case the comparison ends there.
 */
#include "model/tokenizer.h"
#include "node/solo.h"

#include <stdbool.h>
#include <stdio.h>

#define GOLDEN_CASE_MAX 4096u

/* How far from the oracle is still right. */
struct golden_tolerance {
    double logit; /* absolute */
    double
        margin; /* of the oracle's best logit, below which tokens may differ */
    double nll; /* of a text's mean */
};

/*
 * Of fp32 against fp32; of products that round to bf16; of weights in 8 bits
 * (W8, W8A8). In the latter two single logits are shown, not judged.
 */
extern const struct golden_tolerance golden_tolerance_exact,
    golden_tolerance_bf16, golden_tolerance_w8, golden_tolerance_f8;

struct golden_options {
    const char *dir;
    const struct golden_tolerance *tolerance;
    const struct tokenizer *tokenizer; /* for answers; NULL: not checked */
    uint64_t max_length;               /* longer cases are left out; 0: none */
};

/*
 * Compare and write one line per kind of case, then the total:
 *     max_abs_err=3.1e-06 mean_abs_err=2.2e-07 greedy=24/24
 * and, where greedy tokens differ, near_tie=: how far apart the oracle's first
 * two logits are there at most.
 * *out_is_within says whether all of it was within tolerance.
 *   NOT_FOUND         no golden.safetensors in the directory
 *   INVALID_ARGUMENT  a tensor or field missing, misshaped or not of this
 *                     model: token ids beyond its vocabulary
 *   RESOURCE_EXHAUSTED  no memory, or a case beyond the model's context
 */
MUST_CHECK enum status golden_check(struct solo *solo,
                                    const struct golden_options *options,
                                    FILE *to, bool *out_is_within);
#endif
