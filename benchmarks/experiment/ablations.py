"""What is varied of the recommended objective, one thing at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from math import inf
from typing import Any, TypeAlias

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.methods import (
    ANCHORED,
    DEFAULT,
    METHODS,
    PATCH_LABEL,
    PLAIN,
    RELEASED,
    SAFE_LORA_LABEL,
    VOCABULARY,
)

ABLATION_SHARE = 0.1
"""Harmful pairs in the data of the ablations: enough that plain fine-tuning loses all refusals."""
POST_ALONE = {
    "gate_alpha": 0.0,
    "gate_bias": 0.0,
    "gate_prefix_boost": 2.0,
    "gate_prefix_length": 10**6,
}
"""A gate that is 1 at every step: sigmoid(0) times 2."""
SETTINGS = {field.name for field in fields(Cell)}
Groups: TypeAlias = dict[str, dict[str, Cell]]
"""By what is varied, cells by its value."""


def ablations() -> Iterator[tuple[str, str, Cell]]:
    """What is varied, a value of it, and its cell: of all groups in turn."""
    for group, cells in (_of_the_objective() | _of_anchors() | _of_rivals()).items():
        for label, cell in cells.items():
            yield group, label, cell


def _of_the_objective() -> Groups:
    """One thing at a time; what needs a gate or the selection is varied where there is one."""
    ours, gated, released, plain = (
        replace(cell, harmful_share=ABLATION_SHARE)
        for cell in (DEFAULT, VOCABULARY, RELEASED, PLAIN)
    )
    first = replace(ours, max_response_length=1)  # many tokens that refusals make less likely
    return {
        "plain, for comparison": {"plain": plain},
        "safety tokens K": _varied(ours, "top_k", 5, 20, 50, 200),
        "decay of the step weights, tau": {
            "none" if tau == "inf" else tau: cell
            for tau, cell in _varied(ours, "kl_step_tau", 0.5, 1.0, 4.0, inf).items()
        },
        "safety tokens held, of the first step": {
            "of positive weight": _pact(first, positive_only=True),
            "all": _pact(first, positive_only=False),
        },
        "margin, nats, on benign data": _varied(DEFAULT, "kl_margin", 0.0, 1.5, 3.0),
        "answer steps that discovery looks at": _varied(ours, "max_response_length", 1, 8),
        "reference context": {
            "full only (gate off)": _pact(ours, gate=False),
            "gate on": _pact(ours, gate=True),
            "post-only alone": _pact(ours, gate=True, **POST_ALONE),
        },
        "tokens found by": {
            "p_diff": ours,
            "p_diff, base plain": replace(ours, token_source="plain"),
            "frequency": replace(ours, token_source="frequency"),
            "random": replace(ours, token_source="random"),
        },
        "refusals that discovery looks at": _varied(ours, "num_samples", 8, 100),
        "released: weights": {"discovered": released, "equal": replace(released, weighted=False)},
        "released: temperature T": _varied(released, "kl_temperature", 1.0, 2.0),
        "gated vocabulary: top_p": _varied(gated, "gate_top_p", 0.5, 0.9),
        "gated vocabulary: prefix length": _varied(gated, "gate_prefix_length", 2, 8),
        "what is trained": {
            "adapters, plain": plain,
            "adapters, PACT": ours,
            "all weights, plain": replace(plain, full_finetuning=True),
            "all weights, PACT": replace(ours, full_finetuning=True),
        },
    }


def _of_anchors() -> Groups:
    """On benign data, which is what anchors are for."""
    groups: Groups = {
        "lambda": _varied(ANCHORED, "kl_weight", 1.0, 3.0, 10.0, 30.0),
        "share": _varied(ANCHORED, "anchor_share", 0.3, 0.5, 0.7),
        "answer steps held": _varied(ANCHORED, "anchor_steps", 1, 4, 8, 16),
        "KL": {
            "over the vocabulary": ANCHORED,
            "among the safety tokens": _pact(ANCHORED, over="selection", kl_temperature=None),
        },
        "training steps": {
            "as without anchors": replace(ANCHORED, steps=DEFAULT.steps),
            "as many others as without": ANCHORED,
        },
    }
    return {f"anchors, on benign data: {group}": cells for group, cells in groups.items()}


def _of_rivals() -> Groups:
    """The settings of the rivals that have one, so that each is seen at its best."""
    tried: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
        ("safety-token logits", "weight", "strength", (0.1, 0.3, 1.0, 3.0)),
        (PATCH_LABEL, "its steps", "patch_steps", (2, 5, 10)),
        ("Lisa", "rho", "strength", (0.1, 1.0, 10.0)),
        (SAFE_LORA_LABEL, "threshold", "strength", (0.05, 0.1, 0.2, 0.35)),
    )
    return {
        f"rivals: {label}, {name}": _varied(
            replace(METHODS[label], harmful_share=ABLATION_SHARE), field, *values
        )
        for label, name, field, values in tried
    }


def _varied(cell: Cell, name: str, *values: float) -> dict[str, Cell]:
    """Cells by the value of one setting, of theirs or of their objective."""
    change: Any = replace if name in SETTINGS else _pact
    return {f"{value:g}": change(cell, **{name: value}) for value in values}


def _pact(cell: Cell, **changes: Any) -> Cell:
    return replace(cell, pact=replace(cell.pact, **changes))
