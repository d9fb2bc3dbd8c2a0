"""How far a model has moved from its reference on the safety tokens.

Legend: N answer rows, D hidden size, K safety tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

import pact_kernels as pk
from pact.data.examples import Conversation
from pact.evaluation.inference import AnswerBatch, answer_batches, looking_at
from pact.models import head_and_states, head_weight
from pact.reference import Reference
from pact_kernels.types import Head

if TYPE_CHECKING:
    from pact.discovery import SafetyTokens


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Means over answer rows; a row's confidence is the sum of P(token) over the safety tokens."""

    kl_vocabulary_nats: float
    """KL(reference || model) over K + 1 classes: each safety token, and all the rest."""
    kl_selection_nats: float
    """KL(reference || model) of the softmax over the safety tokens alone, at temperature 1."""
    confidence: float
    """The model's confidence."""
    reference_confidence: float
    """The reference's confidence."""
    first_confidence: float
    """The model's confidence at the first row of every answer."""
    first_reference_confidence: float
    """The reference's confidence at the first row of every answer."""
    mean_difference: float
    """Mean of |model's confidence - reference's|, row by row."""
    rows: int
    """Answer rows."""
    answers: int
    """Answers."""


class _Rows(NamedTuple):
    kl_vocabulary_nats: Tensor  # (N,)
    kl_selection_nats: Tensor  # (N,)
    confidence: Tensor  # (N,)
    reference_confidence: Tensor  # (N,)
    first: Tensor  # (N,) 1 at the first row of an answer, 0 elsewhere


def measure_drift(
    model: nn.Module,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    tokens: SafetyTokens,
    reference: Reference,
    *,
    batch_size: int,
    max_length: int | None = None,
    progress: bool = True,
) -> Drift:
    """Compare a model with its reference on the answers of conversations, refusals for instance.

    Both KLs have no gate and equal weights: they are 0 where the two agree. The training objective
    over the selection weighs its tokens, and is positive even there.

    Args:
        model: a causal language model, with or without PEFT adapters; its mode is put back after.
        tokenizer: a fast tokenizer with a chat template.
        conversations: every assistant turn counts.
        tokens: the safety tokens.
        reference: `AdaptersOff(model)`, or `FrozenModel` of another model on the same device.
        batch_size: conversations in a batch.
        max_length: tokens kept of each conversation, from its beginning; None keeps all.
        progress: whether to show a bar.

    Raises:
        ValueError: the reference gives cached logits, or a value is not finite.
    """
    token_ids = torch.as_tensor(tokens.ids).to(head_weight(model).device)  # (K,)
    with looking_at(model):
        batches = answer_batches(
            model,
            tokenizer,
            conversations,
            batch_size=batch_size,
            max_length=max_length,
            title="drift",
            progress=progress,
        )
        parts = [_compare(model, batch, token_ids, reference) for batch in batches]
    rows = _Rows(*(torch.cat(part).double().cpu() for part in zip(*parts, strict=True)))
    if not all(bool(values.isfinite().all()) for values in rows):
        raise ValueError(
            "the drift must be finite, got NaN or infinity: the weights of the model or of its "
            "reference are damaged, or beyond the precision; look at both in fp32"
        )
    first = rows.first.bool()
    return Drift(
        # no KL is negative, but where it is 0 rounding may leave it so
        kl_vocabulary_nats=max(rows.kl_vocabulary_nats.mean().item(), 0.0),
        kl_selection_nats=max(rows.kl_selection_nats.mean().item(), 0.0),
        confidence=rows.confidence.mean().item(),
        reference_confidence=rows.reference_confidence.mean().item(),
        first_confidence=rows.confidence[first].mean().item(),
        first_reference_confidence=rows.reference_confidence[first].mean().item(),
        mean_difference=(rows.confidence - rows.reference_confidence).abs().mean().item(),
        rows=first.numel(),
        answers=int(first.sum()),
    )


def _compare(
    model: nn.Module, batch: AnswerBatch, token_ids: Tensor, reference: Reference
) -> _Rows:
    hidden, head = head_and_states(model, batch.hidden)
    states = reference(batch.inputs)
    if not isinstance(states, pk.ReferenceStates):
        raise ValueError(
            f"drift needs a reference that runs on any data, got {type(reference).__name__} with "
            "cached logits: use AdaptersOff or FrozenModel"
        )
    own_bias = head.bias if states.bias is None else states.bias
    reference_head = head._replace(weight=states.weight, bias=own_bias)
    vocabulary, selection = (
        pk.pact_kl(
            hidden,
            head.weight,
            token_ids,
            torch.ones(token_ids.numel(), device=token_ids.device),
            batch.inputs["row_step"],
            states,
            gate=None,
            temperature=1.0,
            over=over,
            reduction="none",
            **head.options,
        )
        for over in ("vocabulary", "selection")
    )
    answer = batch.inputs["row_answer"]  # (N,), from 0, never falling
    return _Rows(
        vocabulary,
        selection,
        _confidence(hidden, head, token_ids),
        _confidence(states.full_hidden, reference_head, token_ids),
        torch.diff(answer, prepend=answer.new_tensor([-1])),
    )


def _confidence(hidden: Tensor, head: Head, token_ids: Tensor) -> Tensor:
    """(N, D) -> (N,): sum of P(token) over the safety tokens."""
    confidences = pk.selected_confidences(hidden, head.weight, token_ids, **head.options)  # (N, K)
    return confidences.sum(-1)
