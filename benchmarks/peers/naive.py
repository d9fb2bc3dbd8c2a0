"""The oracle: `pact_kernels.naive` in float64 on upcast inputs, which no peer is timed against.

It forms all logits of all rows in float64, with what autograd keeps of them: some 100 bytes a row
and token of the vocabulary. `fewer_rows` cuts a case down to what that permits; D, V, K and the
objective stay, and so do prompts and, where there is room, the second sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.peer import Outputs
from benchmarks.peers.references import gate_of, reference_states, temperature_of
from benchmarks.peers.rows import answer_rows, take
from benchmarks.peers.samples import samples
from pact_kernels import ReferenceLogits, ReferenceStates
from pact_kernels.naive.linear_cross_entropy import linear_cross_entropy
from pact_kernels.naive.linear_logsumexp import linear_logsumexp
from pact_kernels.naive.pact_kl import pact_kl
from pact_kernels.naive.pact_loss import pact_loss
from pact_kernels.naive.selected_confidences import selected_confidences
from pact_kernels.naive.selected_logits import selected_logits
from pact_kernels.naive.token_scores import token_scores


def oracle(case: Case, inputs: Inputs) -> Outputs:
    """The truth of a case: values and gradients in float64."""
    exact = Inputs(*(_upcast(tensor) for tensor in inputs))
    return make_call(case, exact, lambda: _forward(case, exact))()


def fewer_rows(case: Case, limit: int) -> Case:
    """The case with at most `limit` answer rows, itself where it has no more.

    Raises:
        ValueError: not even one row is permitted.
    """
    if limit < 1:
        raise ValueError(f"a case needs at least one row, got a limit of {limit}: raise it")
    if case.rows <= limit:
        return case
    sequences = min(case.sequences, 2, limit)
    length = case.length
    while (smaller := replace(case, sequences=sequences, length=length)).rows > limit:
        length -= 1
    return smaller


def _upcast(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def _forward(case: Case, inputs: Inputs) -> Mapping[str, Tensor]:
    rows = answer_rows(case, inputs)
    hidden, weight = take(inputs.hidden, rows), inputs.weight
    if case.op == "linear_cross_entropy":
        target = take(inputs.target, rows)
        return {"loss": linear_cross_entropy(hidden, weight, target, softcap=case.softcap)}
    if case.op == "linear_logsumexp":
        return {"logsumexp": linear_logsumexp(hidden, weight, softcap=case.softcap)}
    if case.op == "selected_confidences":
        values = selected_confidences(hidden, weight, inputs.token_ids, over=case.over)
        return {"confidences": values}
    if case.op == "token_scores":
        base = take(inputs.reference_hidden, rows), inputs.reference_weight
        difference, confidence = token_scores(hidden, weight, *base, samples(case, inputs))
        return {"difference": difference, "confidence": confidence}
    kl = (inputs.token_ids, inputs.token_weights, inputs.step, _reference(case, inputs, rows))
    options: dict[str, Any] = {
        "gate": gate_of(case),
        "temperature": temperature_of(case),
        "over": case.over,
    }
    if case.op == "pact_kl":
        return {"loss": pact_kl(hidden, weight, *kl, **options)}
    target = take(inputs.target, rows)
    return {"loss": pact_loss(hidden, weight, target, *kl, **options).loss}


@torch.no_grad()
def _reference(
    case: Case, inputs: Inputs, rows: Tensor | None
) -> ReferenceStates | ReferenceLogits:
    states = reference_states(case, inputs, rows)
    if not case.cached:
        return states
    full, post, weight, _ = states
    return ReferenceLogits(
        selected_logits(full, weight, inputs.token_ids),
        None if post is None else selected_logits(post, weight, inputs.token_ids),
        linear_logsumexp(full, weight),
        None if post is None else linear_logsumexp(post, weight),
    )
