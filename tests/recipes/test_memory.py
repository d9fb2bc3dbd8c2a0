"""The memory plan: by hand for one model, and its activations against what autograd keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pact.models import hidden_states
from pact.recipes.architecture import Architecture
from pact.recipes.memory import (
    GIB,
    PlanConfig,
    activation_bytes,
    adapter_parameters,
    memory_plan,
    plan_table,
)
from pact.recipes.recipe import Recipe
from pact.recipes.tiny import VOCAB_SIZE
from pact.reference.shards import Layout
from pact.training.config import TrainConfig
from pact.training.student import add_adapters

BATCH, LENGTH = 2, 96


def test_llama_by_hand(llama: Recipe) -> None:
    plan = memory_plan(llama)
    weights, reference, adapters, activations, head = plan.lines
    assert weights.here == 2 * 8_030_261_248
    assert (reference.here, reference.released) == (0, weights.here)
    # 32 layers, rank 8: q has 4096 + 4096 rows and columns, v 4096 + 8 heads of 128
    assert adapter_parameters(llama.architecture, llama.train) == 32 * 8 * (8192 + 5120)
    assert adapters.here == 16 * 32 * 8 * (8192 + 5120)
    # norms 2 (4 D + 4), attention 8 H h + 4 H + 2 L, MLP 6 I, two adapters 2 (D + 16)
    layer = 2 * 16388 + 8 * 4096 + 4 * 32 + 2 * 512 + 6 * 14336 + 2 * 2 * (4096 + 16)
    assert activations.here == activations.released == 4 * 512 * (32 * layer + 16388)
    assert head.here == 2 * 4 * 512 * 128256  # less than the cap of 1 GiB
    assert head.released == 3 * 4 * 512 * 128256 * 4
    assert plan.here == sum(line.here for line in plan.lines)
    assert plan.cache_bytes_per_row == 2 * 2 * 50
    assert plan.discover == 2 * weights.here


def test_the_cache_line_is_the_caches_own(llama: Recipe) -> None:
    import numpy as np

    one = np.ones(1, dtype=np.int64)
    layout = Layout(
        lengths=one, row_counts=one, num_tokens=50, contexts=("full", "post"), dtype="fp16"
    )
    assert memory_plan(llama).cache_bytes_per_row == layout.bytes_per_row
    ungated = replace(llama, pact=replace(llama.pact, gate=False))
    assert memory_plan(ungated).cache_bytes_per_row == layout.bytes_per_row // 2
    live = replace(llama, train=replace(llama.train, cache=False))
    assert "off: the reference runs at every step" in plan_table(memory_plan(live))


def test_changes_are_those_of_the_flags(llama: Recipe) -> None:
    plan = memory_plan(llama)
    half = memory_plan(PlanConfig(name="x", micro_batch_size=2, top_k=30).changed(llama))
    assert half.lines[3].here * 2 == plan.lines[3].here
    assert half.cache_bytes_per_row == 120
    assert "micro-batch 2 x 512 tokens" in half.title and half.title.endswith("K 30")
    checkpointed = memory_plan(PlanConfig(name="x", gradient_checkpointing=True).changed(llama))
    assert checkpointed.lines[3].here < plan.lines[3].here / 8
    with pytest.raises(ValueError, match="micro_batch_size must be from 1 to batch_size=8"):
        PlanConfig(name="x", micro_batch_size=9).changed(llama)


def test_what_is_not_counted_is_refused(llama: Recipe) -> None:
    full = replace(llama, train=replace(llama.train, full_finetuning=True))
    with pytest.raises(ValueError, match="counts LoRA adapters, got full_finetuning"):
        memory_plan(full)
    foreign = replace(llama, train=replace(llama.train, lora_targets=("c_attn",)))
    with pytest.raises(ValueError, match="lora_targets must be among q_proj, .*got 'c_attn'"):
        memory_plan(foreign)


def test_the_table_has_the_plan(recipe: Recipe) -> None:
    plan = memory_plan(recipe)
    lines = plan_table(plan).splitlines()
    assert lines[0].startswith(f"{recipe.name}: micro-batch 4 x 512 tokens, bf16, LoRA r 8 on q_pr")
    for line, row in zip(plan.lines, lines[3:], strict=False):
        assert row.startswith(line.part)
        shown = [float(value) for value in row.split()[-2:]]
        assert shown == pytest.approx([line.here / GIB, line.released / GIB], abs=0.005)
    assert plan.here < plan.released


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj", "o_proj")])
def test_activations_are_what_autograd_keeps(
    recipe: Recipe, checkpointed: bool, targets: tuple[str, ...]
) -> None:
    """For layers beyond the first two, whose differences leave out what is kept once."""
    sizes = replace(
        recipe.architecture,
        hidden_size=192,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,  # H h beyond D, as Gemma has it
        vocab_size=VOCAB_SIZE,
    )
    train = replace(
        recipe.train,
        micro_batch_size=BATCH,
        max_length=LENGTH,
        lora_targets=targets,
        gradient_checkpointing=checkpointed,
    )
    few, many = (replace(sizes, num_hidden_layers=layers) for layers in (2, 5))
    kept = _kept_bytes(many, train) - _kept_bytes(few, train)
    planned = activation_bytes(many, train) - activation_bytes(few, train)
    assert kept == pytest.approx(planned, rel=0.02)  # casts of the adapters' weights are left out


def _kept_bytes(sizes: Architecture, train: TrainConfig) -> int:
    """What the decoder keeps for its backward pass beside its weights, each storage once."""
    model: Any = AutoModelForCausalLM.from_config(sizes.config(), dtype=torch.bfloat16)
    model = add_adapters(model, targets=train.lora_targets).train()
    if train.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % VOCAB_SIZE
    mask = torch.ones_like(ids)
    mask[1, LENGTH // 2 :] = 0
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used again
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        hidden_states(model, ids, mask)
    return sum(storage.nbytes() for storage in kept.values())


def test_the_workspace_is_the_ops_own() -> None:
    """The most that the plan counts is what the head takes by default on a GPU."""
    from pact_kernels.dispatch import workspace_bytes

    assert workspace_bytes(torch.device("cuda")) == 1024 * 2**20
