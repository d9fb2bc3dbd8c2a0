"""Checks of the arguments that the ops share.

Shapes, dtypes and devices are checked where the op is called; values inside the operators, and on
a CPU alone, since looking at them on a GPU would stall it.

Legend: B sequences, L positions, R = B L, N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.ops._checks.token_ids import check_token_ids
from pact_kernels.ops._operators.library import autocast_enabled
from pact_kernels.types import LEAST_NUMBER, MOST_NUMBER, Head

REDUCTIONS = ("mean", "sum", "none")
INTEGERS = (torch.int64, torch.int32)
IN_FP32 = " (numbers are applied in fp32, 1.2e-38 to 3.4e38)"


def autocast_inputs(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Inside an autocast region, all tensors in its dtype: 16-bit products, fp32 reductions."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not autocast_enabled(device):
        return hidden, head
    dtype = torch.get_autocast_dtype(device)
    bias = None if head.bias is None else head.bias.to(dtype)
    return hidden.to(dtype), head._replace(weight=head.weight.to(dtype), bias=bias)


def whole_or_local(head: Head, process_group: object) -> Head:
    """The head, or of a sharded one the part that this process holds."""
    if process_group is None:
        return head
    from pact_kernels.ops._parallel.shards import local_head

    return local_head(head, process_group)


def check_head(hidden: Tensor, head: Head, name: str = "hidden") -> None:
    """hidden (..., D) and weight (V, D) of one floating dtype on one device; bias (V,); numbers."""
    weight, bias, softcap, logit_scale = head
    if hidden.dim() not in (2, 3):
        raise ValueError(f"{name} must be (N, D) or (B, L, D), got shape {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must be (V, D) with the D of {name}, got {tuple(weight.shape)} and {name} "
            f"{tuple(hidden.shape)}: pass the head's weight as nn.Linear holds it"
        )
    cast = hidden.dtype != torch.float64 and autocast_enabled(hidden.device.type)
    if not hidden.is_floating_point() or (hidden.dtype != weight.dtype and not cast):
        raise ValueError(
            f"{name} and weight must share one floating dtype, got {hidden.dtype} and "
            f"{weight.dtype}: cast one of them, or call inside torch.autocast"
        )
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            f"weight must be whole, got {type(weight).__name__}: gather a sharded head with "
            "weight.full_tensor(grad_placements=[Partial()]), or give process_group where every "
            "process has the same states"
        )
    check_devices(hidden, name, weight=weight, bias=bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be (V,) = ({weight.shape[0]},), got {tuple(bias.shape)}")
    if softcap is not None and not LEAST_NUMBER <= softcap <= MOST_NUMBER:
        raise ValueError(f"softcap must be positive and finite, or None, got {softcap}{IN_FP32}")
    if logit_scale == 0:
        raise ValueError("logit_scale must not be 0: every logit would vanish")
    if not LEAST_NUMBER <= abs(logit_scale) <= MOST_NUMBER:
        raise ValueError(f"logit_scale must be finite, got {logit_scale}{IN_FP32}")


def check_devices(hidden: Tensor, name: str = "hidden", /, **tensors: Tensor | None) -> None:
    """Every tensor on the device of `hidden`."""
    for other, tensor in tensors.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(
                f"{name} and {other} must be on one device, got {hidden.device} and "
                f"{tensor.device}: move one of them"
            )


def check_cross_entropy(label_smoothing: float, z_loss: float) -> None:
    """The scalars of the cross-entropy."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if not 0.0 <= z_loss <= MOST_NUMBER:
        raise ValueError(f"z_loss must be at least 0, and finite, got {z_loss}")


def check_temperature(temperature: float) -> None:
    """The number that divides a softmax's logits."""
    if not LEAST_NUMBER <= temperature <= MOST_NUMBER:
        raise ValueError(f"temperature must be positive and finite, got {temperature}{IN_FP32}")


