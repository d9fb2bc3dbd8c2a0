"""The rule for errors: at most twice those of eager torch at the same dtype, and a stated floor."""

from __future__ import annotations

import torch
from torch import Tensor

import pact_kernels as pk

FLOOR = {
    # Eight roundings of 2^-24, the depth of the tree that adds some 2^8 terms, where eager happens
    # to make none: the error of one number has no mean to lie near.
    torch.float32: 5e-7,
    torch.bfloat16: 1e-3,  # a quarter of a rounding (2^-8)
    torch.float16: 1e-4,  # a quarter of one (2^-11)
}
NEAR = 1e-5
"""How near to top_p a cumulative sum may lie before a rounding may change the count."""


def near_a_jump(logits: Tensor, gate: pk.GateConfig) -> Tensor:
    """Rows where a cumulative sum of the sorted softmax lies within NEAR of top_p."""
    mass = (logits / gate.temperature).softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    return ((mass - gate.top_p).abs() < NEAR).any(-1)


def assert_at_most_twice(
    got: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Root mean squares of the errors, relative to those of the exact values (fp64)."""
    assert got.keys() == eager.keys() == exact.keys()
    for name, value in exact.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype == eager[name].dtype, name
        if value.numel() == 0:
            continue
        size = max(float(value.double().square().mean().sqrt()), 1e-9)
        ours, theirs = (
            float((found[name].double() - value).square().mean().sqrt()) / size
            for found in (got, eager)
        )
        assert ours <= 2 * theirs + FLOOR[dtype], f"{name}: {ours:.2e}, eager {theirs:.2e}"
