#ifndef MODEL_STATE_NORM_H
#define MODEL_STATE_NORM_H
/*
 * How large a layer's recurrent state is. A model that never learnt to forget
 * overloads its state behind the lengths it was trained for: norms grow, and
 * the output collapses (Stuffed Mamba, Chen et al. 2024, arXiv:2410.07145). The
 * states of snapshots are measured when they are stored, by the thread that
 * stores them: at token positions then, and beside the steps.
 */
#include "model/mixer.h"

struct state_norm {
    uint32_t n_head; /* 0: the layer has no recurrent state */
    uint32_t head;  /* whose root mean square is largest, the lowest of those */
    float head_rms; /* that; infinite if any number of the state is not one */
    float rms;      /* of all heads together */
    float max;      /* largest magnitude of one number; infinite as above */
};

/* `state`: its bytes, or the live ones of them (mixer_live()); the matrix of
 * the heads is at their begin. */
struct state_norm state_norm_of(const struct mixer_plan *plan,
                                const void *state);
#endif
