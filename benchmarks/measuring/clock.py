"""Clocks for one call, and rounds in which calls take turns.

What slows the machine for a while slows all of them then, so their ratios hold. `timeit`,
`torch.utils.benchmark` and Triton's `do_bench` time one call after the other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

Clock = Callable[[Callable[[], object]], float]
"""Times one call, in milliseconds."""
LEAST_FLUSH_BYTES = 256 * 2**20
"""Several times the second-level cache of any GPU up to Hopper; a larger cache is asked for."""


def time_ms(call: Callable[[], object]) -> float:
    """By the wall."""
    start_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start_s)


class EventClock:
    """Between two events on a CUDA stream, the second-level cache emptied before.

    While the cache is emptied the host already queues the call, so that what it takes to launch a
    kernel is counted only as far as the device waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        size = max(LEAST_FLUSH_BYTES, 2 * cache_bytes)
        self.device = device
        self.ballast = torch.empty(size, dtype=torch.int8, device=device)

    def __call__(self, call: Callable[[], object]) -> float:
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.ballast.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end))


def clock_of(device: torch.device) -> Clock:
    """Events on a GPU, the wall elsewhere."""
    return EventClock(device) if device.type == "cuda" else time_ms


def take_turns(
    rounds: Iterable[Mapping[str, Callable[[], object]]],
    clock: Clock = time_ms,
    *,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Milliseconds of every call, by name.

    Args:
        rounds: calls under the same names in each; every round begins with another one.
        clock: times a call.
        warm_up: rounds at the start that are not recorded.
    """
    times_ms: dict[str, list[float]] = {}
    for number, calls in enumerate(rounds):
        names = list(calls)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            elapsed_ms = clock(calls[name])
            if number >= warm_up:
                times_ms.setdefault(name, []).append(elapsed_ms)
    return {name: times_ms[name] for name in names}


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By name."""
    return {name: statistics.median(values) for name, values in times.items()}


def quantiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Columns of the times of one call, interpolated between the neighbours."""
    found = np.quantile(times_ms, (0.2, 0.5, 0.8))
    return dict(zip(("p20_ms", "p50_ms", "p80_ms"), map(float, found), strict=True))
