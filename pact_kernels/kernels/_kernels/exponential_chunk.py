"""A chunk of exponentials and their sums, by the epilogue of the product that forms the logits.

    z      = softcap(logit_scale (hidden weight^T + bias))      a (BLOCK_M, BLOCK_N) tile at a time
    E      = exp(z - c) (1 - (z / softcap)^2)                    (M, V) in bf16
    s      = sum over the tile's tokens of exp(z - c)            (tiles of V, M) in fp32

c is a logit of the row: its target's, or the largest selected one. Then a row's sum of s is at
least 1 and nothing has to be known of the other logits in advance: E is a softmax up to a factor by
row, which the product that reads E takes on its way out. bf16 has the range of fp32, so E overflows
only where a row's loss passes some 80 nats; `redo_rows` forms such rows again. A row whose c is
infinite is ignored: its E is 0, whatever its states hold.

`redo_rows` reads the sums of 16 rows and returns where none of them is far from 1. Else it streams
their log-sum-exp, takes it for c, and writes E and s anew: the same map, in two products more of
those rows alone. Nothing waits for the device.

Bytes: 2 M V written; the states and the head are read once from memory, from L2 (M / BLOCK_M) V D
of the head. Flops 2 M D V.

Legend: M chunk rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.kernels._device.arithmetic import (
    LN2,
    LOG2E,
    cap_slope,
    exp,
    finish_logits,
    load_bias,
    log,
    logit_tile,
    product_tile,
)
from pact_kernels.kernels._device.operands import Matrix, ProductTile
from pact_kernels.kernels._launch.configs import ExponentialConfig, dot_precision
from pact_kernels.kernels._launch.operands import matrix, numbers, product
from pact_kernels.kernels._launch.runtime import Cost, Options, is_interpreted, launch, target_of
from pact_kernels.types import Head

REDO_ROWS = 16
"""Rows of a program that forms rows again: the fewest that a tensor core takes."""
FARTHEST = tl.constexpr(1e20)
"""Sums up to this, or its inverse, leave E room in bf16 beside the K entries that are patched."""


class ExponentialTile(NamedTuple):
    """What the compiler knows of a launch."""

    product: ProductTile
    group: int
    """Row tiles that walk the vocabulary side by side."""
    parts: int
    """1, or 2 where a tile is exponentiated in halves, to take fewer registers at once."""
    chunk_descriptor: bool
    flatten: bool
    """One loop over tiles and steps, so that loads run ahead of a tile's end."""


class RowShift(NamedTuple):
    """What a row's exponentials are taken against; (M,) fp32 each."""

    log2: Tensor
    """c log2(e); infinite in a row that is ignored."""
    above_target: Tensor
    """c - z_y in nats: 0 unless the row was formed again, or has no target and z_y counts as 0."""


