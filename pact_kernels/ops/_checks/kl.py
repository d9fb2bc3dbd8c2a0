"""Checks of a KL's own arguments, and their flattening to rows.

Legend: B sequences, L positions, N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.ops._checks.arguments import (
    INTEGERS,
    check_devices,
    check_temperature,
    check_token_shapes,
)
from pact_kernels.ops._checks.token_ids import check_token_ids
from pact_kernels.types import (
    MOST_NUMBER,
    GateConfig,
    Head,
    ReferenceLogits,
    ReferenceStates,
)

MOST_TOKENS = 2**24
"""Beyond any vocabulary."""


def resolve_temperature(over: str, temperature: float | None) -> float:
    """The KL's temperature: 2 for the selection, 1 for the vocabulary."""
    if over not in ("selection", "vocabulary"):
        raise ValueError(f"over must be 'selection' or 'vocabulary', got {over!r}")
    if over == "vocabulary":
        if temperature not in (None, 1, 1.0):
            raise ValueError(
                "over='vocabulary' matches confidences at temperature 1, got temperature="
                f"{temperature}: leave it out"
            )
        return 1.0
    if temperature is None:
        return 2.0
    check_temperature(temperature)
    return float(temperature)


def check_kl_weight(kl_weight: float) -> float:
    """A factor on a loss."""
    if not abs(kl_weight) <= MOST_NUMBER:
        raise ValueError(f"kl_weight must be finite, got {kl_weight}")
    return float(kl_weight)


def check_kl(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    token_weights: Tensor | None,
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    row_weight: Tensor | None,
    *,
    gate: GateConfig | None,
    over: str,
    process_group: object = None,
    target: Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor, ReferenceLogits | ReferenceStates, Tensor | None]:
    """The KL's own arguments, flat: token_ids (K,) or (N, K), token_weights (K,), step (N,),
    reference (N, ...), row_weight (N,).

    The row tensors are of one N; each may come with the leading shape (B, L), one entry per
    position, and of ignored targets none is looked at. Token weights are looked at where they are
    used, over the selection.
    """
    # Of a head that is sharded over processes the vocabulary is not known here.
    vocabulary = weight.shape[0] if process_group is None else MOST_TOKENS
    if process_group is not None and isinstance(reference, ReferenceStates):
        reference = _local_reference(reference, process_group)
        if reference.weight.shape[0] != weight.shape[0]:
            raise ValueError(
                f"over a sharded vocabulary the reference's head must be cut as the student's is, "
                f"{weight.shape[0]} rows in this process, got {reference.weight.shape[0]}: give "
                "this process's rows of it"
            )
    by_row = token_ids.dim() > 1
    if by_row:
        token_ids = _by_row(token_ids, step, reference, over, process_group)
    elif token_weights is None:
        raise ValueError(
            "token_weights must be (K,), got None: it may be left out where token_ids are (N, K)"
        )
    check_token_shapes(hidden, token_ids, token_weights, vocabulary, by_row=by_row)
    if by_row or token_weights is None:  # which over the vocabulary nothing reads
        token_weights = token_ids.new_ones(token_ids.shape[-1], dtype=torch.float32)
    if step.dtype not in INTEGERS:
        raise ValueError(f"step must be int64 or int32, got {step.dtype}")
    if not isinstance(reference, ReferenceLogits | ReferenceStates):
        raise ValueError(
            f"reference must be ReferenceLogits or ReferenceStates, got {type(reference).__name__}"
        )
    given = {f"reference.{name}": tensor for name, tensor in reference._asdict().items()}
    check_devices(hidden, **given, step=step, row_weight=row_weight)
    num_rows = step.numel()
    if isinstance(reference, ReferenceStates) and process_group is not None:
        reference = _flat_states(reference, num_rows, gate)
    elif isinstance(reference, ReferenceStates):
        vocabulary = min(vocabulary, reference.weight.shape[0])
        reference = _flat_states(reference, num_rows, gate)
    else:
        reference = _flat_logits(reference, num_rows, token_ids.shape[-1], gate, over)
    row_weight = _vector(row_weight, num_rows, "row_weight")
    used_weights = token_weights if over == "selection" else None
    return (
        check_token_ids(token_ids, used_weights, vocabulary, row_weight, target, ignore_index),
        token_weights.detach(),
        step.reshape(-1),
        reference,
        row_weight,
    )


