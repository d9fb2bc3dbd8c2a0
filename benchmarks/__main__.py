"""The package's ops against their peers: measure, and report.

python -m benchmarks list                 the cases, and who takes part
python -m benchmarks run [--device cuda]  measure into results/ops.csv, case by case
python -m benchmarks plot                 draw what the results file holds
python -m benchmarks report               the same, with figures, verdicts and tables
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks import OPS_CSV

if TYPE_CHECKING:
    import torch

    from benchmarks.cases.case import Case
    from benchmarks.cases.plan import Plan
    from benchmarks.measuring.entries import Entry
    from benchmarks.peers.peer import Peer

SUBSETS = {"cpu": "cpu", "cuda": "gpu"}
"""A device's own."""


def main(arguments: Sequence[str] | None = None) -> None:
    import tyro

    given = list(sys.argv[1:] if arguments is None else arguments)
    command = tyro.extras.subcommand_cli_from_dict(
        {"list": List, "run": Run, "plot": Plot, "report": Report},
        prog="python -m benchmarks",
        description=__doc__,
        args=given,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    command(_told(given))


def _told(arguments: Sequence[str]) -> str:
    """The command as results keep it, without the folders of this machine."""
    kept = list(arguments)
    if "--results" in kept:
        at = kept.index("--results")
        del kept[at : at + 2]
    return f"python -m benchmarks {shlex.join(kept)}"


@dataclass(frozen=True, kw_only=True)
class List:
    """Say what the cases are, who takes part in them and how long that takes."""

    device: Literal["cpu", "cuda"] | None = None
    """Where; unset, a GPU where there is one."""
    subset: Literal["cpu", "cpu-large", "gpu", "quick"] | None = None
    """The set of cases; unset, the device's own."""
    op: str | None = None
    """One op alone."""
    peers: tuple[str, ...] = ()
    """These implementations alone."""
    match: str = ""
    """Cases whose title contains this."""
    memory_gib: float | None = None
    """Most memory for one implementation; unset, 60 % of all."""

    def __post_init__(self) -> None:
        for name in ("memory_gib", "rounds", "minutes"):
            value = getattr(self, name, None)
            if value is not None and value <= 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be positive, got {value:g}")

    def __call__(self, command: str) -> None:
        from benchmarks.cases.estimate import case_s
        from benchmarks.cases.plan import title
        from benchmarks.peers.registry import PEERS

        planned, device, total_s = self.planned(), self.torch_device(), 0.0
        absent: dict[str, str] = {}
        for plan in planned:
            willing, reasons = self.willing(plan)
            absent = reasons | absent
            took_s = case_s(plan.case, willing, device)
            total_s += took_s
            names = ", ".join(each.name for each in willing if not each.is_floor)
            print(f"{took_s:6.1f} s  {plan.case.op}, {title(plan.case)} ({plan.varied}): {names}")
        print(f"{len(planned)} cases, about {total_s / 60:.1f} minutes on {device.type}")
        for peer in PEERS:
            reason = absent.get(peer.name)
            told = f"; first reason to be left out: {reason}" if reason else ""
            print(f"{peer.name} {peer.version() or 'is not installed'}{told}")

    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def planned(self) -> list[Plan]:
        """The cases that were asked for."""
        from benchmarks.cases.case import OPS
        from benchmarks.cases.catalogue import plans
        from benchmarks.cases.plan import title

        _refuse_unknown("--op", (self.op,) if self.op else (), OPS)
        return [
            plan
            for plan in plans(self.subset or SUBSETS[self.torch_device().type])
            if self.op in (None, plan.case.op) and self.match in title(plan.case)
        ]

    def peers_of(self, case: Case) -> tuple[Peer, ...]:
        """The peers of a case, or those of them that were asked for."""
        from benchmarks.peers.registry import PEERS, peers_for

        _refuse_unknown("--peers", self.peers, [peer.name for peer in PEERS])
        return tuple(peer for peer in peers_for(case) if not self.peers or peer.name in self.peers)

    def memory_limit_bytes(self) -> int:
        """The most that an implementation may need."""
        from benchmarks.measuring.entries import GIB, MEMORY_FRACTION
        from benchmarks.measuring.machine import total_memory_bytes

        if self.memory_gib is not None:
            return int(self.memory_gib * GIB)
        return int(MEMORY_FRACTION * total_memory_bytes(self.torch_device()))

    def willing(self, plan: Plan) -> tuple[list[Entry], dict[str, str]]:
        """Who takes part in a plan, and why others do not."""
        from benchmarks.measuring.entries import entries, willing

        found = entries(plan, self.peers_of(plan.case))
        return willing(found, plan.case, self.torch_device(), self.memory_limit_bytes())


@dataclass(frozen=True, kw_only=True)
class Run(List):
    """Measure into a CSV file, case by case."""

    rounds: int | None = None
    """Rounds of a case; unset, 3 to 11 on a CPU and 5 to 20 on a GPU."""
    minutes: float | None = None
    """Leave out what would take longer."""
    results: Path = OPS_CSV
    """The CSV file."""

    def __call__(self, command: str) -> None:
        from benchmarks.cases.estimate import case_s
        from benchmarks.harness import Bench
        from benchmarks.measuring.machine import circumstances
        from benchmarks.measuring.memory import preload_compiler
        from benchmarks.measuring.run import run

        device = self.torch_device()
        bench = Bench(
            device=device,
            peers_for=self.peers_of,
            circumstances=circumstances(device),
            memory_limit_bytes=self.memory_limit_bytes(),
            rounds=self.rounds,
            command=command,
        )

        def expected_s(plan: Plan) -> float:
            return case_s(plan.case, self.willing(plan)[0], device)

        preload_compiler()
        planned, path = self.planned(), self.results
        left_out = run(planned, bench, path, minutes=self.minutes, estimate_s=expected_s)
        print(f"{path}: {len(left_out)} cases left out" if left_out else path)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw what a results file holds."""

    results: Path = OPS_CSV
    """The CSV file."""
    output: Path | None = None
    """The folder for what is written; unset, that of the results."""

    def __call__(self, command: str) -> None:
        from benchmarks.reporting.pictures import plot_all
        from benchmarks.reporting.report import places
        from benchmarks.reporting.results import load_results

        results, folder = load_results(self.results), self.output or self.results.parent
        for place in places(results):
            here = [each for each in results if (each.device, each.machine) == place]
            for picture in plot_all(place.device, place.machine, here, folder):
                print(picture)


@dataclass(frozen=True, kw_only=True)
class Report(Plot):
    """Write pictures, figures with verdicts and tables; of the default results also the pages."""

    def __call__(self, command: str) -> None:
        from benchmarks.reporting.pages import write_pages
        from benchmarks.reporting.report import render
        from benchmarks.reporting.results import load_results

        written = render(load_results(self.results), self.output or self.results.parent)
        if self == Report():
            written += write_pages()
        for path in written:
            print(path)


def _refuse_unknown(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise SystemExit(f"{flag}: no {', '.join(unknown)}; there are {', '.join(known)}")


if __name__ == "__main__":
    main()
