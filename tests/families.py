"""Tiny random causal language models of many families, with whatever each does to its logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

VOCABULARY = 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Family(NamedTuple):
    """A configuration class of transformers, and what differs from SIZES."""

    config: str
    options: dict[str, Any]


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": Family("LlamaConfig", {}),
    "llama, tied": Family("LlamaConfig", {"tie_word_embeddings": True}),
    "llama 4 text": Family(
        "Llama4TextConfig", {**EXPERTS, "intermediate_size_mlp": 24, "moe_layers": [1]}
    ),
    "qwen 2": Family("Qwen2Config", {}),
    "qwen 3": Family("Qwen3Config", {}),
    "qwen 3, experts": Family(
        "Qwen3MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "output_router_logits": True,
        },
    ),
    "gemma 2": Family("Gemma2Config", {"final_logit_softcapping": 3.0}),
    "gemma 3": Family("Gemma3TextConfig", {}),
    "mistral": Family("MistralConfig", {}),
    "mixtral, experts": Family("MixtralConfig", {**EXPERTS, "output_router_logits": True}),
    "phi": Family("PhiConfig", {}),
    "phi 3": Family("Phi3Config", {}),
    "granite": Family("GraniteConfig", {"logits_scaling": 4.0}),
    "cohere": Family("CohereConfig", {"logit_scale": 0.25}),
    "cohere 2": Family("Cohere2Config", {"logit_scale": 0.25}),
    "olmo 2": Family("Olmo2Config", {}),
    "gpt-2": Family(
        "GPT2Config",
        {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "falcon h1": Family(
        "FalconH1Config",
        {
            "mamba_d_ssm": 16,
            "mamba_n_heads": 2,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "lm_head_multiplier": 0.5,
        },
    ),
    "glm 4": Family("Glm4Config", {}),
    "gpt-oss": Family("GptOssConfig", {**EXPERTS, "output_router_logits": True}),
    "hyperclova x": Family("HyperCLOVAXConfig", {"logits_scaling": 0.5}),
}


def tiny(family: str) -> Any:
    """A model of a family in evaluation mode, with logits that are far from uniform."""
    name, options = FAMILIES[family]
    config = getattr(transformers, name)(**{**SIZES, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        head: nn.Linear = model.get_output_embeddings()
        with torch.no_grad():  # logits beyond a cap's linear part; biases that are not 0
            head.weight.mul_(20)
            if head.bias is not None:
                head.bias.normal_()
    return model
