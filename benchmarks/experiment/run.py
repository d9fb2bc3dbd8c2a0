"""Compute the cells that have no record yet, several at a time, each in one thread or a few.

A record is written when its cell is done, so a run that is cut off goes on where it was.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.experiment.alignment import aligned_folder, aligned_model
from benchmarks.experiment.cell import Cell
from benchmarks.experiment.protocol import Protocol
from benchmarks.experiment.record import Measures, Record, load_record, save_record
from benchmarks.experiment.stages import Bench
from pact.demo.shipped import shipped_model
from pact.loading import load_model
from pact.reference import FrozenModel, Reference

PROTOCOL_FILE = "protocol.json"

logger = logging.getLogger(__name__)


def run_cells(
    cells: Sequence[Cell],
    protocol: Protocol,
    folder: Path,
    cache: Path,
    *,
    workers: int,
    with_outside: frozenset[str],
    with_attack: frozenset[str],
) -> None:
    """Compute what is missing of `cells`.

    Args:
        cells: in the order of their importance; a cell that occurs twice is computed once.
        protocol: what they share.
        folder: of the records.
        cache: of the models, kept between runs.
        workers: processes; the processor's cores are shared out among them.
        with_outside: names of the cells that the outside prompts are asked of too.
        with_attack: names of the cells that the prefill attack is tried on.

    Raises:
        ValueError: the folder holds records of another protocol.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in dict.fromkeys(cells) if load_record(cell, folder) is None]
    logger.info("%d cells, %d to compute", len(set(cells)), len(missing))
    _check_protocol(protocol, aligned_folder(protocol.alignment, cache), folder)
    if not missing:
        return
    aligned, shipped = models(protocol, cache)
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(aligned, shipped, protocol, threads),
    ) as pool:
        waiting = {
            pool.submit(
                _compute, cell, folder, cell.name in with_outside, cell.name in with_attack
            ): cell
            for cell in missing
        }
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), unit="cell"):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is under way ends; its record is kept
            raise


def models(protocol: Protocol, cache: Path) -> tuple[Path, Path]:
    """Folders of the aligned model and of the shipped one, made where they are not there yet."""
    cache.mkdir(parents=True, exist_ok=True)
    shipped = shipped_model(cache)
    return aligned_model(protocol.alignment, shipped, cache), shipped


_bench: Bench | None = None


def _start(aligned: Path, shipped: Path, protocol: Protocol, threads: int) -> None:
    """Set a worker up."""
    global _bench
    torch.set_num_threads(threads)
    os.environ["TQDM_DISABLE"] = "1"
    _bench = Bench(aligned, shipped, protocol)


def _compute(cell: Cell, folder: Path, outside: bool, attacked: bool) -> str:
    assert _bench is not None
    bench = _bench
    start_s = time.perf_counter()
    curve: dict[int, Measures] = {}

    def look(model: Any, reference: Reference, step: int) -> None:
        curve[step] = bench.measure(model, reference, outside=False, attacked=False)

    if cell.method == "aligned":
        model = load_model(bench.aligned)
        reference: Reference = FrozenModel(model)
    else:
        model, reference = bench.finetune(cell, look if cell.curve_every else None)
    measures = bench.measure(model, reference, outside=outside, attacked=attacked)
    seconds = time.perf_counter() - start_s
    record = Record(
        settings=cell.settings(),
        measures=measures,
        curve=curve,
        environment={**_environment(), "seconds": f"{seconds:.0f}"},
    )
    save_record(record, cell, folder)
    return cell.name


def _environment() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "date": date.today().isoformat(),
    }


def _check_protocol(protocol: Protocol, aligned: Path, folder: Path) -> None:
    """Records of one folder are comparable, or this raises."""
    now = {"aligned": aligned.name, **json.loads(json.dumps(asdict(protocol)))}
    path = folder / PROTOCOL_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = {n for n in before | now if before.get(n) != now.get(n)}
        if changed:
            raise ValueError(
                f"{folder} holds records of another protocol (other {', '.join(sorted(changed))}), "
                "which these cannot be compared with: remove them, or name another folder"
            )
    path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
