"""Means whose denominator may belong to a larger step than the rows at hand, and their gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.dispatch import uses_triton


def mean_of(
    total: Tensor, num_rows: int | Tensor, num_items: int | float | Tensor | None
) -> Tensor:
    """total / num_items, or total / num_rows without it; 0 of them count as 1."""
    if num_items is None:
        num_items = num_rows.clamp(min=1) if isinstance(num_rows, Tensor) else max(num_rows, 1)
    elif isinstance(num_items, Tensor):  # a number is known to be positive
        num_items = (num_items + (num_items == 0)).to(total.dtype)
    return total / num_items


def assumed_grad_output(
    hidden: Tensor,
    reduction: str,
    num_rows: Callable[[], int | Tensor],
    num_items: int | float | Tensor | None,
) -> Tensor | None:
    """() what backward brings to the rows' sum if nothing comes after the loss; None is unknown.

    Gradients that are formed for it need no further pass over them. On a GPU, or while compiling,
    comparing it in backward would wait; in fp16 a gradient of a mean may underflow.
    """
    elsewhere = hidden.device.type != "cpu" or uses_triton(hidden) or torch.compiler.is_compiling()
    if reduction == "none" or elsewhere or hidden.dtype == torch.float16:
        return None
    one = torch.ones((), dtype=accumulator_dtype(hidden.dtype))
    return one if reduction == "sum" else mean_of(one, num_rows(), num_items).detach()
