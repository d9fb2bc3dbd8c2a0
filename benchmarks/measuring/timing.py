"""Times of calls that take turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence


def time_ms(call: Callable[[], object]) -> float:
    """Time of one call."""
    start_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start_s)


def alternate_ms(
    rounds: Iterable[Mapping[str, Callable[[], object]]],
) -> dict[str, list[float]]:
    """Time the calls of every round in turn, each round from another one on; the first warms up."""
    times_ms: dict[str, list[float]] = {}
    for number, calls in enumerate(rounds):
        names = list(calls)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            elapsed_ms = time_ms(calls[name])
            if number:
                times_ms.setdefault(name, []).append(elapsed_ms)
    return {name: times_ms[name] for name in names}


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By name."""
    return {name: statistics.median(values) for name, values in times.items()}
