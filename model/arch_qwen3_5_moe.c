/*
 * Qwen3.5 MoE text (qwen3_5_moe_text, or as text_config in qwen3_5_moe): as
 * Qwen3.5, with experts in place of every feed-forward half.
 */
#include "model/arch.h"

const struct arch arch_qwen3_5_moe = {
    .model_type = "qwen3_5_moe_text",
    .prefix = "model.",
    .nested_prefix = "model.language_model.",
    .embedding = "embed_tokens.weight",
    .final_norm = "norm.weight",
    .head = "lm_head.weight",
    .mixer_norm = "input_layernorm.weight",
    .mlp_norm = "post_attention_layernorm.weight",
    .mixer = {[LAYER_SOFTMAX] = &mixer_softmax, [LAYER_DELTA] = &mixer_delta},
};
