"""How far the aligned model's confidence in a token exceeds the base model's, without logits.

    z = softcap(logit_scale (hidden weight^T + bias)) / temperature             of each model
    P = exp(z - m - log l)                                          (TOKENS, ROWS) at a time
    difference_v = sum_n share_n (P_aligned - P_base)_nv                            "p_diff"
                 = sum_n share_n (P_aligned (log P_base - log P_aligned))_nv        "pref_logratio"
    confidence_v = sum_n share_n P_aligned_nv

Two passes over both heads: the streaming log-sum-exp of each model, then `_token_scores_kernel`,
which forms the same logits again. A program owns a vocabulary tile on one split of the rows: it
walks the split's row tiles, holds both models' tiles at once, and adds each row tile's sums to
(TOKENS,) sums in registers. Tokens are the tile's first dimension, so that a sum over rows stays
within a warp. The splits' sums are added at the end: no atomics, the same bits on every run.

The splits of one vocabulary tile run side by side, about as many of them as vocabulary tiles, so
that the states and the heads' tiles are both shared in L2: a program that walked all rows alone
would read its tile of the heads from memory again at every row tile.

Flops 4 N V (D + D'), half of them here. Bytes of this pass, at least: (N + V) (D + D') read once
from memory; from L2, (N / ROWS) V (D + D') of the heads and (V / TOKENS) N (D + D') of the states;
partials 8 S V written and read.

Legend: N rows, D hidden size of the aligned model, D' of the base, V vocabulary, S row splits.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.kernels.arithmetic import exp, finish_logits, product_tile
from pact_kernels.kernels.configs import ScoreConfig, dot_precision, score_config
from pact_kernels.kernels.linear_logsumexp import LEAST_EVEN_WIDTH, launch_linear_logsumexp
from pact_kernels.kernels.runtime import Cost, Options, descriptor, launch, target_of, unit_stride


class Model(NamedTuple):
    """States of one model on the rows, its head, and the rows' log-sum-exps."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    largest: Tensor  # (N,) fp32, the largest logit m
    log_total: Tensor  # (N,) fp32, log l of l = sum_v exp(z_v - m)

    def arguments(self, name: str, config: ScoreConfig) -> dict[str, Any]:
        """What the kernel takes of it, under the kernel's names."""
        device, width = target_of(self.hidden), self.hidden.shape[1]
        hidden = descriptor(self.hidden, [config.rows, config.width], device)
        weight = descriptor(self.weight, [config.tokens, config.width], device)
        return {
            f"{name}_hidden": hidden,
            f"{name}_weight": weight,
            f"{name}_bias_ptr": self.bias,
            f"{name}_largest_ptr": self.largest,
            f"{name}_log_total_ptr": self.log_total,
            f"{name}_width": width,
            f"{name}_hidden_stride": self.hidden.stride(0),
            f"{name}_weight_stride": self.weight.stride(0),
            f"{name.upper()}_HIDDEN_DESCRIPTOR": hidden is not self.hidden,
            f"{name.upper()}_WEIGHT_DESCRIPTOR": weight is not self.weight,
            f"{name.upper()}_EVEN_WIDTH": width % config.width == 0,
            f"{name.upper()}_HAS_BIAS": self.bias is not None,
            f"{name.upper()}_PRECISION": dot_precision(self.hidden),
        }


