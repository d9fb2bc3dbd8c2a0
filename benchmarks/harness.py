"""Measure a case: every implementation is compared with the oracle, then all are timed in turn.

An implementation that is not installed, cannot run the case, would need too much memory, fails or
is wrong becomes a line with its reason.

pytest-benchmark, `torch.utils.benchmark` and Triton's `perf_report` time one call after the other,
of one implementation in one setting, and know no oracle, no memory and no reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from benchmarks.cases.case import Case, make_inputs
from benchmarks.cases.plan import Plan
from benchmarks.cases.products import flops
from benchmarks.measuring.clock import Quantiles, clock_of, quantiles, take_turns
from benchmarks.measuring.entries import Entry, entries, willing
from benchmarks.measuring.equality import Checker
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.measuring.machine import Circumstances
from benchmarks.measuring.memory import Memory, cpu_memory, gpu_memory
from benchmarks.measuring.trial import MOST_OF_A_REASON, Ready, Refused, Trial, written
from benchmarks.peers.peer import Peer
from benchmarks.reporting.results import Result


class Rounds(NamedTuple):
    """How often the calls of a case take turns."""

    least: int
    most: int
    enough_ms: float
    """Beyond `least`, rounds are taken only while their time stays within this."""

    def of(self, round_ms: float) -> int:
        """How many rounds of this length are taken."""
        return max(self.least, min(self.most, int(self.enough_ms / max(round_ms, 1e-3))))


ROUNDS = {"cpu": Rounds(3, 11, 8e3), "cuda": Rounds(5, 20, 3e3)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements of a run share."""

    device: torch.device
    peers_for: Callable[[Case], Sequence[Peer]]
    circumstances: Circumstances
    memory_limit_bytes: int
    """The most that an implementation may need."""
    rounds: int | None = None
    """Rounds of the timing; None leaves it to ROUNDS."""
    command: str = ""
    """That started the run."""


def measure(plan: Plan, bench: Bench) -> list[Result]:
    """A line for each implementation of the plan's case."""
    candidates = entries(plan, bench.peers_for(plan.case))
    taking_part, reasons = willing(candidates, plan.case, bench.device, bench.memory_limit_bytes)
    found: dict[str, Result] = {}
    if any(not each.is_floor for each in taking_part):
        try:
            found = _measure(taking_part, plan, bench, reasons)
        except torch.OutOfMemoryError as error:  # of the inputs, the oracle, or all together
            text = f"does not fit: {error}"[:MOST_OF_A_REASON]
            reasons |= {each.name: text for each in taking_part}
    for each in candidates:
        if each.name not in found:
            reason = reasons.get(each.name, "no implementation to compare with")
            found[each.name] = _line(plan, bench, each.peer, reason)
    return [found[each.name] for each in candidates]


def _measure(
    taking_part: Sequence[Entry], plan: Plan, bench: Bench, reasons: dict[str, str]
) -> dict[str, Result]:
    """Lines of those that run and are right, by name; `reasons` is told of the others."""
    inputs = make_inputs(plan.case, bench.device)
    checker = Checker(plan.case, inputs)
    clock = clock_of(bench.device)
    trial = Trial(case=plan.case, inputs=inputs, checker=checker, clock=clock)
    ready: list[Ready] = []
    for each in taking_part:
        try:
            ready.append(trial.best(each))
        except Refused as refused:
            reasons[each.name] = str(refused)
            logger.info("  %s: %s", each.name, refused)
    if not ready:
        return {}
    rounds = bench.rounds or ROUNDS[bench.device.type].of(sum(each.quick_ms for each in ready))
    calls = {each.entry.name: each.call for each in ready}
    times_ms = take_turns([calls] * rounds, clock, warm_up=0)
    times = {name: quantiles(values) for name, values in times_ms.items()}
    return {
        each.entry.name: replace(_measured(each, times, plan, bench), rounds=rounds)
        for each in ready
    }


def _memory(ready: Ready, plan: Plan, bench: Bench) -> Memory:
    if ready.entry.is_floor:
        return Memory(None)
    if bench.device.type == "cuda":
        return gpu_memory(ready.call, bench.device)
    return cpu_memory(plan.case, ready.entry.name, written(ready.setting))


def _measured(ready: Ready, times: Mapping[str, Quantiles], plan: Plan, bench: Bench) -> Result:
    memory = _memory(ready, plan, bench)
    own, verdict = times[ready.entry.name], ready.verdict
    remarks = ready.entry.other_objective, ready.refused, memory.remark
    ratios = {name: own.p50_ms / other.p50_ms for name, other in times.items()}
    return replace(
        _line(plan, bench, ready.entry.peer),
        setting=written(ready.setting),
        settings_tried=ready.tried,
        remark="; ".join(filter(None, remarks)),
        **own._asdict(),
        tflop_per_s=flops(plan.case) / own.p50_ms / 1e9,
        of_gemms=1 / ratios[GEMMS] if GEMMS in ratios else None,
        of_cross_entropy=ratios.get(CROSS_ENTROPY_ALONE),
        of_baseline=ratios.get(plan.baseline),
        extra_mib=memory.extra_mib,
        output_mib=ready.output_mib,
        error=verdict and verdict.error,
        error_share=verdict and verdict.fraction,
        checked_rows=ready.checked_rows,
    )


def _line(plan: Plan, bench: Bench, peer: Peer, reason: str = "") -> Result:
    """What is known of a line without a measurement."""
    return Result(
        case=plan.case,
        device=bench.device.type,
        implementation=peer.name,
        version=peer.version() or "",
        reason=reason,
        baseline=plan.baseline,
        command=bench.command,
        **bench.circumstances._asdict(),
    )
