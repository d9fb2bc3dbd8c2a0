"""torch as it is: the dense formulas on answer rows, with full logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import Forward, make_call
from benchmarks.peers.peer import Call, Setting
from benchmarks.peers.references import cached_logits, gate_of, reference_states
from benchmarks.peers.rows import answer_rows, take
from benchmarks.peers.samples import samples

NAMES = {
    "linear_logsumexp": ("logsumexp",),
    "selected_confidences": ("confidences",),
    "token_scores": ("difference", "confidence"),
}
"""Names of an op's values; those of all others are a loss."""


class Formula(NamedTuple):
    """One op as eager torch has it."""

    function: Callable[..., Any]
    """One of `dense`."""
    arguments: Callable[[], tuple[Any, ...]]
    """Its arguments, gathered anew for each call."""


def formula_of(case: Case, inputs: Inputs) -> Formula:
    """What is to be computed; cached values are formed here."""
    rows = answer_rows(case, inputs)
    target, step, ids = take(inputs.target, rows), inputs.step, inputs.token_ids
    known = cached_logits(case, inputs) if case.cached and case.op.startswith("pact") else None
    members = samples(case, inputs)
    share = 1.0 / (members.bincount()[members] * case.sequences)  # (N,)

    def states() -> tuple[Tensor, Tensor]:
        return take(inputs.hidden, rows), inputs.weight

    def kl() -> tuple[Any, ...]:
        reference = reference_states(case, inputs, rows) if known is None else known
        return ids, inputs.token_weights, step, reference, case.over, gate_of(case)

    def base() -> tuple[Tensor, Tensor]:
        return take(inputs.reference_hidden, rows), inputs.reference_weight

    arguments: dict[str, Callable[[], tuple[Any, ...]]] = {
        "linear_cross_entropy": lambda: (*states(), target, case.softcap),
        "pact_kl": lambda: (*states(), *kl()),
        "pact_loss": lambda: (*states(), target, *kl()),
        "linear_logsumexp": lambda: (*states(), case.softcap),
        "selected_confidences": lambda: (*states(), ids, case.over),
        "token_scores": lambda: (*states(), *base(), share),
    }
    return Formula(getattr(dense, case.op), arguments[case.op])


def forward_of(case: Case, formula: Formula) -> Forward:
    """Its values under their names."""
    names = NAMES.get(case.op, ("loss",))

    def forward() -> dict[str, Tensor]:
        values = formula.function(*formula.arguments())
        return dict(zip(names, values if len(names) > 1 else (values,), strict=True))

    return forward


class Eager:
    """Rows: answer rows alone."""

    name = "eager"
    ops = OPS

    def version(self) -> str | None:
        return torch.__version__

    def other_objective(self, case: Case) -> str | None:
        return None

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        return None

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return make_call(case, inputs, forward_of(case, formula_of(case, inputs)))