@triton.jit
def _token_scores_kernel(
    aligned_hidden,  # (N, D)
    aligned_weight,  # (V, D)
    aligned_bias_ptr,  # (V,)
    aligned_largest_ptr,  # (N,) fp32
    aligned_log_total_ptr,  # (N,) fp32
    base_hidden,  # (N, D')
    base_weight,  # (V, D')
    base_bias_ptr,  # (V,)
    base_largest_ptr,  # (N,) fp32
    base_log_total_ptr,  # (N,) fp32
    share_ptr,  # (N,) fp32
    difference_ptr,  # (S, V) fp32
    confidence_ptr,  # (S, V) fp32
    num_rows,
    vocabulary,
    aligned_width,  # D
    base_width,  # D'
    aligned_hidden_stride,
    aligned_weight_stride,
    base_hidden_stride,
    base_weight_stride,
    tiles_per_split,  # row tiles
    softcap,
    logit_scale,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED_HIDDEN_DESCRIPTOR: tl.constexpr,
    ALIGNED_WEIGHT_DESCRIPTOR: tl.constexpr,
    ALIGNED_EVEN_WIDTH: tl.constexpr,
    ALIGNED_HAS_BIAS: tl.constexpr,
    ALIGNED_PRECISION: tl.constexpr,
    BASE_HIDDEN_DESCRIPTOR: tl.constexpr,
    BASE_WEIGHT_DESCRIPTOR: tl.constexpr,
    BASE_EVEN_WIDTH: tl.constexpr,
    BASE_HAS_BIAS: tl.constexpr,
    BASE_PRECISION: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOG_RATIO: tl.constexpr,  # mode="pref_logratio"
):
    split, first_token = tl.program_id(0), tl.program_id(1) * TOKENS
    difference = tl.zeros([TOKENS], tl.float32)
    confidence = tl.zeros([TOKENS], tl.float32)
    first_tile = split * tiles_per_split
    tiles = tl.minimum(first_tile + tiles_per_split, tl.cdiv(num_rows, ROWS))
    for tile in tl.range(first_tile, tiles):
        aligned = _log_confidences(
            aligned_hidden, aligned_weight, aligned_bias_ptr,
            aligned_largest_ptr, aligned_log_total_ptr,
            tile * ROWS, first_token, num_rows, vocabulary, aligned_width,
            aligned_hidden_stride, aligned_weight_stride, softcap, logit_scale,
            ROWS, TOKENS, WIDTH, ALIGNED_HIDDEN_DESCRIPTOR, ALIGNED_WEIGHT_DESCRIPTOR,
            ALIGNED_EVEN_WIDTH, ALIGNED_HAS_BIAS, SOFTCAP, ALIGNED_PRECISION,
        )  # (TOKENS, ROWS)  # fmt: skip
        base = _log_confidences(
            base_hidden, base_weight, base_bias_ptr, base_largest_ptr, base_log_total_ptr,
            tile * ROWS, first_token, num_rows, vocabulary, base_width,
            base_hidden_stride, base_weight_stride, softcap, logit_scale,
            ROWS, TOKENS, WIDTH, BASE_HIDDEN_DESCRIPTOR, BASE_WEIGHT_DESCRIPTOR,
            BASE_EVEN_WIDTH, BASE_HAS_BIAS, SOFTCAP, BASE_PRECISION,
        )  # (TOKENS, ROWS)  # fmt: skip
        rows = tile * ROWS + tl.arange(0, ROWS)
        share = tl.load(share_ptr + rows, mask=rows < num_rows, other=0.0)[None, :]
        p_aligned = exp(aligned)
        if LOG_RATIO:
            # p log p is 0 at p = 0, and -inf where the base model alone rules a token out.
            change = tl.where(p_aligned == 0, 0.0, p_aligned * (base - aligned))
        else:
            change = p_aligned - exp(base)
        difference += tl.sum(share * change, 1)
        confidence += tl.sum(share * p_aligned, 1)
    tokens = first_token + tl.arange(0, TOKENS)
    out = split.to(tl.int64) * vocabulary + tokens
    tl.store(difference_ptr + out, difference, mask=tokens < vocabulary)
    tl.store(confidence_ptr + out, confidence, mask=tokens < vocabulary)


