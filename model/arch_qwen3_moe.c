/* Qwen3 MoE: Qwen3 with experts in some or all layers, none of them shared. */
#include "model/arch.h"

const struct arch arch_qwen3_moe = {
    .model_type = "qwen3_moe",
    .prefix = "model.",
    .embedding = "embed_tokens.weight",
    .final_norm = "norm.weight",
    .head = "lm_head.weight",
    .mixer_norm = "input_layernorm.weight",
    .mlp_norm = "post_attention_layernorm.weight",
    .mixer = {[LAYER_SOFTMAX] = &mixer_softmax},
};
