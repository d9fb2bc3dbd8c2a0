"""Compute the cells that have no record yet, several at a time, each in one thread or a few.

A record is written when its cell is done, so a run that is cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.experiment.cell import Cell, Measures, Record, path_of, read_json, write_json
from benchmarks.experiment.conversations import harmbench_prompts
from benchmarks.experiment.measuring import measure, second_judge
from benchmarks.experiment.protocol import PROTOCOL_FILE, Protocol
from benchmarks.experiment.stages import Bench
from benchmarks.experiment.subject import (
    Subject,
    anchors_file,
    check_refusals,
    demo_identity,
    demo_subject,
    named_subject,
)
from pact.common.outputs import whole_folder
from pact.reference import Reference

PLAIN = Cell(method="plain")
"""What stands in for a base that there is none of."""

logger = logging.getLogger(__name__)


def run_cells(
    cells: Sequence[Cell],
    protocol: Protocol,
    folder: Path,
    cache: Path,
    *,
    workers: int,
    in_full: Collection[str],
    model: str | None = None,
    base: str | None = None,
) -> None:
    """Compute what is missing of `cells`.

    Args:
        cells: in the order of their importance; a cell that occurs twice is computed once.
        protocol: what they share.
        folder: of the records.
        cache: of the models, kept between runs.
        workers: processes; the processor's cores are shared out among them.
        in_full: names of the cells that the prefill attack is tried on and the outside prompts are
            asked of, too.
        model: folder or hub name of a chat model, taken as it is; None is the demo's.
        base: of the model that it was made from; None: the plainly fine-tuned one stands in for it.

    Raises:
        ValueError: the folder holds records of another protocol or model; a model cannot be loaded,
            or refuses too little for the cells; or there is no such second judge.
    """
    missing = [cell for cell in dict.fromkeys(cells) if not path_of(cell, folder).is_file()]
    logger.info("%d cells, %d to compute", len(set(cells)), len(missing))
    second_judge(protocol)  # what is not there is said now, not after a cell
    if any(cell.name in in_full for cell in missing):
        harmbench_prompts(protocol.prompts.outside)
    named = named_subject(model, base, cache) if model is not None else None
    if named is not None:
        check_refusals(named, missing)
    identity = named.identity if named else demo_identity(protocol, cache)
    _check_protocol(protocol, identity, folder)
    if not missing:
        return
    subject = named or demo_subject(protocol, cache)
    if subject.base is None or any(cell.token_source == "plain" for cell in missing):
        subject = subject._replace(plain=_plain_folder(subject, protocol, cache))
    if any(cell.anchor_share for cell in missing):
        subject = subject._replace(anchors=anchors_file(subject, cache))
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(subject, protocol, max(1, (os.cpu_count() or 1) // workers)),
    ) as pool:
        whole = [cell.name in in_full for cell in missing]
        # after an error what is under way ends, and its record is kept
        done = pool.map(_compute, missing, repeat(folder), whole)
        list(tqdm(done, total=len(missing), unit="cell"))


def _plain_folder(subject: Subject, protocol: Protocol, cache: Path) -> Path:
    """Adapters of the plainly fine-tuned model, trained on first use."""
    name = subject.identity.get("model_hash") or subject.identity["aligned"]
    text = json.dumps([name, PLAIN.settings(), asdict(protocol)], sort_keys=True)
    folder = cache / f"experiment-plain-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        logger.info("plain fine-tuning, once: safety tokens are what it breaks")
        bench = Bench(subject, protocol)
        model, _ = bench.finetune(PLAIN)
        with whole_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
            bench.tokenizer.save_pretrained(unfinished)
    return folder


_bench: Bench | None = None


def _start(subject: Subject, protocol: Protocol, threads: int) -> None:
    """Set a worker up."""
    global _bench
    torch.set_num_threads(threads)
    os.environ["TQDM_DISABLE"] = "1"
    _bench = Bench(subject, protocol)


def _compute(cell: Cell, folder: Path, in_full: bool) -> None:
    """Train a cell, measure it, and write its record."""
    assert _bench is not None
    bench, start_s = _bench, time.perf_counter()
    curve: dict[int, Measures] = {}

    def look(model: Any, reference: Reference, step: int) -> None:
        curve[step] = measure(bench, model, reference)

    measures = measure(bench, *bench.finetune(cell, look), in_full=in_full)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    environment = {
        **bench.subject.identity,
        **gpu,
        "torch": torch.__version__,
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "date": date.today().isoformat(),
        "seconds": f"{time.perf_counter() - start_s:.0f}",
    }
    record = Record(
        settings=cell.settings(), measures=measures, curve=curve, environment=environment
    )
    write_json(path_of(cell, folder), record)


def _check_protocol(protocol: Protocol, identity: Mapping[str, str], folder: Path) -> None:
    """Records of one folder are comparable, or this raises."""
    settings = asdict(protocol)
    if protocol.second_judge is None:
        del settings["second_judge"]
    if "model" in identity:  # it is taken as it is
        del settings["alignment"]
    now = {**identity, **json.loads(json.dumps(settings))}
    path = folder / PROTOCOL_FILE
    before = read_json(path) or now
    if changed := {n for n in before | now if before.get(n) != now.get(n)}:
        raise ValueError(
            f"{folder} holds records of another protocol (other {', '.join(sorted(changed))}), "
            "which these cannot be compared with: remove them, or name another folder"
        )
    write_json(path, now)
