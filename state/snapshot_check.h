#ifndef STATE_SNAPSHOT_CHECK_H
#define STATE_SNAPSHOT_CHECK_H
/*
 * One stored value of a snapshot, held to all that it must say of itself,
 * without a memory to put it into: for who verifies, exports, imports or
 * compares.
 */
#include "state/snapshot_chain.h"
#include "state/snapshot_parts.h"

/* Which value: a state and an open block by the position of their snapshot, a
 * sealed block by its index. */
struct value_place {
    char letter; /* of its key: 's', 'o', 'b' */
    struct uid owner;
    uint64_t place;
    uint32_t layer;
    const struct policy *policy; /* of its session; NULL: full */
};

/* "block 7 of layer 3" */
#define VALUE_NAME_SIZE 64u
void value_name(const struct value_place *at, char out[VALUE_NAME_SIZE]);

/* The kind of its frame. */
enum frame_kind value_kind(char letter);
/* Bytes of its payload by the model's plan for sessions of this policy; 0: this
 * layer has none there. */
size_t value_bytes(const struct snapshots *snapshots,
                   const struct value_place *at);

/*
 * Is this the value that belongs there? *out_data is its payload, of
 * value_bytes(), borrowed.
 *   DATA_LOSS            its frame or its fields are not sound, or it is not
 *                        this value
 *   FAILED_PRECONDITION  of another model or numerics id, or version
 *                        (NUMERICS_MISMATCH); or of another policy
 *                        (POLICY_MISMATCH), or of other tokens
 *                        (CHAIN_MISMATCH)
 */
MUST_CHECK enum status value_check(const struct snapshots *snapshots,
                                   const struct value_place *at,
                                   struct chains *chains, const void *bytes,
                                   size_t n_bytes, const void **out_data);
/* Read it first; *out_bytes is free()'d by the caller.  as store_get() too */
MUST_CHECK enum status value_read(const struct snapshots *snapshots,
                                  const struct value_place *at,
                                  struct chains *chains, void **out_bytes,
                                  size_t *out_n_bytes, const void **out_data);
#endif
