"""Streaming log-sum-exp: one pass over the vocabulary in tiles, no logits in memory.

    z   = softcap(logit_scale (hidden weight^T + bias))      a (BLOCK_M, BLOCK_N) tile at a time
    m_s = max z over split s,  l_s = sum exp(z - m_s)         per row, online over the split's tiles
    lse = m + log sum_s l_s exp(m_s - m),  m = max_s m_s      `finish_logsumexp`

The logit of each row's target falls off on the way. The K selected logits are one more work item of
each row tile, over the head's gathered rows, in tiles of the same shape: the same products bit for
bit, so a confidence exp(z_k - lse) stays within a rounding of 1.

A work item is (row tile, split of TILES_PER_SPLIT vocabulary tiles), or of one tile where the loops
over items and steps are one (`StreamConfig.flatten`: the next item's loads run ahead, and the K
selected logits are a launch of their own); a persistent grid walks the
items, `GROUP` row tiles side by side on one split, so that the programs of a wave share a slice
of the weight in L2. What is written has one writer each: no atomics, no locks, the same bits on
every run; the cut depends on V alone, so a row's bits do not depend on how many rows there are.

Flops 2 N D V. Bytes, at least: N D + V D read once from memory; from L2, (N / BLOCK_M) V D of the
weight and (V / (TILES_PER_SPLIT BLOCK_N)) N D of the states; partials 16 N V / (TILES_PER_SPLIT
BLOCK_N) written and read.

Legend: N rows, D hidden size, V vocabulary, K selected tokens, S splits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div, chunks
from pact_kernels.kernels._device.arithmetic import exp, logit_tile
from pact_kernels.kernels._device.operands import Matrix, ProductTile, Softmax
from pact_kernels.kernels._kernels.finish_logsumexp import launch_finish_logsumexp
from pact_kernels.kernels._launch.configs import STREAM_VARIATIONS, StreamConfig, stream_config
from pact_kernels.kernels._launch.operands import product
from pact_kernels.kernels._launch.runtime import Cost, Options, launch, target_of
from pact_kernels.kernels._launch.tuning import tuned
from pact_kernels.types import Head

TILES_PER_SPLIT = 8
"""Vocabulary tiles of a work item: few enough to fill a GPU at a few hundred rows, enough that a
row tile of states is read from L2 a few dozen times and the partials stay near 1 % of a product."""
LEAST_EVEN_WIDTH = 64
"""Every configuration's step divides it, and it divides the hidden size of nearly every model."""


class StreamTile(NamedTuple):
    """What the compiler knows of a launch."""

    product: ProductTile
    selected: ProductTile
    """The tile of a row tile's last work item; the product's where no token is selected."""
    tiles_per_split: int
    group: int
    """Row tiles that walk the vocabulary side by side."""


class Streamed(NamedTuple):
    """What one pass over the vocabulary gives; a part that was not asked for is empty."""

    max: Tensor  # (N,) fp32, the largest logit
    sum_exp: Tensor  # (N,) fp32, sum_v exp(z_v - max)
    at_target: Tensor  # (N,) fp32, 0 where the target is no token
    selected: Tensor  # (N, K) fp32

    @property
    def lse(self) -> Tensor:
        """(N,) fp32 log-sum-exp; beside large logits exp(z - max) / sum_exp is more exact."""
        return self.max + self.sum_exp.log()


