"""A model's backbone and head give back its own logits, whatever its family does to them."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import pact_kernels as pk
from pact.loading import load_model, load_tokenizer
from pact.models import check_head, hidden_states, output_head
from tests.rounding import STATES
from tests.tiny import save_tiny

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "gemma2, soft cap": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 3.0}),
    "cohere, logit scale": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "granite, logits scaling": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 4.0}),
    "phi, head bias": (PhiForCausalLM, PhiConfig, {}),
}


def tiny(family):
    torch.manual_seed(0)
    model, config, extra = FAMILIES[family]
    made = model(config(**SIZES, **extra)).eval()
    with torch.no_grad():  # logits beyond the cap's linear part; biases that are not 0
        made.get_output_embeddings().weight.mul_(20)
        if made.get_output_embeddings().bias is not None:
            made.get_output_embeddings().bias.normal_()
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_head_gives_back_the_models_logits(family):
    model = tiny(family)
    check_head(model)
    ids = torch.randint(1, 40, (2, 9))
    head = output_head(model)
    states = hidden_states(model, ids, torch.ones_like(ids))
    logits = pk.selected_logits(states, head.weight, torch.arange(40), **head.options)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=STATES, atol=STATES)


def test_a_head_that_its_config_does_not_name_is_refused():
    config = FalconH1Config(**{**SIZES, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8})
    config.lm_head_multiplier = 0.5
    torch.manual_seed(0)
    model = FalconH1ForCausalLM(config).eval()
    with pytest.raises(ValueError, match="logits of FalconH1ForCausalLM"):
        check_head(model)


def test_right_padding_does_not_reach_the_states():
    model = tiny("llama")
    ids = torch.randint(1, 40, (1, 6))
    padded = torch.cat((ids, torch.zeros(1, 3, dtype=torch.int64)), 1)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    alone = hidden_states(model, ids, torch.ones_like(ids))
    torch.testing.assert_close(hidden_states(model, padded, mask)[:, :6], alone)


def test_an_adapted_head_is_refused():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])
    with pytest.raises(ValueError, match="plain nn.Linear"):
        output_head(get_peft_model(tiny("llama"), lora))


def test_load_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(f"./{'nothing'}/here")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_model(tmp_path, dtype="int8")


def test_load_gives_an_evaluating_model_in_the_dtype_asked_for(tmp_path):
    folder = save_tiny(tmp_path / "model")
    model = load_model(folder, dtype="bf16")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert load_tokenizer(folder).pad_token_id is not None
