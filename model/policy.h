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
 * snapkv  every block up to position `end`, that of the prompt's end. From
 * there on what got most of the attention of the last rows before it, and all
 *         that lies behind its window. SnapKV, arXiv:2404.14469
 * sirllm  of what lies behind the window the blocks whose tokens the model
 *         expected least, earlier turns counting for less. SirLLM,
 *         arXiv:2405.12528
 */
#include "base/status.h"
#include "kernels/backend.h"

#define POLICY_BLOCK_MAX 1024u /* of sinks, of a window, of picks */
#define POLICY_REUSE_MAX 64u   /* steps of one choice */
#define POLICY_END_MAX (1ul << 40)
#define POLICY_TEXT_SIZE 128u

enum policy_kind {
    POLICY_FULL,
    POLICY_WINDOW,
    POLICY_INFLLM,
    POLICY_QUEST,
    POLICY_RECYCLE,
    POLICY_SNAPKV,
    POLICY_SIRLLM,
    N_POLICY_KIND
};

struct policy {
    enum policy_kind kind;
    enum key_rule keys;
    uint32_t n_sink, n_window, n_pick; /* blocks */
    uint32_t step; /* positions; divides GRID. 0 in policies without look-up;
                      1 in snapkv, which wants each query for itself */
    enum index_kind index; /* what its look-up reads of each block */
    enum policy_kind base; /* whose look-up it makes: infllm's or quest's; full
                              in policies that make none of that kind */
    uint32_t reuse; /* steps that a choice serves: a power of two, so that
                       they are a part of a grid chunk or some whole ones.
                       0 in policies without such a look-up */
    uint64_t end;   /* of snapkv: where the prompt ends; 0: not known yet, so
                       it has not */
    uint32_t decay; /* of sirllm: what is left of a surprise when a turn ends,
                       percent */
    int64_t turn;   /* of sirllm: the token that ends a turn, or one of these */
};
#define POLICY_TURN_NONE (-1) /* turns do not end */
#define POLICY_TURN_OPEN (-2) /* not known yet, so none has */

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
#define POLICY_NAMES "full, window, infllm, quest, recycle, snapkv, sirllm"

/* Do bounds hold keys where they are? Else keys and bounds have no position,
 * and the query is at the distance of far blocks. */
bool policy_looks_at_positions(const struct policy *policy);

/*
 * A prompt of n_token tokens ends here, for a policy that wants to know and was
 * not told. What rows see before the end does not depend on where it is.
 */
void policy_end_prompt(struct policy *policy, uint64_t n_token);
/* INVALID_ARGUMENT  that is not known: says who can tell */
MUST_CHECK enum status policy_check_end(const struct policy *policy);
/* The model ends turns with the first of n tokens, for a policy that wants to
 * know and was not told. */
void policy_end_turns(struct policy *policy, const uint32_t *token, uint32_t n);
/* Is the other one what was asked for, but for what was left open? */
bool policy_is_asked(const struct policy *asked, const struct policy *other);

/* Does a step read no more blocks in a long session than in a short one? */
bool policy_is_bounded(const struct policy *policy);

/* A row here sees every block, as under full. */
bool policy_sees_all(const struct policy *policy, uint64_t position);

/* Behind the rows from `position` on that see the same blocks before their own;
 * where they see all: before theirs and among them. */
uint64_t policy_view_end(const struct policy *policy, uint64_t position);

/* A pass that begins at `position` ends here at the latest: rows behind it see
 * what this pass finds out. NULL is full. */
uint64_t policy_pass_end(const struct policy *policy, uint64_t position);

/* Is a look-up made when rows [0, position) are done? */
bool policy_looks_up(const struct policy *policy, uint64_t position);

/* Look-ups that rows of n_token positions make at most, */
uint64_t policy_choices(const struct policy *policy, uint64_t n_token);
/* and the blocks before its own that a row sees without one; both for policies
 * that are bounded. */
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
 * Not where policy_sees_all(), nor for full. At most POLICY_SEEN_MAX if the
 * policy is bounded.
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
