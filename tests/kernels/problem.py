"""Small problems for the products with a head, and how near to float64 their results lie.

Products are summed in fp32 whatever the dtype. So besides the rule of `precision`, results are held
against float64 values of the same rounded inputs, within some roundings of fp32.

Legend: N rows, D hidden size, V vocabulary (or K selected tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pact_kernels.types import Head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTH = 147  # beyond two steps of 64; rows of 294 bytes, which no descriptor takes
EVEN_WIDTH = 144  # rows of 288 bytes: descriptors, and a ragged last step
TOKENS = 301  # a whole vocabulary tile of at most 256, and a ragged one
PLENTY = 2**28
"""A limit in bytes that no test reaches."""
TOLERANCE = 64 * 2.0**-24
"""Roundings of fp32. A sum of D products is off by some sqrt(D) roundings of its partial sums,
which are of the sums' size: by 12 for WIDTH. What is added after it makes a few more, and the
largest error of some thousand values lies at four to five times the usual one."""
HEADS: dict[str, dict[str, Any]] = {
    "plain": {"softcap": None, "logit_scale": 1.0},
    "scaled": {"softcap": None, "logit_scale": -0.7},
    "capped": {"softcap": 4.0, "logit_scale": 1.3},  # logits of a few units: well into the cap
}


@dataclass
class Problem:
    """States of some rows and a head."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)

    def exact(self) -> Problem:
        """The same values in float64."""
        return Problem(self.hidden.double(), self.weight.double(), self.bias.double())

    def logits(self, *, softcap: float | None = None, logit_scale: float = 1.0) -> Tensor:
        """(N, V) logits with the bias, in float64."""
        p = self.exact()
        z = logit_scale * (p.hidden @ p.weight.T + p.bias)
        return z if softcap is None else softcap * torch.tanh(z / softcap)


def problem(
    rows: int = 37,  # no multiple of a tile or of a vector
    width: int = WIDTH,
    tokens: int = TOKENS,
    dtype: torch.dtype = torch.float32,
    *,
    scale: float = 3.0,  # logits of a few units: softmax neither flat nor one-hot
    seed: int = 0,
) -> Problem:
    """Random normal states, weights and biases."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    hidden, weight = randn(rows, width), randn(tokens, width) * scale / width**0.5
    return Problem(hidden.to(dtype), weight.to(dtype), randn(tokens).to(dtype))


def with_exact_sums(p: Problem) -> Problem:
    """The same states and head in quarters and sixteenths: fp32 adds their products exactly.

    A sum of D products is a multiple of 1/64, and below D * 8 * 4 for values drawn by `problem`:
    64 * 147 * 32 is less than 2^24. So no order of the terms, which differs by processor, by shape
    and by layout, changes a bit of a logit.
    """
    hidden, weight, bias = (
        (t.float() * steps).round() / steps
        for t, steps in ((p.hidden, 4), (p.weight, 16), (p.bias, 16))
    )
    assert float(hidden.abs().max()) <= 8 and float(weight.abs().max()) <= 4
    assert hidden.shape[1] <= WIDTH
    dtypes = p.hidden.dtype, p.weight.dtype, p.bias.dtype
    return Problem(*(t.to(dtype) for t, dtype in zip((hidden, weight, bias), dtypes, strict=True)))


def amid_nans(matrix: Tensor, columns: int = 8) -> Tensor:
    """The same values as a strided view, before, between and after whose rows lie NaNs.

    Eight columns more keep 16-byte rows of 16-bit values; an odd number breaks them.
    """
    rows, width = matrix.shape
    buffer = matrix.new_full((rows + 2, width + columns), torch.nan)
    view = buffer[1:-1, :width]
    view.copy_(matrix)
    return view


def assert_near(got: Tensor, exact: Tensor, tolerance: float = TOLERANCE) -> None:
    """fp32 within `tolerance` of the largest value."""
    assert got.dtype == torch.float32
    assert got.shape == exact.shape
    size = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=tolerance * max(size, 1e-9))


def with_head(weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> tuple[Head, Any]:
    """The head with its numbers out of the options, and the other options."""
    rest = dict(options)
    return Head(weight, bias, rest.pop("softcap", None), rest.pop("logit_scale", 1.0)), rest
