#ifndef MODEL_POLICY_H
#define MODEL_POLICY_H
/*
 * What softmax layers see of the past. Nothing here touches a session: a policy
 * is a rule that says, for the rows of one step, which KV blocks they meet, in
 * which order, and at which positions the keys are taken to lie. All blocks
 * stay stored whatever it says; it is a view.
 *
 * A step is a run of `step` positions on an absolute grid. Its rows see
 *     the first n_sink blocks, up to n_pick blocks that a look-up chose,
 *     the n_window blocks before their own, their own up to themselves
 * in ascending order. The look-up is made from the queries right before the
 * step alone, over blocks that were full by then. So what a row sees is a
 * function of its position and of the values before it, never of cuts, batches,
 * phases or of where a block lies (E1, E2, E3, E5, E7). And what a step will
 * read is known when the step before is done.
 *
 * full    every block
 * window  sinks and window, positions inside the cache. StreamingLLM,
 *         arXiv:2309.17453
 * infllm  look-up by bounds of keys, or by some of the keys, without positions;
 *         far blocks at one constant distance. InfLLM, arXiv:2402.04617
 * quest   look-up by bounds of keys, true positions. Quest, arXiv:2406.10774
 * recycle the look-up of infllm or quest, one for `reuse` steps in a row, in
 *         which no block leaves the window. Recycled Attention,
 *         arXiv:2411.05787
 */
#include "base/status.h"
#include "kernels/backend.h"

#define POLICY_BLOCK_MAX 1024u /* of sinks, of a window, of picks */
#define POLICY_REUSE_MAX 64u   /* steps of one choice */
#define POLICY_TEXT_SIZE 128u

enum policy_kind {
    POLICY_FULL,
    POLICY_WINDOW,
    POLICY_INFLLM,
    POLICY_QUEST,
    POLICY_RECYCLE,
    N_POLICY_KIND
};

/* Where the keys of other blocks than the own one are taken to lie. Queries
 * have their true position under each rule: only distances matter to RoPE. */
enum key_rule {
    KEYS_TRUE, /* where they are */
    KEYS_RANK, /* as if the blocks that are seen were all there are */
    KEYS_FAR,  /* in the window where they are; all keys before it just before
                  it, at one position for all rows of a grid chunk */
    N_KEY_RULE
};

struct policy {
    enum policy_kind kind;
    enum key_rule keys;
    uint32_t n_sink, n_window, n_pick; /* blocks */
    uint32_t step; /* positions; divides GRID. 0 in policies without look-up */
    enum index_kind index; /* what its look-up reads of each block */
    enum policy_kind base; /* whose look-up it makes: infllm's or quest's */
    uint32_t reuse; /* steps that a choice serves: a power of two, so that
                       they are a part of a grid chunk or some whole ones.
                       0 in policies without look-up */
};

/*
 * "infllm", or with other numbers than its own, in tokens:
 * "infllm:sink=64:window=1024:pick=2048:step=8:keys=far:index=bounds".
 *   INVALID_ARGUMENT  no such policy or parameter, or a number out of range or
 *                     off the grid: says which and what is allowed
 */
MUST_CHECK enum status policy_parse(const char *text, struct policy *out);

/* All of it, such that policy_parse() gives the same. Equal policies have equal
 * texts: the text is their identity. */
void policy_format(const struct policy *policy, char out[POLICY_TEXT_SIZE]);
bool policy_equal(const struct policy *a, const struct policy *b);

/* Names of all kinds, "full, window, ...", for help. */
#define POLICY_NAMES "full, window, infllm, quest, recycle"

/* Do bounds hold keys where they are? Else keys and bounds have no position,
 * and the query is at the distance of far blocks. */
bool policy_looks_at_positions(const struct policy *policy);

/* Positions that one look-up serves; those without one: a grid chunk. */
uint32_t policy_period(const struct policy *policy);

/* The most blocks before its own that a row sees without a look-up. */
uint32_t policy_kept(const struct policy *policy);

/* Blocks [first, end) among which the look-up for rows of grid chunk `chunk`
 * chooses; none: equal. */
struct block_range {
    uint64_t first, end;
};
struct block_range policy_candidates(const struct policy *policy,
                                     uint64_t chunk);

/*
 * The n_pick candidates with the largest scores, of equals the earlier, in
 * ascending order of blocks; all of them if there are no more. Returns how
 * many; out has room for n_pick.
 */
uint32_t policy_choose(const struct policy *policy, struct block_range among,
                       const float *score, uint32_t *out);

/* Where a query's far distance lies under KEYS_FAR: for look-ups. */
uint64_t policy_far_distance(const struct policy *policy);

/*
 * The blocks that rows of grid chunk `chunk` see, given what the look-up chose,
 * in order, the own one last. Returns how many; with out NULL only counts.
 * Not for full, whose rows see every block.
 */
struct policy_view {
    uint64_t block;
    struct key_place place;
};
uint32_t policy_see(const struct policy *policy, uint64_t chunk,
                    const uint32_t *pick, uint32_t n_pick,
                    struct policy_view *out);
#define POLICY_SEEN_MAX (3 * POLICY_BLOCK_MAX + POLICY_REUSE_MAX + 1)
#endif
