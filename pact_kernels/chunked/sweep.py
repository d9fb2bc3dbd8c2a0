"""Rows against the whole vocabulary, one tile of it at a time, each row of the head read once.

A running maximum m and a running sum s (Milakov and Gimelshein, arXiv 1805.02867) carry the softmax
from tile to tile, and with it the softmax's mean of the head's rows, which is its share of the
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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked.slab import accumulator_dtype, finish_logits_, logit_slope, slabs

TILE_TOKENS = {"cpu": 1024}
"""A tile's logits and its rows of the head stay in a core's cache (D 576 to 2048, 64 rows up)."""
TILE_TOKENS_ELSEWHERE = 16384
"""On a GPU, where a launch costs more than a cache miss."""
LEAST_TILE_TOKENS = 64
ROWS_OF_A_SMALL_WORKSPACE = 16
"""So many rows of a tile are to fit before the tile is made wider."""


class Head(NamedTuple):
    """The output head: softcap(logit_scale * (hidden @ weight.T + bias))."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    softcap: float | None
    logit_scale: float

    def tile(self, low: int, high: int) -> Head:
        """The same for tokens [low, high)."""
        bias = None if self.bias is None else self.bias[low:high]
        return self._replace(weight=self.weight[low:high], bias=bias)

    def finish_(self, logits: Tensor) -> Tensor:
        """Raw products (M, V) to logits, in place."""
        return finish_logits_(logits, self.bias, self.softcap, self.logit_scale)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the logits by the raw products."""
        return logit_slope(logits, self.softcap, self.logit_scale)


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

    @property
    def gradient(self) -> bool:
        """Whether tiles become gradients at all."""
        return self.product or self.keep

    def row_bytes(self, hidden: Tensor, tile: int) -> int:
        """Memory of a row: its tiles, and sums as wide as the states."""
        vocabulary, width = self.head.weight.shape
        narrow, wide = hidden.dtype.itemsize, accumulator_dtype(hidden.dtype).itemsize
        slopes = self.head.softcap is not None and self.gradient
        size = narrow * (vocabulary if self.keep else tile)
        size += wide * tile * ((narrow < wide) + slopes)
        size += narrow * width * (self.product and narrow < wide)
        size += wide * width * (1 + 2 * self.keep)  # the sum, or scaled rows
        if self.uniform and slopes:
            size += wide * (width + (vocabulary if self.keep else 0))
        return size

    def allocate(self, hidden: Tensor, rows: int, tile: int) -> None:
        """Buffers for sweeps of up to so many rows."""
        vocabulary, width = self.head.weight.shape
        self.dtype = accumulator_dtype(hidden.dtype)
        self.tile = tile
        tokens = vocabulary if self.keep else min(tile, vocabulary)
        self.raw = hidden.new_empty(rows * tokens)
        self.narrow = hidden.dtype != self.dtype
        self.wide = hidden.new_empty(rows * tile if self.narrow else 0, dtype=self.dtype)
        self.part = hidden.new_empty((rows if self.narrow and self.product else 0, width))
        self.scaled = self.wide.new_empty((rows if self.keep else 0, width))
        self.shifts: list[Tensor] = []
        self.slopes: list[Tensor] = []

    def tiles(self) -> Iterator[tuple[int, int]]:
        """(low, high) of every tile."""
        return slabs(self.head.weight.shape[0], self.tile)

    def __call__(self, rows: Tensor, target: Tensor | None, out: Tensor | None) -> Swept:
        """Sweep rows (M, D) with targets (M,); `out` (M, D) times `norm` is the softmax's mean."""
        zeros = self.wide.new_zeros(rows.shape[0])
        run = _Running(
            largest=torch.full_like(zeros, torch.finfo(self.dtype).min),  # finite: no NaN
            total=zeros,
            at_target=None if target is None else torch.zeros_like(zeros),
            logit_sum=torch.zeros_like(zeros) if self.uniform else None,
            uniform=self._new_uniform(rows.shape[0]),
        )
        self.shifts, self.slopes = [], []
        for low, high in self.tiles():
            self._sweep_tile(run, rows, target, out, low, high)
        lse = run.total.log().add_(run.largest)
        uniform = run.uniform
        if self.head.softcap is None and uniform is not None:
            uniform = uniform.mul_(self.head.logit_scale).expand(rows.shape[0], -1)
        return Swept(lse, run.at_target, run.logit_sum, run.total.reciprocal_(), uniform)

    def _sweep_tile(
        self,
        run: _Running,
        rows: Tensor,
        target: Tensor | None,
        out: Tensor | None,
        low: int,
        high: int,
    ) -> None:
        """Tokens [low, high)."""
        head = self.head.tile(low, high)
        raw = self._tile(rows.shape[0], low, high)  # (M, T)
        torch.mm(rows, head.weight.T, out=raw)
        z = head.finish_(self._wide(raw))
        place = None
        if target is not None and run.at_target is not None:
            place = _Place.of(target, low, high)
            run.at_target = torch.where(place.inside, place.taken(z), run.at_target)
        if run.logit_sum is not None:
            run.logit_sum += z.sum(-1)
        slope = head.slope(z) if self.gradient else 1.0
        shrink = run.exp_(z)
        if not self.gradient:
            return
        if isinstance(slope, Tensor):
            z *= slope
        if self.narrow:
            if place is not None:
                place.zero_(z)
            if self.unselected is not None:
                z *= self.unselected[low:high]
            raw.copy_(z)
        if out is not None:
            self._add_product_(out, raw, head.weight, shrink, first=low == 0)
        if run.uniform is not None:
            self._add_uniform_(run.uniform, slope, head.weight)
        if self.keep:
            self.shifts.append(run.largest)
            if self.uniform and isinstance(slope, Tensor):
                self.slopes.append(slope)

    def _wide(self, tile: Tensor) -> Tensor:
        """The tile in the accumulator dtype: itself, or a copy in the one buffer for it."""
        return self.wide[: tile.numel()].view_as(tile).copy_(tile) if self.narrow else tile

    def _new_uniform(self, num_rows: int) -> Tensor | None:
        """Zeros for the sum of the head's rows: without a softcap the same for all of M."""
        if not (self.uniform and self.product):
            return None
        rows = 1 if self.head.softcap is None else num_rows
        return self.wide.new_zeros((rows, self.head.weight.shape[1]))

    def _tile(self, num_rows: int, low: int, high: int) -> Tensor:
        start = num_rows * low if self.keep else 0
        return self.raw[start : start + num_rows * (high - low)].view(num_rows, high - low)

    def _add_product_(
        self, out: Tensor, tile: Tensor, weight: Tensor, shrink: Tensor, *, first: bool
    ) -> None:
        """out (M, D) = shrink (M,) * out + tile (M, T) @ weight (T, D)."""
        if not self.narrow and first:
            torch.mm(tile, weight, out=out)
        elif not self.narrow:
            out.mul_(shrink[:, None]).addmm_(tile, weight)
        else:
            part = torch.mm(tile, weight, out=self.part[: tile.shape[0]])
            if first:
                out.copy_(part)
            else:
                out.mul_(shrink[:, None]).add_(part)

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
        for number, (low, high) in enumerate(self.tiles()):
            tile = self._wide(self._tile(rows.shape[0], low, high))  # (M, T)
            share = (self.shifts[number] - lse).exp_().mul_(factor)  # (M,)
            if grad_weight is not None:
                torch.mul(rows, share[:, None], out=scaled)
                if first:
                    torch.mm(tile.T, scaled, out=grad_weight[low:high])
                else:
                    grad_weight[low:high].addmm_(tile.T, scaled)
            if grad_bias is not None:
                grad_bias[low:high].addmv_(tile.T, share)
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
        for slope, (low, high) in zip(self.slopes, self.tiles(), strict=True):
            if grad_weight is not None:
                grad_weight[low:high].addmm_(slope.T, scaled)
            if grad_bias is not None:
                grad_bias[low:high].addmv_(slope.T, factor)


