"""How much memory a call takes, from the profiler's record of torch's allocator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile


class Memory(NamedTuple):
    """Of one call."""

    extra_bytes: int
    """Most bytes alive at once, less those still alive at the end: outputs and what is saved."""
    largest_bytes: int
    """The largest single allocation."""


def memory_of(call: Callable[[], object]) -> Memory:
    """Run `call` in the profiler; its result lives until the record ends."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler recorded no allocation"
    del result
    alive = peak = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
        largest = max(largest, event.nbytes())
    return Memory(peak - alive, largest)
