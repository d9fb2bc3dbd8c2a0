"""How many rows count, and what their losses come to: one program each, so that a call costs two
launches where torch would take a dozen small ones.

    num_rows = #{n : y_n is not ignored},    inverse = 1 / denominator,   row_grad_n = inverse
    loss = inverse sum_n (term_n + kl_weight kl_n), likewise its parts; the gate's mean over rows

Sums run in fp32 over blocks in a fixed order: the same bits on every run.

Legend: N rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.reduction import Reduction
from pact_kernels.kernels._launch.runtime import Cost, Options, launch

BLOCK = 4096
"""Rows that the program holds at once."""


class RowCount(NamedTuple):
    """What is known once rows are counted."""

    num_rows: Any
    """() int64"""
    inverse: Any
    """() fp32, one over the denominator; 1 for a sum."""
    row_grad: Any
    """(N,) fp32, the same for every row; None where no gradient carries it."""


class RowSums(NamedTuple):
    """The reduced losses."""

    loss: Tensor
    """() fp32"""
    reports: Tensor
    """(3,) fp32: term, kl, and the mean gate."""


@triton.jit(do_not_specialize=["num_rows"])
def _row_count_kernel(
    target_ptr,  # (N,) int64, or None
    num_items_ptr,  # () of any dtype, or None
    out,  # RowCount
    number,  # the denominator where the host knows it
    num_rows,
    ignore_index,
    MEAN: tl.constexpr,
    COUNTED: tl.constexpr,  # the denominator is the number of rows
    BLOCK: tl.constexpr,
):
    count = tl.cast(num_rows, tl.int64)
    if target_ptr is not None:
        counts = tl.zeros([BLOCK], tl.int64)
        for first in tl.range(0, num_rows, BLOCK):
            rows = first + tl.arange(0, BLOCK)
            target = tl.load(target_ptr + rows, mask=rows < num_rows, other=ignore_index)
            counts += tl.where(target != ignore_index, 1, 0)
        count = tl.sum(counts, 0)
    tl.store(out.num_rows, count)
    denominator = 1.0
    if MEAN:
        denominator = number + 0.0
        if num_items_ptr is not None:
            denominator = tl.load(num_items_ptr).to(tl.float32)
        elif COUNTED:
            denominator = count.to(tl.float32)
        denominator = tl.where(denominator == 0.0, 1.0, denominator)
    inverse = 1.0 / denominator
    tl.store(out.inverse, inverse)
    if out.row_grad is not None:
        for first in tl.range(0, num_rows, BLOCK):
            rows = first + tl.arange(0, BLOCK)
            values = tl.zeros([BLOCK], tl.float32) + inverse
            tl.store(out.row_grad + rows, values, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _row_sums_kernel(
    term_ptr,  # (N,) fp32
    kl_ptr,  # (N,) fp32, or None
    gate_ptr,  # (N,) fp32, or None
    count,  # RowCount
    out,  # RowSums
    kl_weight,
    num_rows,
    BLOCK: tl.constexpr,
):
    terms = tl.zeros([BLOCK], tl.float32)
    kls = tl.zeros([BLOCK], tl.float32)
    gates = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, num_rows, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        terms += tl.load(term_ptr + rows, mask=rows < num_rows, other=0.0)
        if kl_ptr is not None:
            kls += tl.load(kl_ptr + rows, mask=rows < num_rows, other=0.0)
            gates += tl.load(gate_ptr + rows, mask=rows < num_rows, other=0.0)
    inverse = tl.load(count.inverse)
    counted = tl.maximum(tl.load(count.num_rows), 1).to(tl.float32)
    term = tl.sum(terms, 0) * inverse
    kl = tl.sum(kls, 0) * inverse
    tl.store(out.loss, term + kl_weight * kl)
    tl.store(out.reports, term)
    tl.store(out.reports + 1, kl)
    tl.store(out.reports + 2, tl.sum(gates, 0) / counted)


def launch_row_count(
    target: Tensor | None,  # (N,) int64
    reduction: Reduction,
    out: RowCount,  # written
    *,
    num_rows: int,
    ignore_index: int,
) -> None:
    """Count the rows, and fill what follows from their number."""
    launch(
        _row_count_kernel,
        (1,),
        Options(warps=8, stages=1),
        Cost(flops=num_rows, bytes=12 * num_rows),
        target_ptr=target,
        num_items_ptr=reduction.num_items,
        out=out,
        number=float(reduction.number or 0.0),
        num_rows=num_rows,
        ignore_index=ignore_index,
        MEAN=reduction.kind == "mean",
        COUNTED=reduction.number is None,
        BLOCK=BLOCK,
    )


def launch_row_sums(
    values: Tensor,  # (3, N) fp32 term, kl and gate
    count: RowCount,
    out: RowSums,  # written
    *,
    kl_weight: float | None,  # None without a KL: its rows are not read
) -> None:
    """Reduce the rows' losses."""
    num_rows = values.shape[1]
    launch(
        _row_sums_kernel,
        (1,),
        Options(warps=8, stages=1),
        Cost(flops=3 * num_rows, bytes=12 * num_rows),
        term_ptr=values[0],
        kl_ptr=None if kl_weight is None else values[1],
        gate_ptr=None if kl_weight is None else values[2],
        count=count,
        out=out,
        kl_weight=float(kl_weight or 0.0),
        num_rows=num_rows,
        BLOCK=BLOCK,
    )
