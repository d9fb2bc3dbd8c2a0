"""gradient * incoming scalar: the whole backward of an op that forms its gradient in the forward."""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.ops.library import register


def _run(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * scale).to(dtype)


def _fake(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


scale_gradient = register(
    "scale_gradient", "(Tensor gradient, Tensor scale, ScalarType dtype) -> Tensor", _run, _fake
)
