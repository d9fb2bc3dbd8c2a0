"""The ops over a sharded vocabulary, from the ops on each shard.

With lse_r, the log-sum-exp of a shard, and z_y, the target's logit, on the shard that has it:

    lse  = log sum_r exp(lse_r)
    row  = (lse - lse_r) + (lse_r - z_y)       the last is the shard's own cross-entropy

so that a sure row's gradient is the small difference that the shard forms in one piece, and the
others add their small parts. K selected logits come from whoever has them, and the KL of K or K + 1
classes is formed of them in every process alike.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked import _target
from pact_kernels.common.reduction import divided, reduction_of
from pact_kernels.ops._parallel.part import part_cross_entropy, part_logsumexp
from pact_kernels.ops._parallel.shards import Group, Shards, enter, logsumexp, summed
from pact_kernels.ops.selected_logits import selected_logits
from pact_kernels.types import GateConfig, Head, PactLoss, ReferenceLogits, ReferenceStates

NOT_MINE = -100


class Term(NamedTuple):
    """What a cross-entropy is asked for."""

    target: Tensor
    """(N,) int64, none of them ignored."""
    label_smoothing: float
    z_loss: float


@dataclass(frozen=True, kw_only=True)
class Kl:
    """What a KL is asked for, its rows in the order of the states'."""

    token_ids: Tensor
    token_weights: Tensor
    step: Tensor
    reference: ReferenceLogits | ReferenceStates
    row_weight: Tensor | None
    gate: GateConfig | None
    over: str
    temperature: float


class Rows(NamedTuple):
    """Losses of the rows, (N,) each."""

    term: Tensor | None
    kl: Tensor | None
    gate: Tensor | None


def row_losses(hidden: Tensor, head: Head, term: Term | None, kl: Kl | None, group: Group) -> Rows:
    """Every row's losses from states (N, D) and this process's part of the head."""
    if term is not None and term.label_smoothing and head.softcap is not None:
        raise ValueError(
            "over a sharded vocabulary label smoothing needs logits without a soft cap, got "
            f"softcap={head.softcap}: leave one of them out"
        )
    hidden = enter(hidden, group)
    own_lse = part_logsumexp(hidden, head)  # (N,)
    known = None if kl is None else kl.reference
    states: list[tuple[Tensor, Head]] = []  # contexts of a reference
    if isinstance(known, ReferenceStates):
        bias = head.bias if known.bias is None else known.bias
        other = head._replace(weight=known.weight, bias=bias)
        contexts = (known.full_hidden, known.post_hidden)
        states = [(context, other) for context in contexts if context is not None]
    lses = [own_lse]
    if kl is not None and kl.over == "vocabulary":
        lses += [_logsumexp(*each) for each in states]
    lse, shards = logsumexp(torch.stack(lses, 1), head.weight.shape[0], group)  # (N, M)
    parts = []  # (N, C) each
    if term is not None:
        shards.check("target", term.target)
        parts += _term_parts(hidden, head, term, own_lse, shards)
    if kl is not None:
        shards.check("token_ids", kl.token_ids)
        parts.append(_selected(hidden, head, kl.token_ids, shards))
        parts += [_selected(*each, kl.token_ids, shards).detach() for each in states]
    gathered = list(summed(torch.cat(parts, 1), group).split([p.shape[1] for p in parts], 1))
    value = None
    if term is not None:
        value = lse[:, 0] + gathered.pop(0)[:, 0]
        if term.label_smoothing:
            mean = gathered.pop(0)[:, 0] / shards.vocabulary
            smoothing = term.label_smoothing
            value = (1.0 - smoothing) * value + smoothing * (lse[:, 0] - mean)
        if term.z_loss:
            value = value + term.z_loss * lse[:, 0].square()
    if kl is None:
        return Rows(value, None, None)
    student, *formed = gathered
    if isinstance(known, ReferenceStates):
        pairs = [*formed, None][:2], [*lse[:, 1:].detach().unbind(1), None, None][:2]
        known = ReferenceLogits(pairs[0][0], pairs[0][1], *pairs[1])
    assert isinstance(known, ReferenceLogits)
    return Rows(value, *_kl(student, lse[:, 0], known, kl))


def _logsumexp(hidden: Tensor, head: Head) -> Tensor:
    with torch.no_grad():
        hidden = hidden.to(head.weight.dtype)
        return part_logsumexp(hidden, head._replace(weight=head.weight.detach()))


def _term_parts(
    hidden: Tensor, head: Head, term: Term, own_lse: Tensor, shards: Shards
) -> list[Tensor]:
    """-z_y of the rows whose target is here, (N, 1); with smoothing the sum of all logits too."""
    own = shards.own(term.target)
    local = torch.where(own, shards.local(term.target), NOT_MINE)
    own_loss = part_cross_entropy(hidden, head, local, NOT_MINE)
    parts = [torch.where(own, own_loss - own_lse, 0.0)[:, None]]
    if term.label_smoothing:
        wide = own_lse.dtype
        total = hidden.to(wide) @ head.weight.sum(0, dtype=wide)
        if head.bias is not None:
            total = total + head.bias.sum(dtype=wide)
        parts.append(head.logit_scale * total[:, None])
    return parts


