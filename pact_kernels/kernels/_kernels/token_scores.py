"""How far the aligned model's confidence in a token exceeds the base model's, without logits.

    z = softcap(logit_scale (hidden weight^T + bias)) / temperature             of each model
    P = exp(z - m - log l)                                          (BLOCK_N, BLOCK_M) at a time
    difference_v = sum_n weight_n (P_aligned - P_base)_nv                            "p_diff"
                 = sum_n weight_n (P_aligned (log P_base - log P_aligned))_nv        "pref_logratio"
    confidence_v = sum_n weight_n P_aligned_nv

Two passes over both heads: the streaming log-sum-exp of each model, then `_token_scores_kernel`,
which forms the same logits again. A program owns a vocabulary tile on one split of the rows: it
walks the split's row tiles, holds both models' tiles at once, and adds each row tile's sums to
(BLOCK_N,) sums in registers. Tokens are the tile's first dimension, so that a sum over rows stays
within a warp. The splits' sums are added at the end: no atomics, the same bits on every run.

The splits of one vocabulary tile run side by side, about as many of them as vocabulary tiles, so
that the states and the heads' tiles are both shared in L2: a program that walked all rows alone
would read its tile of the heads from memory again at every row tile.

Flops 4 N V (D + D'), half of them here. Bytes of this pass, at least: (N + V) (D + D') read once
from memory; from L2, (N / BLOCK_M) V (D + D') of the heads and (V / BLOCK_N) N (D + D') of the
states; partials 8 S V written and read.

Legend: N rows, D hidden size of the aligned model, D' of the base, V vocabulary, S row splits.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._device.arithmetic import (
    exp,
    finish_logits,
    product_tile,
)
from pact_kernels.kernels._device.operands import Matrix, ProductTile
from pact_kernels.kernels._kernels.linear_logsumexp import LEAST_EVEN_WIDTH
from pact_kernels.kernels._launch.configs import ScoreConfig, dot_precision, score_config
from pact_kernels.kernels._launch.operands import matrix, numbers
from pact_kernels.kernels._launch.runtime import Cost, Options, launch, target_of
from pact_kernels.types import Head


class Model(NamedTuple):
    """States of one model on the rows, its head, and the rows' log-sum-exps."""

    hidden: Any
    """(N, D); a `Matrix` on the device."""
    head: Head
    """(V, D)"""
    max: Any
    """(N,) fp32, the largest logit m."""
    log_sum_exp: Any
    """(N,) fp32, log l of l = sum_v exp(z_v - m)."""


class Scores(NamedTuple):
    """Sums over the rows of a split."""

    difference: Any
    """(S, V) fp32"""
    confidence: Any
    """(S, V) fp32"""


class ScoreTile(NamedTuple):
    """What the compiler knows of a launch; a product's rows are tokens, its columns rows."""

    aligned: ProductTile
    base: ProductTile
    log_ratio: bool
    """mode="pref_logratio" """


