"""Counting rows, reducing their losses, and scaling a gradient where it must be.

Legend: N rows.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pact_kernels.common.reduction import Reduction
from pact_kernels.kernels._kernels.row_reduction import (
    BLOCK,
    RowCount,
    RowSums,
    launch_row_count,
    launch_row_sums,
)
from pact_kernels.kernels._kernels.scale_gradient import launch_scale_gradient

MANY = BLOCK + 37  # a whole block of rows and a ragged one


def count_of(target: Tensor | None, reduction: Reduction, num_rows: int) -> RowCount:
    """With buffers that held something else."""
    count = RowCount(torch.tensor(-7), torch.tensor(torch.nan), torch.full((num_rows,), torch.nan))
    launch_row_count(target, reduction, count, num_rows=num_rows, ignore_index=-100)
    return count


def targets(num_rows: int) -> Tensor:
    target = torch.arange(num_rows)
    target[::3] = -100
    return target


# reduction -> the denominator of N rows of which n count
REDUCTIONS = {
    "mean": (Reduction("mean"), lambda n: max(n, 1)),
    "sum": (Reduction("sum"), lambda n: 1),
    "number": (Reduction("mean", None, 96.0), lambda n: 96),
    "tensor": (Reduction("mean", torch.tensor(96)), lambda n: 96),
    "zero": (Reduction("mean", torch.tensor(0.0)), lambda n: 1),
}


@pytest.mark.parametrize("num_rows", [0, 1, 37, MANY])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_rows_are_counted(name: str, num_rows: int) -> None:
    reduction, denominator = REDUCTIONS[name]
    for target in (targets(num_rows), None):
        counted = num_rows if target is None else int((target != -100).sum())
        count = count_of(target, reduction, num_rows)
        assert int(count.num_rows) == counted
        inverse = 1.0 / denominator(counted)
        assert float(count.inverse) == pytest.approx(inverse, rel=1e-6)
        assert torch.equal(count.row_grad, count.inverse.expand(num_rows))


@pytest.mark.parametrize("num_rows", [1, 37, MANY])
@pytest.mark.parametrize("kl_weight", [None, 1.7])
def test_losses_are_reduced(kl_weight: float | None, num_rows: int) -> None:
    values = torch.rand(3, num_rows, generator=torch.Generator().manual_seed(0))
    if kl_weight is None:
        values[1:] = torch.nan  # not read
    count = count_of(targets(num_rows), Reduction("mean"), num_rows)
    sums = RowSums(torch.tensor(torch.nan), torch.full((3,), torch.nan))
    launch_row_sums(values, count, sums, kl_weight=kl_weight)
    counted = max(int(count.num_rows), 1)
    term, kl, gate = (values if kl_weight else values[:1]).double().sum(1).tolist() + (
        [] if kl_weight else [0.0, 0.0]
    )
    expected = [term / counted, kl / counted, gate / counted]
    torch.testing.assert_close(sums.reports, torch.tensor(expected), rtol=1e-5, atol=0)
    loss = expected[0] + (kl_weight or 0.0) * expected[1]
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_a_gradient_is_scaled_in_place(scale: float, dtype: torch.dtype) -> None:
    """Small whole numbers: halves are exact in every dtype."""
    gradient = (torch.arange(8192 + 5) % 128).to(dtype)  # a program's entries and a few more
    before = gradient.clone()
    launch_scale_gradient(gradient, torch.tensor(scale))
    assert torch.equal(gradient, before * scale)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_gradient_is_scaled_into_another_dtype(scale: float) -> None:
    """Rounded once on a card; the interpreter truncates, by less than a unit of 2^-7."""
    gradient = torch.full((8192 + 5,), 1 / 3)
    out = torch.full((8192 + 5,), float("nan"), dtype=torch.bfloat16)
    launch_scale_gradient(gradient, torch.tensor(scale), out)
    torch.testing.assert_close(out.float(), gradient * scale, rtol=2**-7, atol=0)
    assert torch.equal(gradient, torch.full((8192 + 5,), 1 / 3))
