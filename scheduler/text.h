#ifndef SCHEDULER_TEXT_H
#define SCHEDULER_TEXT_H
/*
 * A reply's text from its tokens: whole characters only, cut before the first
 * stop string that begins behind the first min_tokens tokens. Text that could
 * still become a stop string is held back until it cannot. What has come out
 * after n tokens depends on those n tokens alone, so a replay gives each token
 * the same piece again.
 */
#include "model/tokenizer.h"
#include "state/session.h"

struct text {
    const struct tokenizer *tokenizer; /* NULL: no text is made */
    const struct sampling *sampling;   /* its stops; borrowed */
    struct detokenizer detokenizer;
    uint64_t n_token;          /* pushed so far */
    bool is_stopped;           /* a stop string was found: all is silent */
    uint32_t n_held;           /* bytes of `held` */
    char held[STOP_BYTES_MAX]; /* may be the beginning of a stop string */
};

/* A growing run of bytes; zero-initialised, text_buffer_release(). */
struct text_buffer {
    char *byte; /* not NUL-terminated */
    size_t n, capacity;
};
void text_buffer_release(struct text_buffer *buffer);

void text_init(struct text *text, const struct tokenizer *tokenizer,
               const struct sampling *sampling);

/*
 * Append to *out what token `id` lets out. A silent token (one that ends the
 * turn) has no text of its own.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status text_push(struct text *text, uint32_t id, bool is_silent,
                                 struct text_buffer *out);

/* The end: let out what was held back. RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status text_finish(struct text *text, struct text_buffer *out);
#endif
