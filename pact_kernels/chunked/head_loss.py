"""The chunk loop: losses of the output head and their gradients, one slab of logits at a time.

One pass over slabs of M rows serves `linear_cross_entropy`, `pact_loss`, `linear_logsumexp` and the
vocabulary form of `pact_kl`:

    Z   = softcap(logit_scale * (H_m W^T + b))     2 M D V flops, the only logits there ever are
    P   = softmax(Z) in place,  lse = max Z - log max P
    G   = (alpha P - onehot - smoothing + sparse KL entries) * slope, in place
    dH  = G W                                      2 M D V flops, into its place
    dW += G^T H_m                                  2 M D V flops, a trainable head alone

alpha is a scale per row: 1 for the cross-entropy, + 2 z_loss lse, + the KL's share where it runs
over the vocabulary. The KL adds K entries per row and no product with the vocabulary.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens, M slab rows, B block rows (B <= M).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked.kl_rows import KlRows, check_rows
from pact_kernels.chunked.selected_logits import SelectedHead
from pact_kernels.chunked.slab import (
    MAX_SLAB_ROWS,
    accumulator_dtype,
    balanced_rows,
    bytes_left,
    finish_logits_,
    logit_slope,
    slabs,
)
from pact_kernels.chunked.spec import HeadSpec, KlSpec

MAX_BLOCK_ROWS = 64
"""Rows with fp32 copies at once, where a slab is held in 16 bits or its softcap needs a slope."""
WEIGHT_TILE_SHARE = 8
"""The part of the workspace, one over this, for fp32 copies of a 16-bit slab's gradient."""


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
    num_rows: int | None = None,  # N where the host knows it, or R to leave rows where they are
) -> HeadLoss:
    """Row losses and, where wanted, the gradient of sum_n row_grad_n (term_n + kl_weight kl_n)."""
    num_positions = hidden.shape[0]
    if num_rows == num_positions:  # this loop drops ignored rows in any case
        num_rows = None
    kept = kept_rows(target, spec.ignore_index, weight.shape[0], num_rows)  # (N,) or None for all
    num_rows = num_positions if kept is None else kept.numel()
    if kept is not None:
        target = None if target is None else target[kept]
        row_grad = None if row_grad is None else row_grad[kept]
    dtype = accumulator_dtype(hidden.dtype)
    values = hidden.new_zeros((3, num_rows), dtype=dtype)  # term, kl, gate
    grad_hidden = hidden.new_zeros(hidden.shape if wanted[0] else (0,))
    grad_weight = hidden.new_zeros(weight.shape if wanted[1] else (0,), dtype=dtype)
    grad_bias = hidden.new_zeros(weight.shape[:1] if wanted[2] else (0,), dtype=dtype)
    kl_rows = None
    if kl is not None and token_ids is not None:
        selected_weight = weight.index_select(0, token_ids).to(dtype)  # (K, D)
        selected_bias = None if bias is None else bias.index_select(0, token_ids)  # (K,)
        head = SelectedHead(selected_weight, selected_bias, spec.softcap, spec.logit_scale)
        kl_rows = KlRows(kl, head, kept, num_positions)
    work = _SlabWork(
        weight=weight,
        bias=bias,
        token_ids=token_ids,
        spec=spec,
        kl_rows=kl_rows,
        target=target,
        row_grad=row_grad,
        gradient=any(wanted),
        grad_bias=grad_bias if wanted[2] else None,
    )
    slab_rows = work.allocate(hidden, num_rows, limit_bytes, trained=wanted[1])
    for start, stop in slabs(num_rows, slab_rows):
        rows = hidden[start:stop] if kept is None else hidden[kept[start:stop]]  # (M, D)
        gradient = work.slab(rows, start, values)  # (M, V)
        if wanted[0] and kept is None:
            torch.mm(gradient, weight, out=grad_hidden[start:stop])
        elif wanted[0] and kept is not None:
            grad_hidden.index_copy_(0, kept[start:stop], gradient @ weight)
        if wanted[1]:
            add_weight_gradient_(grad_weight, gradient, rows, limit_bytes)
    if kept is not None:
        values = values.new_zeros((3, num_positions)).index_copy_(1, kept, values)
    count = torch.full((), num_rows, device=hidden.device)
    term, kl_values, gate = values.unbind(0)
    return HeadLoss(
        term.clone(), kl_values.clone(), gate.clone(), count, grad_hidden, grad_weight, grad_bias
    )


