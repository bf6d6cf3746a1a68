#include "state/retention.h"

/* Is there an older one in the same cell of the ladder? */
static bool has_elder(const struct snapshot_entry *entry, uint32_t n,
                      uint32_t i)
{
    const uint64_t cell =
        entry[0].position - entry[i].position <= RETENTION_NEAR
            ? RETENTION_FINE
            : RETENTION_COARSE;

    return i + 1 < n &&
           entry[i + 1].position / cell == entry[i].position / cell;
}

/* Among so many newest ones of its kind? */
static bool is_marked(const struct snapshot_entry *entry, uint32_t i)
{
    uint32_t n_shared = 0, n_pinned = 0;

    for (uint32_t j = 0; j <= i; j++) {
        n_shared += entry[j].is_shared;
        n_pinned += entry[j].is_pinned;
    }
    return (entry[i].is_shared && n_shared <= SNAPSHOT_SHARED_MAX) ||
           (entry[i].is_pinned && n_pinned <= SNAPSHOT_PINNED_MAX);
}

uint32_t retention_victim(const struct snapshot_entry *entry, uint32_t n)
{
    for (uint32_t i = n; i-- > RETENTION_NEWEST;)
        if (has_elder(entry, n, i) && !is_marked(entry, i))
            return i;
    /* A log of millions of tokens: its oldest steps become wider. */
    for (uint32_t i = n; n == SNAPSHOT_KEEP_MAX && i-- > RETENTION_NEWEST;)
        if (!is_marked(entry, i))
            return i;
    return n;
}
