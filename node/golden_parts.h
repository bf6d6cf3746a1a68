#ifndef NODE_GOLDEN_PARTS_H
#define NODE_GOLDEN_PARTS_H
/* What golden.c and golden_cases.c share; nobody else includes this. */
#include "model/safetensors.h"
#include "node/golden.h"

/* How far logits and greedy tokens were off so far. */
struct golden_tally {
    double max_err, sum_err;
    uint64_t n_err;
    uint64_t n_token, n_equal; /* greedy tokens compared, and equal */
    uint64_t n_wrong;          /* different although the oracle was sure */
    double near_tie; /* how sure it was at most of those that differ */
    uint64_t n_case, n_case_good;
    uint64_t n_answer, n_answer_found;
};

void golden_add_row(struct golden_tally *tally, const float *logit,
                    const float *oracle, uint32_t n_vocab);
void golden_add_tally(struct golden_tally *tally,
                      const struct golden_tally *more);
/* A greedy token beside the oracle's, whose margin there is `margin`. */
void golden_add_token(struct golden_tally *tally, bool is_equal, double margin,
                      const struct golden_tolerance *tolerance);
bool golden_is_within(const struct golden_tally *tally,
                      const struct golden_tolerance *tolerance);
void golden_print(const struct golden_tally *tally, FILE *to);

/* Largest logit minus the second largest. */
double golden_margin(const float *logit, uint32_t n_vocab);

MUST_CHECK enum status golden_check_cases(struct solo *solo,
                                          const struct golden_options *options,
                                          const struct safetensors *file,
                                          FILE *to, bool *out_is_within);
#endif