@dataclass(kw_only=True)
class _SlabWork:
    """Everything that happens to one slab of logits between its two products."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    token_ids: Tensor | None  # (K,)
    spec: HeadSpec
    kl_rows: KlRows | None
    target: Tensor | None  # (N,)
    row_grad: Tensor | None  # (N,)
    gradient: bool
    grad_bias: Tensor | None  # (V,) fp32, added to

    def allocate(self, hidden: Tensor, num_rows: int, limit_bytes: int, *, trained: bool) -> int:
        """Make the slab within the limit, and return its rows M."""
        vocabulary, width = self.weight.shape
        self.dtype = accumulator_dtype(hidden.dtype)
        narrow, wide = hidden.dtype.itemsize, self.dtype.itemsize
        # Of a row of a slab: the logits, gathered states, and the product of its gradient.
        slab_bytes = narrow * (vocabulary + 2 * width)
        block_bytes, fixed = 0, 0  # of a row of a block, of the whole call
        if self.kl_rows is not None:
            block_bytes += self.kl_rows.row_bytes()
            fixed += self.kl_rows.shared_bytes()
        if trained and narrow < wide:  # fp32 copies within add_weight_gradient_
            slab_bytes += wide * width
            fixed += limit_bytes // WEIGHT_TILE_SHARE
        left = bytes_left(limit_bytes, fixed)
        copies = (narrow < wide) + (self.spec.softcap is not None and self.gradient)
        if copies:
            block_bytes += copies * wide * vocabulary
            self.block_rows = max(1, min(left // 4 // block_bytes, MAX_BLOCK_ROWS, num_rows))
            left -= self.block_rows * block_bytes
        else:
            self.block_rows = MAX_SLAB_ROWS
            slab_bytes += block_bytes
        slab_rows = balanced_rows(num_rows, slab_bytes, left)
        self.buffer = hidden.new_empty((min(slab_rows, num_rows), vocabulary))  # (M, V)
        return slab_rows

    def slab(self, rows: Tensor, start: int, values: Tensor) -> Tensor:
        """Fill `values` (3, N) at rows [start, start + M); the gradient (M, V) by raw products."""
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
        if self.kl_rows is not None:
            row = self.kl_rows(rows, index, lse)
            values[1], sparse = row.kl, row.sparse
            if row.gate is not None:
                values[2] = row.gate
            alpha = alpha if row.share is None else alpha + row.share
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
        if sparse is not None and self.token_ids is not None:
            z.scatter_add_(1, self.token_ids.expand_as(sparse), sparse)
        if isinstance(slope, Tensor) or slope != 1.0:
            z *= slope
        if self.row_grad is not None:
            z *= self.row_grad[index, None].to(z.dtype)
        if self.grad_bias is not None:
            self.grad_bias += z.sum(0)
        if z is not logits:
            logits.copy_(z)

    def _term(
        self, lse: Tensor, at_target: Tensor | None, mean: Tensor | None, out: Tensor
    ) -> Tensor | float:
        """Row losses beside the KL into `out` (B,); the softmax's factor in their gradient."""
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


def kept_rows(
    target: Tensor | None, ignore_index: int, vocabulary: int, num_rows: int | None
) -> Tensor | None:
    """(N,) positions whose target is not ignored, or None where the rows stay as they are.

    Without N, finding them waits for a GPU. With N = R nothing is looked for; another N that is not
    their number fails on the device.

    Raises:
        ValueError: on a CPU, a target is neither ignored nor in [0, V), or N is not their number.
    """
    if target is None:
        return None
    keep = target != ignore_index
    if target.device.type == "cpu":
        _check_targets(target, keep, ignore_index, vocabulary)
    if num_rows == target.numel():
        return None
    if num_rows is not None and target.device.type != "cpu":
        torch._assert_async(keep.sum() == num_rows)
        return torch.nonzero_static(keep, size=num_rows, fill_value=0).squeeze(1)
    kept = keep.nonzero().squeeze(1)  # waits for the device
    if num_rows is not None:
        check_rows(num_rows, kept.numel(), target.numel())
    return None if kept.numel() == target.numel() else kept


def _check_targets(target: Tensor, keep: Tensor, ignore_index: int, vocabulary: int) -> None:
    wrong = keep & ((target < 0) | (target >= vocabulary))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"a target must lie in [0, {vocabulary}) or equal ignore_index={ignore_index}, got "
            f"{int(target[at])} at position {at}: the labels belong to another vocabulary"
        )


def add_weight_gradient_(total: Tensor, gradient: Tensor, rows: Tensor, limit_bytes: int) -> None:
    """total (V, D) += gradient (M, V)^T rows (M, D), products and sum in fp32."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, rows)
        return
    rows = rows.to(total.dtype)
    row_bytes = gradient.shape[0] * total.dtype.itemsize  # of a row of the tile
    tile = max(1, limit_bytes // WEIGHT_TILE_SHARE // row_bytes)
    for low, high in slabs(total.shape[0], tile):
        total[low:high].addmm_(gradient[:, low:high].T.to(total.dtype), rows)
