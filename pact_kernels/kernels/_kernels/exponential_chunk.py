"""A chunk of exponentials and their sums, by the epilogue of the product that forms the logits.

    z      = softcap(logit_scale (hidden weight^T + bias))      a (BLOCK_M, BLOCK_N) tile at a time
    E      = exp(z - c) (1 - (z / softcap)^2)                    (M, V) in bf16
    s      = sum over the tile's tokens of exp(z - c)            (tiles of V, M) in fp32

c is a logit of the row: its target's, or the largest selected one. Then a row's sum of s is at
least 1 and nothing has to be known of the other logits in advance: E is a softmax up to a factor by
row, which the product that reads E takes on its way out. bf16 has the range of fp32, so E overflows
only where a row's loss passes some 80 nats; `redo_rows` forms such rows again. A row whose c is
infinite is ignored: its E is 0, and where a gradient sums over rows, whatever its states hold.

Bytes: 2 M V written; the states and the head are read once from memory, from L2 (M / BLOCK_M) V D
of the head. Flops 2 M D V.

Legend: M chunk rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._device.arithmetic import (
    LOG2E,
    MOST_QUICK_CAP,
    finish_logits,
    load_bias,
    product_tile,
    quick_tanh,
)
from pact_kernels.kernels._device.operands import Matrix, ProductTile
from pact_kernels.kernels._launch.configs import ExponentialConfig
from pact_kernels.kernels._launch.operands import matrix, product
from pact_kernels.kernels._launch.runtime import Cost, Options, is_interpreted, launch, target_of
from pact_kernels.types import Head


class ExponentialTile(NamedTuple):
    """What the compiler knows of a launch."""

    product: ProductTile
    group: int
    """Row tiles that walk the vocabulary side by side."""
    parts: int
    """In how many, 1, 2 or 4, a tile is exponentiated, to take fewer registers at once."""
    chunk_descriptor: bool
    flatten: bool
    """One loop over tiles and steps, so that loads run ahead of a tile's end."""
    quick: bool
    """Whether the soft cap, where there is one, is small enough for `quick_tanh`."""
    guarded: bool
    """Whether the E of an ignored row must be 0 even if its states are no numbers."""


class RowShift(NamedTuple):
    """What a row's exponentials are taken against; (M,) fp32 each."""

    log2: Tensor
    """c log2(e); infinite in a row that is ignored."""
    above_target: Tensor
    """c - z_y in nats: 0 unless the row was formed again, or has no target and z_y counts as 0."""


SUMS_AT_ONCE = tl.constexpr(256)
"""Vocabulary tiles whose sums are read at once."""


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
    BLOCK_M: tl.constexpr = TILE.product.rows
    BLOCK_N: tl.constexpr = TILE.product.columns
    PARTS: tl.constexpr = TILE.parts
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
        sums = _store_tile(
            x, chunk, head, shift, first_row, first_token, num_rows, vocabulary, PARTS, TILE
        )
        tl.store(sum_ptr + tile * num_rows + rows, sums, mask=rows < num_rows)


