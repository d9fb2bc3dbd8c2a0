"""Before the first step the student is its reference: compare them once, before hours are spent.

Legend: N answer rows, D hidden size, K safety tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import pact_kernels as pk
from pact.data.collate import has_anchors, held_part
from pact.models import base_head, evaluating, head_and_states, hidden_states
from pact.objective import Objective, PactObjective
from pact.objective.pact import holds_anchors_only
from pact.reference.cache import CachedReference
from pact.reference.centred import CentredLogits, centred_logits, centred_reference
from pact.reference.live import Reference

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest difference that is rounding, relative to the largest value, by the products' precision.
It covers values that a cache keeps in 16 bits."""
COMPARED_TOKENS = 32
"""How many ids are compared for an objective without safety tokens: any few do, since their
log-confidences hold the sum over all others."""


def is_fresh(model: nn.Module) -> bool:
    """Whether the model has LoRA adapters and every one of them is still the identity."""
    zero_at_first = [
        parameter
        for name, parameter in model.named_parameters()
        if "lora_B." in name or "lora_embedding_A." in name
    ]
    return bool(zero_at_first) and not any(bool(p.detach().any()) for p in zero_at_first)


def check_at_start(
    model: nn.Module,
    reference: Reference | None,
    batch: Mapping[str, Tensor],
    objective: Objective,
) -> None:
    """`check_same_model`, where the student with its fresh adapters should be its reference."""
    if reference is not None and reference.is_student and is_fresh(model):
        check_same_model(model, reference, batch, objective)


@torch.no_grad()
def check_same_model(
    model: nn.Module, reference: Reference, batch: Mapping[str, Tensor], objective: Objective
) -> float:
    """Compare the student's selected logits with the reference's on the full context.

    Call it before the first step, where the student is its reference: its adapters are fresh, or
    it is trained whole from the reference's weights. Logits are compared up to the shift that the
    objective does not see, the student with its dropout off, and the reference as it is.

    Args:
        model: the student.
        reference: the frozen model, live or cached.
        batch: a collated batch on the model's device, with at least one row.
        objective: its safety tokens and `over`, or the first of all tokens where it has none.

    Returns:
        The largest difference, in nats; 0 where the batch has no row, or a cache none of them.

    Raises:
        ValueError: they differ by more than rounding; it says the likely cause.
    """
    if holds_anchors_only(objective) and isinstance(reference, CachedReference):
        if not has_anchors(batch):
            return 0.0
        batch = held_part(batch)
    head = base_head(model)
    token_ids, over = _compared(objective, head.weight.shape[0])
    token_ids = token_ids.to(head.weight.device)

    def known() -> CentredLogits:
        return centred_reference(reference(batch), head, token_ids, over)

    with evaluating(model):
        places = batch.get("position_ids")  # of packed sequences
        states = hidden_states(model, batch["input_ids"], batch["attention_mask"], places)
    hidden = states[batch["row_sequence"], batch["row_position"]]  # (N, D)
    student = centred_logits(*head_and_states(model, hidden), token_ids, over)  # (N, K)
    full = known().full  # (N, K)
    if full.numel() == 0:
        return 0.0
    device = head.weight.device.type
    exact = head.weight.dtype == torch.float32 and not torch.is_autocast_enabled(device)
    scale = student.abs().max().clamp(min=1.0).item()
    limit_nats = TOLERANCE["fp32" if exact else "bf16"] * scale
    difference_nats = _largest(student, full)
    if difference_nats <= limit_nats:
        return difference_nats
    noise_nats = _largest(full, known().full)
    raise ValueError(
        "before the first step the student must be its reference, and their logits of the safety "
        f"tokens differ by up to {difference_nats:.3g} nats, where rounding allows "
        f"{limit_nats:.1g}: " + _cause(model, reference(batch), noise_nats > limit_nats)
    )


def _compared(objective: Objective, vocabulary: int) -> tuple[Tensor, str]:
    """(K,) tokens whose logits are compared, and up to which shift."""
    if isinstance(objective, PactObjective):
        return objective.token_ids, objective.config.over
    return torch.arange(min(COMPARED_TOKENS, vocabulary)), "vocabulary"


def _largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; NaN counts as infinite."""
    return (ours - theirs).abs().nan_to_num(nan=torch.inf).max().item()


def _cause(
    model: nn.Module, yielded: pk.ReferenceStates | pk.ReferenceLogits, is_noisy: bool
) -> str:
    if is_noisy:
        return "the reference differs from itself, so its dropout is on; call eval() on its model"
    if hasattr(model, "peft_config") and not is_fresh(model):
        return (
            "the student's adapters are not the identity; take fresh ones, or check the run that "
            "they come from"
        )
    if isinstance(yielded, pk.ReferenceLogits):
        return "the cache is of another model or other data; delete its folder to fill it again"
    return (
        "the reference is another model, or runs with adapters on; use AdaptersOff(student), or "
        "FrozenModel with a copy made before training"
    )
