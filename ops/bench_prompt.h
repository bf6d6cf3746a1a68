#ifndef OPS_BENCH_PROMPT_H
#define OPS_BENCH_PROMPT_H
/*
 * Prompts of a wanted length that any model can read: words in a random order,
 * as ids that the node itself gave for them, or as text. A prompt is a pure
 * function of (seed, number, length), so that a run can be repeated.
 */
#include "ops/ctl.h"

#define BENCH_PROMPT_MAX (UINT32_C(1) << 20) /* tokens */

struct bench_words {
    uint32_t *id; /* [n_id] ids of all words; owned */
    size_t n_id;
};

/* As ctl_unary(). INTERNAL  the node has no ids for them */
MUST_CHECK enum status bench_words_fetch(struct ctl *ctl,
                                         struct bench_words *out);
void bench_words_release(struct bench_words *words);

struct bench_prompt {
    uint64_t seed;   /* of what it shares with others, and of the rest */
    uint32_t number; /* of the rest */
    uint32_t n_token;
    uint32_t n_shared; /* leading tokens that depend on the seed alone */
};

/* [n_token] ids; free() them. NULL: no memory. */
uint32_t *bench_prompt_ids(const struct bench_words *words,
                           const struct bench_prompt *prompt);
/* About n_token tokens of text, NUL-terminated; free() it. NULL: no memory. */
char *bench_prompt_text(const struct bench_words *words,
                        const struct bench_prompt *prompt);
#endif
