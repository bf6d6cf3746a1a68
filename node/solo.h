#ifndef NODE_SOLO_H
#define NODE_SOLO_H
/*
 * One model, one session, no scheduler and no journal: what `check`, `bench`
 * and `eval` need of an engine. Prompts go in chunks of SOLO_CHUNK rows, or of
 * more on a device. One thread.
 */
#include "kernels/pool.h"
#include "model/excerpt.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "state/memory.h"

#define SOLO_CHUNK 512u

struct solo {
    const struct model *model;
    struct pool *pool;           /* borrowed */
    struct workspace *workspace; /* owned */
    struct memory *memory;       /* owned */
    struct policy policy;        /* of memories from the next restart on */
    uint32_t n_row; /* of a step that wants no more than one's logits */
};

/*
 * A session at position 0, with room for SOLO_CHUNK logit rows a step.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status solo_init(const struct model *model, struct pool *pool,
                                 struct solo *out);
void solo_release(struct solo *solo);

/* Forget everything.  RESOURCE_EXHAUSTED  no memory; nothing was forgotten */
MUST_CHECK enum status solo_restart(struct solo *solo);

/*
 * Append n >= 1 tokens, each below n_vocab; *out is the last one's logits,
 * valid until the next call.
 *   RESOURCE_EXHAUSTED  no memory, or beyond the model's context
 */
MUST_CHECK enum status solo_feed(struct solo *solo, const uint32_t *token,
                                 uint64_t n, const float **out);

/*
 * The indices that an excerpt keeps of n >= 1 tokens which are all of the
 * session, in `out` with room for n; and how many. Of its tokens it may have
 * consumed some, through all layers; afterwards it is empty.
 *   RESOURCE_EXHAUSTED  no memory, or beyond the model's context
 */
MUST_CHECK enum status solo_choose(struct solo *solo,
                                   const struct excerpt *excerpt,
                                   const struct ids *ids, uint32_t *out,
                                   uint32_t *out_n);

/* Append n tokens and hand each chunk's logits, [n_row, n_vocab], to take. */
typedef void solo_take(void *arg, uint64_t first_token, uint32_t n_row,
                       const float *logit);
MUST_CHECK enum status solo_feed_all(struct solo *solo, const uint32_t *token,
                                     uint64_t n, solo_take *take, void *arg);

/*
 * A second memory that has consumed what the first has, for the caller to
 * memory_destroy(): who continues from it continues as from the first.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status solo_fork(const struct solo *solo, struct memory **out);

/* Index of the largest logit; the lowest index among equals. */
uint32_t solo_argmax(const float *logit, uint32_t n_vocab);
#endif
