"""Which layers get an adapter: by name, all linear ones, or by an expression."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from pact.training.student import add_adapters
from tests.tiny import tiny_llama

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LINEAR = ATTENTION | {"gate_proj", "up_proj", "down_proj"}


def adapted(model: Any) -> set[tuple[str, str]]:
    """(layer's number, module) of every adapter."""
    found = [name for name, _ in model.named_parameters() if "lora_A" in name]
    paths = [name.split(".lora_A")[0].split(".") for name in found]
    return {(path[-3], path[-1]) for path in paths}


def every(names: set[str], layers: str = "01") -> set[tuple[str, str]]:
    return {(layer, name) for layer in layers for name in names}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), every({"q_proj", "v_proj"})),
        (("all-linear",), every(LINEAR)),
        ("all-linear", every(LINEAR)),
        ((r".*\.[qk]_proj",), every({"q_proj", "k_proj"})),
        (r".*layers\.1\..*(up|down)_proj", every({"up_proj", "down_proj"}, "1")),
        (("self_attn.o_proj",), every({"o_proj"})),
        ("model.layers.0.self_attn.k_proj", every({"k_proj"}, "0")),
    ],
)
def test_targets(targets: Any, expected: set[tuple[str, str]]) -> None:
    model = add_adapters(tiny_llama(), targets=targets)
    assert adapted(model) == expected
    assert not any("lm_head" in name and "lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("nowhere_proj",), "'nowhere_proj' not found: .* which are down_proj, .*all-linear"),
        (("q_proj", "proj"), "Target modules 'proj' not found"),
        (("q_proj", "tokens"), "Target modules 'tokens' not found"),  # an end of embed_tokens
        (("q_proj", ""), "Target modules '' not found"),
        ((r".*\.z_proj",), "not found: lora_targets must be linear"),
        (("q_proj", "all-linear"), "got 'all-linear' among 2: join them"),
        (("q_proj", r".*\.k_proj"), "alone, got .* among 2: join them into one expression"),
        ((r".*(q_proj",), "must be names or a regular expression"),
    ],
)
def test_targets_that_mean_nothing_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_adapters(tiny_llama(), targets=targets)


def test_layers_of_other_kinds_that_peft_adapts() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2))
    added = add_adapters(model, targets=("c_attn",))
    assert any("c_attn.lora_A" in name for name, _ in added.named_parameters())
