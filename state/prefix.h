#ifndef STATE_PREFIX_H
#define STATE_PREFIX_H
/*
 * Which stored snapshots a log of tokens may start from, whoever made them:
 * chain hash -> (owner, position). A map in memory, rebuilt from the store's
 * manifests at start and kept up to date by saves and deletes. What it says is
 * a hint: whoever loads a snapshot verifies tokens, numerics and digests
 * (snapshot_fetch()), so a wrong hint costs time, never a wrong token.
 *
 * An owner is the uid that snapshots are stored under:
 *   live   a session that exists: its snapshots go when it is deleted
 *   loose  one snapshot of a prompt whose session is not kept; all of them
 *          share a budget, the least recently used goes first
 *   gone   a loose one that went so: known only to say so
 *
 * Entries carry a scope (a digest of the tenant): a prompt finds only those of
 * its own, so no tenant can measure what another one has sent.
 *
 * The index also remembers hashes of recent prompts on the grid of 64 tokens,
 * so that it can say how far a new one goes along an earlier one that left no
 * snapshot there. One thread.
 */
#include "base/digest.h"
#include "base/status.h"
#include "state/session.h"
#include "state/snapshot.h"

#define PREFIX_GRID 64u       /* tokens: where prompts are remembered */
#define PREFIX_EXPECT_MAX 64u /* snapshots under way */
#define PREFIX_ENTRY_MIN 32u

/* The scope of a session with this policy whose tenant's is `scope`: snapshots
 * of another policy are of no use to it. Full: the same. */
uint64_t policy_scope(const struct policy *policy, uint64_t scope);

struct prefix_index;

struct prefix_limits {
    uint32_t n_entry;   /* snapshots known, at least PREFIX_ENTRY_MIN; beyond:
                           those of the least recently used are forgotten. At
                           most half of them are loose. */
    uint32_t n_seen;    /* grid points of prompts remembered; rounded up to a
                           power of two */
    size_t loose_bytes; /* of the store: budget of loose snapshots */
};

/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status prefix_create(const struct prefix_limits *limits,
                                     struct prefix_index **out);
void prefix_destroy(struct prefix_index *index); /* accepts NULL */

struct prefix_owner {
    struct uid uid;
    struct uid session; /* whose tokens: uid itself if it is live; the session
                           of a loose one, or 0 if that had no name */
    bool is_usable;     /* numerics are ours; else only known by name */
    size_t bytes;       /* in the store; counted if it is loose */
};
/* These are the owner's snapshots now, at most SNAPSHOT_KEEP_MAX. Behind it,
 * prefix_take_excess() until it says false. */
void prefix_put(struct prefix_index *index, const struct prefix_owner *owner,
                const struct snapshot_entry *entry, uint32_t n);
/* Position of the owner's newest usable snapshot that is known; 0: none. */
uint64_t prefix_newest(const struct prefix_index *index, struct uid uid);
/* Forget an owner that is live or loose. */
void prefix_remove(struct prefix_index *index, struct uid uid);
/* Forget one snapshot that turned out to be unusable. */
void prefix_refuse(struct prefix_index *index, struct uid uid,
                   uint64_t position);
/* Forget one loose owner of a session that is deleted; false: none is left. */
bool prefix_take_loose(struct prefix_index *index, struct uid session,
                       struct uid *out);
/* Loose snapshots are over their budget: this one is gone now, and to be
 * deleted from the store. False: they are not. */
bool prefix_take_excess(struct prefix_index *index, struct uid *out);
/* It was of use just now. */
void prefix_touch(struct prefix_index *index, struct uid uid);

/*
 * Somebody is about to store a snapshot of this chain: false if there is one,
 * or one is expected already (or too many are). prefix_expect_over() when it
 * is stored, or will not be.
 */
bool prefix_expect(struct prefix_index *index, struct digest chain,
                   uint64_t scope);
void prefix_expect_over(struct prefix_index *index, struct digest chain,
                        uint64_t scope);

struct prefix_query {
    const uint32_t *token; /* the whole log */
    uint64_t from;         /* what is asked for lies behind this position ... */
    struct digest chain;   /* ... whose chain hash this is */
    uint64_t limit;        /* ... and not behind this one */
    uint64_t scope;
};
struct prefix_answer {
    uint32_t n_hit;
    struct snapshot_source hit[SNAPSHOT_SOURCE_MAX]; /* best first */
    uint64_t gone;  /* largest position of a snapshot that left its budget; */
    uint64_t other; /* of one with other numerics; */
    uint64_t seen;  /* on the grid, that an earlier prompt shares; 0: none */
};
/* One pass over the tokens; remembers them as a prompt that was seen. */
void prefix_find(struct prefix_index *index, const struct prefix_query *query,
                 struct prefix_answer *out);

struct prefix_stats {
    uint32_t n_entry, n_owner, n_loose;
    size_t loose_bytes;
};
struct prefix_stats prefix_stats(const struct prefix_index *index);
#endif