def tile_tokens(vocabulary: int, token_bytes: int, limit_bytes: int, device: torch.device) -> int:
    """Tokens T of a tile whose rows take `token_bytes` of memory for each."""
    most = TILE_TOKENS.get(device.type, TILE_TOKENS_ELSEWHERE)
    fitting = limit_bytes // (ROWS_OF_A_SMALL_WORKSPACE * token_bytes)
    return min(vocabulary, most, max(LEAST_TILE_TOKENS, fitting))


@dataclass(kw_only=True)
class _Running:
    """What a sweep carries from tile to tile."""

    largest: Tensor  # (M,)
    total: Tensor  # (M,) of exp(z - largest)
    at_target: Tensor | None  # (M,)
    logit_sum: Tensor | None  # (M,)
    uniform: Tensor | None  # (M, D) or (1, D)

    def exp_(self, z: Tensor) -> Tensor:
        """Logits (M, T) to exp(z - largest), in place; (M,) factor on what was summed before."""
        shift = torch.maximum(self.largest, z.amax(-1))
        shrink = (self.largest - shift).exp_()
        z.sub_(shift[:, None]).exp_()
        self.total.mul_(shrink).add_(z.sum(-1))
        self.largest = shift
        return shrink


class _Place(NamedTuple):
    """Where the targets of M rows lie in a tile."""

    column: Tensor  # (M, 1), of some token of the tile where the target lies in another
    inside: Tensor  # (M,) bool

    @classmethod
    def of(cls, target: Tensor, low: int, high: int) -> _Place:
        offset = target - low
        column = offset.clamp(0, high - low - 1)
        return cls(column[:, None], column == offset)

    def taken(self, tile: Tensor) -> Tensor:
        """(M,) entries of the tile (M, T)."""
        return tile.gather(1, self.column).squeeze(1)

    def zero_(self, tile: Tensor) -> None:
        """Zero the targets' entries."""
        tile.scatter_(
            1, self.column, tile.gather(1, self.column).masked_fill_(self.inside[:, None], 0.0)
        )
