"""References that run a backbone for every batch: the student without adapters, or a second model.

Legend: B sequences, L positions, N answer rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import pact_kernels as pk
from pact.data.collate import has_anchors, held_part
from pact.models import causal_lm, evaluating, hidden_states, output_head
from pact.objective import Objective
from pact.objective.pact import holds_anchors_only


class Reference(Protocol):
    """Anything that yields the reference of a collated batch, row by row."""

    is_student: bool
    """Whether a student with fresh adapters is this reference, which can be checked."""

    def __call__(self, batch: Mapping[str, Tensor]) -> pk.ReferenceStates | pk.ReferenceLogits: ...


def reference_rows(
    reference: Reference, objective: Objective, batch: Mapping[str, Tensor]
) -> pk.ReferenceStates | pk.ReferenceLogits | None:
    """The reference of the rows that the objective holds: all, those of anchors, or none."""
    if not holds_anchors_only(objective):
        return reference(batch)
    return reference(held_part(batch)) if has_anchors(batch) else None


class FrozenModel:
    """A second model, never trained: for full fine-tuning, or when the aligned model is another
    one.
    """

    is_student = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    def __call__(self, batch: Mapping[str, Tensor]) -> pk.ReferenceStates:
        return _reference_states(self.model, batch)


class AdaptersOff:
    """The student without its adapters: no second model in memory.

    Raises:
        ValueError: the model has no adapters; its adapters changed the weights below them when they
            were put on; one of them is active and not trained, so it is a part of the model that
            training begins from; or the model trains anything else beside them (its head, its
            embeddings, `modules_to_save`): without adapters it is not the aligned model.
    """

    is_student = True

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "disable_adapter"):
            raise ValueError(
                "adapters can only be switched off on a PEFT model, got "
                f"{type(model).__name__}: use FrozenModel(copy.deepcopy(model))"
            )
        check_base_kept(model)
        _check_all_trained(model)
        adapter_names = tuple(getattr(model, "peft_config", {}))
        prefixes = adapter_prefixes(model)
        others = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not any(prefix in name for prefix in prefixes)
        ]
        if others:
            raise ValueError(
                f"beside its adapters {adapter_names} the model trains {others[0]} and "
                f"{len(others) - 1} more: without adapters it is no longer the aligned model; use "
                "FrozenModel with a copy, or take them out of modules_to_save"
            )
        self.model = model

    def __call__(self, batch: Mapping[str, Tensor]) -> pk.ReferenceStates:
        with adapters_off(self.model):
            return _reference_states(self.model, batch)


KEEP_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""LoRA's named ways to begin that leave the weights below as they are. Others, PiSSA, OLoRA, CorDA
and LoftQ among them, move a part of each weight into its adapter."""

REBUILD_BASE = ("layer_replication", "kasa_config")
"""Settings of adapters that build other layers or weights below them."""


def check_base_kept(model: Any) -> None:
    """Refuse adapters whose base is not the model that they were put on.

    Raises:
        ValueError: an adapter began by changing the weights below it, or is no part of the layers.
    """
    for name, config in getattr(model, "peft_config", {}).items():
        begun = getattr(config, "init_lora_weights", True)
        changes = [f"{field}" for field in REBUILD_BASE if getattr(config, field, None)]
        if isinstance(begun, str) and begun.lower() not in KEEP_BASE:
            changes.append(f"init_lora_weights={begun!r}")
        if changes:
            raise ValueError(
                f"with its adapters off the model must be the one that they were put on, got "
                f"{changes[0]} of adapter {name!r}, which changes the weights below: use "
                "FrozenModel with a copy made before the adapters were put on, or adapters that "
                "begin otherwise (init_lora_weights=True)"
            )
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"adapters must be a part of the model's layers, got {config.peft_type.value} as "
                f"adapter {name!r}, a learnt prompt: use LoRA"
            )


def _check_all_trained(model: Any) -> None:
    """Refuse an active adapter that stays as it is beside others that are trained."""
    trained = {
        part
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for part in name.split(".")
    }
    active = list(model.active_adapters)
    held = [name for name in active if name not in trained]
    if held and len(held) < len(active):
        raise ValueError(
            f"every active adapter must be trained, got {held[0]!r} active and not trained beside "
            f"{next(name for name in active if name in trained)!r}: with adapters off the model "
            "would be without it; merge it first (merge_and_unload), or use FrozenModel with a copy"
        )


def adapter_prefixes(model: Any) -> tuple[str, ...]:
    """What the names of a PEFT model's adapter parameters contain."""
    return tuple(getattr(getattr(model, "base_model", None), "prefix", "lora_").split(","))


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Evaluation mode with adapters off; every mode and every `requires_grad` is put back after."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluating(model), model.disable_adapter():
            yield
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


@torch.no_grad()
def _reference_states(model: nn.Module, batch: Mapping[str, Tensor]) -> pk.ReferenceStates:
    places = batch.get("position_ids")  # of packed sequences
    states = hidden_states(model, batch["input_ids"], batch["attention_mask"], places)  # (B, L, D)
    full = states[batch["row_sequence"], batch["row_position"]]  # (N, D)
    post = None
    if "post_input_ids" in batch:
        if batch["post_input_ids"].shape[0] == 0:
            post = full
        else:
            ids, mask = batch["post_input_ids"], batch["post_attention_mask"]
            states = hidden_states(model, ids, mask, batch.get("post_position_ids"))
            post = states[batch["post_sequence"], batch["post_position"]]  # (N, D)
    head = output_head(causal_lm(model))
    return pk.ReferenceStates(full, post, head.weight.detach(), head.bias)
