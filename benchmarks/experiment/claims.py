"""What the paper claims, as comparisons computed from the records.

The rule: of two rates the greater is the one whose 95 % Wilson interval of pooled counts lies above
the other's. Where the intervals meet, nothing is said. That two such intervals are apart is more
than the usual test at 5 % asks; that the seeds share their prompts makes them narrower than they
ought to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.pooled import (
    ALL_TASKS,
    NOT_MEASURED,
    Curve,
    Pooled,
    Results,
    Share,
    harmful_share,
    in_groups,
)
from benchmarks.experiment.tables import SOURCES, markdown

AGREES = "agrees"
DISAGREES = "does not agree"
OPEN = "cannot be told (intervals overlap)"
NOTHING_FELL = "cannot be told (no fall to time)"
SAME_STEP = "cannot be told (the same measured step)"
TOO_WIDE = "cannot be told (short of it, but intervals overlap)"
NEITHER_HOLDS = "cannot be told (neither holds clearly more than plain)"
BREAK = "<br>"
"""Between the measures of a table's cell."""
AS_GOOD_WITHIN = 5
"""Points that "as much as" may fall short of."""


class Claim(NamedTuple):
    """One comparison."""

    text: str
    evidence: str
    verdict: str


def claims(results: Results) -> list[Claim]:
    """All of them, in the order of the paper's argument."""
    return [
        *_loss_of_refusals(results),
        *_harmful_data(results),
        *_few_tokens(results),
        *_ablations(results),
        *_drift(results),
    ]


def claim_table(found: Sequence[Claim]) -> str:
    return markdown(["claim", "measured", "verdict"], found, texts=3)


def claim_summary(found: Sequence[Claim]) -> str:
    """How many comparisons came to each verdict."""
    kinds = Counter(claim.verdict.split(" (")[0] for claim in found)
    several = {AGREES: "agree", DISAGREES: "do not agree"}
    counted = ", ".join(
        f"{kinds[kind]} {kind if kinds[kind] == 1 else several.get(kind, kind)}"
        for kind in (AGREES, DISAGREES, "cannot be told", NOT_MEASURED)
        if kinds[kind]
    )
    return f"of {len(found)} comparisons, {counted}"


def more(a: Pooled | None, b: Pooled | None, key: str) -> str:
    """Whether a's rate is the greater, by the rule of this file."""
    rates = _rates(a, b, key)
    if rates is None:
        return NOT_MEASURED
    if rates[0].rate.low > rates[1].rate.high:
        return AGREES
    return DISAGREES if rates[0].rate.high < rates[1].rate.low else OPEN


def as_much(a: Pooled | None, b: Pooled | None, key: str) -> str:
    """Whether a's rate is no more than AS_GOOD_WITHIN points short of b's.

    Shorter than that it still counts against the claim only where the intervals are apart.
    """
    rates = _rates(a, b, key)
    if rates is None:
        return NOT_MEASURED
    if rates[0].rate.high < rates[1].rate.low:
        return DISAGREES
    return AGREES if rates[1].percent - rates[0].percent <= AS_GOOD_WITHIN else TOO_WIDE


def _loss_of_refusals(results: Results) -> list[Claim]:
    lost, kept, learned = [], [], []
    for group, lines in in_groups(results.main).items():
        aligned, plain = _by_method(lines, "aligned"), _by_method(lines, "plain")
        released = _released(lines)
        if harmful_share(lines) == 0:
            text = f"Plain fine-tuning loses refusals ({group})"
            lost.append(Claim(text, _refusals(aligned, plain), more(aligned, plain, "harmful")))
        text = f"PACT as released keeps more refusals than plain fine-tuning ({group})"
        kept.append(Claim(text, _refusals(released, plain), more(released, plain, "harmful")))
        text = f"PACT as released learns the tasks as well as plain fine-tuning ({group})"
        evidence = f"accuracy: {_sides(ALL_TASKS, released, plain)}"
        learned.append(Claim(text, evidence, as_much(released, plain, ALL_TASKS)))
    return lost + kept + learned


def _harmful_data(results: Results) -> list[Claim]:
    """From the least to the greatest share of harmful pairs, by method."""
    groups = sorted(in_groups(results.main).values(), key=harmful_share)
    found = []
    for label in _watched(results):
        lines = [line for members in groups for line in members if line.label == label]
        if len(lines) < 2:
            continue
        evidence = "; ".join(f"{line.group}: {line.counted('harmful')}" for line in lines)
        text = f"The more harmful data, the fewer refusals are kept ({label})"
        found.append(Claim(text, f"refusals: {evidence}", more(lines[0], lines[-1], "harmful")))
    return found


def _few_tokens(results: Results) -> list[Claim]:
    """Refusals and accuracy both have to be as high as with the KL over the whole vocabulary."""
    found = []
    for group, lines in in_groups(results.main).items():
        few = next((line for line in lines if line.label == results.recommended), None)
        plain = _by_method(lines, "plain")
        for full in (line for line in lines if line.cell.method == "full_kl"):
            sides = [as_much(few, full, key) for key in ("harmful", ALL_TASKS)]
            if AGREES not in (more(few, plain, "harmful"), more(full, plain, "harmful")):
                sides.append(NEITHER_HOLDS)
            order = (NOT_MEASURED, DISAGREES, NEITHER_HOLDS, TOO_WIDE, AGREES)
            evidence = f"{_refusals(few, full)}{BREAK}accuracy: {_sides(ALL_TASKS, few, full)}"
            text = f"Few tokens do as well as the KL over the whole vocabulary ({group})"
            found.append(Claim(text, evidence, min(sides, key=order.index)))
    return found


