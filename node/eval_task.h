#ifndef NODE_EVAL_TASK_H
#define NODE_EVAL_TASK_H
/*
 * Evaluation tasks: what a sample says and what is right, as pure functions of
 * (task, seed, index, depth, length). docs/EVAL.md has the definitions and
 * where they depart from their sources. Knows no model: a text grows by
 * *units* (a sentence, a pair, a word), and eval_fit.h finds how many of them a
 * tokenizer's tokens hold.
 */
#include "base/status.h"
#include "node/eval_draw.h"
#include "node/eval_words.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EVAL_EXPECTED_MAX 10u
#define EVAL_DEPTH_MAX 101u
#define EVAL_LENGTH_MIN 64u

/* How an answer is judged: eval_score.h. */
enum eval_score {
    EVAL_CONTAINS,      /* share of the expected strings that it contains */
    EVAL_FIRST_INTEGER, /* its first run of digits is the expected one */
    EVAL_WORD,          /* one of its words is the expected one */
    EVAL_POSITIONS,     /* arg max at marked positions of the prompt itself */
};

/* Step `step` of n_step even ones from the text's start to its end. */
struct eval_depth {
    uint32_t step, n_step; /* n_step >= 1; of one step: the middle */
};

struct eval_item;

/* What an answer must have. */
struct eval_expected {
    char text[EVAL_EXPECTED_MAX][EVAL_WORD_SIZE];
    uint32_t n;
};

struct eval_task {
    const char *name, *about;
    enum eval_score score;
    bool has_depth;    /* asks for something at a depth of its text */
    uint32_t n_answer; /* tokens that are generated at most */
    uint32_t min_unit; /* the shortest text that still is this task */
    uint32_t variant;  /* of the family that `write` belongs to */
    uint32_t max_unit; /* what its keys last for */
    /* Write the prompt of n_unit units and what is expected. NULL: a task of
       token ids, eval_mqar.h. */
    void (*write)(const struct eval_item *item, uint32_t n_unit, FILE *to,
                  struct eval_expected *expected);
};

/* One sample, before it is written. */
struct eval_item {
    const struct eval_task *task;
    uint64_t seed;
    uint32_t index;          /* of the sample within task and length */
    struct eval_depth depth; /* of tasks without: 0 of 1 */
    uint32_t length;         /* tokens of the prompt, at most */
};

/*
 * The index-th sample of n_step depths. Samples 0 .. n_step - 1 of a task with
 * depths ask the same text (context 0) at each depth, and so on.
 */
struct eval_item eval_item(const struct eval_task *task, uint64_t seed,
                           uint32_t index, uint32_t n_step, uint32_t length);

/* Choices of this sample; of its context; of all samples of the seed. */
struct draw eval_draw_own(const struct eval_item *item);
struct draw eval_draw_context(const struct eval_item *item);
struct draw eval_draw_all(const struct eval_item *item);

/* Which of n places (n >= 1) lies at this depth: 0 .. n - 1. */
uint32_t eval_place(struct eval_depth depth, uint32_t n);

/* Of the table of tasks, in the order of reports. */
uint32_t eval_n_task(void);
const struct eval_task *eval_task_at(uint32_t i);

/* NOT_FOUND  no such task: lists them */
MUST_CHECK enum status eval_task_find(const char *name, size_t n_name,
                                      const struct eval_task **out);

/* The families; each variant is one row of the table. */
enum eval_needle_variant {
    NEEDLE_PASSKEY,
    NEEDLE_NUMBER,
    NEEDLE_OWN,
    NEEDLE_OWN_MULTIKEY,
    NEEDLE_SINGLE_1,
    NEEDLE_SINGLE_2,
    NEEDLE_SINGLE_3,
    NEEDLE_MULTIKEY_1,
    NEEDLE_MULTIVALUE,
    NEEDLE_MULTIQUERY,
};
void eval_write_needle(const struct eval_item *item, uint32_t n_unit, FILE *to,
                       struct eval_expected *expected);

enum eval_lookup_variant { LOOKUP_KV, LOOKUP_MULTIKEY_2, LOOKUP_MULTIKEY_3 };
void eval_write_lookup(const struct eval_item *item, uint32_t n_unit, FILE *to,
                       struct eval_expected *expected);

void eval_write_trace(const struct eval_item *item, uint32_t n_unit, FILE *to,
                      struct eval_expected *expected);
void eval_write_common(const struct eval_item *item, uint32_t n_unit, FILE *to,
                       struct eval_expected *expected);
void eval_write_frequent(const struct eval_item *item, uint32_t n_unit,
                         FILE *to, struct eval_expected *expected);
#endif