def check_reduction(reduction: str, num_items: int | float | Tensor | None) -> None:
    """A known reduction, and num_items only where there is a mean to form with it."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"num_items is the denominator of reduction='mean', got reduction={reduction!r}: leave "
            "it out"
        )
    if isinstance(num_items, Tensor):
        if num_items.dim() != 0:
            raise ValueError(
                f"num_items must be a number or a 0-d tensor, got shape {tuple(num_items.shape)}"
            )
        if may_be_looked_at(num_items) and not 0 <= float(num_items) <= MOST_NUMBER:
            raise ValueError(
                f"num_items must be at least 0 (which counts as 1) and finite, got {num_items}"
            )
    elif not LEAST_NUMBER <= num_items <= MOST_NUMBER:
        raise ValueError(f"num_items must be positive and finite, got {num_items}{IN_FP32}")


def may_be_looked_at(tensor: Tensor) -> bool:
    """Whether a tensor's value is at hand: on a CPU, and not while a graph is traced."""
    plain = type(tensor) is Tensor and not torch.compiler.is_compiling()
    return plain and tensor.device.type == "cpu"


def check_target(hidden: Tensor, target: Tensor) -> Tensor:
    """(R,) int64 targets of hidden (..., D); target has hidden's shape without D."""
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            "target must have hidden's shape without its last dimension, "
            f"{tuple(hidden.shape[:-1])}, got {tuple(target.shape)}"
        )
    if target.dtype not in INTEGERS:
        raise ValueError(f"target must be int64 or int32, got {target.dtype}")
    check_devices(hidden, target=target)
    return target.reshape(-1).long()


def num_rows_hint(
    hidden: Tensor, target: Tensor, ignore_index: int, step: Tensor | None = None
) -> int | None:
    """What the host knows of the number of rows N among R targets; None lets the operator look.

    Row tensors that are shorter than the target tell it. Else, on a GPU, hidden (N, D) is taken as
    it is, ignored rows and all, and waits for nothing; of hidden (B, L, D), most of it prompt or
    padding as a rule, the rows are worth waiting for, once. A CUDA graph's capture cannot wait.
    """
    if step is not None and step.numel() != target.numel():
        return step.numel()
    if hidden.device.type != "cuda":
        return None
    if hidden.dim() == 2:
        return target.numel()
    if torch.compiler.is_compiling():
        return None
    if torch.cuda.is_current_stream_capturing():
        return target.numel()
    return int((target != ignore_index).sum())


def check_tokens(hidden: Tensor, token_ids: Tensor, vocabulary: int) -> Tensor:
    """token_ids (K,), 1 <= K <= V, distinct int64 in [0, V)."""
    check_token_shapes(hidden, token_ids, None, vocabulary)
    return check_token_ids(token_ids, None, vocabulary)


def check_token_shapes(
    hidden: Tensor,
    token_ids: Tensor,
    token_weights: Tensor | None,
    vocabulary: int,
    *,
    by_row: bool = False,
) -> None:
    """token_ids (K,), or (N, K) `by_row`, int64 with 1 <= K <= V; token_weights (K,)."""
    if token_ids.dim() != (2 if by_row else 1) or token_ids.dtype != torch.int64:
        shape = "(N, K)" if by_row else "(K,)"
        raise ValueError(
            f"token_ids must be {shape} int64, got {tuple(token_ids.shape)} {token_ids.dtype}"
        )
    if not 1 <= token_ids.shape[-1] <= vocabulary:
        raise ValueError(
            f"K must be from 1 to V={vocabulary} selected tokens, got {token_ids.shape[-1]}: run "
            "the discovery with another top_k"
        )
    if by_row:
        check_devices(hidden, token_ids=token_ids)
        return
    if token_weights is not None and token_weights.shape != token_ids.shape:
        raise ValueError(
            f"token_weights must be (K,) like token_ids {tuple(token_ids.shape)}, got "
            f"{tuple(token_weights.shape)}"
        )
    check_devices(hidden, token_ids=token_ids, token_weights=token_weights)
