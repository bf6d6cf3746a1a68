#ifndef NODE_EVAL_WORDS_H
#define NODE_EVAL_WORDS_H
/*
 * The material of evaluation prompts: words, digits, UUIDs, and the sentences
 * of haystacks. Nothing is read from files: a benchmark that needs a download
 * is not run. Each function writes one thing into `out`, which has
 * EVAL_WORD_SIZE bytes, NUL included.
 */
#include "node/eval_draw.h"

#include <stdint.h>
#include <stdio.h>

#define EVAL_WORD_SIZE 48u

/* What keys and values look like. */
enum eval_kind {
    EVAL_NOUN,      /* castle: 128 of them */
    EVAL_PAIR,      /* silent-castle: 16,384 */
    EVAL_DIGITS_5,  /* without a leading zero */
    EVAL_DIGITS_7,  /* the same */
    EVAL_DIGITS_10, /* 5 random digits, then 5 that repeat a neighbour */
    EVAL_UUID,      /* version 4 */
};

/* How many different ones there are; UINT32_MAX for "never twice". */
uint32_t eval_n_kind(enum eval_kind kind);

/*
 * The number-th of a kind for this draw. Nouns, pairs, 5 and 7 digits never
 * repeat within a draw (number below eval_n_kind()).
 */
void eval_write_kind(const struct draw *draw, enum draw_what what,
                     enum eval_kind kind, uint32_t number, char *out);

#define EVAL_N_LETTERS_6 308915776u /* 26^6 */
#define EVAL_N_CAPITALS_3 17576u    /* 26^3 */
#define EVAL_N_CAPITALS_5 11881376u /* 26^5 */
#define EVAL_N_WORD (256u + 216000u)

/* Six small letters; n capital letters; each below its number. */
void eval_write_letters(uint32_t number, char *out);
void eval_write_capitals(uint32_t number, uint32_t n_letter, char *out);

/* A word of its own for each number below EVAL_N_WORD: English ones first. */
void eval_write_word(uint32_t number, char *out);

/*
 * Write a form to `to`, with its %k, %v and %t replaced: a key, a value, and
 * what kind of thing values are.
 */
struct eval_filling {
    const char *key, *value, *thing;
};
void eval_write_form(const char *form, const struct eval_filling *filling,
                     FILE *to);

/* The sentences that passkey tasks have repeated since they began. */
extern const char eval_noise[];

/* The number-th sentence of an endless essay; ends with a full stop. */
void eval_write_essay(const struct draw *draw, uint32_t number, FILE *to);
#endif