@triton.jit(do_not_specialize=["num_rows"])
def _exponential_chunk_kernel(
    hidden,  # Matrix (M, D)
    hidden_tiles,
    head,  # (V, D)
    head_weight_tiles,
    chunk,  # Matrix (M, V)
    chunk_tiles,
    shift_ptr,  # (M,) fp32, RowShift.log2
    sum_ptr,  # (tiles of V, M) fp32
    num_rows,
    vocabulary,
    TILE: tl.constexpr,  # ExponentialTile
):
    PRODUCT: tl.constexpr = TILE.product
    GROUP: tl.constexpr = TILE.group
    FLATTEN: tl.constexpr = TILE.flatten
    CHUNK_DESCRIPTOR: tl.constexpr = TILE.chunk_descriptor
    BLOCK_M: tl.constexpr = TILE.product.rows
    BLOCK_N: tl.constexpr = TILE.product.columns
    HALF: tl.constexpr = TILE.product.columns // TILE.parts
    hidden = Matrix(hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
    chunk = Matrix(chunk_tiles, chunk.stride, chunk.columns)
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    token_tiles = tl.cdiv(vocabulary, BLOCK_N)
    items = row_tiles * token_tiles
    for item in tl.range(tl.program_id(0), items, tl.num_programs(0), flatten=FLATTEN):
        first_tile = item // (GROUP * token_tiles) * GROUP
        in_group = tl.minimum(row_tiles - first_tile, GROUP)
        first_row = (first_tile + item % (GROUP * token_tiles) % in_group) * BLOCK_M
        tile = item % (GROUP * token_tiles) // in_group
        first_token = tile * BLOCK_N
        x = product_tile(
            hidden, weight, first_row, first_token, num_rows, vocabulary, hidden.columns, PRODUCT
        )
        rows = first_row + tl.arange(0, BLOCK_M)
        shift = tl.load(shift_ptr + rows, mask=rows < num_rows, other=float("inf"))
        if TILE.parts == 1:
            sums = _store_exponentials(
                x,
                chunk,
                head,
                shift,
                first_row,
                first_token,
                num_rows,
                vocabulary,
                BLOCK_M,
                HALF,
                CHUNK_DESCRIPTOR,
            )
        else:
            halves = tl.permute(tl.reshape(x, (BLOCK_M, 2, HALF)), (0, 2, 1))
            low, high = tl.split(halves)
            sums = _store_exponentials(
                low,
                chunk,
                head,
                shift,
                first_row,
                first_token,
                num_rows,
                vocabulary,
                BLOCK_M,
                HALF,
                CHUNK_DESCRIPTOR,
            )
            sums += _store_exponentials(
                high,
                chunk,
                head,
                shift,
                first_row,
                first_token + HALF,
                num_rows,
                vocabulary,
                BLOCK_M,
                HALF,
                CHUNK_DESCRIPTOR,
            )
        tl.store(sum_ptr + tile * num_rows + rows, sums, mask=rows < num_rows)


@triton.jit
def _store_exponentials(
    x,  # (BLOCK_M, BLOCK_N) raw products
    chunk,
    head,
    shift,  # (BLOCK_M,)
    first_row,
    first_token,
    num_rows,
    vocabulary,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """(BLOCK_M,) sums of the exponentials, which are stored times the logits' slope."""
    tokens = first_token + tl.arange(0, BLOCK_N)
    z = finish_logits(x, load_bias(head, tokens, vocabulary), head)
    # An ignored row may hold NaN, and a tile's last columns may lie past the vocabulary.
    counts = (tokens < vocabulary)[None, :] & (shift != float("inf"))[:, None]
    e = tl.where(counts, tl.exp2(z * LOG2E - shift[:, None]), 0.0)
    sums = tl.sum(e, 1)
    if head.softcap is not None:
        e = e * cap_slope(z, head)
    e = e.to(tl.bfloat16)
    if DESCRIPTOR:
        chunk.tiles.store([first_row, first_token], e)
    else:
        rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
        pointers = chunk.tiles + rows[:, None] * chunk.stride + tokens[None, :]
        tl.store(pointers, e, mask=(rows < num_rows)[:, None] & (tokens < vocabulary)[None, :])
    return sums


@triton.jit(do_not_specialize=["num_rows"])
def _redo_rows_kernel(
    hidden,  # Matrix (M, D)
    hidden_tiles,
    head,  # (V, D)
    head_weight_tiles,
    chunk,  # Matrix (M, V)
    shift,  # RowShift
    sum_ptr,  # (tiles, M) fp32
    num_rows,
    vocabulary,
    num_sums,  # tiles
    TILE: tl.constexpr,  # ProductTile
):
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    hidden = Matrix(hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    first_row = tl.program_id(0) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < num_rows
    at_shift = tl.load(shift.log2 + rows, mask=is_row, other=float("inf"))
    sums = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, num_sums, BLOCK_M):
        tiles = first + tl.arange(0, BLOCK_M)
        mask = (tiles < num_sums)[:, None] & is_row[None, :]
        part = tl.load(sum_ptr + tiles[:, None] * num_rows + rows[None, :], mask=mask, other=0.0)
        sums += tl.sum(part, 0)
    # NaN compares false: such a row is formed again, and stays NaN.
    near = (sums < FARTHEST) & (sums > 1.0 / FARTHEST)
    far = is_row & (at_shift != float("inf")) & ~near
    if tl.max(far.to(tl.int32), 0) > 0:
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        sum_exp = tl.zeros([BLOCK_M], tl.float32)
        for first_token in tl.range(0, vocabulary, BLOCK_N):
            z = logit_tile(
                hidden,
                head,
                head,
                first_row,
                first_token,
                num_rows,
                vocabulary,
                hidden.columns,
                TILE,
            )
            tokens = first_token + tl.arange(0, BLOCK_N)
            z = tl.where(tokens[None, :] < vocabulary, z, float("-inf"))
            new = tl.maximum(row_max, tl.max(z, 1))
            base = tl.where(new == float("-inf"), 0.0, new)
            sum_exp = sum_exp * exp(row_max - base) + tl.sum(exp(z - base[:, None]), 1)
            row_max = new
        lse = row_max + log(sum_exp)
        moved = lse * LOG2E
        sums = tl.zeros([BLOCK_M], tl.float32)
        wide = rows.to(tl.int64)
        for first_token in tl.range(0, vocabulary, BLOCK_N):
            z = logit_tile(
                hidden,
                head,
                head,
                first_row,
                first_token,
                num_rows,
                vocabulary,
                hidden.columns,
                TILE,
            )
            tokens = first_token + tl.arange(0, BLOCK_N)
            is_token = (tokens < vocabulary)[None, :]
            # The maximum is taken off first: beside large logits a rounded lse costs digits.
            e = exp(z - row_max[:, None]) / sum_exp[:, None]
            e = tl.where(is_token, e, 0.0)
            sums += tl.sum(e, 1)
            if head.softcap is not None:
                e = e * cap_slope(z, head)
            pointers = chunk.tiles + wide[:, None] * chunk.stride + tokens[None, :]
            tl.store(pointers, e.to(tl.bfloat16), mask=far[:, None] & is_token)
        tl.store(shift.log2 + rows, moved, mask=far)
        above = tl.load(shift.above_target + rows, mask=far, other=0.0)
        tl.store(shift.above_target + rows, above + (lse - at_shift * LN2), mask=far)
        for tile in tl.range(0, num_sums):
            value = tl.where(tile == 0, sums, 0.0)
            tl.store(sum_ptr + tile * num_rows + rows, value, mask=far)


def sum_tiles(vocabulary: int, config: ExponentialConfig) -> int:
    """Vocabulary tiles, each with a sum of every row."""
    return triton.cdiv(vocabulary, config.tokens)


def launch_exponential_chunk(
    rows: Tensor,  # (M, D) bf16
    head: Head,  # (V, D)
    chunk: Tensor,  # (M, V) bf16, written
    shift: RowShift,  # (M,)
    sums: Tensor,  # (tiles, M) fp32, written
    *,
    config: ExponentialConfig,
) -> None:
    """E and its sums, in one product."""
    (num_rows, width), vocabulary = rows.shape, head.weight.shape[0]
    states, head_tiles, tile = product(rows, head, config)
    out = matrix(chunk, [config.rows, config.tokens // config.parts])
    row_tiles, processors = triton.cdiv(num_rows, config.rows), target_of(rows).processors
    launch(
        _exponential_chunk_kernel,
        (min(row_tiles * sums.shape[0], processors * config.programs_per_processor),),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * width * vocabulary,
            bytes=rows.nbytes + head.weight.nbytes + 2 * num_rows * vocabulary + sums.nbytes,
            row_tiles=row_tiles,
            logit_bytes=2,
        ),
        hidden=states,
        head=head_tiles,
        chunk=out,
        shift_ptr=shift.log2,
        sum_ptr=sums,
        num_rows=num_rows,
        vocabulary=vocabulary,
        TILE=ExponentialTile(
            product=tile,
            group=config.group,
            parts=config.parts,
            chunk_descriptor=out.has_descriptor,
            flatten=config.flatten and not is_interpreted(rows),
        ),
    )


def launch_redo_rows(
    rows: Tensor,  # (M, D) bf16
    head: Head,  # (V, D)
    chunk: Tensor,  # (M, V) bf16, written where a row's sum is far from 1
    shift: RowShift,  # (M,), likewise
    sums: Tensor,  # (tiles, M) fp32, likewise
    *,
    config: ExponentialConfig,
) -> None:
    """Form the rows again whose sums are out of range; a program without one returns at once."""
    num_rows, width = rows.shape
    states = matrix(rows)
    weight = matrix(head.weight, [config.tokens, config.width])
    tile = ProductTile(
        rows=REDO_ROWS,
        columns=config.tokens,
        width=config.width,
        even_width=width % config.width == 0,
        left_descriptor=False,
        right_descriptor=weight.has_descriptor,
        precision=dot_precision(rows),
    )
    launch(
        _redo_rows_kernel,
        (triton.cdiv(num_rows, REDO_ROWS),),
        Options(config.warps, 2),
        Cost(flops=0, bytes=sums.nbytes),
        hidden=states,
        head=numbers(head)._replace(weight=weight),  # type: ignore[arg-type]
        chunk=matrix(chunk),
        shift=shift,
        sum_ptr=sums,
        num_rows=num_rows,
        vocabulary=head.weight.shape[0],
        num_sums=sums.shape[0],
        TILE=tile,
    )
