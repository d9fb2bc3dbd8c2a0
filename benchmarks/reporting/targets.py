"""The figures that are looked for, taken from the results of one machine.

Legend: N rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.cases.case import Case
from benchmarks.cases.catalogue import lines, plans
from benchmarks.cases.plan import BASE, HEADS, OURS, RELEASED, SMALL, Plan, title
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.reporting.results import Result
from benchmarks.reporting.scaling import Track, tracks
from benchmarks.reporting.sheet import Sheet, Target

YARDSTICKS = (GEMMS, CROSS_ENTROPY_ALONE)
PREFERRED_TOKENS = 50
"""K at which the KL is to be free."""
FLAT = 1.1
"""The most that memory beyond inputs and outputs may grow from the smallest N to the largest."""


def targets(device: str, results: Iterable[Result]) -> list[Target]:
    """All of a device's, measured or not."""
    sheet = Sheet(results)
    on_gpu = device == "cuda"
    planned = plans("gpu") if on_gpu else [*plans("cpu"), *plans("cpu-large")]
    return [
        *_cross_entropy(sheet, planned, on_gpu),
        *_losses(sheet, planned, on_gpu),
        *_against_released(sheet, planned, on_gpu),
        *_logsumexp(sheet, planned, on_gpu),
        *_along_lines(sheet, device),
    ]


def _cross_entropy(sheet: Sheet, planned: list[Plan], on_gpu: bool) -> Iterator[Target]:
    """Against the same products alone, and against the fastest peer at every case."""
    base = _base(planned, "linear_cross_entropy")
    for plan in planned:
        case = plan.case
        if case.op != "linear_cross_entropy" or plan.only == (OURS,):
            continue
        name = f"cross-entropy, {title(case)}"
        if plan.varied == BASE or plan.varied == "head":
            wanted = 0.90 if on_gpu else 0.85 if case.trainable_head else 0.80
            bound = None if on_gpu and case.trainable_head else wanted
            share = sheet.value(case, "of_gemms")
            yield sheet.target(
                f"{name}: speed / that of its GEMMs", case, [(OURS, share)], at_least=bound
            )
        if on_gpu and case == base:
            floor = sheet.value(case, "tflop_per_s", GEMMS)
            beside = "" if floor is None else f" (GEMMs alone {floor:.0f})"
            speed = sheet.value(case, "tflop_per_s")
            yield sheet.target(f"{name}: TFLOP/s{beside}", case, [(OURS, speed)], at_least=700)
        yield _against_fastest(sheet, case, name)


def _against_fastest(sheet: Sheet, case: Case, name: str) -> Target:
    """Time of the fastest peer by ours."""
    others = [
        result
        for result in sheet.of(case)
        if result.measured and result.implementation not in (OURS, *YARDSTICKS)
    ]
    fastest = min(others, key=lambda result: result.p50_ms or 0.0, default=None)
    other = "the fastest peer" if fastest is None else fastest.implementation
    pair = [
        (OURS if fastest is None else other, None if fastest is None else fastest.p50_ms),
        (OURS, sheet.value(case, "p50_ms")),
    ]
    return sheet.target(f"{name}: time of {other} / ours", case, pair, at_least=1.0)


def _losses(sheet: Sheet, planned: list[Plan], on_gpu: bool) -> Iterator[Target]:
    """What the KL adds to the cross-entropy; a bound is on a cached reference alone."""
    for plan in planned:
        case = plan.case
        if case.op != "pact_loss" or plan.baseline == RELEASED:
            continue
        free = case.cached and case.tokens == PREFERRED_TOKENS and plan.varied != "N"
        bound = (1.01 if on_gpu else 1.03) if free and not case.trainable_head else None
        ratio = sheet.value(case, "of_cross_entropy")
        name = f"loss with KL, {title(case)}: time / cross-entropy alone"
        yield sheet.target(name, case, [(OURS, ratio)], at_most=bound)


def _against_released(sheet: Sheet, planned: list[Plan], on_gpu: bool) -> Iterator[Target]:
    """Bounds are on the released step's own sizes, on a CPU."""
    for plan in planned:
        case = plan.case
        if plan.baseline != RELEASED:
            continue
        name = f"loss with KL, {title(case)}"
        small = (case.hidden, case.vocabulary) == HEADS[SMALL]
        faster = 8.0 if case.prompt_share > 0.5 else 4.0 if small else 3.5
        for attribute, label, upside, bound in (
            ("p50_ms", "time of released / ours", True, faster),
            ("extra_mib", "peak extra memory of ours / released", False, 0.1),
        ):
            pair = [
                (each, sheet.value(case, attribute, each))
                for each in ((RELEASED, OURS) if upside else (OURS, RELEASED))
            ]
            bounded = not on_gpu and plan.varied == "prompt share"
            wanted = {"at_least" if upside else "at_most": bound} if bounded else {}
            yield sheet.target(f"{name}: {label}", case, pair, **wanted)


def _logsumexp(sheet: Sheet, planned: list[Plan], on_gpu: bool) -> Iterator[Target]:
    case = _base(planned, "linear_logsumexp")
    share = sheet.value(case, "of_gemms")
    name = f"log-sum-exp, {title(case)}: speed / that of its GEMM"
    yield sheet.target(name, case, [(OURS, share)], at_least=0.65 if on_gpu else None)


def _along_lines(sheet: Sheet, device: str) -> Iterator[Target]:
    """Exponents, and memory that must not grow with N."""
    for line in lines(device):
        largest = line.cases[-1]
        span = f"{line.size} {line.sizes()[0]} to {line.sizes()[-1]}"
        name = f"cross-entropy, {span}"
        found = [track for track in tracks(line, sheet.results) if track.implementation == OURS]
        own = found[0] if found and len(found[0].sizes) == len(line.cases) else None
        fit = None if own is None else own.time_fit()
        exponent = None if fit is None else fit.exponent
        yield sheet.target(f"{name}: exponent of time", largest, [(OURS, exponent)])
        if line.size == "N":
            label = f"{name}: growth of memory beyond inputs and outputs"
            yield sheet.target(label, largest, [(OURS, _growth(own))], at_most=FLAT)


def _growth(track: Track | None) -> float | None:
    return None if track is None else track.memory_growth()


def _base(planned: list[Plan], op: str) -> Case:
    return next(plan.case for plan in planned if plan.case.op == op and plan.varied == BASE)
