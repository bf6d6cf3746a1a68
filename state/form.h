#ifndef STATE_FORM_H
#define STATE_FORM_H
/* How much of everything a session's memory has: of its model and its policy
 * alone. */
#include "model/model.h"

#include <stddef.h>
#include <stdint.h>

#define ALIGN_BYTES 64u

static size_t rounded(size_t n_bytes)
{
    return (n_bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

static inline uint32_t count_layers(const struct model *model)
{
    return model_config(model)->n_layer;
}

/* What decides how much of everything there is. */
struct form {
    const struct model *model;
    enum index_kind index;
};

static inline const struct mixer_plan *plan_of(struct form form, uint32_t layer)
{
    return model_plan_for(form.model, layer, form.index);
}

/* Of a layer's state; behind it is its copy for a CPU's steps. */
static inline size_t copy_bytes(struct form form, uint32_t layer)
{
    return model_device(form.model) ? 0 : plan_of(form, layer)->copy_bytes;
}

static inline size_t state_bytes(struct form form)
{
    size_t n = 0;

    for (uint32_t i = 0; i < count_layers(form.model); i++)
        n += rounded(plan_of(form, i)->state_bytes) +
             rounded(copy_bytes(form, i));
    return n;
}

/* Of the layers' blocks for the same KV_BLOCK tokens. */
static inline size_t blocks_bytes(struct form form)
{
    size_t n = 0;

    for (uint32_t i = 0; i < count_layers(form.model); i++)
        n += rounded(plan_of(form, i)->block_bytes);
    return n;
}

/* Slabs that rows see in any case: sinks, the window, the open one. */
static inline uint64_t slabs_kept(const struct policy *policy)
{
    return policy_kept(policy) + 2;
}

/* Slabs that rows may see beyond those: what they write and what their steps
 * have chosen, in each layer another one. */
static inline uint64_t slabs_touched(const struct policy *policy,
                                     uint64_t n_token)
{
    return n_token / KV_BLOCK + 1 +
           policy_choices(policy, n_token) * policy->n_pick;
}
#endif
