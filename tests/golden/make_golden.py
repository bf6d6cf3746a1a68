#!/usr/bin/env python3
"""
Write a small random checkpoint and what Hugging Face transformers computes
with it in float32: the logits of every token of a prompt, then 24 greedy
tokens and their logits. Not run by the tests; it made tests/golden/qwen3_moe:

    pip install torch transformers
    python3 tests/golden/make_golden.py qwen3_moe tests/golden/qwen3_moe

The checkpoint is wider than its default initialisation would make it, so that
routers choose with conviction and logits differ by more than rounding.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

N_PROMPT, N_GREEDY, SEED = 203, 24, 1

# Odd on purpose: experts that fill no vector, a dense layer before each
# layer of experts, and weights that do not sum to one.
CONFIG = {
    "qwen3_moe": dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        decoder_sparse_step=2,
        norm_topk_prob=False,
    ),
}


def widen(model):
    """Weights of unit gain: std 1/sqrt(inputs), norms scattered around 1."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.normal_(1.0, 0.1)
        elif "embed_tokens" in name:
            weight.normal_(0.0, 0.8)
        else:
            weight.normal_(0.0, weight.shape[-1] ** -0.5)


def main():
    name, out = sys.argv[1:]
    config = transformers.AutoConfig.for_model(name, **CONFIG[name])
    config.dtype = torch.float32
    torch.manual_seed(SEED)
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        ).eval()
        widen(model)
        prompt = torch.randint(0, config.vocab_size, (1, N_PROMPT))
        logits = model(prompt).logits[0]
        ids, rows = prompt, []
        for _ in range(N_GREEDY):
            rows.append(model(ids).logits[0, -1])
            ids = torch.cat([ids, rows[-1].argmax().view(1, 1)], dim=1)
        greedy = torch.stack(rows)
    top = greedy.topk(2, dim=-1).values

    model.save_pretrained(out)
    os.remove(os.path.join(out, "generation_config.json"))
    save_file(
        {
            "input_ids": prompt[0].to(torch.int32),
            "logits": logits.contiguous(),
            "greedy_ids": ids[0, N_PROMPT:].to(torch.int32).contiguous(),
            "greedy_logits": greedy.contiguous(),
        },
        os.path.join(out, "golden.safetensors"),
    )
    facts = {
        "name": name,
        "reference": "transformers " + transformers.__version__,
        "dtype": "float32",
        "seed": SEED,
        "prompt_tokens": N_PROMPT,
        "greedy_tokens": N_GREEDY,
        "logit_std": logits.std().item(),
        "min_greedy_margin": (top[:, 0] - top[:, 1]).min().item(),
    }
    with open(os.path.join(out, "golden.json"), "w") as file:
        json.dump(facts, file, indent=1)


main()