def _by_row(
    token_ids: Tensor,
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    over: str,
    process_group: object,
) -> Tensor:
    """token_ids as (N, K), a set for each row."""
    if over != "vocabulary":
        raise ValueError(
            "token_ids (N, K), a set for each row, are matched over the vocabulary, got "
            f"over={over!r}"
        )
    if not isinstance(reference, ReferenceLogits):
        raise ValueError(
            "token_ids (N, K) need the reference's stored logits, got states: give ReferenceLogits"
        )
    if process_group is not None:
        raise ValueError("token_ids (N, K) over a sharded vocabulary are not supported")
    if token_ids.shape[:-1].numel() != step.numel():
        raise ValueError(
            f"token_ids must be (K,), or have one row per step, {step.numel()}, got "
            f"{tuple(token_ids.shape)}"
        )
    return token_ids.reshape(step.numel(), token_ids.shape[-1]).contiguous()


def _local_reference(states: ReferenceStates, process_group: object) -> ReferenceStates:
    from pact_kernels.ops._parallel.shards import local_head

    head = local_head(Head(states.weight, states.bias), process_group)
    return states._replace(weight=head.weight, bias=head.bias)


def _flat_states(
    states: ReferenceStates, num_rows: int, gate: GateConfig | None
) -> ReferenceStates:
    """States (N, D) of the contexts in use, weight (V, D), bias (V,)."""
    full, post, weight, bias = states
    if weight.dim() != 2:
        raise ValueError(f"reference.weight must be (V, D), got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"reference.bias must be (V,) = ({weight.shape[0]},), got shape {tuple(bias.shape)}"
        )
    shape = num_rows, weight.shape[1]
    full = _matrix(full, shape, "full_hidden")
    if gate is not None:
        post = _matrix(_given(post, "post_hidden"), shape, "post_hidden")
    return states._replace(full_hidden=full, post_hidden=None if gate is None else post)


def _flat_logits(
    logits: ReferenceLogits, num_rows: int, num_tokens: int, gate: GateConfig | None, over: str
) -> ReferenceLogits:
    """Logits (N, K) and log-sum-exps (N,) of the contexts in use."""
    flat: dict[str, Any] = dict.fromkeys(logits._fields)
    for name in ("full",) if gate is None else ("full", "post"):
        flat[name] = _matrix(_given(getattr(logits, name), name), (num_rows, num_tokens), name)
        if over == "vocabulary":
            name = f"{name}_lse"
            flat[name] = _vector(_given(getattr(logits, name), name), num_rows, f"reference.{name}")
    return logits._replace(**flat)


def _given(tensor: Tensor | None, name: str) -> Tensor:
    """A part of the reference that the options ask for."""
    if tensor is None:
        without = ", or pass gate=None for the full-context reference alone"
        raise ValueError(
            f"reference.{name} is needed with these options, got None: give it"
            + (without if name.startswith("post") else "")
        )
    return tensor


def _vector(tensor: Tensor | None, num_rows: int, name: str) -> Tensor | None:
    """`tensor` as (N,), detached."""
    if tensor is None:
        return None
    if tensor.numel() != num_rows:
        raise ValueError(
            f"{name} must have one entry per step, {num_rows}, got {tuple(tensor.shape)}"
        )
    return tensor.detach().reshape(-1)


def _matrix(tensor: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    """`tensor` as (N, width), detached."""
    num_rows, width = shape
    if tensor.dim() < 2 or tensor.shape[-1] != width or tensor.shape[:-1].numel() != num_rows:
        raise ValueError(
            f"reference.{name} must be ({num_rows}, {width}), one row per step, got "
            f"{tuple(tensor.shape)}"
        )
    return tensor.detach().reshape(num_rows, width)
