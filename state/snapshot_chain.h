#ifndef STATE_SNAPSHOT_CHAIN_H
#define STATE_SNAPSHOT_CHAIN_H
/*
 * Chain hashes of a session's tokens, looked up anywhere after one pass: what
 * says that a stored value was made from these tokens.
 */
#include "base/digest.h"
#include "model/tokenizer.h"

struct chains {
    const uint32_t *token; /* borrowed */
    uint64_t n_token;
    struct digest *at; /* [n_token / KV_BLOCK + 1] after that many blocks;
                          owned */
    uint64_t last_position;
    struct digest last; /* after last_position, so that a run of equal
                           questions costs one answer */
};

/* first: the chain of no tokens.  RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status chains_init(struct chains *chains, struct digest first,
                                   const struct ids *tokens);
void chains_release(struct chains *chains); /* accepts a zeroed one */

/* Is this the chain of the first `position` tokens? */
bool chains_match(struct chains *chains, uint64_t position,
                  struct digest chain);
#endif