@triton.jit
def _token_scores_kernel(
    aligned,  # Model
    aligned_hidden_tiles,
    aligned_head_weight_tiles,
    base,  # Model
    base_hidden_tiles,
    base_head_weight_tiles,
    row_weight_ptr,  # (N,) fp32
    out,  # Scores
    num_rows,
    vocabulary,
    tiles_per_split,  # row tiles
    TILE: tl.constexpr,  # ScoreTile
):
    ALIGNED: tl.constexpr = TILE.aligned
    BASE: tl.constexpr = TILE.base
    BLOCK_M: tl.constexpr = TILE.aligned.columns
    BLOCK_N: tl.constexpr = TILE.aligned.rows
    hidden, head = aligned.hidden, aligned.head
    hidden = Matrix(aligned_hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(aligned_head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    aligned = Model(hidden, head, aligned.max, aligned.log_sum_exp)
    hidden, head = base.hidden, base.head
    hidden = Matrix(base_hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(base_head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    base = Model(hidden, head, base.max, base.log_sum_exp)
    split, first_token = tl.program_id(0), tl.program_id(1) * BLOCK_N
    difference = tl.zeros([BLOCK_N], tl.float32)
    confidence = tl.zeros([BLOCK_N], tl.float32)
    first_tile = split * tiles_per_split
    tiles = tl.minimum(first_tile + tiles_per_split, tl.cdiv(num_rows, BLOCK_M))
    for tile in tl.range(first_tile, tiles):
        log_aligned = _log_confidences(
            aligned, tile * BLOCK_M, first_token, num_rows, vocabulary, ALIGNED
        )  # (BLOCK_N, BLOCK_M)
        log_base = _log_confidences(
            base, tile * BLOCK_M, first_token, num_rows, vocabulary, BASE
        )  # (BLOCK_N, BLOCK_M)
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_weight = tl.load(row_weight_ptr + rows, mask=rows < num_rows, other=0.0)[None, :]
        p_aligned = exp(log_aligned)
        if TILE.log_ratio:
            # p log p is 0 at p = 0, and -inf where the base model alone rules a token out.
            change = tl.where(p_aligned == 0, 0.0, p_aligned * (log_base - log_aligned))
        else:
            change = p_aligned - exp(log_base)
        difference += tl.sum(row_weight * change, 1)
        confidence += tl.sum(row_weight * p_aligned, 1)
    tokens = first_token + tl.arange(0, BLOCK_N)
    at = split.to(tl.int64) * vocabulary + tokens
    tl.store(out.difference + at, difference, mask=tokens < vocabulary)
    tl.store(out.confidence + at, confidence, mask=tokens < vocabulary)


@triton.jit
def _log_confidences(model, first_row, first_token, num_rows, vocabulary, TILE: tl.constexpr):
    """(BLOCK_N, BLOCK_M) log-confidences of one model; -inf in rows past the end."""
    BLOCK_N: tl.constexpr = TILE.rows
    BLOCK_M: tl.constexpr = TILE.columns
    head = model.head
    x = product_tile(
        head.weight,
        model.hidden,
        first_token,
        first_row,
        vocabulary,
        num_rows,
        model.hidden.columns,
        TILE,
    )
    if head.bias is not None:
        tokens = first_token + tl.arange(0, BLOCK_N)
        bias = tl.load(head.bias + tokens, mask=tokens < vocabulary, other=0.0)
        bias = bias.to(tl.float32)[:, None]
    else:
        bias = 0.0
    rows = first_row + tl.arange(0, BLOCK_M)
    row_max = tl.load(model.max + rows, mask=rows < num_rows, other=float("inf"))
    log_sum_exp = tl.load(model.log_sum_exp + rows, mask=rows < num_rows, other=0.0)
    z = finish_logits(x, bias, head)
    return (z - row_max[None, :]) - log_sum_exp[None, :]


def launch_token_scores(
    aligned: Model,
    base: Model,
    row_weight: Tensor,  # (N,) fp32
    *,
    mode: str,
    limit_bytes: int,
) -> tuple[Tensor, Tensor]:
    """The second pass: (V,) difference and (V,) confidence, fp32."""
    num_rows, vocabulary = aligned.hidden.shape[0], aligned.head.weight.shape[0]
    config = _config(aligned, base)
    row_tiles = ceil_div(num_rows, config.rows)
    token_tiles = ceil_div(vocabulary, config.tokens)
    tiles_per_split = _tiles_per_split(
        row_tiles,
        token_tiles,
        processors=target_of(aligned.hidden).processors,
        most_splits=limit_bytes // (2 * 4 * vocabulary),
    )
    splits = max(1, ceil_div(row_tiles, tiles_per_split))
    partial = row_weight.new_empty((2, splits, vocabulary))  # (2, S, V)
    models = aligned, base
    launch(
        _token_scores_kernel,
        (splits, token_tiles),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * vocabulary * sum(m.hidden.shape[1] for m in models),
            bytes=partial.nbytes + sum(m.hidden.nbytes + m.head.weight.nbytes for m in models),
            row_tiles=row_tiles,
        ),
        aligned=_operand(aligned, config),
        base=_operand(base, config),
        row_weight_ptr=row_weight,
        out=Scores(partial[0], partial[1]),
        num_rows=num_rows,
        vocabulary=vocabulary,
        tiles_per_split=tiles_per_split,
        TILE=ScoreTile(_tile(aligned, config), _tile(base, config), mode == "pref_logratio"),
    )
    return partial[0].sum(0), partial[1].sum(0)


def _operand(model: Model, config: ScoreConfig) -> Model:
    """The same with matrices for tensors."""
    weight: Any = matrix(model.head.weight, [config.tokens, config.width])
    hidden = matrix(model.hidden, [config.rows, config.width])
    return model._replace(hidden=hidden, head=numbers(model.head)._replace(weight=weight))


def _tile(model: Model, config: ScoreConfig) -> ProductTile:
    operand: Any = _operand(model, config)
    return ProductTile(
        rows=config.tokens,
        columns=config.rows,
        width=config.width,
        even_width=model.hidden.shape[1] % config.width == 0,
        left_descriptor=operand.head.weight.has_descriptor,
        right_descriptor=operand.hidden.has_descriptor,
        precision=dot_precision(model.hidden),
    )


def _config(aligned: Model, base: Model) -> ScoreConfig:
    """One tile shape for both models: that of the wider dtype, masked if either needs it."""
    dtype = max(aligned.hidden.dtype, base.hidden.dtype, key=lambda dtype: dtype.itemsize)
    even = all(model.hidden.shape[1] % LEAST_EVEN_WIDTH == 0 for model in (aligned, base))
    crowded = any(model.head.softcap is not None for model in (aligned, base))
    return score_config(target_of(aligned.hidden), dtype, crowded=crowded, even=even)


def _tiles_per_split(row_tiles: int, token_tiles: int, *, processors: int, most_splits: int) -> int:
    """Row tiles of a split.

    As many splits as vocabulary tiles run at once; more where the vocabulary is too small to give
    every processor a program.
    """
    splits = max(isqrt(processors), ceil_div(processors, token_tiles))
    return max(1, ceil_div(row_tiles, max(1, min(splits, most_splits))))
