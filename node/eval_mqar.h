#ifndef NODE_EVAL_MQAR_H
#define NODE_EVAL_MQAR_H
/*
 * Multi-query associative recall (zoology, arXiv 2312.04927) on token ids:
 * pairs of a key and a value, then each key once more at an even distance that
 * follows a power law, random tokens between. At a key's second place the most
 * likely next token should be its value; the text itself never says so.
 */
#include "node/eval_task.h"

#define EVAL_MQAR_VOCABULARY 8192u
#define EVAL_MQAR_PAIR_MAX 64u
#define EVAL_MQAR_VOCABULARY_MIN 512u

struct eval_mqar {
    uint32_t n_pair;
    uint32_t position[EVAL_MQAR_PAIR_MAX]; /* of the i-th key's question */
    uint32_t key[EVAL_MQAR_PAIR_MAX];      /* below n_vocabulary, as are */
    uint32_t value[EVAL_MQAR_PAIR_MAX];    /* values and tokens */
};

/*
 * Fill token [item->length, which must be even] with numbers below
 * n_vocabulary (at least EVAL_MQAR_VOCABULARY_MIN): keys from 1 .. half - 1,
 * values from half .. . The caller says which of a tokenizer's ids these are.
 */
void eval_make_mqar(const struct eval_item *item, uint32_t n_vocabulary,
                    uint32_t *token, struct eval_mqar *out);
#endif
