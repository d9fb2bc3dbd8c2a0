"""Rows against the whole vocabulary, one tile of it at a time, each row of the head read once.

A running maximum m and a running sum s (Milakov and Gimelshein, arXiv 1805.02867) carry the softmax
from tile to tile, and with it the softmax's mean of the head's rows, which is its part of the
hidden gradient (the scheme of Dao et al., arXiv 2205.14135, with the head as both key and value):

    Z = softcap(logit_scale * (H W_t^T + b_t))
    m' = max(m, max Z),  E = exp(Z - m')
    s <- s exp(m - m') + sum E
    A <- A exp(m - m') + (E * slope) W_t          2 M D T flops with W_t still in the cache

A trainable head needs each tile again once the normaliser is known: its tiles of E are kept, and
the rows, not the tiles, take what turns E into the gradient.

Legend: M rows, D hidden size, V vocabulary, T tokens of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype, chunks
from pact_kernels.types import Head

TILE_TOKENS = {8: 512, 4: 1024, 2: 4096}
"""By bytes of a logit. A tile and its rows of the head stay in a CPU's cache (D 576 to 2048, 64 to
1024 rows)."""
TILE_LOGITS_IN_16_BITS = 2**21
"""There a product's start weighs more: of few rows more tokens, up to MOST_TILE_TOKENS."""
MOST_TILE_TOKENS = 16384
"""On a GPU too, where a launch costs more than a cache miss."""
LEAST_TILE_TOKENS = 64
LOG2_E = math.log2(math.e)
ROWS_OF_A_SMALL_WORKSPACE = 16
"""So many rows of a tile are to fit before the tile is made wider."""
COPIES = 3
"""Copies of a tile, at most: raw, in fp32, and its slopes."""


class Swept(NamedTuple):
    """What a sweep found out about its M rows, in the accumulator dtype."""

    lse: Tensor  # (M,)
    at_target: Tensor | None  # (M,) logits
    logit_sum: Tensor | None  # (M,) over the vocabulary, with `uniform`
    norm: Tensor  # (M,) 1 / sum of exp(z - max)
    uniform: Tensor | None  # (M, D) sum over V of slope * head row, with `uniform`

    def rows(self, index: slice) -> Swept:
        """The same for some of the rows."""
        return Swept(
            self.lse[index],
            None if self.at_target is None else self.at_target[index],
            None if self.logit_sum is None else self.logit_sum[index],
            self.norm[index],
            None if self.uniform is None else self.uniform[index],
        )


