"""The KL term of any block of rows, with its gradient by the student's logits.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, D' that of the
reference, K selected tokens, B block rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked import _target as target
from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.common.requests import KlRequest
from pact_kernels.common.rows import check_rows
from pact_kernels.types import Head


class RowKl(NamedTuple):
    """KL of a block and its gradient: softmax_factor * softmax, plus `sparse` at the K tokens."""

    kl: Tensor  # (B,) times row_weight
    gate: Tensor | None  # (B,); None without a gate
    student: Tensor  # (B, K) the logits that the KL was formed from
    lse: Tensor | None  # (B,) over the vocabulary, no less than that of the K logits
    softmax_factor: Tensor | None  # (B,) with kl_weight and row_weight; None is 0
    sparse: Tensor  # (B, K) likewise


class KlRows:
    """The KL term of one call, with what all rows share made ready once.

    Args:
        kl: what is asked for.
        head: the student's (V, D), in any dtype.
        token_ids: (K,), or (N, K) with a set for each row; None where the head is theirs alone.
        kept: (N,) positions of the rows, or None where every position is a row.
        num_positions: R.

    Raises:
        ValueError: the row tensors have neither N nor R entries.
    """

    def __init__(
        self,
        kl: KlRequest,
        head: Head,
        token_ids: Tensor | None,
        kept: Tensor | None,
        num_positions: int,
    ) -> None:
        num_rows = num_positions if kept is None else kept.numel()
        given = kl.step.shape[0]
        check_rows(given, num_rows, num_positions)
        dtype = accumulator_dtype(head.weight.dtype)
        self.kl, self.whole, self.token_ids, self.dtype = kl, head, token_ids, dtype
        self.by_row = token_ids is not None and token_ids.dim() == 2
        self.head: Head | None = None  # (K, D) where it is the same for all rows
        if not self.by_row:
            self.head = _wide(head if token_ids is None else head.select(token_ids), dtype)
        self.kept = None if given == num_rows else kept
        self.log_weight = kl.token_weights.to(dtype).clamp(min=0.0).log_()  # (K,)
        self.reference = kl.reference_head
        if self.reference is not None:
            self.reference = self.reference._replace(weight=self.reference.weight.to(dtype))

    def shared_bytes(self) -> int:
        """Memory of the selected rows of both heads."""
        heads = (self.head, self.reference)
        return sum(head.weight.nbytes for head in heads if head is not None)

    def row_bytes(self) -> int:
        """Memory that a row of a block takes: fp32 states, and a dozen tensors of K logits."""
        selected, width = self.log_weight.numel(), self.whole.weight.shape[1]
        states = width + (0 if self.reference is None else self.reference.weight.shape[1])
        gathered = selected * width * self.whole.weight.itemsize if self.by_row else 0
        if self.by_row:
            states += selected * width
        return gathered + self.log_weight.itemsize * (states + 12 * selected)

    def ids(self, rows: slice) -> Tensor:
        """(B, K) of some rows, or (K,) of all."""
        assert self.token_ids is not None
        return self._taken(self.token_ids, rows) if self.by_row else self.token_ids

    def logits(self, states: Tensor, rows: slice) -> Tensor:
        """(B, K) of the student.

        With a set for each row, the most likely tokens as a rule, they are rounded as the logits of
        the row's log-sum-exp are: else a confidence near 1 would be off by that rounding.
        """
        if self.head is not None:
            return self.head.logits(states)
        ids = self.ids(rows)
        products = torch.bmm(self._gathered(ids), states.to(self.dtype)[:, :, None])[:, :, 0]
        products = products.to(states.dtype).to(self.dtype)
        bias = None if self.whole.bias is None else self.whole.bias[ids].to(self.dtype)
        return self.whole._replace(bias=bias).finish_(products)

    def add_gradient_(self, out: Tensor, sparse: Tensor, rows: slice) -> None:
        """out (B, D) += sparse (B, K) times each row's selected rows of the head."""
        if self.head is not None:
            out.addmm_(sparse, self.head.weight)
        else:
            out += torch.bmm(sparse[:, None], self._gathered(self.ids(rows)))[:, 0]

    def _gathered(self, ids: Tensor) -> Tensor:
        """(B, K, D)"""
        few = self.whole.weight.index_select(0, ids.flatten()).to(self.dtype)
        return few.view(*ids.shape, -1)

    def __call__(self, states: Tensor, rows: slice, lse: Tensor | None = None) -> RowKl:
        """KL of some rows from the student's states (B, D) and, over the vocabulary, lse (B,)."""
        kl = self.kl
        student = self.logits(states, rows)  # (B, K)
        full = self._reference_logits(kl.reference_full, kl.full_lse, rows)  # (B, K)
        post = gate = None
        if kl.gate is not None and kl.reference_post is not None:
            post = self._reference_logits(kl.reference_post, kl.post_lse, rows)  # (B, K)
            # A common shift leaves the counts as they are: log-confidences do as well as logits.
            gate = target.gate_value(student, post, self._taken(kl.step, rows), kl.gate)
        softmax_factor = None
        if lse is None or kl.over == "selection":
            lse = None
            mixed = target.mix(full, post, gate)
            value, sparse = target.selection_kl(student, mixed, self.log_weight, kl.temperature)
        else:
            lse = target.normaliser(lse, student)
            value, softmax_factor, sparse = target.vocabulary_kl(
                student - lse[:, None], full, post, gate
            )
        if kl.row_weight is not None:
            row_weight = self._taken(kl.row_weight, rows).to(value.dtype)  # (B,)
            value = value * row_weight
            softmax_factor = None if softmax_factor is None else softmax_factor * row_weight
            sparse = sparse * row_weight[:, None]
        if kl.kl_weight != 1.0:
            softmax_factor = None if softmax_factor is None else softmax_factor * kl.kl_weight
            sparse = sparse * kl.kl_weight
        return RowKl(value, gate, student, lse, softmax_factor, sparse)

    def _reference_logits(self, source: Tensor, lse: Tensor | None, rows: slice) -> Tensor:
        """(B, K) selected logits of the reference; log-confidences over the vocabulary."""
        block = self._taken(source, rows)  # (B, K) or (B, D')
        dtype = self.dtype
        logits = block.to(dtype) if self.reference is None else self.reference.logits(block)
        if self.kl.over == "selection" or lse is None:
            return logits
        return logits - target.normaliser(self._taken(lse, rows).to(dtype), logits)[:, None]

    def _taken(self, tensor: Tensor, rows: slice) -> Tensor:
        """Entries of some rows of a row tensor."""
        return tensor[rows] if self.kept is None else tensor.index_select(0, self.kept[rows])


def _wide(head: Head, dtype: torch.dtype) -> Head:
    return head._replace(weight=head.weight.to(dtype))
