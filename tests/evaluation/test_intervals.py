from __future__ import annotations

import math

import pytest

from pact.evaluation.intervals import Rate, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),  # p = 0: z^2 / (n + z^2)
        (10, 10, 0.72247, 1.0),  # p = 1: its mirror image
        # Newcombe, Statistics in Medicine 17 (1998), table I, to the four digits given there
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_interval_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_ends_solve_the_score_equation() -> None:
    for end in wilson_interval(7, 30, z=1.5):
        assert abs(7 / 30 - end) == pytest.approx(1.5 * math.sqrt(end * (1 - end) / 30))


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got successes={successes} and n={n}"):
        wilson_interval(successes, n)


def test_wilson_interval_refuses_a_quantile_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="z must be positive, got 0"):
        wilson_interval(1, 2, z=0)


def test_rate_counts_outcomes() -> None:
    rate = Rate.of(n < 3 for n in range(4))
    assert (rate.successes, rate.n, rate.rate) == (3, 4, 0.75)
    assert (rate.low, rate.high) == wilson_interval(3, 4)
