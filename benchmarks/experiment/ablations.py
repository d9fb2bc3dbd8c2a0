"""What is varied of the recommended objective, one thing at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

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


class Ablation(NamedTuple):
    """A value of what is varied."""

    group: str
    """What is varied."""
    label: str
    cell: Cell


def ablations() -> Iterator[Ablation]:
    """One thing at a time; what needs a gate or the selection is varied where there is one."""
    ours = replace(DEFAULT, harmful_share=ABLATION_SHARE)
    gated = replace(VOCABULARY, harmful_share=ABLATION_SHARE)
    released = replace(RELEASED, harmful_share=ABLATION_SHARE)
    plain = replace(PLAIN, harmful_share=ABLATION_SHARE)

    def vary(group: str, cells: Mapping[str, Cell]) -> Iterator[Ablation]:
        for label, cell in cells.items():
            yield Ablation(group, label, cell)

    yield from vary("plain, for comparison", {"plain": plain})
    yield from vary("safety tokens K", {f"{k}": replace(ours, top_k=k) for k in (5, 20, 50, 200)})
    yield from vary(
        "decay of the step weights, tau",
        {
            "none" if tau == inf else f"{tau:g}": _pact(ours, kl_step_tau=tau)
            for tau in (0.5, 1.0, 4.0, inf)
        },
    )
    first = replace(ours, max_response_length=1)  # many tokens that refusals make less likely
    yield from vary(
        "safety tokens held, of the first step",
        {
            "of positive weight": _pact(first, positive_only=True),
            "all": _pact(first, positive_only=False),
        },
    )
    yield from vary(
        "margin, nats, on benign data",
        {f"{m:g}": _pact(DEFAULT, kl_margin=m) for m in (0.0, 1.5, 3.0)},
    )
    lengths = {f"{n}": replace(ours, max_response_length=n) for n in (1, 8)}
    yield from vary("answer steps that discovery looks at", lengths)
    yield from vary(
        "reference context",
        {
            "full only (gate off)": _pact(ours, gate=False),
            "gate on": _pact(ours, gate=True),
            "post-only alone": _pact(ours, gate=True, **POST_ALONE),
        },
    )
    yield from vary(
        "tokens found by",
        {
            "p_diff": ours,
            "p_diff, base plain": replace(ours, token_source="plain"),
            "frequency": replace(ours, token_source="frequency"),
            "random": replace(ours, token_source="random"),
        },
    )
    samples = {f"{n}": replace(ours, num_samples=n) for n in (8, 100)}
    yield from vary("refusals that discovery looks at", samples)
    yield from vary(
        "released: weights", {"discovered": released, "equal": replace(released, weighted=False)}
    )
    yield from vary(
        "released: temperature T",
        {f"{t:g}": _pact(released, kl_temperature=t) for t in (1.0, 2.0)},
    )
    yield from vary(
        "gated vocabulary: top_p", {f"{p:g}": _pact(gated, gate_top_p=p) for p in (0.5, 0.9)}
    )
    yield from vary(
        "gated vocabulary: prefix length",
        {f"{n}": _pact(gated, gate_prefix_length=n) for n in (2, 8)},
    )
    yield from vary(
        "what is trained",
        {
            "adapters, plain": plain,
            "adapters, PACT": ours,
            "all weights, plain": replace(plain, full_finetuning=True),
            "all weights, PACT": replace(ours, full_finetuning=True),
        },
    )
    yield from _of_anchors()
    yield from _of_rivals()


def _of_anchors() -> Iterator[Ablation]:
    """On benign data, which is what anchors are for."""
    groups: dict[str, dict[str, Cell]] = {
        "lambda": {f"{x:g}": _pact(ANCHORED, kl_weight=x) for x in (1.0, 3.0, 10.0, 30.0)},
        "share": {f"{x:g}": replace(ANCHORED, anchor_share=x) for x in (0.3, 0.5, 0.7)},
        "answer steps held": {f"{n}": replace(ANCHORED, anchor_steps=n) for n in (1, 4, 8, 16)},
        "KL": {
            "over the vocabulary": ANCHORED,
            "among the safety tokens": _pact(ANCHORED, over="selection", kl_temperature=None),
        },
        "training steps": {
            "as without anchors": replace(ANCHORED, steps=DEFAULT.steps),
            "as many others as without": ANCHORED,
        },
    }
    for group, cells in groups.items():
        for label, cell in cells.items():
            yield Ablation(f"anchors, on benign data: {group}", label, cell)


def _of_rivals() -> Iterator[Ablation]:
    """The settings of the rivals that have one, so that each is seen at its best."""
    tried: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
        ("safety-token logits", "weight", "strength", (0.1, 0.3, 1.0, 3.0)),
        (PATCH_LABEL, "its steps", "patch_steps", (2, 5, 10)),
        ("Lisa", "rho", "strength", (0.1, 1.0, 10.0)),
        (SAFE_LORA_LABEL, "threshold", "strength", (0.05, 0.1, 0.2, 0.35)),
    )
    for label, name, field, values in tried:
        rival = replace(METHODS[label], harmful_share=ABLATION_SHARE)
        for value in values:
            changed: dict[str, Any] = {field: value}
            yield Ablation(f"rivals: {label}, {name}", f"{value:g}", replace(rival, **changed))


def _pact(cell: Cell, **changes: Any) -> Cell:
    return replace(cell, pact=replace(cell.pact, **changes))
