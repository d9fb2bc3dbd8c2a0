"""The rule for errors: at most twice those of eager torch at the same dtype, and a stated floor."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ops.test_precision import FLOOR


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
