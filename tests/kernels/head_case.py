"""One call of the chunk loop, on the kernels in fp32 or in pure torch in float64.

Legend: R positions, N rows (positions whose target is not ignored), K selected tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.chunked import head_loss as chunked
from pact_kernels.common.requests import KlRequest
from pact_kernels.common.results import HeadLoss
from pact_kernels.kernels import head_loss as kernels
from tests.kernels.chunk import LossOptions
from tests.ops.problem import Problem

ROWS = 37  # of `problem`
PLENTY = 2**24
"""A workspace in bytes that takes every row in one chunk."""
TOLERANCE = 4 * 2.0**-21
"""Four roundings of a logit between 8 and 16, as the largest of `problem` are. A loss is off by as
much in nats, however small it is, and a probability, so a gradient, by that much of its size."""
ALL = (True, True, True)
NONE = (False, False, False)


def spread(rows: Tensor, kept: Tensor) -> Tensor:
    """One entry per position instead of one per row; NaN where ignored, or a step long past."""
    poison_value = torch.nan if rows.is_floating_point() else 10**6
    out = torch.full((kept.numel(), *rows.shape[1:]), poison_value, dtype=rows.dtype)
    out[kept] = rows
    return out


def kl_spec(
    p: Problem,
    over: str,
    dtype: torch.dtype,
    *,
    by_position: bool = False,
    options: LossOptions | None = None,
) -> KlRequest:
    """The whole KL: gate, row weights, a kl_weight, a reference in states."""
    full, post, weight, bias = p.states
    assert post is not None and bias is not None
    lse = [torch.logsumexp(s @ weight.T + bias, -1).to(dtype) for s in (full, post)]
    rows = {
        "step": p.step,
        "reference_full": full.to(dtype),
        "reference_post": post.to(dtype),
        "full_lse": lse[0],
        "post_lse": lse[1],
        "row_weight": p.row_weight.to(dtype),
    }
    if by_position:
        rows = {name: spread(tensor, p.target != -100) for name, tensor in rows.items()}
    reference = (options or LossOptions()).head(bias.to(dtype), weight.to(dtype))
    return KlRequest(
        token_weights=p.token_weights.to(dtype),
        reference_head=reference.select(p.token_ids),
        gate=pk.GateConfig(),
        over=over,  # type: ignore[arg-type]
        temperature=2.0 if over == "selection" else 1.0,
        kl_weight=1.7,
        **rows,
    )


def run(
    p: Problem,
    over: str | None,
    *,
    exact: bool = False,
    by_position: bool = False,
    options: LossOptions | None = None,
    target: bool = True,
    needs_grad: tuple[bool, bool, bool] = ALL,
    row_grad: Tensor | None = None,
    limit_bytes: int = PLENTY,
    num_rows: int | None = None,
) -> HeadLoss:
    """The kernels' loop in fp32, or with `exact` the pure-torch one in float64."""
    options = options or LossOptions(label_smoothing=0.1, z_loss=0.01)
    dtype, module = (torch.float64, chunked) if exact else (torch.float32, kernels)
    return module.head_loss(
        p.hidden.to(dtype),
        options.head(p.bias.to(dtype), p.weight.to(dtype)),
        p.target if target else None,
        None if over is None else p.token_ids,
        term=options.request,
        kl=None
        if over is None
        else kl_spec(p, over, dtype, by_position=by_position, options=options),
        row_grad=None if row_grad is None else row_grad.to(dtype),
        needs_grad=needs_grad,
        limit_bytes=limit_bytes,
        num_rows=num_rows,
    )


def assert_near(got: HeadLoss, exact: HeadLoss, tolerance: float = TOLERANCE) -> None:
    """Every result within its tolerance of the largest one, or of 1 where all are smaller."""
    for name, value in exact._asdict().items():
        found = getattr(got, name)
        assert found.shape == value.shape, name
        assert found.dtype == (torch.int64 if name == "num_rows" else torch.float32), name
        if value.numel() == 0:
            continue
        size = max(float(value.abs().max()), 1.0)
        error = float((found.double() - value.double()).abs().max()) / size
        assert error <= tolerance, f"{name}: {error:.1e}"
