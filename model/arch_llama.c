/* Llama 2 and 3: softmax layers without QK-norm; rope rescaled in 3.1. */
#include "model/arch.h"

const struct arch arch_llama = {
    .model_type = "llama",
    .prefix = "model.",
    .embedding = "embed_tokens.weight",
    .final_norm = "norm.weight",
    .head = "lm_head.weight",
    .mixer_norm = "input_layernorm.weight",
    .mlp_norm = "post_attention_layernorm.weight",
    .mixer = {[LAYER_SOFTMAX] = &mixer_softmax},
};