def _ablations(results: Results) -> list[Claim]:
    """What the method has beside a KL on some tokens, each with and without."""
    lines = results.ablations
    tokens = "Tokens found by p_diff hold more refusals than {} ones"
    gate, weights = "The gate helps refusals", "The weights of the target help refusals"
    sources = _pairs(
        lines,
        lambda cell: replace(cell, token_source="p_diff"),
        lambda cell: cell.token_source == "p_diff",
    )
    gates = _pairs(
        lines,
        lambda cell: replace(cell, pact=replace(cell.pact, gate=True)),
        lambda cell: bool(cell.pact.gate),
    )
    weighted = _pairs(lines, lambda cell: replace(cell, weighted=True), lambda cell: cell.weighted)
    return [
        *(_ablation(tokens.format(SOURCES[b.cell.token_source]), a, b) for a, b in sources),
        *([] if sources else [Claim(tokens.format("other"), "-", NOT_MEASURED)]),
        *(_ablation(f"{gate} ({a.group})", a, b) for a, b in gates),
        *([] if gates else [Claim(gate, "-", NOT_MEASURED)]),
        *(_ablation(f"{weights} ({a.group})", a, b) for a, b in weighted),
        *([] if weighted else [Claim(weights, "-", NOT_MEASURED)]),
    ]


def _ablation(text: str, ours: Pooled, other: Pooled) -> Claim:
    parts = [
        _refusals(ours, other),
        f"over-refusal: {_sides('benign_anywhere', ours, other)}",
        f"accuracy: {_sides(ALL_TASKS, ours, other)}",
    ]
    return Claim(text, BREAK.join(parts), more(ours, other, "harmful"))


def _pairs(
    lines: Iterable[Pooled], neutral: Callable[[Cell], Cell], ours: Callable[[Cell], bool]
) -> list[tuple[Pooled, Pooled]]:
    """Lines of a group whose cells differ in one thing alone, ours first."""
    found = []
    for members in in_groups(lines).values():
        for line in members:
            found += [
                (line, other)
                for other in members
                if line.cell.method == other.cell.method == "pact"
                and ours(line.cell)
                and not ours(other.cell)
                and neutral(line.cell) == neutral(other.cell)
            ]
    return found


def _drift(results: Results) -> list[Claim]:
    text = "The confidence on the safety tokens falls before the refusals do ({})"
    curves = [curve for curve in results.over_time if curve.cell.method == "plain"]
    found = [Claim(text.format(curve.label), *timing(curve)) for curve in curves]
    return found or [Claim(text.format("plain"), "-", NOT_MEASURED)]


def timing(curve: Curve) -> tuple[str, str]:
    """When each of the two has fallen by half of its whole fall; evidence and verdict.

    Half is reached at the first measured step where the mean over seeds is at most the mean of
    its first and its last value. Refusals whose first and last intervals meet have no fall.
    """
    points = {
        step: point
        for step, point in curve.points.items()
        if "harmful" in point.counts and "first_confidence" in point.values
    }
    if len(points) < 2:
        return "-", NOT_MEASURED
    confidence = {step: point.values["first_confidence"].mean for step, point in points.items()}
    refusals = {step: float(point.counts["harmful"].percent) for step, point in points.items()}
    halves = half_fallen(confidence), half_fallen(refusals)
    first, last = min(points), max(points)
    evidence = (
        f"first-step confidence {confidence[first]:.3f} to {confidence[last]:.3f}, "
        f"refusals {refusals[first]:.0f} % to {refusals[last]:.0f} % in steps {first} to {last}"
    )
    fell = more(points[first], points[last], "harmful") == AGREES
    if halves[0] is None or halves[1] is None or not fell:
        return evidence, NOTHING_FELL
    evidence += f"; half of the fall at step {halves[0]} and at step {halves[1]}"
    if halves[0] == halves[1]:
        return evidence, SAME_STEP
    return evidence, AGREES if halves[0] < halves[1] else DISAGREES


def half_fallen(values: dict[int, float]) -> int | None:
    """The first step with half of the fall from the first to the last; None if there is none."""
    first, last = values[min(values)], values[max(values)]
    if not last < first:
        return None
    return min(step for step, value in values.items() if value <= (first + last) / 2)


def _released(lines: Sequence[Pooled]) -> Pooled | None:
    """PACT over the selection, of which the first is the released objective."""
    return next(
        (
            line
            for line in lines
            if line.cell.method == "pact" and line.cell.pact.over == "selection"
        ),
        None,
    )


def _watched(results: Results) -> list[str]:
    """Labels of plain fine-tuning, of the released objective and of the recommended setting."""
    released = _released(results.main)
    plain = _by_method(results.main, "plain")
    labels = [line.label for line in (plain, released) if line is not None]
    return list(dict.fromkeys([*labels, results.recommended]))


def _by_method(lines: Sequence[Pooled], method: str) -> Pooled | None:
    return next((line for line in lines if line.cell.method == method), None)


def _rates(a: Pooled | None, b: Pooled | None, key: str) -> tuple[Share, Share] | None:
    if a is None or b is None or not (key in a.counts and key in b.counts):
        return None
    return a.counts[key], b.counts[key]


def _refusals(*lines: Pooled | None) -> str:
    return f"refusals: {_sides('harmful', *lines)}"


def _sides(key: str, *lines: Pooled | None) -> str:
    return " against ".join(
        NOT_MEASURED if line is None else f"{line.label} {line.counted(key)}" for line in lines
    )