@dataclass(kw_only=True)
class Sweep:
    """Buffers of the sweeps of one call, and the tiles that the last of them kept."""

    head: Head
    product: bool
    """Form the softmax's mean of the head's rows."""
    keep: bool
    """Keep the tiles for `add_weight_gradient_`."""
    uniform: bool
    """Form what label smoothing takes: sums of the logits and of the head's rows."""
    unselected: Tensor | None = None
    """(V,) In 16 bits a factor on the tiles, 0 at tokens whose gradient the caller forms apart; the
    targets are left out there in any case."""
    lent: Tensor | None = None
    """(V, D) The head's gradient before anything is in it: a kept tile lies where its own gradient
    will, so that one chunk of M <= D rows needs no memory for its tiles. None is memory apart."""

    @property
    def gradient(self) -> bool:
        """Whether tiles become gradients at all."""
        return self.product or self.keep

    def row_bytes(self, hidden: Tensor, tile: int) -> int:
        """Memory of a row: its tiles, and sums as wide as the states."""
        vocabulary, width = self.head.weight.shape
        narrow, wide = hidden.dtype.itemsize, accumulator_dtype(hidden.dtype).itemsize
        slopes = self.head.softcap is not None and self.gradient
        size = narrow * (vocabulary if self.keep else tile) * (self.lent is None)
        size += wide * tile * ((narrow < wide or self.lent is not None) + slopes)
        size += narrow * width * (self.product and narrow < wide)
        size += wide * width * (1 + 2 * self.keep)  # the sum, or scaled rows
        size += wide * 5 * -(-vocabulary // tile)  # maxima, sums and the targets' logits by tile
        if self.uniform and slopes:
            size += wide * (width + (vocabulary if self.keep else 0))
        return size

    def allocate(self, hidden: Tensor, rows: int, tile: int) -> None:
        """Buffers for sweeps of up to so many rows."""
        vocabulary, width = self.head.weight.shape
        self.dtype = accumulator_dtype(hidden.dtype)
        self.tile = tile
        self.narrow = hidden.dtype != self.dtype
        tokens = vocabulary if self.keep else tile
        self.raw = hidden.new_empty(rows * tokens if self.lent is None else 0)
        copied = self.narrow or self.lent is not None
        self.wide = hidden.new_empty(rows * tile if copied else 0, dtype=self.dtype)
        self.part = hidden.new_empty((rows if self.narrow and self.product else 0, width))
        self.scaled = self.wide.new_empty((rows if self.keep else 0, width))
        self.lowest = self.wide.new_full((1, 1), torch.finfo(self.dtype).min)  # finite: no NaN
        self.tiles = list(chunks(vocabulary, tile))  # (low, high) each
        self.heads = [self.head.tile(low, high) for low, high in self.tiles]
        self.slopes: list[Tensor] = []  # (M, T) of each tile, for `add_weight_gradient_`

    def __call__(
        self,
        rows: Tensor,
        target: Tensor | None,
        out: Tensor | None,
        left_out: Tensor | None = None,
    ) -> Swept:
        """Sweep rows (M, D) with targets (M,); `out` (M, D) times `norm` is the softmax's mean.

        In 16 bits each row's tokens of `left_out` (M, K) are left out of its tiles.
        """
        num_rows, num_tiles = rows.shape[0], len(self.tiles)
        by_tile = self.wide.new_empty((3, num_tiles, num_rows, 1))
        run = _Running(
            max=by_tile[0].unbind(),
            sum_exp=by_tile[1].unbind(),
            taken=by_tile[2].unbind(),
            shrink=by_tile.new_empty((num_rows, 1)),
            targets=None if target is None else _Targets(target, self.tile),
            logit_sum=by_tile.new_zeros(num_rows) if self.uniform else None,
            uniform=self._new_uniform(num_rows),
            left_out=left_out,
        )
        self.slopes = []
        for number in range(num_tiles):
            self._sweep_tile(number, run, rows, out)
        self.shifts = by_tile[0]
        last = run.max[-1]  # (M, 1)
        sum_exp = (self.shifts - last).exp_().mul_(by_tile[1]).sum(0)  # (M, 1)
        lse = (sum_exp.log() + last).squeeze(1)
        uniform = run.uniform
        if self.head.softcap is None and uniform is not None:
            uniform = uniform.mul_(self.head.logit_scale).expand(num_rows, -1)
        at_target = None
        if run.targets is not None:
            at_target = by_tile[2].gather(0, run.targets.tile[None, :, None])[0, :, 0]
        return Swept(lse, at_target, run.logit_sum, sum_exp.reciprocal_().squeeze(1), uniform)

    def _sweep_tile(self, number: int, run: _Running, rows: Tensor, out: Tensor | None) -> None:
        """The tile of this number."""
        head, (low, high) = self.heads[number], self.tiles[number]
        raw = self._tile(rows.shape[0], low, high)  # (M, T)
        torch.mm(rows, head.weight.T, out=raw)
        z = head.finish_(self._copied(raw) if self.narrow else raw)
        if run.targets is not None:
            torch.gather(z, 1, run.targets.columns(high - low), out=run.taken[number])
        if run.logit_sum is not None:
            run.logit_sum += z.sum(-1)
        slope = head.slope(z) if self.gradient else 1.0
        shift = torch.amax(z, 1, keepdim=True, out=run.max[number])  # (M, 1)
        before = run.max[number - 1] if number else self.lowest
        torch.maximum(before, shift, out=shift)
        z.sub_(shift).mul_(LOG2_E).exp2_()  # torch's exp takes two to four times as long
        torch.sum(z, 1, keepdim=True, out=run.sum_exp[number])
        if not self.gradient:
            return
        if isinstance(slope, Tensor):
            z *= slope
        if self.narrow:
            if run.targets is not None:
                run.targets.zero_(z, number)
            if self.unselected is not None:
                z *= self.unselected[low:high]
            if run.left_out is not None:
                inside = (run.left_out >= low) & (run.left_out < high)  # (M, K)
                row, place = inside.nonzero(as_tuple=True)
                z[row, run.left_out[row, place] - low] = 0.0
            raw.copy_(z)
        if out is not None and number:
            out *= torch.sub(before, shift, out=run.shrink).exp_()
        if out is not None:
            self._add_product_(out, raw, head.weight, first=number == 0)
        if run.uniform is not None:
            self._add_uniform_(run.uniform, slope, head.weight)
        if self.keep and self.uniform and isinstance(slope, Tensor):
            self.slopes.append(slope)

    def _copied(self, tile: Tensor) -> Tensor:
        """A copy of the tile in the accumulator dtype, in the one buffer for it."""
        return self.wide[: tile.numel()].view_as(tile).copy_(tile)

    def _new_uniform(self, num_rows: int) -> Tensor | None:
        """Zeros for the sum of the head's rows: without a softcap the same for all of M."""
        if not (self.uniform and self.product):
            return None
        rows = 1 if self.head.softcap is None else num_rows
        return self.wide.new_zeros((rows, self.head.weight.shape[1]))

    def _tile(self, num_rows: int, low: int, high: int) -> Tensor:
        if self.lent is not None:
            memory = self.lent[low:high].view(-1).view(self.raw.dtype)
        else:
            memory = self.raw[num_rows * low :] if self.keep else self.raw
        return memory[: num_rows * (high - low)].view(num_rows, high - low)

    def _add_product_(self, out: Tensor, tile: Tensor, weight: Tensor, *, first: bool) -> None:
        """out (M, D) += tile (M, T) @ weight (T, D), or is it where `first`."""
        if self.narrow:
            part = torch.mm(tile, weight, out=self.part[: tile.shape[0]])
            if first:
                out.copy_(part)
            else:
                out += part
        elif first:
            torch.mm(tile, weight, out=out)
        else:
            out.addmm_(tile, weight)

    def _add_uniform_(self, uniform: Tensor, slope: Tensor | float, weight: Tensor) -> None:
        if isinstance(slope, Tensor):
            uniform.addmm_(slope, weight.to(self.dtype))
        else:
            uniform += weight.sum(0, dtype=self.dtype)

    def add_weight_gradient_(
        self,
        grad_weight: Tensor | None,  # (V, D), added to, or written to where `first`
        grad_bias: Tensor | None,  # (V,), added to
        rows: Tensor,  # (M, D) of the last sweep
        factor: Tensor,  # (M,) of softmax * slope
        lse: Tensor,  # (M,)
        uniform_factor: Tensor | None,  # (M,) of slope
        *,
        first: bool,
    ) -> None:
        """Add factor * softmax * slope + uniform_factor * slope, by the head's raw products."""
        rows = rows.to(self.dtype)
        scaled = self.scaled[: rows.shape[0]]  # (M, D)
        scales = self.shifts.sub_(lse[:, None]).exp_().mul_(factor[:, None])  # (tiles, M, 1)
        for (low, high), scale in zip(self.tiles, scales.unbind(), strict=True):
            tile = self._tile(rows.shape[0], low, high)  # (M, T)
            if self.narrow or self.lent is not None:
                tile = self._copied(tile)
            if grad_weight is not None:
                torch.mul(rows, scale, out=scaled)
                if first:
                    torch.mm(tile.T, scaled, out=grad_weight[low:high])
                else:
                    grad_weight[low:high].addmm_(tile.T, scaled)
            if grad_bias is not None:
                grad_bias[low:high].addmv_(tile.T, scale.squeeze(1))
        if uniform_factor is not None:
            self._add_uniform_gradient_(grad_weight, grad_bias, rows, uniform_factor)

    def _add_uniform_gradient_(
        self, grad_weight: Tensor | None, grad_bias: Tensor | None, rows: Tensor, factor: Tensor
    ) -> None:
        """Add factor * slope, by the head's raw products."""
        scaled = torch.mul(rows, factor[:, None], out=self.scaled[: rows.shape[0]])  # (M, D)
        if not self.slopes:
            if grad_weight is not None:
                grad_weight += scaled.sum(0).mul_(self.head.logit_scale)
            if grad_bias is not None:
                grad_bias += factor.sum() * self.head.logit_scale
            return
        for slope, (low, high) in zip(self.slopes, self.tiles, strict=True):
            if grad_weight is not None:
                grad_weight[low:high].addmm_(slope.T, scaled)
            if grad_bias is not None:
                grad_bias[low:high].addmv_(slope.T, factor)


def tile_tokens(vocabulary: int, hidden: Tensor, num_rows: int, limit_bytes: int) -> int:
    """Tokens T of a tile of so many rows or, if they are cut into chunks, fewer."""
    most = MOST_TILE_TOKENS
    if hidden.device.type == "cpu":
        most = TILE_TOKENS[hidden.itemsize]
        if hidden.itemsize == 2:
            wanted = TILE_LOGITS_IN_16_BITS // max(1, num_rows)
            most = max(most, min(wanted, MOST_TILE_TOKENS))
    token_bytes = COPIES * accumulator_dtype(hidden.dtype).itemsize
    fitting = limit_bytes // (ROWS_OF_A_SMALL_WORKSPACE * token_bytes)
    return min(vocabulary, most, max(LEAST_TILE_TOKENS, fitting))


@dataclass(kw_only=True)
class _Running:
    """What a sweep carries from tile to tile; lists have an entry for each."""

    max: Sequence[Tensor]  # (M, 1) of all logits up to and with the tile's
    sum_exp: Sequence[Tensor]  # (M, 1) sums of exp(z - max) over the tile
    taken: Sequence[Tensor]  # (M, 1) the target's logit, in the tile that has it
    shrink: Tensor  # (M, 1)
    targets: _Targets | None
    logit_sum: Tensor | None  # (M,)
    uniform: Tensor | None  # (M, D) or (1, D)
    left_out: Tensor | None  # (M, K)


class _Targets:
    """Where the targets of M rows lie among tiles of T tokens, the last of which has fewer."""

    def __init__(self, target: Tensor, tokens: int) -> None:
        self.tokens = tokens
        self.tile = torch.div(target, tokens, rounding_mode="floor")  # (M,)
        self.column = (target - self.tile * tokens)[:, None]  # (M, 1)

    def columns(self, tokens: int) -> Tensor:
        """(M, 1) within a tile of so many tokens; of some token where it lies in another tile."""
        return self.column if tokens == self.tokens else self.column.clamp(max=tokens - 1)

    def zero_(self, tile: Tensor, number: int) -> None:
        """Zero the entries of the targets that lie in the tile (M, T) of this number."""
        column = self.columns(tile.shape[1])
        inside = (self.tile == number)[:, None]
        tile.scatter_(1, column, tile.gather(1, column).masked_fill_(inside, 0.0))
