"""Streaming log-sum-exp: one pass over the vocabulary in tiles, no logits in memory.

    z   = softcap(logit_scale (hidden weight^T + bias))      a (ROWS, TOKENS) tile at a time
    m_s = max z over split s,  l_s = sum exp(z - m_s)         per row, online over the split's tiles
    lse = m + log sum_s l_s exp(m_s - m),  m = max_s m_s      the finaliser

The logit of each row's target falls off on the way. The K selected logits are one more work item of
each row tile, over the head's gathered rows, in tiles of the same shape: the same products bit for
bit, so a confidence exp(z_k - lse) stays within a rounding of 1.

A work item is (row tile, split of TILES_PER_SPLIT vocabulary tiles); a persistent grid walks the
items, `GROUP` row tiles side by side on one split, so that the programs of a wave share a slice
of the weight in L2. What is written has one writer each: no atomics, no locks, the same bits on
every run; the cut depends on V alone, so a row's bits do not depend on how many rows there are.

Flops 2 N D V. Bytes, at least: N D + V D read once from memory; from L2, (N / ROWS) V D of the
weight and (V / (TILES_PER_SPLIT TOKENS)) N D of the states; partials 16 N V / (TILES_PER_SPLIT
TOKENS) written and read.

Legend: N rows, D hidden size, V vocabulary, K selected tokens, S splits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.chunked.slab import slabs
from pact_kernels.kernels.arithmetic import exp, finish_logits, load_bias, product_tile
from pact_kernels.kernels.configs import (
    STREAM_VARIATIONS,
    StreamConfig,
    dot_precision,
    stream_config,
)
from pact_kernels.kernels.runtime import Cost, Options, descriptor, launch, target_of
from pact_kernels.kernels.tuning import tuned

TILES_PER_SPLIT = 8
"""Vocabulary tiles of a work item: few enough to fill a GPU at a few hundred rows, enough that a
row tile of states is read from L2 a few dozen times and the partials stay near 1 % of a product."""
LEAST_EVEN_WIDTH = 64
"""Every configuration's step divides it, and it divides the hidden size of nearly every model."""
FINAL_ROWS = 32
"""Rows of a program of the finaliser."""


class Head(NamedTuple):
    """A head, or some of its rows; nothing at all where the weight is None."""

    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)

    @property
    def vocabulary(self) -> int:
        """V."""
        return 0 if self.weight is None else self.weight.shape[0]

    @property
    def stride(self) -> int:
        """Elements between rows of the weight."""
        return 0 if self.weight is None else self.weight.stride(0)


class Streamed(NamedTuple):
    """What one pass over the vocabulary gives; a part that was not asked for is empty."""

    largest: Tensor  # (N,) fp32, the largest logit
    total: Tensor  # (N,) fp32, sum_v exp(z_v - largest)
    at_target: Tensor  # (N,) fp32, 0 where the target is no token
    selected: Tensor  # (N, K) fp32

    @property
    def lse(self) -> Tensor:
        """(N,) fp32 log-sum-exp; beside large logits exp(z - largest) / total is more exact."""
        return self.largest + self.total.log()


