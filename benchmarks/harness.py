"""Measure case after case: every implementation is compared with the oracle, then all take turns.

An implementation that is not installed, cannot run the case, would need too much memory, fails or
is wrong becomes a line with its reason.

pytest-benchmark, `torch.utils.benchmark` and Triton's `perf_report` time one call after the other,
of one implementation in one setting, and know no oracle, no memory and no reasons.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.cases.case import Case, make_inputs
from benchmarks.cases.plans import OURS, Plan, title
from benchmarks.cases.products import flops
from benchmarks.measuring.clock import clock_of, quantiles, take_turns
from benchmarks.measuring.equality import Checker
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS, CrossEntropyAlone, Gemms
from benchmarks.measuring.machine import GIB, NEEDS_A_GPU
from benchmarks.measuring.memory import MOST_OF_A_REASON, Memory, cpu_memory, gpu_memory
from benchmarks.measuring.trial import Ready, Refused, Trial
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
    circumstances: Mapping[str, Any]
    """Columns of every line."""
    memory_limit_bytes: int
    """The most that an implementation may need."""
    rounds: int | None = None
    """Rounds of the timing; None leaves it to ROUNDS."""

    def entries(self, plan: Plan) -> dict[Peer, str | None]:
        """The peers of a plan, ours first, and the floors, each with why it takes no part."""
        found = [
            peer for peer in self.peers_for(plan.case) if not plan.only or peer.name in plan.only
        ]
        found.sort(key=lambda peer: peer.name != OURS)
        floors: list[Peer] = [Gemms()]
        if plan.case.op == "pact_loss":
            floors += [CrossEntropyAlone(peer) for peer in found if peer.name == OURS]
        return {peer: self._refusal(peer, plan.case) for peer in [*found, *floors]}

    def _refusal(self, peer: Peer, case: Case) -> str | None:
        """Before anything is tried."""
        if self.device.type == "cuda" and not torch.cuda.is_available():
            return NEEDS_A_GPU
        if reason := peer.unavailable(case, self.device):
            return reason
        needed, limit = peer.needed_bytes(case), self.memory_limit_bytes
        too_much = f"would need {needed / GIB:.1f} GiB, more than {limit / GIB:.1f}"
        return too_much if needed > limit else None


def measure_all(
    planned: Sequence[Plan],
    bench: Bench,
    *,
    minutes: float | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> Iterator[list[Result]]:
    """The lines of case after case, as each is done; after so many minutes none begins."""
    start_s = now_s()
    for number, plan in enumerate(planned):
        before_s = now_s()
        name = f"{plan.case.op}, {title(plan.case)}"
        if minutes is not None and before_s - start_s >= 60 * minutes:
            logger.warning("left out, no time: %s", name)
            continue
        logger.info("%d/%d %s", number + 1, len(planned), name)
        results = measure(plan, bench)
        _tell(results, now_s() - before_s)
        yield results
        gc.collect()
        if bench.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(plan: Plan, bench: Bench) -> list[Result]:
    """A line for each implementation of the plan's case."""
    candidates = bench.entries(plan)
    columns: dict[str, dict[str, Any]] = {
        each.name: {"reason": reason or "no implementation to compare with"}
        for each, reason in candidates.items()
    }
    taking_part = [each for each, reason in candidates.items() if reason is None]
    if any(not each.is_floor for each in taking_part):
        try:
            columns |= _measure(taking_part, plan, bench)
        except torch.OutOfMemoryError as error:  # of the inputs, the oracle, or all together
            text = f"does not fit: {error}"[:MOST_OF_A_REASON]
            columns |= {each.name: {"reason": text} for each in taking_part}
    return [
        Result(
            case=plan.case,
            device=bench.device.type,
            implementation=each.name,
            version=each.version() or "",
            baseline=plan.baseline,
            **bench.circumstances,
            **columns[each.name],
        )
        for each in candidates
    ]


def _measure(taking_part: Sequence[Peer], plan: Plan, bench: Bench) -> dict[str, dict[str, Any]]:
    """Columns by name: the reason of those that do not run or are wrong, and of the others all."""
    inputs = make_inputs(plan.case, bench.device)
    clock = clock_of(bench.device)
    trial = Trial(case=plan.case, inputs=inputs, checker=Checker(plan.case, inputs), clock=clock)
    columns: dict[str, dict[str, Any]] = {}
    ready: dict[str, Ready] = {}
    for each in taking_part:
        try:
            ready[each.name] = trial.best(each)
        except Refused as refused:
            columns[each.name] = {"reason": str(refused)}
            logger.info("  %s: %s", each.name, refused)
    if not ready:
        return columns
    round_ms = sum(each.quick_ms for each in ready.values())
    rounds = bench.rounds or ROUNDS[bench.device.type].of(round_ms)
    calls = {name: each.call for name, each in ready.items()}
    times_ms = take_turns([calls] * rounds, clock, warm_up=0)
    times = {name: quantiles(values) for name, values in times_ms.items()}
    measured = {name: _measured(each, times, plan, bench) for name, each in ready.items()}
    return columns | {name: {**own, "rounds": rounds} for name, own in measured.items()}


def _measured(
    ready: Ready, times: Mapping[str, Mapping[str, float]], plan: Plan, bench: Bench
) -> dict[str, Any]:
    peer, own = ready.peer, times[ready.peer.name]
    if peer.is_floor:
        memory = Memory(None)
    elif bench.device.type == "cuda":
        memory = gpu_memory(ready.call, bench.device)
    else:
        memory = cpu_memory(plan.case, peer, ready.setting)
    remarks = peer.other_objective(plan.case), ready.columns["remark"], memory.remark
    ratios = {name: own["p50_ms"] / other["p50_ms"] for name, other in times.items()}
    return ready.columns | {
        **own,
        "remark": "; ".join(filter(None, remarks)),
        "tflop_per_s": flops(plan.case) / own["p50_ms"] / 1e9,
        "of_gemms": 1 / ratios[GEMMS] if GEMMS in ratios else None,
        "of_cross_entropy": ratios.get(CROSS_ENTROPY_ALONE),
        "of_baseline": ratios.get(plan.baseline),
        "extra_mib": memory.extra_mib,
    }


def _tell(results: Sequence[Result], took_s: float) -> None:
    for each in results:
        if each.p50_ms is None:
            logger.info("  %-28s %s", each.implementation, each.reason)
            continue
        share = "" if each.of_gemms is None else f"{each.of_gemms:7.3f} of GEMMs"
        memory = "" if each.extra_mib is None else f"{each.extra_mib:9.1f} MiB"
        setting = each.setting if each.settings_tried > 1 else ""
        time_ms = f"{each.p50_ms:9.2f} ms"
        logger.info("  %-28s %s %s %s %s", each.implementation, time_ms, share, memory, setting)
    logger.info("  %.1f s", took_s)
