"""Shares of yes-or-no outcomes, with the interval that n outcomes allow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959964
"""The 97.5 % quantile of the normal distribution: two-sided intervals of 95 %."""


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share p = successes / n.

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike p -+ z sqrt(p (1 - p) / n) it stays in [0, 1] and has a width at p = 0 and p = 1.

    Args:
        successes: outcomes that were yes.
        n: outcomes in all.
        z: quantile of the normal distribution.

    Returns:
        The ends of the interval.

    Source:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22,
        1927.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(
            f"an interval needs 0 <= successes <= n and n >= 1, got successes={successes} and n={n}"
        )
    if not z > 0:
        raise ValueError(f"z must be positive, got {z}")
    p = successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # at p = 0 and p = 1 one end is exactly p, which rounding would miss
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its 95 % Wilson interval."""

    successes: int
    """Outcomes that were yes."""
    n: int
    """Outcomes in all."""
    rate: float
    """successes / n."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        """The share of true outcomes, of which there must be at least one."""
        kept = list(outcomes)
        successes, n = sum(kept), len(kept)
        low, high = wilson_interval(successes, n)
        return cls(successes=successes, n=n, rate=successes / n, low=low, high=high)
