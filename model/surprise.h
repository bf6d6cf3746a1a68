#ifndef MODEL_SURPRISE_H
#define MODEL_SURPRISE_H
/*
 * What policy sirllm remembers of a session: how much the blocks of its window
 * surprised, and which of those that have left it are kept. A block's surprise
 * is the sum of its tokens'. Where a turn ends, all surprises so far shrink by
 * a factor, so that later turns count for more. A block that leaves the window
 * is kept if fewer than n_pick are, or in place of the one that has shrunk
 * most; what was dropped does not come back. (SirLLM, arXiv:2405.12528)
 *
 * A token's surprise comes out of the last layer, and what is kept is asked for
 * by the first. So a pass ends before its rows could ask for blocks of its own:
 * policy_pass_end(). Every softmax layer has a copy, as of whatever its rows
 * see; all are told the same and choose the same.
 */
#include "model/mixer.h"

/* Add to the plan of a layer. */
void surprise_plan(uint32_t hidden, struct mixer_plan *plan);

/*
 * How many blocks rows of grid chunk `chunk` see for their surprise, and which:
 * [1 + POLICY_BLOCK_MAX], in the state. Not before the newest chunk that was
 * asked for or told of, and what leaves the window before it was told.
 */
const uint32_t *surprise_kept(const struct policy *policy, void *state,
                              uint64_t chunk);

/* The residual of the last token so far, [hidden]: what the next one's surprise
 * is measured against. Nothing before the first token. */
float *surprise_last(void *state);

/* Token `position` surprised so much. All of them, in order. */
struct surprised {
    uint64_t position;
    uint32_t token;
    float surprise;
};
void surprise_tell(const struct policy *policy, void *state,
                   struct surprised it);
#endif