@triton.jit
def _log_confidences(
    hidden, weight, bias_ptr, largest_ptr, log_total_ptr,
    first_row, first_token, num_rows, vocabulary, width, hidden_stride, weight_stride,
    softcap, logit_scale,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN_DESCRIPTOR: tl.constexpr, WEIGHT_DESCRIPTOR: tl.constexpr, EVEN_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(TOKENS, ROWS) log-confidences of one model; -inf in rows past the end."""
    x = product_tile(
        weight, hidden, first_token, first_row, vocabulary, num_rows, width,
        weight_stride, hidden_stride, TOKENS, ROWS, WIDTH,
        WEIGHT_DESCRIPTOR, HIDDEN_DESCRIPTOR, EVEN_WIDTH, PRECISION,
    )  # fmt: skip
    if HAS_BIAS:
        tokens = first_token + tl.arange(0, TOKENS)
        bias = tl.load(bias_ptr + tokens, mask=tokens < vocabulary, other=0.0)
        bias = bias.to(tl.float32)[:, None]
    else:
        bias = 0.0
    rows = first_row + tl.arange(0, ROWS)
    largest = tl.load(largest_ptr + rows, mask=rows < num_rows, other=float("inf"))
    log_total = tl.load(log_total_ptr + rows, mask=rows < num_rows, other=0.0)
    z = finish_logits(x, bias, softcap, logit_scale, SOFTCAP)
    return (z - largest[None, :]) - log_total[None, :]


def token_scores(
    aligned_hidden: Tensor,  # (N, D)
    aligned_weight: Tensor,  # (V, D)
    aligned_bias: Tensor | None,  # (V,)
    base_hidden: Tensor,  # (N, D')
    base_weight: Tensor,  # (V, D')
    base_bias: Tensor | None,  # (V,)
    row_share: Tensor,  # (N,) weight of each row; they sum to 1
    *,
    mode: str,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> tuple[Tensor, Tensor]:  # (V,), (V,) fp32
    """Sums over rows of share * difference and share * P_aligned; two passes, 8 NDV flops."""
    # softcap tanh(s z / softcap) / T has the same form: cap softcap / T and scale s / T.
    softcap = None if softcap is None else softcap / temperature
    logit_scale = logit_scale / temperature

    def model(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Model:
        hidden, weight = unit_stride(hidden), unit_stride(weight)
        bias = None if bias is None else unit_stride(bias)
        out = launch_linear_logsumexp(
            hidden,
            weight,
            bias,
            softcap=softcap,
            logit_scale=logit_scale,
            limit_bytes=limit_bytes,
        )
        return Model(hidden, weight, bias, out.largest, out.total.log())

    return launch_token_scores(
        model(aligned_hidden, aligned_weight, aligned_bias),
        model(base_hidden, base_weight, base_bias),
        row_share.to(torch.float32),
        mode=mode,
        softcap=softcap,
        logit_scale=logit_scale,
        limit_bytes=limit_bytes,
    )


def launch_token_scores(
    aligned: Model,
    base: Model,
    row_share: Tensor,  # (N,) fp32
    *,
    mode: str,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> tuple[Tensor, Tensor]:
    """The second pass: (V,) difference and (V,) confidence, fp32."""
    (num_rows, _), vocabulary = aligned.hidden.shape, aligned.weight.shape[0]
    config = _config(aligned, base, crowded=softcap is not None)
    row_tiles = triton.cdiv(num_rows, config.rows)
    token_tiles = triton.cdiv(vocabulary, config.tokens)
    tiles_per_split = _tiles_per_split(
        row_tiles,
        token_tiles,
        processors=target_of(aligned.hidden).processors,
        most_splits=limit_bytes // (2 * 4 * vocabulary),
    )
    splits = max(1, triton.cdiv(row_tiles, tiles_per_split))
    partial = row_share.new_empty((2, splits, vocabulary))  # (2, S, V)
    launch(
        _token_scores_kernel,
        (splits, token_tiles),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * vocabulary * sum(m.hidden.shape[1] for m in (aligned, base)),
            bytes=partial.nbytes + sum(m.hidden.nbytes + m.weight.nbytes for m in (aligned, base)),
            row_tiles=row_tiles,
        ),
        **aligned.arguments("aligned", config),
        **base.arguments("base", config),
        share_ptr=row_share,
        difference_ptr=partial[0],
        confidence_ptr=partial[1],
        num_rows=num_rows,
        vocabulary=vocabulary,
        tiles_per_split=tiles_per_split,
        softcap=softcap or 1.0,
        logit_scale=logit_scale,
        ROWS=config.rows,
        TOKENS=config.tokens,
        WIDTH=config.width,
        SOFTCAP=softcap is not None,
        LOG_RATIO=mode == "pref_logratio",
    )
    return partial[0].sum(0), partial[1].sum(0)


def _config(aligned: Model, base: Model, *, crowded: bool) -> ScoreConfig:
    """One tile shape for both models: that of the wider dtype, masked if either needs it."""
    dtype = max(aligned.hidden.dtype, base.hidden.dtype, key=lambda dtype: dtype.itemsize)
    even = all(model.hidden.shape[1] % LEAST_EVEN_WIDTH == 0 for model in (aligned, base))
    return score_config(target_of(aligned.hidden), dtype, crowded=crowded, even=even)


def _tiles_per_split(row_tiles: int, token_tiles: int, *, processors: int, most_splits: int) -> int:
    """Row tiles of a split.

    As many splits as vocabulary tiles run at once; more where the vocabulary is too small to give
    every processor a program.
    """
    splits = max(isqrt(processors), triton.cdiv(processors, token_tiles))
    return max(1, triton.cdiv(row_tiles, max(1, min(splits, most_splits))))
