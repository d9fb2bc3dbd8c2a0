"""The reference of a case, as every implementation is given it: states, or what a cache holds."""

from __future__ import annotations

import torch
from torch import Tensor

import pact_kernels as pk
from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.rows import answer_rows, take

Reference = pk.ReferenceStates | pk.ReferenceLogits


def gate_of(case: Case) -> pk.GateConfig | None:
    """The released settings, or no gate."""
    return pk.GateConfig() if case.gated else None


def temperature_of(case: Case) -> float:
    """Each objective's own default."""
    return 2.0 if case.over == "selection" else 1.0


def reference_states(case: Case, inputs: Inputs, rows: Tensor | None) -> pk.ReferenceStates:
    """The states of the answer rows, gathered in the call as they come out of a model's forward."""
    post = inputs.reference_post if case.gated else None
    return pk.ReferenceStates(take(inputs.reference_hidden, rows), post, inputs.reference_weight)


@torch.no_grad()
def cached_logits(case: Case, inputs: Inputs) -> pk.ReferenceLogits:
    """K logits and, over the vocabulary, a log-sum-exp for each row: formed ahead of the call."""
    full, post, weight, _ = reference_states(case, inputs, answer_rows(case, inputs))
    whole = case.over == "vocabulary"
    return pk.ReferenceLogits(
        pk.selected_logits(full, weight, inputs.token_ids),
        None if post is None else pk.selected_logits(post, weight, inputs.token_ids),
        pk.linear_logsumexp(full, weight) if whole else None,
        pk.linear_logsumexp(post, weight) if whole and post is not None else None,
    )
