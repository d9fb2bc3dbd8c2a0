"""The package's ops against their peers: measure, and report.

python -m benchmarks list                 the cases, and who takes part
python -m benchmarks run [--device cuda]  measure into results/ops.csv, case by case
python -m benchmarks plot                 draw what the results file holds
python -m benchmarks report               the same, with figures, verdicts and tables
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    from benchmarks.cases.case import Case
    from benchmarks.cases.plan import Plan
    from benchmarks.peers.registry import RegisteredPeer

Number = TypeVar("Number", int, float)
SUBSETS = {"cpu": "cpu", "cuda": "gpu"}
"""A device's own."""


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    args.run(args, _told(given))


def _told(arguments: Sequence[str]) -> str:
    """The command as results keep it, without the folders of this machine."""
    kept = list(arguments)
    if "--results" in kept:
        at = kept.index("--results")
        del kept[at : at + 2]
    return f"python -m benchmarks {shlex.join(kept)}"


def _list(args: argparse.Namespace, _: str) -> None:
    from benchmarks.cases.estimate import case_s
    from benchmarks.cases.plan import title
    from benchmarks.measuring.entries import entries, refusal
    from benchmarks.peers.registry import PEERS

    peers_for = _chosen_peers(args)
    device, planned = _device(args), _planned(args)
    limit_bytes, total_s = _memory_limit_bytes(args, device), 0.0
    absent: dict[str, str] = {}
    for plan in planned:
        willing = []
        for each in entries(plan, peers_for(plan.case)):
            reason = refusal(each, plan.case, device, limit_bytes)
            if reason is None:
                willing.append(each)
            else:
                absent.setdefault(each.name, reason)
        took_s = case_s(plan.case, willing, device)
        total_s += took_s
        names = ", ".join(each.name for each in willing if not each.is_floor)
        print(f"{took_s:6.1f} s  {plan.case.op}, {title(plan.case)} ({plan.varied}): {names}")
    print(f"{len(planned)} cases, about {total_s / 60:.1f} minutes on {device.type}")
    for peer in PEERS:
        reason = (
            f"; first reason to be left out: {absent[peer.name]}" if peer.name in absent else ""
        )
        print(f"{peer.name} {peer.version() or 'is not installed'}{reason}")


def _run(args: argparse.Namespace, command: str) -> None:
    from benchmarks.cases.estimate import case_s
    from benchmarks.harness import Bench
    from benchmarks.measuring.entries import entries, refusal
    from benchmarks.measuring.machine import circumstances
    from benchmarks.measuring.memory import preload_compiler
    from benchmarks.measuring.run import run

    peers_for = _chosen_peers(args)
    device = _device(args)
    limit_bytes = _memory_limit_bytes(args, device)
    bench = Bench(
        device=device,
        peers_for=peers_for,
        circumstances=circumstances(device),
        memory_limit_bytes=limit_bytes,
        rounds=args.rounds,
        command=command,
    )

    def expected_s(plan: Plan) -> float:
        everyone = entries(plan, peers_for(plan.case))
        willing = [each for each in everyone if not refusal(each, plan.case, device, limit_bytes)]
        return case_s(plan.case, willing, device) if willing else 0.0

    preload_compiler()
    path = args.results or _default_results()
    left_out = run(_planned(args), bench, path, minutes=args.minutes, estimate_s=expected_s)
    print(f"{path}: {len(left_out)} cases left out" if left_out else path)


def _chosen_peers(
    args: argparse.Namespace,
) -> Callable[[Case], tuple[RegisteredPeer, ...]]:
    """The peers of a case, or those of them that `--peers` names."""
    from benchmarks.peers.registry import PEERS, peers_for

    if args.peers is None:
        return peers_for
    unknown = set(args.peers) - {peer.name for peer in PEERS}
    if unknown:
        known = ", ".join(peer.name for peer in PEERS)
        raise SystemExit(f"--peers: no {', '.join(sorted(unknown))}; there are {known}")
    return lambda case: tuple(peer for peer in peers_for(case) if peer.name in args.peers)


def _plot(args: argparse.Namespace, _: str) -> None:
    from benchmarks.reporting.pictures import plot_all
    from benchmarks.reporting.report import places
    from benchmarks.reporting.results import load_results

    path = args.results or _default_results()
    results = load_results(path)
    for place in places(results):
        here = [each for each in results if (each.device, each.machine) == place]
        for picture in plot_all(place.device, place.machine, here, args.output or path.parent):
            print(picture)


def _report(args: argparse.Namespace, _: str) -> None:
    from benchmarks.reporting.report import render
    from benchmarks.reporting.results import load_results

    path = args.results or _default_results()
    for written in render(load_results(path), args.output or path.parent):
        print(written)


def _default_results() -> Path:
    from benchmarks.reporting.results import OPS_CSV

    return OPS_CSV


def _device(args: argparse.Namespace) -> torch.device:
    import torch

    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _planned(args: argparse.Namespace) -> list[Plan]:
    from benchmarks.cases.catalogue import plans
    from benchmarks.cases.plan import title

    subset = args.subset or SUBSETS[_device(args).type]
    return [
        plan
        for plan in plans(subset)
        if args.op in (None, plan.case.op) and args.match in title(plan.case)
    ]


def _memory_limit_bytes(args: argparse.Namespace, device: torch.device) -> int:
    import torch

    from benchmarks.measuring.entries import GIB, MEMORY_FRACTION
    from benchmarks.measuring.machine import total_memory_bytes

    if args.memory_gib is not None:
        return int(args.memory_gib * GIB)
    if device.type == "cuda" and not torch.cuda.is_available():
        return 0  # nothing runs
    return int(MEMORY_FRACTION * total_memory_bytes(device))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)

    def add(name: str, run: Callable[[argparse.Namespace, str], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        return command

    measuring = add("list", _list), add("run", _run)
    for command in measuring:
        command.add_argument("--device", choices=SUBSETS, help="default: a GPU where there is one")
        command.add_argument(
            "--subset",
            choices=("cpu", "cpu-large", "gpu", "quick"),
            help="default: the device's own",
        )
        command.add_argument("--op", help="one op alone")
        command.add_argument(
            "--peers", nargs="+", metavar="NAME", help="these implementations alone"
        )
        command.add_argument("--match", default="", help="cases whose title contains this")
        command.add_argument(
            "--memory-gib", type=_positive(float), help="most for one peer; default: 60 %% of all"
        )
    run = measuring[1]
    run.add_argument(
        "--rounds", type=_positive(int), help="default: 3 to 11 on a CPU, 5 to 20 on a GPU"
    )
    run.add_argument("--minutes", type=_positive(float), help="leave out what would take longer")
    rendering = add("plot", _plot), add("report", _report)
    for command in (run, *rendering):
        command.add_argument(
            "--results", type=Path, help="CSV file; default: benchmarks/results/ops.csv"
        )
    for command in rendering:
        command.add_argument("--output", type=Path, help="folder; default: that of the results")
    return parser


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    return parse


if __name__ == "__main__":
    main()
