#include "state/snapshot_chain.h"

#include "model/model.h"

#include <stdlib.h>

enum status chains_init(struct chains *chains, struct digest first,
                        const struct ids *tokens)
{
    uint64_t n_token = tokens->n, n_block = n_token / KV_BLOCK;

    *chains = (struct chains){.token = tokens->id, .n_token = n_token};
    chains->at = calloc(n_block + 1, sizeof(*chains->at));
    if (!chains->at)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the chain of %lu tokens", n_token);
    chains->at[0] = first;
    for (uint64_t b = 0; b < n_block; b++)
        chains->at[b + 1] = digest_tokens(
            chains->at[b], chains->token + b * KV_BLOCK, KV_BLOCK);
    chains->last = first;
    return STATUS_OK;
}

void chains_release(struct chains *chains)
{
    free(chains->at);
    *chains = (struct chains){0};
}

bool chains_match(struct chains *chains, uint64_t position, struct digest chain)
{
    uint64_t b = position / KV_BLOCK;

    if (position > chains->n_token)
        return false;
    if (position != chains->last_position) {
        chains->last = digest_tokens(
            chains->at[b], chains->token + b * KV_BLOCK, position % KV_BLOCK);
        chains->last_position = position;
    }
    return digest_equal(chains->last, chain);
}
