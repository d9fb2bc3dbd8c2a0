"""Checks of the arguments that the ops share, and their flattening to rows.

Shapes and dtypes are checked where the op is called. Values are checked inside the operator, and on a CPU
alone: looking at them on a GPU would stall it.

Legend: B sequences, L positions, R = B L, N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.types import GateConfig, ReferenceLogits, ReferenceStates

REDUCTIONS = ("mean", "sum", "none")


def autocast_inputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inside an autocast region, all three in its dtype: 16-bit products, fp32 reductions."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, name: str = "hidden") -> None:
    """hidden (..., D) and weight (V, D) of one floating dtype on one device; bias (V,)."""
    if hidden.dim() not in (2, 3):
        raise ValueError(f"{name} must be (N, D) or (B, L, D), got shape {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must be (V, D) with the D of {name}, got {tuple(weight.shape)} and {name} "
            f"{tuple(hidden.shape)}: pass the head's weight as nn.Linear holds it"
        )
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise ValueError(
            f"{name} and weight must share one floating dtype, got {hidden.dtype} and {weight.dtype}: "
            "cast one of them, or call inside torch.autocast"
        )
    if hidden.device != weight.device:
        raise ValueError(
            f"{name} and weight must be on one device, got {hidden.device} and {weight.device}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be (V,) = ({weight.shape[0]},), got {tuple(bias.shape)}")


def check_numbers(
    *, softcap: float | None, logit_scale: float, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> None:
    """The scalars of the head and of the cross-entropy."""
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive or None, got {softcap}")
    if logit_scale == 0:
        raise ValueError("logit_scale must not be 0: every logit would vanish")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss must be at least 0, got {z_loss}")


def check_reduction(reduction: str, num_items: int | float | Tensor | None) -> None:
    """A known reduction, and num_items only where there is a mean to form with it."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"num_items is the denominator of reduction='mean', got reduction={reduction!r}: leave it out"
        )
    if not isinstance(num_items, Tensor) and not num_items > 0:
        raise ValueError(f"num_items must be positive, got {num_items}")


def check_target(hidden: Tensor, target: Tensor) -> Tensor:
    """(R,) int64 targets of hidden (..., D); target has hidden's shape without D."""
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target must have hidden's shape without its last dimension, {tuple(hidden.shape[:-1])}, got "
            f"{tuple(target.shape)}"
        )
    if target.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"target must be int64, got {target.dtype}")
    return target.reshape(-1).long()


def check_tokens(token_ids: Tensor, token_weights: Tensor | None, vocabulary: int) -> None:
    """token_ids (K,) int64 with 1 <= K <= V, token_weights (K,)."""
    if token_ids.dim() != 1 or token_ids.dtype != torch.int64:
        raise ValueError(
            f"token_ids must be (K,) int64, got {tuple(token_ids.shape)} {token_ids.dtype}"
        )
    if not 1 <= token_ids.numel() <= vocabulary:
        raise ValueError(
            f"K must be from 1 to V={vocabulary} selected tokens, got {token_ids.numel()}: run the discovery "
            "with a larger top_k"
        )
    if token_weights is not None and token_weights.shape != token_ids.shape:
        raise ValueError(
            f"token_weights must be (K,) like token_ids {tuple(token_ids.shape)}, got "
            f"{tuple(token_weights.shape)}"
        )


def check_token_values(token_ids: Tensor, token_weights: Tensor | None, vocabulary: int) -> None:
    """On a CPU: ids distinct and within the vocabulary, some weight positive."""
    if token_ids.is_cuda:
        return
    if int(token_ids.min()) < 0 or int(token_ids.max()) >= vocabulary:
        raise ValueError(
            f"token_ids must lie in [0, {vocabulary}), got {int(token_ids.min())} to {int(token_ids.max())}: "
            "the tokens belong to another vocabulary"
        )
    if token_ids.unique().numel() != token_ids.numel():
        raise ValueError("token_ids must be distinct, got an id twice: take torch.unique of them")
    if token_weights is not None and not bool((token_weights > 0).any()):
        raise ValueError(
            "token_weights must have a positive entry, got none: the target of over='selection' is empty"
        )


def resolve_temperature(over: str, temperature: float | None) -> float:
    """The KL's temperature: 2 for the selection, 1 for the vocabulary."""
    if over not in ("selection", "vocabulary"):
        raise ValueError(f"over must be 'selection' or 'vocabulary', got {over!r}")
    if over == "vocabulary":
        if temperature not in (None, 1, 1.0):
            raise ValueError(
                f"over='vocabulary' matches confidences at temperature 1, got {temperature}: leave it out"
            )
        return 1.0
    if temperature is None:
        return 2.0
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return float(temperature)


def flat_rows(
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    row_weight: Tensor | None,
    *,
    num_tokens: int,
    gate: GateConfig | None,
    over: str,
) -> tuple[Tensor, ReferenceLogits | ReferenceStates, Tensor | None]:
    """step (N,), reference with (N, ...) tensors and row_weight (N,), all of one N.

    Each may come with the leading shape (B, L), one entry per position.
    """
    if step.is_floating_point() or step.dtype == torch.bool:
        raise ValueError(f"step must hold integers, got {step.dtype}")
    num_rows = step.numel()
    needed = ["full"] + (["post"] if gate is not None else [])
    vectors: tuple[str, ...] = ()
    if isinstance(reference, ReferenceStates):
        width = reference.weight.shape[1]
        needed = [f"{name}_hidden" for name in needed]
        matrices = ("full_hidden", "post_hidden")
    else:
        width = num_tokens
        if over == "vocabulary":
            needed += [f"{name}_lse" for name in needed]
        matrices, vectors = ("full", "post"), ("full_lse", "post_lse")
    for name in needed:
        if getattr(reference, name) is None:
            raise ValueError(
                f"reference.{name} is needed by over={over!r} with gate={gate}, got None: give it, or "
                "pass gate=None to use the full-context reference alone"
            )
    flat: dict[str, Any] = {
        name: _matrix(getattr(reference, name), num_rows, width, name) for name in matrices
    }
    flat |= {name: _vector(getattr(reference, name), num_rows, name) for name in vectors}
    return (
        step.reshape(-1),
        reference._replace(**flat),
        _vector(row_weight, num_rows, "row_weight"),
    )


def _vector(tensor: Tensor | None, num_rows: int, name: str) -> Tensor | None:
    """`tensor` as (N,), detached."""
    if tensor is None:
        return None
    if tensor.numel() != num_rows:
        raise ValueError(
            f"{name} must have one entry per step, {num_rows}, got {tuple(tensor.shape)}"
        )
    return tensor.detach().reshape(-1)


def _matrix(tensor: Tensor | None, num_rows: int, width: int, name: str) -> Tensor | None:
    """`tensor` as (N, width), detached."""
    if tensor is None:
        return None
    if tensor.dim() < 2 or tensor.shape[-1] != width or tensor.shape[:-1].numel() != num_rows:
        raise ValueError(
            f"reference.{name} must be ({num_rows}, {width}), one row per step, got {tuple(tensor.shape)}"
        )
    return tensor.detach().reshape(num_rows, width)
