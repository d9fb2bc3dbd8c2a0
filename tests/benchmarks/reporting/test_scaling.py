"""Exponents are recovered from made-up data, and growth is of memory beyond the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.cases.case import Case
from benchmarks.cases.plans import Line
from benchmarks.reporting.results import Result
from benchmarks.reporting.scaling import exponent, tracks

BASE = Case(op="linear_cross_entropy", sequences=1, length=512, hidden=8, vocabulary=1000)
OVER_N = Line("N", tuple(replace(BASE, length=512 * factor) for factor in (1, 2, 4, 8)))
OVER_V = Line("V", tuple(replace(BASE, vocabulary=1000 * factor) for factor in (1, 3, 9)))


def results(
    line: Line, time_ms: Callable[[int], float], memory_mib: Callable[[int], float]
) -> list[Result]:
    return [
        Result(
            case=case,
            device="cpu",
            machine="m",
            implementation="ours",
            p50_ms=time_ms(size),
            extra_mib=memory_mib(size),
            output_mib=size / 1024,
        )
        for case, size in zip(line.cases, line.sizes(), strict=True)
    ]


@pytest.mark.parametrize("slope", [-0.5, 0.0, 1.0, 1.7])
def test_an_exponent_is_recovered(slope: float) -> None:
    x = [1.0, 2.0, 8.0, 20.0]
    assert exponent(x, [3.0 * value**slope for value in x]) == pytest.approx(slope)


def test_a_fit_is_of_least_squares() -> None:
    """The middle point is off by e^3, and turns nothing: the ends lie as far to either side."""
    assert exponent([1.0, math.e, math.e**2], [1.0, math.e**3, 1.0]) == pytest.approx(0.0)
    assert exponent([1.0, math.e, math.e**2], [1.0, 1.0, math.e**3]) == pytest.approx(1.5)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 0, 3]), ([], [])])
def test_too_few_points_or_none_above_zero_have_no_exponent(x: list[float], y: list[float]) -> None:
    assert exponent(x, y) is None


def test_time_and_memory_along_a_line() -> None:
    lines = results(OVER_N, lambda n: n**1.25, lambda n: 64 + n / 1024)
    (track,) = tracks(OVER_N, reversed(lines))
    assert track.sizes == (512, 1024, 2048, 4096)
    assert track.time_exponent == pytest.approx(1.25)
    assert track.memory_exponent == pytest.approx(0.0)  # what grew were the outputs
    assert track.memory_growth == pytest.approx(1.0)


def test_memory_that_grows_is_told() -> None:
    (track,) = tracks(OVER_V, results(OVER_V, float, lambda v: 2 * v + v / 1024))
    assert track.sizes == (1000, 3000, 9000)
    assert track.memory_growth == pytest.approx(9.0)


def test_a_line_without_all_its_memory_has_no_growth() -> None:
    lines = results(OVER_N, float, lambda _: 64.0)
    lines[3] = replace(lines[3], extra_mib=None)
    lines[1] = replace(lines[1], p50_ms=None)
    (track,) = tracks(OVER_N, [*lines, replace(lines[0], case=replace(BASE, hidden=9))])
    assert track.sizes == (512, 2048, 4096) and track.memory_growth is None
    assert tracks(OVER_N, lines[:1]) == []  # one point is no line
