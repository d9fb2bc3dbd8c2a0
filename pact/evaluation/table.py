"""Evaluations as text: one with its intervals, or several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pact.evaluation.intervals import Rate
from pact.evaluation.result import Evaluation


class _Measure(NamedTuple):
    name: str
    value: str
    interval: str
    n: int


def evaluation_table(evaluation: Evaluation) -> str:
    """One line a measure: value, 95 % interval of a share, and the number of outcomes behind it."""
    rows = [(m.name, m.value, m.interval, str(m.n)) for m in _measures(evaluation)]
    return _align([("measure", "value", "95 % interval", "n"), *rows])


def comparison_table(results: Mapping[str, Evaluation]) -> str:
    """One column a model, one line a measure; a measure that a model lacks is left blank.

    Args:
        results: evaluations by the name of their model, in the order of the columns.
    """
    columns = [{m.name: m for m in _measures(evaluation)} for evaluation in results.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [
        (name, *(_cell(column[name]) if name in column else "" for column in columns))
        for name in names
    ]
    return _align([("measure", *results), *rows])


def _measures(evaluation: Evaluation) -> Iterator[_Measure]:
    for name, refusals in (("harmful", evaluation.harmful), ("benign", evaluation.benign)):
        if refusals is not None:
            yield _share(f"{name}: opens with a refusal", refusals.starts)
            yield _share(f"{name}: refuses anywhere", refusals.contains)
    if evaluation.task is not None:
        yield _share("task: exact match", evaluation.task)
    if evaluation.heldout is not None:
        loss = evaluation.heldout
        yield _Measure("held-out: loss (nats per token)", f"{loss.mean_nats:.4f}", "", loss.tokens)
        yield _Measure("held-out: perplexity", f"{loss.perplexity:.3f}", "", loss.tokens)
    if evaluation.drift is not None:
        drift = evaluation.drift
        for name, value, n in (
            ("KL over the vocabulary (nats)", drift.kl_vocabulary_nats, drift.rows),
            ("KL over the safety tokens (nats)", drift.kl_selection_nats, drift.rows),
            ("confidence", drift.confidence, drift.rows),
            ("confidence of the reference", drift.reference_confidence, drift.rows),
            ("confidence, first token", drift.first_confidence, drift.answers),
            (
                "confidence of the reference, first token",
                drift.first_reference_confidence,
                drift.answers,
            ),
            ("mean |difference| of confidence", drift.mean_difference, drift.rows),
        ):
            yield _Measure(f"drift: {name}", f"{value:.4f}", "", n)


def _share(name: str, rate: Rate) -> _Measure:
    interval = f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return _Measure(name, f"{100 * rate.rate:.1f} %", interval, rate.n)


def _cell(measure: _Measure) -> str:
    return f"{measure.value} {measure.interval}".rstrip()


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart under a rule; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]) + "\n"
