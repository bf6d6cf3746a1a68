#ifndef MODEL_ARCH_H
#define MODEL_ARCH_H
/*
 * One small file per architecture says what its checkpoints call things and
 * which mixer stands for which kind of layer. What an architecture computes
 * is in struct config: norms with unit offset, output gate, QK-norm, rope.
 */
#include "model/config.h"
#include "model/mixer.h"

struct arch {
    const char *model_type;    /* as in config.json */
    const char *prefix;        /* of all tensors but the head: "model." */
    const char *nested_prefix; /* inside a larger model, or NULL */
    const char *embedding;     /* behind the prefix, as the next */
    const char *final_norm;
    const char *head;       /* whole name; not read when tied */
    const char *mixer_norm; /* behind "<prefix>layers.3.", as the next */
    const char *mlp_norm;
    const struct mixer *mixer[2]; /* by enum layer_kind; NULL: has none */
};

extern const struct arch arch_qwen3_5;
extern const struct arch arch_qwen3_5_moe;
extern const struct arch arch_qwen3_next;
extern const struct arch arch_qwen3;
extern const struct arch arch_qwen3_moe;
extern const struct arch arch_llama;

/*
 * The architecture of a checked config.
 *   UNIMPLEMENTED  no architecture of this model_type: lists them
 */
MUST_CHECK enum status arch_find(const struct config *config,
                                 const struct arch **out);

/* The prefix that this config's tensors have. */
const char *arch_prefix(const struct arch *arch, const struct config *config);
#endif
