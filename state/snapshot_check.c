#include "state/snapshot_check.h"

#include <stdio.h>
#include <stdlib.h>

enum frame_kind value_kind(char letter)
{
    if (letter == 's')
        return FRAME_STATE;
    return letter == 'o' ? FRAME_OPEN : FRAME_BLOCK;
}

void value_name(const struct value_place *at, char out[VALUE_NAME_SIZE])
{
    const char *what = at->letter == 's'   ? "state"
                       : at->letter == 'o' ? "open block"
                                           : "block";

    (void)snprintf(out, VALUE_NAME_SIZE, "%s %lu of layer %u", what, at->place,
                   at->layer);
}

size_t value_bytes(const struct snapshots *snapshots,
                   const struct value_place *at)
{
    const struct mixer_plan *plan =
        model_plan_for(snapshots->model, at->layer,
                       at->policy ? at->policy->index : INDEX_NONE);

    if (at->letter == 's')
        return mixer_live_bytes(plan, at->place);
    return at->letter == 'o' && at->place % KV_BLOCK == 0 ? 0
                                                          : plan->block_bytes;
}

static uint32_t n_token_of(const struct value_place *at)
{
    if (at->letter == 's')
        return 0;
    return at->letter == 'o' ? (uint32_t)(at->place % KV_BLOCK) : KV_BLOCK;
}

/* A block may have been written by a snapshot behind its end. */
static bool is_position(const struct value_place *at, uint64_t position)
{
    return at->letter == 'b' ? position >= (at->place + 1) * KV_BLOCK
                             : position == at->place;
}

enum status value_check(const struct snapshots *snapshots,
                        const struct value_place *at, struct chains *chains,
                        const void *bytes, size_t n_bytes,
                        const void **out_data)
{
    struct value_head head;
    const void *data;
    size_t data_bytes;
    enum status st = value_get(bytes, n_bytes, value_kind(at->letter), &head,
                               &data, &data_bytes);

    if (st == STATUS_FAILED_PRECONDITION)
        return status_because("NUMERICS_MISMATCH");
    if (st)
        return st;
    if (!numerics_equal(head.numerics, snapshots->numerics)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it is of another model or numerics id");
        return status_because("NUMERICS_MISMATCH");
    }
    if (!digest_equal(head.numerics.policy, policy_digest(at->policy))) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it was made under another memory policy");
        return status_because("POLICY_MISMATCH");
    }
    if (!uid_equal(head.uid, at->owner) || head.place != at->place ||
        head.layer != at->layer || head.n_token != n_token_of(at) ||
        data_bytes != value_bytes(snapshots, at) ||
        !is_position(at, head.position))
        return status_fail(STATUS_DATA_LOSS,
                           "it says that it is place %lu of layer %u, %u "
                           "tokens, %zu bytes, expected %u tokens, %zu bytes",
                           head.place, head.layer, head.n_token, data_bytes,
                           n_token_of(at), value_bytes(snapshots, at));
    if (!chains_match(chains, head.position, head.chain)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it was made from other tokens");
        return status_because("CHAIN_MISMATCH");
    }
    *out_data = data;
    return STATUS_OK;
}

enum status value_read(const struct snapshots *snapshots,
                       const struct value_place *at, struct chains *chains,
                       void **out_bytes, size_t *out_n_bytes,
                       const void **out_data)
{
    struct key key = value_key(at->letter, at->owner, at->place, at->layer);
    void *bytes;
    size_t n_bytes;
    enum status st =
        store_get(snapshots->store, key.bytes, key.n, &bytes, &n_bytes);

    if (st)
        return st;
    st = value_check(snapshots, at, chains, bytes, n_bytes, out_data);
    if (st) {
        free(bytes);
        return st;
    }
    *out_bytes = bytes;
    *out_n_bytes = n_bytes;
    return STATUS_OK;
}
