"""Adapters off is the model before training; whatever was switched is switched back."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pact.data.collate import Collator
from pact.data.packing import PackedCollator
from pact.models import hidden_states
from pact.reference import AdaptersOff, FrozenModel
from tests.tiny import tiny_llama

HEADER = [3, 4]


def adapted(**lora):
    """A tiny model with LoRA whose adapters do something."""
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5, **lora}
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


@pytest.fixture
def batch():
    """Two sequences of unlike length, one with two answers."""
    examples = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, -100, 10]},
        {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
    ]
    return Collator(HEADER, pad_token_id=0)(examples)


def test_adapters_off_is_the_base_model_row_by_row(batch):
    model = adapted().train()
    got = AdaptersOff(model)(batch)
    base = tiny_llama().eval()
    rows = batch["row_sequence"], batch["row_position"]
    full = hidden_states(base, batch["input_ids"], batch["attention_mask"])[rows]
    torch.testing.assert_close(got.full_hidden, full)
    # By hand: rows in order, each after the header and the answer so far.
    lines = [[3, 4], [3, 4, 7], [3, 4], [3, 4], [3, 4, 12]]
    for state, line in zip(got.post_hidden, lines, strict=True):
        ids = torch.tensor([line])
        alone = hidden_states(base, ids, torch.ones_like(ids))[0, -1]
        torch.testing.assert_close(state, alone)
    torch.testing.assert_close(got.weight, base.lm_head.weight)
    assert not got.full_hidden.requires_grad and not got.weight.requires_grad


def test_packed_lines_give_the_states_of_padded_ones():
    """Row by row, for a batch whose lines hold two sequences, with their post-only lines too."""
    examples = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, -100, 10]},
        {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
        {"input_ids": [14, 15, 16], "labels": [14, 15, 16]},
    ]
    padded = AdaptersOff(adapted())(Collator(HEADER, pad_token_id=0)(examples))
    packed = AdaptersOff(adapted())(PackedCollator(HEADER, 0, pack_length=9)(examples))
    assert padded.full_hidden.shape == (7, 32)
    torch.testing.assert_close(packed.full_hidden, padded.full_hidden)
    torch.testing.assert_close(packed.post_hidden, padded.post_hidden)


def test_without_post_only_inputs_there_is_no_post_only_state(batch):
    plain = {name: value for name, value in batch.items() if not name.startswith("post_")}
    assert AdaptersOff(adapted())(plain).post_hidden is None


def test_modes_and_flags_are_put_back(batch):
    model = adapted().train()
    odd = next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp"))
    odd.eval()  # a module whose mode differs from the model's
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = [module.training for module in model.modules()]
    AdaptersOff(model)(batch)
    assert [module.training for module in model.modules()] == before
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_flags_are_put_back_after_an_error(batch):
    model = adapted().train()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    broken = {**batch, "row_sequence": batch["row_sequence"] + 99}
    with pytest.raises(IndexError):
        AdaptersOff(model)(broken)
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_frozen_model_is_the_same_without_adapters(batch):
    model = tiny_llama()
    frozen = FrozenModel(copy.deepcopy(model))
    torch.testing.assert_close(frozen(batch)[:3], AdaptersOff(adapted())(batch)[:3])
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_a_model_without_adapters_is_refused():
    with pytest.raises(ValueError, match="PEFT model, got LlamaForCausalLM"):
        AdaptersOff(tiny_llama())


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens"])
def test_training_more_than_adapters_is_refused(part):
    with pytest.raises(ValueError, match="no longer the aligned model"):
        AdaptersOff(adapted(modules_to_save=[part]))