@triton.jit(do_not_specialize=["num_rows"])
def _linear_logsumexp_kernel(
    hidden,  # (N, D)
    weight,  # (V, D)
    bias_ptr,  # (V,)
    target_ptr,  # (N,) int64
    selected_weight,  # (K, D)
    selected_bias_ptr,  # (K,)
    max_ptr,  # (S, N) fp32
    sum_ptr,  # (S, N) fp32
    at_target_ptr,  # (N,) fp32
    selected_ptr,  # (N, K) fp32
    num_rows,
    vocabulary,
    width,
    num_selected,
    hidden_stride,
    weight_stride,
    selected_stride,
    num_splits,
    softcap,
    logit_scale,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILES_PER_SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    HIDDEN_DESCRIPTOR: tl.constexpr,
    WEIGHT_DESCRIPTOR: tl.constexpr,
    SELECTED_DESCRIPTOR: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_SELECTED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_tiles = tl.cdiv(num_rows, ROWS)
    columns = num_splits + 1 if HAS_SELECTED else num_splits  # of work items in a row tile
    for item in tl.range(tl.program_id(0), row_tiles * columns, tl.num_programs(0)):
        first_tile = item // (GROUP * columns) * GROUP
        in_group = tl.minimum(row_tiles - first_tile, GROUP)
        first_row = (first_tile + item % (GROUP * columns) % in_group) * ROWS
        split = item % (GROUP * columns) // in_group
        if split < num_splits:
            largest, total = _stream_split(
                hidden, weight, bias_ptr, target_ptr, at_target_ptr,
                first_row, split * TILES_PER_SPLIT, num_rows, vocabulary, width,
                hidden_stride, weight_stride, softcap, logit_scale,
                ROWS, TOKENS, WIDTH, TILES_PER_SPLIT, HIDDEN_DESCRIPTOR, WEIGHT_DESCRIPTOR,
                EVEN_WIDTH, HAS_BIAS, HAS_TARGET, SOFTCAP, PRECISION,
            )  # fmt: skip
            rows = first_row + tl.arange(0, ROWS)
            out = split.to(tl.int64) * num_rows + rows
            tl.store(max_ptr + out, largest, mask=rows < num_rows)
            tl.store(sum_ptr + out, total, mask=rows < num_rows)
        elif HAS_SELECTED:
            _store_selected(
                hidden, selected_weight, selected_bias_ptr, selected_ptr,
                first_row, num_rows, num_selected, width, hidden_stride, selected_stride,
                softcap, logit_scale, ROWS, TOKENS, WIDTH, HIDDEN_DESCRIPTOR,
                SELECTED_DESCRIPTOR, EVEN_WIDTH, HAS_BIAS, SOFTCAP, PRECISION,
            )  # fmt: skip


@triton.jit
def _stream_split(
    hidden, weight, bias_ptr, target_ptr, at_target_ptr,
    first_row, first_tile, num_rows, vocabulary, width, hidden_stride, weight_stride,
    softcap, logit_scale,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, TILES_PER_SPLIT: tl.constexpr,
    HIDDEN_DESCRIPTOR: tl.constexpr, WEIGHT_DESCRIPTOR: tl.constexpr, EVEN_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TARGET: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials (ROWS,) over a split; on the way, the target's logits."""
    rows = first_row + tl.arange(0, ROWS)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_TARGET:
        target = tl.load(target_ptr + rows, mask=rows < num_rows, other=-1)
    tiles = tl.minimum(first_tile + TILES_PER_SPLIT, tl.cdiv(vocabulary, TOKENS))
    for tile in tl.range(first_tile, tiles):
        x = product_tile(
            hidden, weight, first_row, tile * TOKENS, num_rows, vocabulary, width,
            hidden_stride, weight_stride, ROWS, TOKENS, WIDTH,
            HIDDEN_DESCRIPTOR, WEIGHT_DESCRIPTOR, EVEN_WIDTH, PRECISION,
        )  # (ROWS, TOKENS)  # fmt: skip
        tokens = tile * TOKENS + tl.arange(0, TOKENS)
        bias = load_bias(bias_ptr, tokens, vocabulary, HAS_BIAS)
        z = finish_logits(x, bias, softcap, logit_scale, SOFTCAP)
        if HAS_TARGET:
            here = (target >= tile * TOKENS) & (target < (tile + 1) * TOKENS)
            at = tl.sum(tl.where(tokens[None, :] == target[:, None], z, 0.0), 1)
            tl.store(at_target_ptr + rows, at, mask=(rows < num_rows) & here)
        z = tl.where(tokens[None, :] < vocabulary, z, float("-inf"))
        new = tl.maximum(largest, tl.max(z, 1))
        # A row whose logits are all -inf so far has no finite maximum to subtract.
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * exp(largest - shift) + tl.sum(exp(z - shift[:, None]), 1)
        largest = new
    return largest, total


@triton.jit
def _store_selected(
    hidden, selected_weight, selected_bias_ptr, selected_ptr,
    first_row, num_rows, num_selected, width, hidden_stride, selected_stride,
    softcap, logit_scale,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN_DESCRIPTOR: tl.constexpr, SELECTED_DESCRIPTOR: tl.constexpr, EVEN_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The K selected logits of a row tile: its last work item, in tiles of the same products."""
    rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
    for first in tl.range(0, num_selected, TOKENS):
        x = product_tile(
            hidden, selected_weight, first_row, first, num_rows, num_selected, width,
            hidden_stride, selected_stride, ROWS, TOKENS, WIDTH,
            HIDDEN_DESCRIPTOR, SELECTED_DESCRIPTOR, EVEN_WIDTH, PRECISION,
        )  # (ROWS, TOKENS)  # fmt: skip
        tokens = first + tl.arange(0, TOKENS)
        bias = load_bias(selected_bias_ptr, tokens, num_selected, HAS_BIAS)
        z = finish_logits(x, bias, softcap, logit_scale, SOFTCAP)
        mask = (rows < num_rows)[:, None] & (tokens < num_selected)[None, :]
        tl.store(selected_ptr + rows[:, None] * num_selected + tokens[None, :], z, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _finish_logsumexp_kernel(
    max_ptr,  # (S, N) fp32
    sum_ptr,  # (S, N) fp32
    largest_ptr,  # (N,) fp32
    total_ptr,  # (N,) fp32
    num_rows,
    num_splits,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for split in tl.range(0, num_splits):
        at = tl.cast(split, tl.int64) * num_rows + rows
        part = tl.load(max_ptr + at, mask=is_row, other=float("-inf"))
        new = tl.maximum(largest, part)
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * exp(largest - shift)
        total += tl.load(sum_ptr + at, mask=is_row, other=0.0) * exp(part - shift)
        largest = new
    tl.store(largest_ptr + rows, largest, mask=is_row)
    tl.store(total_ptr + rows, total, mask=is_row)


def launch_linear_logsumexp(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None = None,  # (V,)
    target: Tensor | None = None,  # (N,) int64
    token_ids: Tensor | None = None,  # (K,) int64
    *,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> Streamed:
    """Log-sum-exps, and on the way the logits of targets and of selected tokens."""
    (num_rows, width), vocabulary = hidden.shape, weight.shape[0]
    selected = Head(None, None)
    if token_ids is not None:
        selected_bias = None if bias is None else bias.index_select(0, token_ids)  # (K,)
        selected = Head(weight.index_select(0, token_ids), selected_bias)  # (K, D)
    out = Streamed(
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_zeros(num_rows if target is not None else 0, dtype=torch.float32),
        hidden.new_empty((num_rows, selected.vocabulary), dtype=torch.float32),
    )

    def run(config: StreamConfig) -> None:
        # A slab is whole row tiles, and its partials stay within the limit.
        splits = triton.cdiv(triton.cdiv(vocabulary, config.tokens), TILES_PER_SPLIT)
        tiles = max(1, limit_bytes // (2 * 4 * splits * config.rows))
        for start, stop in slabs(num_rows, tiles * config.rows):
            index = slice(start, stop)
            partial = hidden.new_empty((2, splits, stop - start), dtype=torch.float32)  # (2, S, N)
            _launch_stream(
                hidden[index],
                Head(weight, bias),
                selected,
                None if target is None else target[index],
                partial,
                Streamed(*(tensor[index] for tensor in out)),
                softcap=softcap,
                logit_scale=logit_scale,
                config=config,
            )
            _launch_finish(partial, out.largest[index], out.total[index])

    crowded = target is not None or token_ids is not None or softcap is not None
    even = width % LEAST_EVEN_WIDTH == 0
    config = stream_config(target_of(hidden), hidden.dtype, crowded=crowded, even=even)
    key = ("linear_logsumexp", num_rows, vocabulary, width, crowded)
    run(tuned(key, config, STREAM_VARIATIONS, run, hidden))
    return out


def _launch_finish(partial: Tensor, largest: Tensor, total: Tensor) -> None:
    """(2, S, N) partials into the rows' largest logits and totals, (N,) each."""
    _, splits, num_rows = partial.shape
    launch(
        _finish_logsumexp_kernel,
        (triton.cdiv(num_rows, FINAL_ROWS),),
        Options(warps=1, stages=1),
        Cost(flops=6 * splits * num_rows, bytes=4 * (partial.numel() + 2 * num_rows)),
        max_ptr=partial[0],
        sum_ptr=partial[1],
        largest_ptr=largest,
        total_ptr=total,
        num_rows=num_rows,
        num_splits=splits,
        ROWS=FINAL_ROWS,
    )


def _launch_stream(
    hidden: Tensor,  # (N, D)
    head: Head,
    selected: Head,  # its rows of the K tokens, or nothing
    target: Tensor | None,  # (N,)
    partial: Tensor,  # (2, S, N)
    out: Streamed,
    *,
    softcap: float | None,
    logit_scale: float,
    config: StreamConfig,
) -> None:
    """The pass over the vocabulary."""
    device = target_of(hidden)
    (num_rows, width), vocabulary = hidden.shape, head.vocabulary
    splits, size = partial.shape[1], hidden.element_size()
    row_tiles = triton.cdiv(num_rows, config.rows)
    items = row_tiles * (splits + (selected.weight is not None))
    hidden_tiles = descriptor(hidden, [config.rows, config.width], device)
    weight_tiles = descriptor(head.weight, [config.tokens, config.width], device)
    selected_tiles = descriptor(selected.weight, [config.tokens, config.width], device)
    launch(
        _linear_logsumexp_kernel,
        (min(items, device.processors * config.programs_per_processor),),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * width * vocabulary,
            bytes=size * width * (num_rows + vocabulary) + partial.numel() * 4,
            row_tiles=row_tiles,
        ),
        hidden=hidden_tiles,
        weight=weight_tiles,
        bias_ptr=head.bias,
        target_ptr=target,
        selected_weight=selected_tiles,
        selected_bias_ptr=selected.bias,
        max_ptr=partial[0],
        sum_ptr=partial[1],
        at_target_ptr=out.at_target,
        selected_ptr=out.selected,
        num_rows=num_rows,
        vocabulary=vocabulary,
        width=width,
        num_selected=selected.vocabulary,
        hidden_stride=hidden.stride(0),
        weight_stride=head.stride,
        selected_stride=selected.stride,
        num_splits=splits,
        softcap=softcap or 1.0,
        logit_scale=logit_scale,
        ROWS=config.rows,
        TOKENS=config.tokens,
        WIDTH=config.width,
        TILES_PER_SPLIT=TILES_PER_SPLIT,
        GROUP=config.group,
        HIDDEN_DESCRIPTOR=hidden_tiles is not hidden,
        WEIGHT_DESCRIPTOR=weight_tiles is not head.weight,
        SELECTED_DESCRIPTOR=selected_tiles is not selected.weight,
        EVEN_WIDTH=width % config.width == 0,
        HAS_BIAS=head.bias is not None,
        HAS_TARGET=target is not None,
        HAS_SELECTED=selected.weight is not None,
        SOFTCAP=softcap is not None,
        PRECISION=dot_precision(hidden),
    )
