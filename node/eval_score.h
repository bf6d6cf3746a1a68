#ifndef NODE_EVAL_SCORE_H
#define NODE_EVAL_SCORE_H
/*
 * How answers become scores, as the benchmarks define them, and how sure a
 * score is.
 */
#include "node/eval_task.h"

/*
 * How many of the expected strings an answer has: 0 .. expected->n. Bytes, case
 * is ignored for ASCII letters where EVAL_CONTAINS looks.
 *   EVAL_CONTAINS       RULER's string_match_all
 *   EVAL_FIRST_INTEGER  the first run of digits equals expected[0]
 *   EVAL_WORD           InfiniteBench's kv: punctuation is made blank, then
 *                       expected[0] is one of the words
 */
uint32_t eval_hits(enum eval_score score, const char *answer, size_t n_answer,
                   const struct eval_expected *expected);

/* Bounds within 0 .. 1. */
struct eval_interval {
    double low, high;
};

/*
 * Wilson's 95 % interval (1927) of a share seen in n trials; a share between
 * whole trials (half an answer) is taken as it is. n 0: everything.
 */
struct eval_interval eval_wilson(double share, uint64_t n);
#endif