@triton.jit
def _store_tile(
    x,  # (BLOCK_M, BLOCK_N) raw products
    chunk,
    head,
    shift,  # (BLOCK_M,)
    first_row,
    first_token,
    num_rows,
    vocabulary,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """`_store_exponentials` of the tile, whole or in parts one after the other."""
    if PARTS == 1:
        sums = _store_exponentials(
            x, chunk, head, shift, first_row, first_token, num_rows, vocabulary, TILE
        )
    else:
        HALF: tl.constexpr = x.shape[1] // 2
        low, high = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, HALF)), (0, 2, 1)))
        sums = _store_tile(
            low, chunk, head, shift, first_row, first_token, num_rows, vocabulary, PARTS // 2, TILE
        )
        second = first_token + HALF
        sums += _store_tile(
            high, chunk, head, shift, first_row, second, num_rows, vocabulary, PARTS // 2, TILE
        )
    return sums


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
    TILE: tl.constexpr,
):
    """(BLOCK_M,) sums of the exponentials, which are stored times the logits' slope."""
    BLOCK_M: tl.constexpr = x.shape[0]
    BLOCK_N: tl.constexpr = x.shape[1]
    QUICK: tl.constexpr = TILE.quick
    GUARDED: tl.constexpr = TILE.guarded
    DESCRIPTOR: tl.constexpr = TILE.chunk_descriptor
    tokens = first_token + tl.arange(0, BLOCK_N)
    # Few instructions a logit: with a short hidden size their issue takes as long as the product.
    if head.softcap is None:
        factor = head.logit_scale * LOG2E
        scaled = x * factor - shift[:, None]
        if head.bias is not None:
            scaled += load_bias(head, tokens, vocabulary) * factor
    elif QUICK:
        factor = head.logit_scale / head.softcap * (2.0 * LOG2E)
        doubled = x * factor
        if head.bias is not None:
            doubled += load_bias(head, tokens, vocabulary) * factor
        capped = quick_tanh(doubled)
        scaled = capped * (head.softcap * LOG2E) - shift[:, None]
    else:
        z = finish_logits(x, load_bias(head, tokens, vocabulary), head)
        capped = z / head.softcap
        scaled = z * LOG2E - shift[:, None]
    e = tl.exp2(scaled)
    if GUARDED:  # an ignored row, whose shift is infinite, may hold NaN
        counts = (shift != float("inf"))[:, None]
        e = tl.where(counts, e, 0.0)
        if head.softcap is not None:
            capped = tl.where(counts, capped, 0.0)
    if first_token + BLOCK_N > vocabulary:
        e = tl.where((tokens < vocabulary)[None, :], e, 0.0)
    sums = tl.sum(e, 1)
    if head.softcap is not None:
        e = e - e * (capped * capped)
    e = e.to(tl.bfloat16)
    if DESCRIPTOR:
        chunk.tiles.store([first_row, first_token], e)
    else:
        rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
        pointers = chunk.tiles + rows[:, None] * chunk.stride + tokens[None, :]
        tl.store(pointers, e, mask=(rows < num_rows)[:, None] & (tokens < vocabulary)[None, :])
    return sums


@triton.jit
def sum_of_tiles(
    sum_ptr,  # (tiles, M) fp32
    rows,  # (BLOCK_M,)
    num_rows,
    num_sums,  # tiles
    BLOCK_M: tl.constexpr,
):
    """(BLOCK_M,) sums of the rows over all tiles."""
    sums = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, num_sums, SUMS_AT_ONCE):
        tiles = first + tl.arange(0, SUMS_AT_ONCE)
        mask = (tiles < num_sums)[:, None] & (rows < num_rows)[None, :]
        part = tl.load(sum_ptr + tiles[:, None] * num_rows + rows[None, :], mask=mask, other=0.0)
        sums += tl.sum(part, 0)
    return sums


def sum_tiles(vocabulary: int, config: ExponentialConfig) -> int:
    """Vocabulary tiles, each with a sum of every row."""
    return ceil_div(vocabulary, config.tokens)


def launch_exponential_chunk(
    rows: Tensor,  # (M, D) bf16
    head: Head,  # (V, D)
    chunk: Tensor,  # (M, V) bf16, written
    shift: RowShift,  # (M,)
    sums: Tensor,  # (tiles, M) fp32, written
    *,
    config: ExponentialConfig,
    guarded: bool,
) -> None:
    """E and its sums, in one product.

    Args:
        guarded: E is 0 in ignored rows whose states are no numbers, too.
    """
    (num_rows, width), vocabulary = rows.shape, head.weight.shape[0]
    states, head_tiles, tile = product(rows, head, config)
    out = matrix(chunk, [config.rows, config.tokens // config.parts])
    row_tiles, processors = ceil_div(num_rows, config.rows), target_of(rows).processors
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
            guarded=guarded,
            quick=head.softcap is not None and head.softcap <= MOST_QUICK_CAP,
        ),
    )
