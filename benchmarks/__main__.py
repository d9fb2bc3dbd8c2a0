"""The package's ops against their peers: measure, and report.

python -m benchmarks list                 the cases, and who takes part
python -m benchmarks run [--device cuda]  measure into results/ops.csv, case by case
python -m benchmarks report               pictures, figures with verdicts and tables of that file
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
    from benchmarks.cases.plans import Plan
    from benchmarks.harness import Bench
    from benchmarks.peers.peer import Peer


def main(arguments: Sequence[str] | None = None) -> None:
    import tyro

    given = list(sys.argv[1:] if arguments is None else arguments)
    command = tyro.extras.subcommand_cli_from_dict(
        {"list": List, "run": Run, "report": Report},
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
    """Say what the cases are and who takes part in them."""

    device: Literal["cpu", "cuda"] | None = None
    """Where; unset, a GPU where there is one."""
    subset: Literal["cpu", "cpu-large", "gpu", "quick"] | None = None
    """The set of cases; unset, the device's own."""
    match: str = ""
    """Cases whose op or title contains this."""
    peers: tuple[str, ...] = ()
    """These implementations alone."""
    memory_gib: float | None = None
    """Most memory for one implementation; unset, 60 % of all."""

    def __post_init__(self) -> None:
        for name in ("memory_gib", "rounds", "minutes"):
            value = getattr(self, name, None)
            if value is not None and value <= 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be positive, got {value:g}")

    def __call__(self, command: str) -> None:
        from benchmarks.cases.plans import title
        from benchmarks.peers.registry import PEERS

        planned, bench = self.planned(), self.bench(command)
        absent: dict[str, str] = {}
        for plan in planned:
            answers = bench.entries(plan)
            absent = {each.name: why for each, why in answers.items() if why} | absent
            names = [each.name for each, why in answers.items() if not (why or each.is_floor)]
            print(f"{plan.case.op}, {title(plan.case)} ({plan.varied}): {', '.join(names)}")
        print(f"{len(planned)} cases on {bench.device.type}")
        for peer in PEERS:
            reason = absent.get(peer.name)
            told = f"; first reason to be left out: {reason}" if reason else ""
            print(f"{peer.name} {peer.version() or 'is not installed'}{told}")

    def bench(self, command: str) -> Bench:
        """What the measurements of the command share."""
        from benchmarks.harness import Bench
        from benchmarks.measuring.machine import GIB, circumstances, memory_limit_bytes

        device, most_gib = self.torch_device(), self.memory_gib
        return Bench(
            device=device,
            peers_for=self.peers_of,
            circumstances=circumstances(device) | {"command": command},
            memory_limit_bytes=int(most_gib * GIB) if most_gib else memory_limit_bytes(device),
            rounds=getattr(self, "rounds", None),
        )

    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def planned(self) -> list[Plan]:
        """The cases that were asked for."""
        from benchmarks.cases.plans import plans, title

        subset = self.subset or ("gpu" if self.torch_device().type == "cuda" else "cpu")
        names = [(plan, f"{plan.case.op}, {title(plan.case)}") for plan in plans(subset)]
        found = [plan for plan, name in names if self.match in name]
        if not found:
            raise SystemExit(f"--match: no case of {subset} has {self.match!r}; `list` shows all")
        return found

    def peers_of(self, case: Case) -> tuple[Peer, ...]:
        """The peers of a case, or those of them that were asked for."""
        from benchmarks.peers.registry import PEERS, peers_for

        names = [peer.name for peer in PEERS]
        if unknown := sorted(set(self.peers) - set(names)):
            raise SystemExit(f"--peers: no {', '.join(unknown)}; there are {', '.join(names)}")
        return tuple(peer for peer in peers_for(case) if not self.peers or peer.name in self.peers)


@dataclass(frozen=True, kw_only=True)
class Run(List):
    """Measure into a CSV file, case by case."""

    rounds: int | None = None
    """Rounds of a case; unset, 3 to 11 on a CPU and 5 to 20 on a GPU."""
    minutes: float | None = None
    """After which no case begins."""
    results: Path = OPS_CSV
    """The CSV file."""

    def __call__(self, command: str) -> None:
        from benchmarks.harness import measure_all
        from benchmarks.measuring.memory import preload_compiler
        from benchmarks.reporting.results import add_results

        planned, bench = self.planned(), self.bench(command)
        preload_compiler()
        for lines in measure_all(planned, bench, minutes=self.minutes):
            add_results(lines, self.results)
        print(self.results)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write pictures, figures with verdicts and tables; of the default results also the pages."""

    results: Path = OPS_CSV
    """The CSV file."""
    output: Path | None = None
    """The folder for what is written; unset, that of the results."""

    def __call__(self, command: str) -> None:
        from benchmarks.reporting.pages import write_pages
        from benchmarks.reporting.report import render
        from benchmarks.reporting.results import load_results

        written = render(load_results(self.results), self.output or self.results.parent)
        if self == Report():
            written += write_pages()
        for path in written:
            print(path)


if __name__ == "__main__":
    main()
