"""Clocks for calls on a device, and rounds in which calls take turns.

`timing.alternate_ms` does the same for calls on a CPU whose first round warms up; here every call
has run before its first round, and a GPU has a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from benchmarks.measuring.timing import time_ms

MIB = 2**20
LEAST_FLUSH_BYTES = 256 * MIB
"""Several times the second-level cache of any GPU up to Hopper; a larger cache is asked for."""


class Clock(Protocol):
    """Times one call."""

    def __call__(self, call: Callable[[], object]) -> float:
        """In milliseconds."""
        ...


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
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Milliseconds of `rounds` calls of each, every round beginning with another one."""
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times_ms[name].append(clock(calls[name]))
    return times_ms


class Quantiles(NamedTuple):
    """Quantiles of the times of one call."""

    p20_ms: float
    p50_ms: float
    p80_ms: float


def quantiles(times_ms: Sequence[float]) -> Quantiles:
    """Interpolated between the neighbours."""
    ordered = sorted(times_ms)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return Quantiles(at(0.2), at(0.5), at(0.8))
