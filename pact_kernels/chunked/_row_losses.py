"""What follows from a row's log-sum-exp and few of its logits: its losses, its gradient's factors.

Legend: N rows, D hidden size, V vocabulary, K selected tokens, B block rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked._kl_rows import KlRows, RowKl
from pact_kernels.chunked._sweep import Swept
from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.common.requests import TermRequest
from pact_kernels.types import Head


class RowFactors(NamedTuple):
    """Gradient of each row's loss by the head's raw products, in its four parts."""

    softmax: Tensor  # (B,) before the softmax, times slope where that differs by token
    target: Tensor | None  # (B,) at the target
    uniform: Tensor | None  # (B,) before every token's slope: label smoothing
    sparse: Tensor | None  # (B, K) at the selected tokens

    def scaled(self, row_grad: Tensor) -> RowFactors:
        """The same times (B,)."""
        row_grad = row_grad.to(self.softmax.dtype)
        return RowFactors(
            self.softmax * row_grad,
            None if self.target is None else self.target * row_grad,
            None if self.uniform is None else self.uniform * row_grad,
            None if self.sparse is None else self.sparse * row_grad[:, None],
        )

    @classmethod
    def joined(cls, blocks: list[RowFactors]) -> RowFactors:
        """The blocks' rows one after the other."""
        softmax, target, uniform, sparse = (
            None if part[0] is None else torch.cat(part) for part in zip(*blocks, strict=True)
        )
        assert softmax is not None
        return cls(softmax, target, uniform, sparse)


@dataclass(kw_only=True)
class RowLosses:
    """The row loss of one call, with the tensors of its N rows."""

    term: TermRequest
    head: Head
    kl_rows: KlRows | None
    target: Tensor | None  # (N,)
    row_grad: Tensor | None  # (N,)
    token_ids: Tensor | None  # (K,), or (N, K)
    held: bool
    """The softmax's tiles lack the target and, where the KL runs over the vocabulary, the selected
    tokens: the factors there make up for it. In 16 bits a probability next to one would be rounded
    before what it nearly equals is taken from it."""

    def __post_init__(self) -> None:
        over_vocabulary = self.kl_rows is not None and self.kl_rows.kl.over == "vocabulary"
        self.holds_selected = self.held and over_vocabulary
        self.unselected: Tensor | None = None  # (V,) 0 at the selected tokens, else 1
        shared = self.kl_rows is not None and not self.kl_rows.by_row
        if self.holds_selected and shared and self.token_ids is not None:
            dtype = accumulator_dtype(self.head.weight.dtype)
            ones = self.head.weight.new_ones(self.head.weight.shape[0], dtype=dtype)
            self.unselected = ones.index_fill_(0, self.token_ids, 0.0)
        self.smoothing = 0.0
        if self.term.kind == "cross_entropy":
            self.smoothing = self.term.label_smoothing

    def targets(self, index: slice) -> Tensor | None:
        """(B,) targets of some rows, where the loss has one."""
        if self.target is None or self.term.kind != "cross_entropy":
            return None
        return self.target[index]

    def left_out(self, index: slice) -> Tensor | None:
        """(B, K) selected tokens of some rows that their tiles are to lack, each row its own."""
        if self.kl_rows is None or not self.kl_rows.by_row or not self.holds_selected:
            return None
        return self.kl_rows.ids(index)

    def shared_bytes(self) -> int:
        """Memory of the whole call."""
        size = 0 if self.unselected is None else self.unselected.nbytes
        return size + (0 if self.kl_rows is None else self.kl_rows.shared_bytes())

    def row_bytes(self) -> int:
        """Memory of a row of a block."""
        return 0 if self.kl_rows is None else self.kl_rows.row_bytes()

    def factor_bytes(self) -> int:
        """Memory of a row's factors."""
        entries = 3 + (0 if self.token_ids is None else self.token_ids.shape[-1])
        return entries * accumulator_dtype(self.head.weight.dtype).itemsize

    def __call__(self, states: Tensor, index: slice, swept: Swept, values: Tensor) -> RowFactors:
        """Fill values (3, B) of rows with states (B, D); the factors of their gradient."""
        lse = swept.lse
        alpha = self._term(swept, values[0])  # (B,)
        kl = None
        if self.kl_rows is not None:
            kl = self.kl_rows(states, index, lse)
            values[1] = kl.kl
            if kl.gate is not None:
                values[2] = kl.gate
            if kl.softmax_factor is not None:
                alpha = alpha + kl.softmax_factor
        softmax = alpha if self.head.softcap is not None else alpha * self.head.logit_scale
        uniform = None
        if self.smoothing:
            uniform = torch.full_like(lse, -self.smoothing / self.head.weight.shape[0])
        sparse = None if kl is None else self._at_selected(kl, alpha)
        factors = RowFactors(softmax, self._at_target(swept, index, alpha), uniform, sparse)
        return factors if self.row_grad is None else factors.scaled(self.row_grad[index])

    def _term(self, swept: Swept, out: Tensor) -> Tensor:
        """Row losses beside the KL into `out` (B,); (B,) the softmax's factor in their gradient."""
        term, lse = self.term, swept.lse
        if term.kind == "none":
            return torch.zeros_like(lse)
        if swept.at_target is None:
            out.copy_(lse)
            return torch.ones_like(lse)
        torch.sub(lse, swept.at_target, out=out)
        if swept.logit_sum is not None:
            mean = swept.logit_sum / self.head.weight.shape[0]
            # Not lerp: both are infinite where the target's logit is -inf.
            out.mul_(1.0 - term.label_smoothing).add_(lse - mean, alpha=term.label_smoothing)
        if not term.z_loss:
            return torch.ones_like(lse)
        out += term.z_loss * lse.square()
        return 1.0 + 2.0 * term.z_loss * lse

    def _at_target(self, swept: Swept, index: slice, alpha: Tensor) -> Tensor | None:
        """(B,)"""
        target, logit = self.targets(index), swept.at_target
        if target is None or logit is None:
            return None
        factor = torch.full_like(logit, self.smoothing - 1.0)
        if self.held:
            softmax = (logit - swept.lse).exp_()
            left_out = self.left_out(index)
            if self.unselected is not None:
                softmax *= self.unselected[target]
            elif left_out is not None:
                softmax.masked_fill_((left_out == target[:, None]).any(1), 0.0)
            factor += alpha * softmax
        return factor * self.head.slope(logit)

    def _at_selected(self, kl: RowKl, alpha: Tensor) -> Tensor:
        """(B, K)"""
        sparse = kl.sparse
        if self.holds_selected and kl.lse is not None:
            sparse = sparse + alpha[:, None] * (kl.student - kl.lse[:, None]).exp_()
        return sparse * self.head.slope(kl.student)
