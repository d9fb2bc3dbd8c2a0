"""What is left of a model's refusals after fine-tuning, by method: compute it, and write it up.

python -m benchmarks.experiment run [--quick]       what has no record yet; may be cut off
python -m benchmarks.experiment render [--quick]    docs/evidence.md from the records
python -m benchmarks.experiment list [--quick]      the cells, and which are done
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.experiment.grid import Grid, Line, full_grid, quick_grid

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiment"
QUICK_RESULTS = ROOT / "runs" / "experiment-quick"
CACHE = Path("~/.cache/pact-kernels")


def main() -> None:
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    grid = quick_grid() if args.quick else full_grid()
    folder = args.results or (QUICK_RESULTS if args.quick else RESULTS)
    try:
        {"run": _run, "render": _render, "list": _list}[args.command](args, grid, folder)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "render", "list"))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, fewer prompts and cells, to see that it works",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells at a time")
    parser.add_argument("--results", type=Path, help="folder of the records")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the models")
    return parser.parse_args()


def _run(args: argparse.Namespace, grid: Grid, folder: Path) -> None:
    from benchmarks.experiment.cost import measure_costs
    from benchmarks.experiment.run import models, run_cells

    cache = args.cache.expanduser()
    run_cells(
        grid.cells(),
        grid.protocol,
        folder,
        cache,
        workers=args.workers,
        with_outside=_names(grid.main),
        with_attack=_names([*grid.main, *grid.ablations]),
    )
    measure_costs(grid.priced(), *models(grid.protocol, cache), folder)
    _render(args, grid, folder)


def _names(lines: Iterable[Line]) -> frozenset[str]:
    return frozenset(cell.name for line in lines for cell in line.cells)


def _render(args: argparse.Namespace, grid: Grid, folder: Path) -> None:
    from benchmarks.experiment.costs import load_costs
    from benchmarks.experiment.document import render

    docs = folder / "docs" if args.quick else ROOT / "docs"
    print(render(grid, folder, load_costs(folder / "cost.json"), docs))


def _list(args: argparse.Namespace, grid: Grid, folder: Path) -> None:
    from benchmarks.experiment.record import path_of

    done = Counter(path_of(cell, folder).is_file() for cell in grid.cells())
    for line in grid.lines():
        finished = sum(path_of(cell, folder).is_file() for cell in line.cells)
        print(f"{finished}/{len(line.cells)}  {line.group}: {line.label}")
    print(f"{done[True]} of {done.total()} cells done")


if __name__ == "__main__":
    main()
