/* Qwen3, dense: softmax layers with QK-norm, plain norm weights. */
#include "model/arch.h"

const struct arch arch_qwen3 = {
    .model_type = "qwen3",
    .prefix = "model.",
    .embedding = "embed_tokens.weight",
    .final_norm = "norm.weight",
    .head = "lm_head.weight",
    .mixer_norm = "input_layernorm.weight",
    .mlp_norm = "post_attention_layernorm.weight",
    .mixer = {[LAYER_SOFTMAX] = &mixer_softmax},
};
