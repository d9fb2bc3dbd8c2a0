"""How much memory a call takes, from the profiler's record of torch's allocator.

What a matrix product takes and gives back within itself is left out: it is the library's, and
differs by processor. Where there are no instructions for bf16, for one, the product is summed in a
buffer of fp32.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::matmul", "aten::linear"}


class Memory(NamedTuple):
    """What one call takes."""

    extra_bytes: int
    """Most bytes alive at once, less those still alive at the end: outputs and what is saved."""
    largest_bytes: int
    """The largest single allocation."""


def memory_of(call: Callable[[], object]) -> Memory:
    """Run `call` in the profiler; its result lives until the record ends."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event for event in events if event.name() == "[memory]"]
    assert changes, "the profiler recorded no allocation"
    del result
    within = _given_back_within(changes, [e for e in events if e.name() in PRODUCTS])
    alive = peak = largest = 0
    for place, event in enumerate(changes):
        if place not in within:
            alive += event.nbytes()
            peak = max(peak, alive)
            largest = max(largest, event.nbytes())
    return Memory(peak - alive, largest)


def _given_back_within(changes: list[Any], products: list[Any]) -> set[int]:
    """Places of allocations that a product made and freed, and of what freed them."""
    found: set[int] = set()
    starts = [event.start_ns() for event in changes]
    for product in products:
        first = bisect_right(starts, product.start_ns())
        last = bisect_right(starts, product.start_ns() + product.duration_ns())
        made: dict[int, list[int]] = {}  # places of allocations by size
        for place in range(first, last):
            size = changes[place].nbytes()
            if size > 0:
                made.setdefault(size, []).append(place)
            elif made.get(-size):
                found |= {place, made[-size].pop()}
    return found
