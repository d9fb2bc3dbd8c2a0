"""The chunk loop: losses of the output head and their gradients, one slab of logits at a time.

One pass over slabs of M rows serves `linear_cross_entropy`, `pact_loss`, `linear_logsumexp` and the
vocabulary form of `pact_kl`:

    Z   = softcap(logit_scale * (H_m W^T + b))     2 M D V flops, the only logits there ever are
    P   = softmax(Z) in place,  lse = max Z - log max P
    G   = (alpha P - onehot - smoothing + sparse KL entries) * slope, in place
    dH  = G W                                      2 M D V flops, into its place
    dW += G^T H_m                                  2 M D V flops, a trainable head alone

alpha is a scale per row: 1 for the cross-entropy, + 2 z_loss lse, + the KL's share where it runs over
the vocabulary. The KL adds K entries per row and no product with the vocabulary.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens, M slab rows, B block rows (B <= M).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked import target as kl_target
from pact_kernels.chunked.selected_logits import selected_logits
from pact_kernels.chunked.slab import (
    accumulator_dtype,
    balanced_rows,
    finish_logits_,
    logit_slope,
    slabs,
)
from pact_kernels.chunked.spec import HeadSpec, KlSpec

MAX_BLOCK_ROWS = 64
"""Rows whose fp32 copies live at once, where a slab is held in 16 bits or its softcap needs a slope."""


class HeadLoss(NamedTuple):
    """Row values over all R positions, 0 where ignored, and gradients; an absent one is empty."""

    term: Tensor  # (R,) fp32, cross-entropy or log-sum-exp
    kl: Tensor  # (R,) before kl_weight
    gate: Tensor  # (R,)
    num_rows: Tensor  # () int64
    grad_hidden: Tensor  # (R, D) like hidden
    grad_weight: Tensor  # (V, D) fp32
    grad_bias: Tensor  # (V,) fp32


def head_loss(
    hidden: Tensor,  # (R, D)
    weight: Tensor,  # (V, D)
    target: Tensor | None,  # (R,) int64; None keeps every position
    bias: Tensor | None,  # (V,)
    token_ids: Tensor | None,  # (K,)
    *,
    spec: HeadSpec,
    kl: KlSpec | None,
    row_grad: Tensor | None,  # (R,) factor on each row's gradient; None is 1
    wanted: tuple[bool, bool, bool],  # gradients by hidden, weight, bias
    limit_bytes: int,
) -> HeadLoss:
    """Row losses and, where wanted, the gradient of sum_n row_grad_n (term_n + kl_weight kl_n)."""
    num_positions = hidden.shape[0]
    kept = kept_rows(target, spec.ignore_index, weight.shape[0])  # (N,), or None for all
    num_rows = num_positions if kept is None else kept.numel()
    if kept is not None:
        target = None if target is None else target[kept]
        row_grad = None if row_grad is None else row_grad[kept]
    if kl is not None:
        kl = kl.of_rows(kept, num_rows, num_positions)
    dtype = accumulator_dtype(hidden.dtype)
    values = hidden.new_zeros((3, num_rows), dtype=dtype)  # term, kl, gate
    grad_hidden = hidden.new_zeros(hidden.shape if wanted[0] else (0,))
    grad_weight = hidden.new_zeros(weight.shape if wanted[1] else (0,), dtype=dtype)
    grad_bias = hidden.new_zeros(weight.shape[:1] if wanted[2] else (0,), dtype=dtype)
    work = _SlabWork(weight, bias, token_ids, spec, kl, target, row_grad, any(wanted), limit_bytes)
    slab_rows = work.allocate(hidden, num_rows)
    for start, stop in slabs(num_rows, slab_rows):
        rows = hidden[start:stop] if kept is None else hidden[kept[start:stop]]  # (M, D)
        gradient = work.slab(rows, start, values)  # (M, V)
        if wanted[0] and kept is None:
            torch.mm(gradient, weight, out=grad_hidden[start:stop])
        elif wanted[0] and kept is not None:
            grad_hidden.index_copy_(0, kept[start:stop], gradient @ weight)
        if wanted[1]:
            add_weight_gradient_(grad_weight, gradient, rows, limit_bytes)
        if wanted[2]:
            grad_bias += gradient.sum(0, dtype=dtype)
    if kept is not None:
        values = values.new_zeros((3, num_positions)).index_copy_(1, kept, values)
    count = torch.full((), num_rows, device=hidden.device)
    term, kl_rows, gate = values.unbind(0)
    return HeadLoss(
        term.clone(), kl_rows.clone(), gate.clone(), count, grad_hidden, grad_weight, grad_bias
    )


class _SlabWork:
    """Everything that happens to one slab of logits between its two products."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor | None,
        spec: HeadSpec,
        kl: KlSpec | None,
        target: Tensor | None,  # (N,)
        row_grad: Tensor | None,  # (N,)
        gradient: bool,
        limit_bytes: int,
    ) -> None:
        self.weight, self.bias, self.spec = weight, bias, spec
        self.target, self.row_grad, self.gradient = target, row_grad, gradient
        self.limit_bytes, self.dtype = limit_bytes, accumulator_dtype(weight.dtype)
        self.kl: KlSpec | None = None
        if kl is not None and token_ids is not None:
            self.kl, self.token_ids = kl, token_ids
            self.log_weight = kl.log_weight(self.dtype)  # (K,)
            self.selected_weight = weight.index_select(0, token_ids)  # (K, D)
            self.selected_bias = None if bias is None else bias.index_select(0, token_ids)

    def allocate(self, hidden: Tensor, num_rows: int) -> int:
        """Make the slab within the limit, and return its rows M."""
        vocabulary, width = self.weight.shape
        row_bytes = hidden.dtype.itemsize * (vocabulary + 2 * width)
        if self.kl is not None:  # about a dozen temporaries the size of the selected logits
            row_bytes += 12 * self.dtype.itemsize * self.token_ids.numel()
        copies = (hidden.dtype != self.dtype) + (self.spec.softcap is not None)
        self.block_rows, left = max(num_rows, 1), self.limit_bytes
        if copies:
            block_bytes = copies * self.dtype.itemsize * vocabulary  # of one row
            self.block_rows = max(1, min(left // 4 // block_bytes, MAX_BLOCK_ROWS))
            left -= self.block_rows * block_bytes
        slab_rows = balanced_rows(num_rows, row_bytes, max(left, 1))
        self.buffer = hidden.new_empty((min(slab_rows, num_rows), vocabulary))  # (M, V)
        return slab_rows

    def slab(self, rows: Tensor, start: int, values: Tensor) -> Tensor:
        """Values (3, N) of rows [start, start + M) and the gradient (M, V) by their raw products."""
        logits = self.buffer[: rows.shape[0]]  # (M, V)
        torch.mm(rows, self.weight.T, out=logits)
        for low, high in slabs(rows.shape[0], self.block_rows):
            index = slice(start + low, start + high)
            self._block(logits[low:high], rows[low:high], index, values[:, index])
        return logits

    def _block(self, logits: Tensor, rows: Tensor, index: slice, values: Tensor) -> None:
        """Values (3, B) of a block; its logits (B, V) become the gradient in place."""
        spec = self.spec
        z = logits if logits.dtype == self.dtype else logits.to(self.dtype)  # (B, V)
        finish_logits_(z, self.bias, spec.softcap, spec.logit_scale)
        target = None if self.target is None else self.target[index, None]  # (B, 1)
        at_target = None if target is None else z.gather(1, target).squeeze(1)  # (B,)
        mean = z.mean(-1) if spec.label_smoothing else None  # (B,)
        slope = logit_slope(z, spec.softcap, spec.logit_scale) if self.gradient else 1.0
        largest = z.amax(-1)  # (B,)
        torch.softmax(z, -1, out=z)
        lse = largest - z.amax(-1).log_()  # the largest probability is at least 1 / V
        alpha = self._term(lse, at_target, mean, values[0])
        sparse = None
        if self.kl is not None:
            share, sparse = self._kl(self.kl, rows, lse, index, values)
            alpha = alpha if share is None else alpha + share
        if not self.gradient:
            return
        if isinstance(alpha, Tensor):
            z *= alpha[:, None]
        elif alpha != 1.0:
            z *= alpha
        if target is not None and spec.term == "cross_entropy":
            z.scatter_add_(1, target, z.new_full(target.shape, spec.label_smoothing - 1.0))
            if spec.label_smoothing:
                z -= spec.label_smoothing / z.shape[1]
        if sparse is not None:
            z.scatter_add_(1, self.token_ids.expand_as(sparse), sparse)
        if isinstance(slope, Tensor) or slope != 1.0:
            z *= slope
        if self.row_grad is not None:
            z *= self.row_grad[index, None].to(z.dtype)
        if z is not logits:
            logits.copy_(z)

    def _term(
        self, lse: Tensor, at_target: Tensor | None, mean: Tensor | None, out: Tensor
    ) -> Tensor | float:
        """Row losses beside the KL into `out` (B,); returns the softmax's factor in their gradient."""
        spec = self.spec
        if spec.term == "none":
            return 0.0
        if spec.term == "logsumexp" or at_target is None:
            out.copy_(lse)
            return 1.0
        torch.sub(lse, at_target, out=out)
        if mean is not None:
            out.lerp_(lse - mean, spec.label_smoothing)
        if not spec.z_loss:
            return 1.0
        out += spec.z_loss * lse.square()
        return 1.0 + 2.0 * spec.z_loss * lse

    def _kl(
        self, kl: KlSpec, rows: Tensor, lse: Tensor, index: slice, values: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """KL and gate into `values`; returns kl_weight times the softmax's factor (B,) and the sparse
        entries (B, K) of their gradient."""
        head: dict[str, Any] = {
            "softcap": self.spec.softcap,
            "logit_scale": self.spec.logit_scale,
            "limit_bytes": self.limit_bytes,
        }
        student = selected_logits(rows, self.selected_weight, self.selected_bias, **head)  # (B, K)
        full, post = kl.reference_logits(index, dtype=self.dtype, **head)
        gate = None
        if kl.gate is not None and post is not None:
            # A common shift leaves the counts as they are, so log-confidences do as well as logits.
            gate = kl_target.gate_value(student, post, kl.step[index], kl.gate)
            values[2] = gate
        share = None
        if kl.over == "selection":
            mixed = kl_target.mix(full, post, gate)
            value, sparse = kl_target.selection_kl(student, mixed, self.log_weight, kl.temperature)
        else:
            value, share, sparse = kl_target.vocabulary_kl(student - lse[:, None], full, post, gate)
        values[1] = value
        factor: Tensor | float = kl.kl_weight
        if kl.row_weight is not None:
            row_weight = kl.row_weight[index].to(self.dtype)  # (B,)
            values[1] *= row_weight
            factor = factor * row_weight
        share = None if share is None else share * factor
        return share, sparse * (factor[:, None] if isinstance(factor, Tensor) else factor)


def kept_rows(target: Tensor | None, ignore_index: int, vocabulary: int) -> Tensor | None:
    """(N,) positions whose target is not ignored, or None where none is.

    Raises:
        ValueError: on a CPU, a target is neither ignored nor in [0, V).
    """
    if target is None:
        return None
    keep = target != ignore_index
    if target.device.type == "cpu":
        wrong = keep & ((target < 0) | (target >= vocabulary))
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"a target must lie in [0, {vocabulary}) or equal ignore_index={ignore_index}, got "
                f"{int(target[at])} at position {at}: the labels belong to another vocabulary"
            )
    return None if bool(keep.all()) else keep.nonzero().squeeze(1)


def add_weight_gradient_(total: Tensor, gradient: Tensor, rows: Tensor, limit_bytes: int) -> None:
    """total (V, D) += gradient (M, V)^T rows (M, D), products and sum in fp32."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, rows)
        return
    rows = rows.to(total.dtype)
    tile = max(1, limit_bytes // 8 // (gradient.shape[0] * total.dtype.itemsize))
    for low, high in slabs(total.shape[0], tile):
        total[low:high].addmm_(gradient[:, low:high].T.to(total.dtype), rows)
