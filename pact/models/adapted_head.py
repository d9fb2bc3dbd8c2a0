"""An output head with LoRA adapters on it, as one plain head that is a few columns wider.

    (W + s B A) h = [W  B] [h; s A h]

so the head's matrix is [W B], (V, D + r), and the states are [h; s A h], (N, D + r): the merged
matrix is never formed. [W B] is one buffer for as long as W stays as it is; a step writes the r
columns of B into it. The ops take it as any head.

Legend: N rows, D hidden size, V vocabulary, r the adapters' ranks together.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pact_kernels.types import Head


class _Joined(NamedTuple):
    """[W B] of a layer, and what W was when it was made."""

    buffer: Tensor
    of: tuple[Any, ...]


_joined: WeakKeyDictionary[nn.Module, _Joined] = WeakKeyDictionary()


class _WithColumns(torch.autograd.Function):
    """[W B] with B's columns written; the gradient is B's alone."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, buffer: Tensor) -> Tensor:
        ctx.rank, ctx.dtype = columns.shape[1], columns.dtype
        buffer[:, -columns.shape[1] :] = columns.detach()
        return buffer.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[:, -ctx.rank :].to(ctx.dtype), None


def is_adapted(layer: nn.Module) -> bool:
    """Whether a head has LoRA adapters that apply as they are set now."""
    if not type(layer).__module__.startswith("peft.") or not hasattr(layer, "lora_A"):
        return False
    return not layer.disable_adapters and bool(_active(layer))


def base_linear(layer: nn.Module) -> nn.Module:
    """The layer below LoRA adapters, or the layer itself."""
    has_lora = type(layer).__module__.startswith("peft.") and hasattr(layer, "lora_A")
    return layer.base_layer if has_lora else layer  # type: ignore[return-value]


def adapted_head(layer: Any, head: Head, hidden: Tensor) -> tuple[Tensor, Head]:
    """The states (..., D + r) and the head (V, D + r) that give the adapted layer's logits.

    Args:
        layer: the adapted head.
        head: of the layer below, with bias, soft cap and scale.
        hidden: (..., D)

    Raises:
        ValueError: adapters that are not LoRA's sum of two products, or merged ones, or a head that
            is trained itself.
    """
    names = _active(layer)
    variants = [name for name in names if name in getattr(layer, "lora_variant", {})]
    biased = [name for name in names if layer.lora_B[name].bias is not None]
    if variants or biased:
        raise ValueError(
            f"adapters on the output head must be LoRA's B A alone, got adapter "
            f"{(variants + biased)[0]!r} with DoRA or a bias: take the head out of target_modules"
        )
    if layer.merged:
        raise ValueError("adapters on the output head are merged: call unmerge_adapter first")
    if head.weight.requires_grad:
        raise ValueError("a head under adapters must be frozen, got one that is trained too")
    parts, columns = [hidden], []
    for name in names:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        dropped = layer.lora_dropout[name](hidden.to(a.dtype))
        low = layer.scaling[name] * nn.functional.linear(dropped, a)  # (..., r)
        parts.append(low.to(hidden.dtype))
        columns.append(b)
    joined = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
    weight = _WithColumns.apply(joined, _buffer(layer, head.weight, joined.shape[1]))
    return torch.cat(parts, -1), head._replace(weight=weight)


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _buffer(layer: nn.Module, weight: Tensor, rank: int) -> Tensor:
    """[W B] of a layer, made anew where W is another one or was written to."""
    of = (weight.data_ptr(), weight._version, weight.dtype, weight.device, rank)
    known = _joined.get(layer)
    if known is None or known.of != of:
        vocabulary, width = weight.shape
        buffer = weight.new_empty(vocabulary, width + rank)
        buffer[:, :width] = weight.detach()
        known = _joined[layer] = _Joined(buffer, of)
    return known.buffer
