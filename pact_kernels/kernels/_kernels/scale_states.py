"""The gradient by the states, from its product with the exponentials: one pass over rows of D.

    dH  = rho (E W) + left W_y - row_grad (e / V) logit_scale sum_v W_v
    H'  = rho H,  E_y = its own           for the gradients by a trained weight and bias, E^T H'

rho is the softmax's division and the row's gradient; `left` is what E_y lacks; the last term is
label smoothing's. A row that is ignored comes out 0, whatever it holds.

Bytes: 2 M D read and written, 2 M D of the head; as much again for H'.

Legend: M chunk rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.kernels._kernels.finish_chunk import ChunkRows
from pact_kernels.kernels._launch.operands import matrix
from pact_kernels.kernels._launch.runtime import Cost, Options, launch

BLOCK = 1024
"""Columns that a program holds at once."""


class ScaledStates(NamedTuple):
    """Where H' comes from and goes to, (M, D) each."""

    states: Tensor
    scaled: Tensor


class Smoothing(NamedTuple):
    """Label smoothing's part of the gradient: the same for every row, but for its row_grad."""

    weight_sum: Tensor
    """(D,) fp32"""
    factor: float
    """(e / V) logit_scale"""


class Asked(NamedTuple):
    """What a launch does."""

    gradient: bool
    """Fill `out`."""
    scaled: bool
    """Fill `scaled`."""
    patch: bool
    """Put the targets' entries in place."""


@triton.jit
def _scale_states_kernel(
    raw,  # Matrix (M, D) E W, or None
    out,  # Matrix (R, D), written; or None
    states,  # Matrix (M, D), or None
    scaled,  # Matrix (M, D), written where states are given
    chunk,  # Matrix (M, V), its target's entries written; or None
    weight,  # Matrix (V, D)
    kept_ptr,  # (M,) int64 place of each row in `out`, or None where it is its own
    rows,  # ChunkRows
    smoothing,  # Smoothing, its fields None without
    ignore_index,
    ASKED: tl.constexpr,  # Asked
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(rows.scale + row)
    place = row
    if kept_ptr is not None:
        place = tl.load(kept_ptr + row)
    read = weight.columns
    target = 0
    if rows.target is not None:
        target = tl.load(rows.target + row)
        target_is_kept = target != ignore_index
        read = tl.where(target_is_kept, weight.columns, 0)  # of an ignored row nothing
        target = tl.maximum(target, 0)
        left = tl.load(rows.target_scale + row)
        if ASKED.patch:
            entry = tl.load(rows.target_entry + row).to(tl.bfloat16)
            tl.store(chunk.tiles + row * chunk.stride + target, entry, mask=target_is_kept)
    constant = 0.0
    if smoothing.weight_sum is not None:
        constant = smoothing.factor + 0.0
        if rows.row_grad is not None:
            constant = constant * tl.load(rows.row_grad + row).to(tl.float32)
    for first in tl.range(0, weight.columns, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < read
        if ASKED.gradient:
            x = tl.load(raw.tiles + row * raw.stride + columns, mask=mask, other=0.0)
            x = x.to(tl.float32) * scale
            if rows.target is not None:
                pointers = weight.tiles + target * weight.stride + columns
                x += left * tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
            if smoothing.weight_sum is not None:
                x -= constant * tl.load(smoothing.weight_sum + columns, mask=mask, other=0.0)
            pointers = out.tiles + place * out.stride + columns
            tl.store(pointers, x.to(out.tiles.dtype.element_ty), mask=columns < weight.columns)
        if ASKED.scaled:
            h = tl.load(states.tiles + row * states.stride + columns, mask=mask, other=0.0)
            pointers = scaled.tiles + row * scaled.stride + columns
            h = (h.to(tl.float32) * scale).to(scaled.tiles.dtype.element_ty)
            tl.store(pointers, h, mask=columns < weight.columns)


def launch_scale_states(
    raw: Tensor | None,  # (M, D)
    out: Tensor | None,  # (R, D), written
    states: ScaledStates | None,
    chunk: Tensor | None,  # (M, V) whose targets' entries are put in place
    weight: Tensor,  # (V, D)
    kept: Tensor | None,  # (M,) int64
    rows: ChunkRows,
    smoothing: Smoothing | None,
    *,
    ignore_index: int,
) -> None:
    """What is asked for of both."""
    num_rows, width = rows.scale.shape[0], weight.shape[1]
    parts = 2 * (raw is not None) + (states is not None)
    launch(
        _scale_states_kernel,
        (num_rows,),
        Options(warps=4, stages=2),
        Cost(
            flops=parts * num_rows * width, bytes=4 * parts * num_rows * width, row_tiles=num_rows
        ),
        raw=None if raw is None else matrix(raw),
        out=None if out is None else matrix(out),
        states=None if states is None else matrix(states.states),
        scaled=None if states is None else matrix(states.scaled),
        chunk=None if chunk is None else matrix(chunk),
        weight=matrix(weight),
        kept_ptr=kept,
        rows=rows,
        smoothing=smoothing or Smoothing(None, 0.0),  # type: ignore[arg-type]
        ignore_index=ignore_index,
        ASKED=Asked(raw is not None, states is not None, chunk is not None),
        BLOCK=BLOCK,
    )