def _selected(hidden: Tensor, head: Head, token_ids: Tensor, shards: Shards) -> Tensor:
    """(N, K) logits of the tokens that are here, 0 of the others."""
    few = head.select(shards.local(token_ids))
    hidden = hidden.to(few.weight.dtype)
    places = torch.arange(token_ids.numel(), device=token_ids.device)
    logits = selected_logits(hidden, few.weight, places, **few.options)
    return torch.where(shards.own(token_ids), logits, 0.0)


class _Formed(torch.autograd.Function):
    """A KL whose gradients by logits and log-sum-exp are known where it is formed."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, lse: Tensor, kl: Tensor, by_student: Tensor, by_lse: Tensor
    ) -> Tensor:
        ctx.save_for_backward(by_student, by_lse)
        return kl.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        by_student, by_lse = ctx.saved_tensors
        return grad[:, None] * by_student, grad * by_lse, None, None, None


def _kl(student: Tensor, lse: Tensor, known: ReferenceLogits, kl: Kl) -> tuple[Tensor, Tensor]:
    """(N,) the KL, times row_weight, and the gate."""
    dtype = student.dtype
    full, post = (None if x is None else x.to(dtype) for x in (known.full, known.post))
    assert full is not None
    with torch.no_grad():
        gate = None
        if kl.gate is not None and post is not None:
            gate = _target.gate_value(student, post, kl.step, kl.gate)
        if kl.over == "selection":
            log_weight = kl.token_weights.to(dtype).clamp(min=0.0).log()
            mixed = _target.mix(full, post, gate)
            value, by_student = _target.selection_kl(student, mixed, log_weight, kl.temperature)
            by_lse = torch.zeros_like(value)
        else:
            assert known.full_lse is not None
            full = full - known.full_lse.to(dtype)[:, None]
            if post is not None and gate is not None:
                assert known.post_lse is not None
                post = post - known.post_lse.to(dtype)[:, None]
            found = _target.vocabulary_kl(student - lse[:, None], full, post, gate)
            value, by_lse, by_student = found
    rows = _Formed.apply(student, lse, value, by_student, by_lse)
    if kl.row_weight is not None:
        rows = rows * kl.row_weight.to(dtype)
    return rows, torch.zeros_like(value) if gate is None else gate


def reduced(
    rows: Tensor, reduction: str, num_items: int | float | Tensor | None, num_rows: int
) -> Tensor:
    """The rows, their sum, or their mean."""
    if reduction == "none":
        return rows
    return divided(rows.sum(), reduction_of(reduction, num_items).denominator(num_rows))


def logsumexp_rows(hidden: Tensor, head: Head, group: Group) -> Tensor:
    """(N,) over all shards."""
    parts = part_logsumexp(enter(hidden, group), head)
    return logsumexp(parts[:, None], head.weight.shape[0], group)[0][:, 0]


def cross_entropy(
    hidden: Tensor,  # (R, D)
    head: Head,
    target: Tensor,  # (R,)
    *,
    group: Group,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    num_items: int | float | Tensor | None,
) -> Tensor:
    """The mean or sum over rows, or (R,) with 0 where ignored."""
    kept = (target != ignore_index).nonzero().squeeze(1)  # (N,)
    term = Term(target[kept], label_smoothing, z_loss)
    rows = row_losses(hidden[kept], head, term, None, group).term
    assert rows is not None
    return _placed(reduced(rows, reduction, num_items, kept.numel()), kept, target, reduction)


def pact(
    hidden: Tensor,  # (R, D)
    head: Head,
    target: Tensor,  # (R,)
    kl: Kl,
    *,
    group: Group,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    kl_weight: float,
    reduction: str,
    num_items: int | float | Tensor | None,
) -> PactLoss:
    """`pact_loss`, with rows (R,) where they are not reduced."""
    kept = (target != ignore_index).nonzero().squeeze(1)  # (N,)
    num_rows = kept.numel()
    if kl.step.numel() != num_rows:
        kl = _at(kl, kept)
    term = Term(target[kept], label_smoothing, z_loss)
    rows = row_losses(hidden[kept], head, term, kl, group)
    assert rows.term is not None and rows.kl is not None and rows.gate is not None
    loss = rows.term + kl_weight * rows.kl
    total, term_value, kl_value = (
        _placed(reduced(each, reduction, num_items, num_rows), kept, target, reduction)
        for each in (loss, rows.term.detach(), rows.kl.detach())
    )
    count = torch.full((), num_rows, device=target.device)
    return PactLoss(total, term_value, kl_value, count, rows.gate.sum() / max(num_rows, 1))


def _at(kl: Kl, kept: Tensor) -> Kl:
    """Row tensors with an entry per position, at the kept ones."""
    known = kl.reference
    shared = ("weight", "bias") if isinstance(known, ReferenceStates) else ()
    parts = {
        name: value if value is None or name in shared else value[kept]
        for name, value in known._asdict().items()
    }
    return Kl(
        token_ids=kl.token_ids,
        token_weights=kl.token_weights,
        step=kl.step[kept],
        reference=type(known)(**parts),
        row_weight=None if kl.row_weight is None else kl.row_weight[kept],
        gate=kl.gate,
        over=kl.over,
        temperature=kl.temperature,
    )


def _placed(values: Tensor, kept: Tensor, target: Tensor, reduction: str) -> Tensor:
    if reduction != "none":
        return values
    return values.new_zeros(target.shape).index_copy(0, kept, values)
