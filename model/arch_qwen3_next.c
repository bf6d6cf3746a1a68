/*
 * Qwen3-Next: what Qwen3.5 MoE came from. Its delta layers' projections are
 * interleaved by k-head, and layers may be dense between those of experts.
 */
#include "model/arch.h"

const struct arch arch_qwen3_next = {
    .model_type = "qwen3_next",
    .prefix = "model.",
    .embedding = "embed_tokens.weight",
    .final_norm = "norm.weight",
    .head = "lm_head.weight",
    .mixer_norm = "input_layernorm.weight",
    .mlp_norm = "post_attention_layernorm.weight",
    .mixer = {[LAYER_SOFTMAX] = &mixer_softmax, [LAYER_DELTA] = &mixer_delta},
};
