"""What is left of a model's refusals after fine-tuning, by method: compute it, and write it up.

python -m benchmarks.experiment run [--quick]       what has no record yet; may be cut off
python -m benchmarks.experiment render [--quick]    docs/evidence.md from the records
python -m benchmarks.experiment list [--quick]      the cells, and which are done

With --model the cells start from a chat model as it is, in place of the demo's, and the records are
in a folder of its name. With --methods, --sets, --ablations or --seeds a part of the cells is run
or listed.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.experiment.cell import path_of
from benchmarks.experiment.grid import Grid, full_grid, quick_grid, without_base
from benchmarks.experiment.protocol import PROTOCOL_FILE, SecondJudge
from benchmarks.experiment.subject import anchors_file, demo_subject, name_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiment"
QUICK_RESULTS = ROOT / "runs" / "experiment-quick"
CACHE = Path("~/.cache/pact-kernels")
PARTS = ("methods", "sets", "ablations", "seeds")
"""Flags that name a part of the cells."""


def main() -> None:
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.model is None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        grid, folder = _chosen(args)
        {"run": _run, "render": _render, "list": _list}[args.command](args, grid, folder)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", choices=("run", "render", "list"))
    quick = "one seed, fewer prompts and cells, to see that it works"
    add("--quick", action="store_true", help=quick)
    add("--model", help="folder or hub name of a chat model, taken as it is")
    base = (
        "of the model that it was made from; without, the plainly fine-tuned one stands in for it"
    )
    add("--base", help=base)
    add("--methods", nargs="+", metavar="LABEL", help="lines of the main table")
    add("--sets", nargs="+", metavar="SET", help='such as "10 %% harmful"')
    add("--ablations", nargs="+", metavar="GROUP", help="groups of ablations, by how they begin")
    add("--seeds", nargs="+", type=int, metavar="SEED")
    add("--judge", help="a second judge beside the keywords: classifier:PATH or guard:PATH")
    add("--refusal-label", help="the label of a classifier that means refusal")
    workers = "cells at a time; unset is the number of cores, on a GPU 1"
    add("--workers", type=int, help=workers)
    rate = "peak, of adapters; unset is what was chosen for the demo's model"
    add("--learning-rate", type=float, help=rate)
    add("--results", type=Path, help="folder of the records")
    add("--cache", type=Path, default=CACHE, help="folder of the models")
    return parser.parse_args()


def _chosen(args: argparse.Namespace) -> tuple[Grid, Path]:
    """The cells that the flags mean, and the folder of their records.

    Raises:
        ValueError: flags that do not go together.
    """
    given = {name.replace("_", "-"): x for name, x in vars(args).items() if x is not None}
    for flag, whose in (("base", "model"), ("refusal-label", "judge")):
        if flag in given and whose not in given:
            raise ValueError(
                f"--{flag} is of a --{whose}, got {given[flag]} without one: give both"
            )
    if given.get("workers", 1) < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}")
    if not 0 < given.get("learning-rate", 1) < math.inf:
        raise ValueError(f"--learning-rate must be positive and finite, got {args.learning_rate:g}")
    if args.command == "render" and given.keys() & {*PARTS}:
        parts = ", ".join(f"--{name}" for name in PARTS)
        raise ValueError(f"the document shows what has records: give no {parts}")
    if args.command == "render" and args.model and not args.quick:
        raise ValueError(f"the document shows every model, got --model {args.model}: leave it out")
    for flag in ("judge", "workers", "learning-rate"):
        if args.command != "run" and flag in given:
            raise ValueError(f"--{flag} is for run alone, got it with {args.command}")
    grid = quick_grid() if args.quick else full_grid()
    if args.model and not args.base:
        grid = without_base(grid)
    grid = grid.only(**{name: getattr(args, name) for name in PARTS})
    changes: dict[str, Any] = {}
    if args.learning_rate is not None:
        changes["learning_rate"] = args.learning_rate
    if args.judge is not None:
        changes["second_judge"] = SecondJudge(args.judge, args.refusal_label)
    folder = args.results or (QUICK_RESULTS if args.quick else RESULTS)
    if args.model and not args.results:
        folder = folder / name_of(args.model)
    return grid._replace(protocol=replace(grid.protocol, **changes)), folder


def _run(args: argparse.Namespace, grid: Grid, folder: Path) -> None:
    import torch

    from benchmarks.experiment.cost import measure_costs
    from benchmarks.experiment.run import run_cells

    cache = args.cache.expanduser()
    whole = quick_grid() if args.quick else full_grid()  # what is asked depends on no flag
    run_cells(
        grid.cells(),
        grid.protocol,
        folder,
        cache,
        workers=args.workers or (1 if torch.cuda.is_available() else os.cpu_count() or 1),
        in_full={cell.name for line in [*whole.main, *whole.ablations] for cell in line.cells},
        model=args.model,
        base=args.base,
    )
    if any(getattr(args, name) is not None for name in PARTS):
        _list(args, grid, folder)
        return
    if args.model is None:
        subject = demo_subject(grid.protocol, cache)
        subject = subject._replace(anchors=anchors_file(subject, cache))
        measure_costs(grid.priced(), subject, folder)
    _render(args, grid, folder)


def _render(args: argparse.Namespace, grid: Grid, folder: Path) -> None:
    """The document of all models that have records; or, beside them, that of another folder."""
    from benchmarks.experiment.document import render
    from benchmarks.reporting.pages import write_pages

    if args.quick or args.results:
        print(render(grid, [folder], folder / "docs"))
        return
    others = sorted(path.parent for path in RESULTS.glob(f"*/{PROTOCOL_FILE}"))
    print(render(full_grid(), [RESULTS, *others], ROOT / "docs"))
    for page in write_pages(ROOT):
        print(page)


def _list(args: argparse.Namespace, grid: Grid, folder: Path) -> None:
    done = Counter(path_of(cell, folder).is_file() for cell in grid.cells())
    for line in grid.lines():
        finished = sum(path_of(cell, folder).is_file() for cell in line.cells)
        print(f"{finished}/{len(line.cells)}  {line.group}: {line.label}")
    print(f"{done[True]} of {done.total()} cells done")


if __name__ == "__main__":
    main()