@triton.jit(do_not_specialize=["num_rows"])
def _linear_logsumexp_kernel(
    hidden,  # Matrix (N, D)
    hidden_tiles,
    head,  # (V, D)
    head_weight_tiles,
    target_ptr,  # (N,) int64, or None
    selected,  # Head (K, D), or None
    selected_weight_tiles,
    partial,  # Softmax of (S, N) fp32
    out,  # Streamed
    num_rows,
    vocabulary,
    num_selected,
    num_splits,
    TILE: tl.constexpr,  # StreamTile
):
    SELECTED: tl.constexpr = TILE.selected
    GROUP: tl.constexpr = TILE.group
    TILES_IN_SPLIT: tl.constexpr = TILE.tiles_per_split
    BLOCK_M: tl.constexpr = TILE.product.rows
    hidden = Matrix(hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    if selected_weight_tiles is not None:
        weight = Matrix(selected_weight_tiles, selected.weight.stride, selected.weight.columns)
        selected = Head(weight, selected.bias, selected.softcap, selected.logit_scale)  # type: ignore[arg-type]
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    columns = num_splits  # of work items in a row tile
    if selected_weight_tiles is not None:
        columns += 1
    for item in tl.range(tl.program_id(0), row_tiles * columns, tl.num_programs(0)):
        first_tile = item // (GROUP * columns) * GROUP
        in_group = tl.minimum(row_tiles - first_tile, GROUP)
        first_row = (first_tile + item % (GROUP * columns) % in_group) * BLOCK_M
        split = item % (GROUP * columns) // in_group
        if split < num_splits:
            row_max, sum_exp = _stream_split(
                hidden,
                head,
                target_ptr,
                out.at_target,
                first_row,
                split * TILES_IN_SPLIT,
                num_rows,
                vocabulary,
                TILE,
            )
            rows = first_row + tl.arange(0, BLOCK_M)
            at = split.to(tl.int64) * num_rows + rows
            tl.store(partial.max + at, row_max, mask=rows < num_rows)
            tl.store(partial.sum_exp + at, sum_exp, mask=rows < num_rows)
        elif selected_weight_tiles is not None:
            _store_selected(
                hidden, selected, out.selected, first_row, num_rows, num_selected, SELECTED
            )


@triton.jit(do_not_specialize=["num_rows"])
def _flat_logsumexp_kernel(
    hidden,  # Matrix (N, D)
    hidden_tiles,
    head,  # (V, D)
    head_weight_tiles,
    target_ptr,  # (N,) int64, or None
    partial,  # Softmax of (S, N) fp32, a split a tile
    out,  # Streamed
    num_rows,
    vocabulary,
    num_splits,
    TILE: tl.constexpr,  # StreamTile
):
    PRODUCT: tl.constexpr = TILE.product
    GROUP: tl.constexpr = TILE.group
    BLOCK_M: tl.constexpr = TILE.product.rows
    hidden = Matrix(hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    items = row_tiles * num_splits
    for item in tl.range(tl.program_id(0), items, tl.num_programs(0), flatten=True):
        first_tile = item // (GROUP * num_splits) * GROUP
        in_group = tl.minimum(row_tiles - first_tile, GROUP)
        first_row = (first_tile + item % (GROUP * num_splits) % in_group) * BLOCK_M
        tile = item % (GROUP * num_splits) // in_group
        z = _stream_tile(
            hidden, head, target_ptr, out.at_target, first_row, tile, num_rows, vocabulary, PRODUCT
        )
        row_max = tl.max(z, 1)
        shift = tl.where(row_max == float("-inf"), 0.0, row_max)
        rows = first_row + tl.arange(0, BLOCK_M)
        at = tile.to(tl.int64) * num_rows + rows
        tl.store(partial.max + at, row_max, mask=rows < num_rows)
        sum_exp = tl.sum(exp(z - shift[:, None]), 1)
        tl.store(partial.sum_exp + at, sum_exp, mask=rows < num_rows)


@triton.jit
def _stream_tile(
    hidden,  # Matrix (N, D)
    head,  # (V, D)
    target_ptr,
    at_target_ptr,
    first_row,
    tile,  # of the vocabulary
    num_rows,
    vocabulary,
    TILE: tl.constexpr,  # ProductTile
):
    """Logits of a tile, -inf past the vocabulary; the target's are stored on the way."""
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    z = logit_tile(
        hidden,
        head,
        head,
        first_row,
        tile * BLOCK_N,
        num_rows,
        vocabulary,
        hidden.columns,
        TILE,
    )
    rows = first_row + tl.arange(0, BLOCK_M)
    tokens = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if target_ptr is not None:
        target = tl.load(target_ptr + rows, mask=rows < num_rows, other=-1)
        here = (target >= tile * BLOCK_N) & (target < (tile + 1) * BLOCK_N)
        at = tl.sum(tl.where(tokens[None, :] == target[:, None], z, 0.0), 1)
        tl.store(at_target_ptr + rows, at, mask=(rows < num_rows) & here)
    return tl.where(tokens[None, :] < vocabulary, z, float("-inf"))


@triton.jit
def _stream_split(
    hidden,  # Matrix (N, D)
    head,  # (V, D)
    target_ptr,
    at_target_ptr,
    first_row,
    first_tile,  # of the vocabulary
    num_rows,
    vocabulary,
    TILE: tl.constexpr,  # StreamTile
):
    """Maximum and sum of exponentials (BLOCK_M,) over a split; on the way, the target's logits."""
    PRODUCT: tl.constexpr = TILE.product
    TILES_IN_SPLIT: tl.constexpr = TILE.tiles_per_split
    BLOCK_M: tl.constexpr = TILE.product.rows
    BLOCK_N: tl.constexpr = TILE.product.columns
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_exp = tl.zeros([BLOCK_M], tl.float32)
    tiles = tl.minimum(first_tile + TILES_IN_SPLIT, tl.cdiv(vocabulary, BLOCK_N))
    for tile in tl.range(first_tile, tiles):
        z = _stream_tile(
            hidden, head, target_ptr, at_target_ptr, first_row, tile, num_rows, vocabulary, PRODUCT
        )
        new = tl.maximum(row_max, tl.max(z, 1))
        # A row whose logits are all -inf so far has no finite maximum to subtract.
        shift = tl.where(new == float("-inf"), 0.0, new)
        sum_exp = sum_exp * exp(row_max - shift) + tl.sum(exp(z - shift[:, None]), 1)
        row_max = new
    return row_max, sum_exp


@triton.jit
def _store_selected(
    hidden,  # Matrix (N, D)
    selected,  # Head (K, D)
    out_ptr,  # (N, K)
    first_row,
    num_rows,
    num_selected,
    TILE: tl.constexpr,  # ProductTile
):
    """The K selected logits of a row tile: its last work item, in tiles of the same products."""
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
    for first in tl.range(0, num_selected, BLOCK_N):
        z = logit_tile(
            hidden,
            selected,
            selected,
            first_row,
            first,
            num_rows,
            num_selected,
            hidden.columns,
            TILE,
        )
        tokens = first + tl.arange(0, BLOCK_N)
        mask = (rows < num_rows)[:, None] & (tokens < num_selected)[None, :]
        tl.store(out_ptr + rows[:, None] * num_selected + tokens[None, :], z, mask=mask)


def launch_linear_logsumexp(
    hidden: Tensor,  # (N, D)
    head: Head,  # (V, D)
    target: Tensor | None = None,  # (N,) int64
    token_ids: Tensor | None = None,  # (K,) int64
    *,
    limit_bytes: int,
) -> Streamed:
    """Log-sum-exps, and on the way the logits of targets and of selected tokens."""
    (num_rows, width), vocabulary = hidden.shape, head.weight.shape[0]
    selected = None if token_ids is None else head.select(token_ids)  # (K, D)
    num_selected = 0 if token_ids is None else token_ids.numel()
    out = Streamed(
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_zeros(num_rows if target is not None else 0, dtype=torch.float32),
        hidden.new_empty((num_rows, num_selected), dtype=torch.float32),
    )

    def run(config: StreamConfig) -> None:
        # A chunk is whole row tiles, and its partials stay within the limit.
        per_split = 1 if config.flatten else TILES_PER_SPLIT
        splits = ceil_div(ceil_div(vocabulary, config.tokens), per_split)
        tiles = max(1, limit_bytes // (2 * 4 * splits * config.rows))
        for start, stop in chunks(num_rows, tiles * config.rows):
            index = slice(start, stop)
            partial = hidden.new_empty((2, splits, stop - start), dtype=torch.float32)  # (2, S, N)
            _launch_stream(
                hidden[index],
                head,
                selected,
                None if target is None else target[index],
                partial,
                Streamed(*(tensor[index] for tensor in out)),
                config=config,
            )
            launch_finish_logsumexp(partial, Softmax(out.max[index], out.sum_exp[index]))

    crowded = target is not None or token_ids is not None or head.softcap is not None
    even = width % LEAST_EVEN_WIDTH == 0
    config = stream_config(target_of(hidden), hidden.dtype, crowded=crowded, even=even)
    key = ("linear_logsumexp", num_rows, vocabulary, width, crowded)
    run(tuned(key, config, STREAM_VARIATIONS, run, hidden))
    return out


def _launch_stream(
    hidden: Tensor,  # (N, D)
    head: Head,  # (V, D)
    selected: Head | None,  # its rows of the K tokens
    target: Tensor | None,  # (N,)
    partial: Tensor,  # (2, S, N)
    out: Streamed,
    *,
    config: StreamConfig,
) -> None:
    """The pass over the vocabulary; where its loop is flat, the selected logits apart."""
    (num_rows, width), vocabulary = hidden.shape, head.weight.shape[0]
    splits, size = partial.shape[1], hidden.element_size()
    row_tiles = ceil_div(num_rows, config.rows)
    processors = target_of(hidden).processors * config.programs_per_processor
    states, head_tiles, tile = product(hidden, head, config)
    options = Options(config.warps, config.stages)
    operands = {
        "hidden": states,
        "head": head_tiles,
        "target_ptr": target,
        "partial": Softmax(partial[0], partial[1]),
        "out": out,
        "num_rows": num_rows,
        "vocabulary": vocabulary,
    }
    cost = Cost(
        flops=2 * num_rows * width * vocabulary,
        bytes=size * width * (num_rows + vocabulary) + partial.numel() * 4,
        row_tiles=row_tiles,
    )
    if config.flatten:
        launch(
            _flat_logsumexp_kernel,
            (min(row_tiles * splits, processors),),
            options,
            cost,
            **operands,
            num_splits=splits,
            TILE=StreamTile(tile, tile, 1, config.group),
        )
        if selected is None:
            return
        splits = 0
        cost = Cost(
            flops=2 * num_rows * width * out.selected.shape[1],
            bytes=size * width * num_rows + out.selected.nbytes,
            row_tiles=row_tiles,
        )
    selected_tiles, selected_tile = None, tile
    if selected is not None:
        _, selected_tiles, selected_tile = product(hidden, selected, config)
    launch(
        _linear_logsumexp_kernel,
        (min(row_tiles * (splits + (selected is not None)), processors),),
        options,
        cost,
        **operands,
        selected=selected_tiles,
        num_selected=out.selected.shape[1],
        num_splits=splits,
        TILE=StreamTile(tile, selected_tile, TILES_PER_SPLIT, config.group),
    )
