/*
 * Qwen3.5 text (qwen3_5_text, or as text_config in qwen3_5): Gated DeltaNet
 * layers with gated softmax layers between them. Norm weights mean 1 + w but
 * for the delta rule's own; q_proj holds query and gate interleaved per head.
 */
#include "model/arch.h"

const struct arch arch_qwen3_5 = {
    .model_type = "qwen3_5_text",
    .prefix = "model.",
    .nested_prefix = "model.language_model.",
    .embedding = "embed_tokens.weight",
    .final_norm = "norm.weight",
    .head = "lm_head.weight",
    .mixer_norm = "input_layernorm.weight",
    .mlp_norm = "post_attention_layernorm.weight",
    .mixer = {[LAYER_SOFTMAX] = &mixer_softmax, [LAYER_DELTA] = &mixer_delta},
};
