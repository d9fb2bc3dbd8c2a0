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
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.outside import harmbench_prompts
from benchmarks.experiment.protocol import PROTOCOL_FILE, Protocol
from benchmarks.experiment.record import Measures, Record, load_record, save_record
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
from pact.reference import FrozenModel, Reference

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
    with_outside: frozenset[str],
    with_attack: frozenset[str],
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
        with_outside: names of the cells that the outside prompts are asked of too.
        with_attack: names of the cells that the prefill attack is tried on.
        model: folder or hub name of a chat model, taken as it is; None is the demo's.
        base: of the model that it was made from; None: the plainly fine-tuned one stands in for it.

    Raises:
        ValueError: the folder holds records of another protocol or model; a base is given without a
            model; a model cannot be loaded, or refuses too little for the cells.
    """
    _check_needs(cells, model, base)
    missing = [cell for cell in dict.fromkeys(cells) if load_record(cell, folder) is None]
    logger.info("%d cells, %d to compute", len(set(cells)), len(missing))
    if any(cell.name in with_outside for cell in missing):
        harmbench_prompts(protocol.prompts.outside)  # not installed is said now, not after a cell
    if model is None:
        _check_protocol(protocol, demo_identity(protocol, cache), folder)
        if not missing:
            return
        subject = demo_subject(protocol, cache)
    else:
        subject = named_subject(model, base, cache)
        check_refusals(subject, missing)
        _check_protocol(protocol, subject.identity, folder)
    if not missing:
        return
    plain = _plain_folder(subject, protocol, cache, missing)
    held = any(cell.anchor_share for cell in missing)
    anchors = anchors_file(subject, cache) if held else None
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(subject, protocol, plain, anchors, threads),
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


def _check_needs(cells: Sequence[Cell], model: str | None, base: str | None) -> None:
    """Refuse what can never be computed, before anything is loaded."""
    if base is not None and model is None:
        raise ValueError(f"BASE is of a MODEL, got {base} without one: give both, or neither")
    projected = [cell.name for cell in cells if cell.method == "safe_lora"]
    if projected and model is not None and base is None:
        raise ValueError(
            f"safe_lora needs the model that {model} was made from, got none for {projected[0]}: "
            "give BASE, or leave the method out"
        )


def _plain_folder(
    subject: Subject, protocol: Protocol, cache: Path, cells: Sequence[Cell]
) -> Path | None:
    """Adapters of the plainly fine-tuned model, trained once where `cells` find tokens with it."""
    if subject.base is not None and not any(cell.token_source == "plain" for cell in cells):
        return None
    name = subject.identity.get("model_hash") or subject.identity["aligned"]
    text = json.dumps([name, PLAIN.settings(), asdict(protocol)], sort_keys=True)
    folder = cache / f"experiment-plain-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        logger.info("plain fine-tuning, once: safety tokens are what it breaks")
        bench = Bench(subject.aligned, subject.base, protocol, own=subject.own)
        model, _ = bench.finetune(PLAIN)
        with whole_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
            bench.tokenizer.save_pretrained(unfinished)
    return folder


_bench: Bench | None = None


def _start(
    subject: Subject, protocol: Protocol, plain: Path | None, anchors: Path | None, threads: int
) -> None:
    """Set a worker up."""
    global _bench
    torch.set_num_threads(threads)
    os.environ["TQDM_DISABLE"] = "1"
    _bench = Bench(
        subject.aligned,
        subject.base,
        protocol,
        own=subject.own,
        identity=subject.identity,
        plain=plain,
        anchors=anchors,
    )


def _compute(cell: Cell, folder: Path, outside: bool, attacked: bool) -> str:
    assert _bench is not None
    bench = _bench
    start_s = time.perf_counter()
    curve: dict[int, Measures] = {}

    def look(model: Any, reference: Reference, step: int) -> None:
        curve[step] = bench.measure(model, reference, outside=False, attacked=False)

    if cell.method == "aligned":
        model = bench.load(bench.subject.aligned)
        reference: Reference = FrozenModel(model)
    else:
        model, reference = bench.finetune(cell, look if cell.curve_every else None)
    measures = bench.measure(model, reference, outside=outside, attacked=attacked)
    seconds = time.perf_counter() - start_s
    record = Record(
        settings=cell.settings(),
        measures=measures,
        curve=curve,
        environment={**bench.subject.identity, **_environment(), "seconds": f"{seconds:.0f}"},
    )
    save_record(record, cell, folder)
    return cell.name


def _environment() -> dict[str, str]:
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "torch": torch.__version__,
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "date": date.today().isoformat(),
    }


def _check_protocol(protocol: Protocol, identity: Mapping[str, str], folder: Path) -> None:
    """Records of one folder are comparable, or this raises."""
    settings = asdict(protocol)
    if protocol.second_judge is None:
        del settings["second_judge"]
    if "model" in identity:  # it is taken as it is
        del settings["alignment"]
    now = {**identity, **json.loads(json.dumps(settings))}
    folder.mkdir(parents=True, exist_ok=True)
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
