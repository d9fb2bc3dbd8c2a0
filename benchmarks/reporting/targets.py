"""The figures that are looked for, taken from the results of one machine.

By hand: each figure has its own case, bound and words. pandas' queries and schema checkers such as
pandera state a bound for a column.

Legend: N rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.cases.case import Case
from benchmarks.cases.plans import BASE, HEADS, OURS, RELEASED, SMALL, Plan, lines, plans, title
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.reporting.figures import Figure
from benchmarks.reporting.results import Result
from benchmarks.reporting.scaling import tracks

NO_PEERS = (OURS, GEMMS, CROSS_ENTROPY_ALONE)
PREFERRED_TOKENS = 50
"""K at which the KL is to be free."""
FLAT = 1.1
"""The most that memory beyond inputs and outputs may grow from the smallest N to the largest."""


class Sheet:
    """Results of one machine, by case and implementation, and figures taken from them."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = list(results)
        self.of: dict[Case, dict[str, Result]] = defaultdict(dict)
        for result in self.results:
            self.of[result.case][result.implementation] = result

    def fastest(self, case: Case) -> Result | None:
        """The fastest peer's line."""
        lines = self.of[case].values()
        peers = [line for line in lines if line.measured and line.implementation not in NO_PEERS]
        return min(peers, key=lambda line: line.p50_ms or math.inf, default=None)

    def target(self, name: str, value: float | None, case: Case, who: str, **bound: Any) -> Figure:
        """A figure; without a value the line of `who` says why."""
        if value is not None:
            return Figure(name=name, value=value, **bound)
        line = self.of[case].get(who)
        reason = (line.reason or line.remark) if line else ""
        return Figure(name=name, value=math.nan, reason=reason or "not run yet", **bound)

    def figure(self, name: str, case: Case, column: str, *who: str, **bound: Any) -> Figure:
        """A value of one implementation, or its ratio to that of a second one."""
        values: list[float] = []
        for each in who:
            value = getattr(self.of[case].get(each), column, None)
            if value is None:
                return self.target(name, None, case, each, **bound)
            values.append(value)
        first, divisor = values[0], values[1] if len(values) > 1 else 1.0
        return self.target(name, first / divisor, case, OURS, **bound)


def targets(device: str, results: Iterable[Result]) -> list[Figure]:
    """All of a device's, measured or not."""
    sheet, on_gpu = Sheet(results), device == "cuda"
    planned = plans("gpu") if on_gpu else [*plans("cpu"), *plans("cpu-large")]
    kinds = _cross_entropy, _loss, _against_released, _logsumexp
    found = [each for kind in kinds for plan in planned for each in kind(sheet, plan, on_gpu)]
    return [*found, *_along_lines(sheet, device)]


def _cross_entropy(sheet: Sheet, plan: Plan, on_gpu: bool) -> Iterator[Figure]:
    """Against the same products alone, and against the fastest peer at every case."""
    case = plan.case
    if case.op != "linear_cross_entropy" or plan.only == (OURS,):
        return
    name = f"cross-entropy, {title(case)}"
    if plan.varied in (BASE, "head"):
        wanted = 0.90 if on_gpu else 0.85 if case.trainable_head else 0.80
        bound = {} if on_gpu and case.trainable_head else {"at_least": wanted}
        label = f"{name}: speed / that of its GEMMs"
        yield sheet.figure(label, case, "of_gemms", OURS, **bound)
    if on_gpu and plan.varied == BASE:
        floor = getattr(sheet.of[case].get(GEMMS), "tflop_per_s", None)
        beside = "" if floor is None else f" (GEMMs alone {floor:.0f})"
        yield sheet.figure(f"{name}: TFLOP/s{beside}", case, "tflop_per_s", OURS, at_least=700)
    fastest = sheet.fastest(case)
    peer = fastest.implementation if fastest else None
    label = f"{name}: time of {peer or 'the fastest peer'} / ours"
    if peer is None:
        yield sheet.target(label, None, case, OURS, at_least=1.0)
    else:
        yield sheet.figure(label, case, "p50_ms", peer, OURS, at_least=1.0)


def _loss(sheet: Sheet, plan: Plan, on_gpu: bool) -> Iterator[Figure]:
    """What the KL adds to the cross-entropy; a bound is on a cached reference alone."""
    case = plan.case
    if case.op == "pact_loss" and plan.baseline != RELEASED:
        free = case.cached and case.tokens == PREFERRED_TOKENS and plan.varied != "N"
        bounded = free and not case.trainable_head
        bound = {"at_most": 1.01 if on_gpu else 1.03} if bounded else {}
        name = f"loss with KL, {title(case)}: time / cross-entropy alone"
        yield sheet.figure(name, case, "of_cross_entropy", OURS, **bound)


def _against_released(sheet: Sheet, plan: Plan, on_gpu: bool) -> Iterator[Figure]:
    """Bounds are on the released step's own sizes, on a CPU."""
    case = plan.case
    if plan.baseline != RELEASED:
        return
    name = f"loss with KL, {title(case)}"
    small = (case.hidden, case.vocabulary) == HEADS[SMALL]
    faster = 8.0 if case.prompt_share > 0.5 else 4.0 if small else 3.5
    bounded = not on_gpu and plan.varied == "prompt share"
    bound = {"at_least": faster} if bounded else {}
    label = f"{name}: time of released / ours"
    yield sheet.figure(label, case, "p50_ms", RELEASED, OURS, **bound)
    bound = {"at_most": 0.1} if bounded else {}
    label = f"{name}: peak extra memory of ours / released"
    yield sheet.figure(label, case, "extra_mib", OURS, RELEASED, **bound)


def _logsumexp(sheet: Sheet, plan: Plan, on_gpu: bool) -> Iterator[Figure]:
    if plan.case.op == "linear_logsumexp" and plan.varied == BASE:
        name = f"log-sum-exp, {title(plan.case)}: speed / that of its GEMM"
        bound = {"at_least": 0.65} if on_gpu else {}
        yield sheet.figure(name, plan.case, "of_gemms", OURS, **bound)


def _along_lines(sheet: Sheet, device: str) -> Iterator[Figure]:
    """Exponents, and memory that must not grow with N."""
    for line in lines(device):
        largest = line.cases[-1]
        name = f"cross-entropy, {line.size} {line.sizes()[0]} to {line.sizes()[-1]}"
        whole = (
            track
            for track in tracks(line, sheet.results)
            if track.implementation == OURS and len(track.points) == len(line.cases)
        )
        own = next(whole, None)
        slope, growth = (own.time_exponent, own.memory_growth) if own else (None, None)
        yield sheet.target(f"{name}: exponent of time", slope, largest, OURS)
        if line.size == "N":
            label = f"{name}: growth of memory beyond inputs and outputs"
            yield sheet.target(label, growth, largest, OURS, at_most=FLAT)
