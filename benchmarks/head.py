"""The head's targets on a GPU, with chunks of exponentials and with the older chunks of logits.

    python -m benchmarks.head --device cuda [--cases frozen trainable ...] [--json FILE]

Every side is compared with the oracle; then all take turns, the bare products and Liger in the
fastest of their settings. Each case is a line of JSON as it is done; a table of medians, ratios and
targets ends it. States come as (N, D), so that nothing waits for a count of rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import pact_kernels as pk
from benchmarks.cases import plans
from benchmarks.cases.case import Case, Inputs
from benchmarks.cases.plans import OURS, Plan, gpu_case, title
from benchmarks.harness import Bench, measure_all
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.measuring.machine import circumstances, memory_limit_bytes
from benchmarks.peers.calls import op_call
from benchmarks.peers.cross_entropies import Liger
from benchmarks.peers.every_op import Ours
from benchmarks.peers.peer import Call, Peer, Setting
from benchmarks.reporting.figures import Figure, align, ratio

EXPONENTIALS, LOGITS = "exponential chunks", "chunks of logits"
COLUMNS = (GEMMS, CROSS_ENTROPY_ALONE, OURS, EXPONENTIALS, LOGITS, Liger.name)
"""The sides of the table. OURS is what a user gets: one of the next two, as `configs` has it."""


class Goal(NamedTuple):
    """A case, and what is asked of its median time."""

    case: Case
    speed: float | None = None
    """The least part of the speed of its products alone."""
    added: float | None = None
    """The most that a loss with a KL may take, by the cross-entropy alone."""


def _cross_entropy(head: str = plans.LLAMA, sequences: int = 8, **options: Any) -> Case:
    return gpu_case("linear_cross_entropy", head, sequences, **options)


GOALS = {
    "frozen": Goal(_cross_entropy(), speed=0.97),
    "trainable": Goal(_cross_entropy(trainable_head=True), speed=0.97),
    "softcap": Goal(_cross_entropy(plans.CAPPED_HEAD, 4, softcap=plans.SOFTCAP), speed=0.88),
    "width-2304": Goal(_cross_entropy(plans.CAPPED_HEAD, 4), speed=0.97),
    "width-640": Goal(_cross_entropy(plans.GEMMA, 4), speed=0.92),
    "kl-50": Goal(gpu_case("pact_loss", cached=True, over="selection"), added=1.01),
    "kl-1000": Goal(gpu_case("pact_loss", cached=True, over="selection", tokens=1000), added=1.03),
    "logsumexp": Goal(gpu_case("linear_logsumexp"), speed=0.98),
    "rows-256": Goal(replace(_cross_entropy(sequences=1), length=256), speed=0.8),
    "rows-1024": Goal(replace(_cross_entropy(sequences=1), length=1024)),
    "rows-131072": Goal(_cross_entropy(sequences=64), speed=0.97),
}
"""By name, those that matter most first. 256 rows may take 1.25 times their products."""


class Side(Ours):
    """The package's op on answer rows, with its own choice of chunks or with one of the two."""

    def __init__(self, name: str, exponentials: bool | None) -> None:
        self.name, self.exponentials = name, exponentials

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        call = op_call(case, inputs, getattr(pk, case.op))
        return call if self.exponentials is None else taking(self.exponentials)(call)


@contextmanager
def taking(exponentials: bool) -> Iterator[None]:
    """As if chunks were of exponentials on every target and at every size, or of logits."""
    from pact_kernels.kernels._launch import configs  # imports triton

    table, least_flops = configs.TAKES_EXPONENTIALS, configs.LEAST_EXPONENTIAL_FLOPS
    configs.TAKES_EXPONENTIALS = dict.fromkeys(table, exponentials)
    configs.LEAST_EXPONENTIAL_FLOPS = 0.0
    try:
        yield
    finally:
        configs.TAKES_EXPONENTIALS, configs.LEAST_EXPONENTIAL_FLOPS = table, least_flops


def sides(case: Case) -> list[Peer]:
    """Who takes part beside the products."""
    chunks = [] if case.op == "linear_logsumexp" else [(EXPONENTIALS, True), (LOGITS, False)]
    own = [Side(OURS, None), *(Side(*each) for each in chunks)]
    return [*own, Liger()] if case.op in Liger.ops else list[Peer](own)


def figures(name: str, goal: Goal, ms: Mapping[str, float]) -> list[Figure]:
    """Figures of one case, from its medians; those of sides that did not run are left out."""
    if goal.added is not None:
        label = f"{name}: time / cross-entropy"
        return ratio(label, ms, OURS, CROSS_ENTROPY_ALONE, at_most=goal.added)
    return [
        *ratio(f"{name}: speed / products", ms, GEMMS, OURS, at_least=goal.speed),
        *ratio(f"{name}: speed / Liger", ms, Liger.name, OURS, at_least=1.0),
        *ratio(f"{name}: speed / chunks of logits", ms, LOGITS, EXPONENTIALS),
    ]


def run(
    goals: Mapping[str, Goal], bench: Bench, say: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measure case after case, and say what was found of each as it is done, ready for JSON."""
    planned = [Plan(case=goal.case, varied=plans.BASE) for goal in goals.values()]
    kept = ("p20_ms", "p80_ms", "setting", "extra_mib", "reason")
    records: list[dict[str, Any]] = []
    for (name, goal), results in zip(goals.items(), measure_all(planned, bench), strict=True):
        ms = {each.implementation: each.p50_ms for each in results if each.p50_ms is not None}
        sides = {each.implementation: {key: getattr(each, key) for key in kept} for each in results}
        told = [figure.record() for figure in figures(name, goal, ms)]
        shape = title(goal.case)
        records.append({"case": name, "shape": shape, "ms": ms, "sides": sides, "figures": told})
        say(records[-1])
    return records


def table(goals: Mapping[str, Goal], records: Sequence[Mapping[str, Any]]) -> str:
    """A line for each case: median milliseconds by side, and the figure with its target."""
    lines = [["median ms", *COLUMNS, "ratio", "target", ""]]
    for each in records:
        name, ms = each["case"], each["ms"]
        cells = [f"{ms[side]:.3f}" if side in ms else "" for side in COLUMNS]
        first = figures(name, goals[name], ms)[:1]
        told = [(f"{one.value:.3f}", one.target, one.verdict) for one in first] or [("", "", "")]
        lines.append([f"{name}: {each['shape']}", *cells, *told[0]])
    return align(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda",), default="cuda")
    parser.add_argument("--cases", nargs="+", choices=GOALS, default=list(GOALS), metavar="CASE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines there too")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("the head's kernels need an NVIDIA or AMD GPU, and torch sees none")
    device = torch.device(args.device)
    bench = Bench(
        device=device,
        peers_for=sides,
        circumstances=circumstances(device),
        memory_limit_bytes=memory_limit_bytes(device),
    )
    goals = {name: GOALS[name] for name in args.cases}
    with open(args.json or os.devnull, "w", encoding="utf-8") as file:

        def say(line: dict[str, Any]) -> None:
            for output in (sys.stdout, file):
                print(json.dumps(line), file=output, flush=True)

        say(dict(bench.circumstances))
        print(table(goals, run(goals, bench, say)))


if __name__ == "__main__":
    main()
