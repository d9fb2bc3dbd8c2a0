"""Run by `test_faults` in two processes: what one of them meets ends both, and is said alike."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from pact.objective import PactConfig
from pact.training import writing
from pact.training.checkpoint import newest_checkpoint
from pact.training.config import FitConfig
from pact.training.metrics import MetricsLog
from tests.tiny import tiny_llama
from tests.training.problem import parameters_of, problem
from tests.training.spoiled import spoil

SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 1,
    "learning_rate": 1e-2,
    "save_every": 2,
}
BAD = 13
"""In steps 2 and 6 of 20 examples by 4, and in the share of one process."""


def not_finite(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    given = problem(None)
    spoil(patch, given, [BAD])
    given.fit(tiny_llama(), FitConfig(**SETTINGS), output_dir=folder)
    return {}


def left_out(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    given, model = problem(None), tiny_llama()
    spoil(patch, given, [BAD])
    records = given.fit(model, FitConfig(**SETTINGS, skip_bad_steps=2), output_dir=folder)
    sums = [float(value.double().sum()) for value in parameters_of(model).values()]
    return {"skipped": [record["skipped_steps"] for record in records], "sums": sums}


def disk_full(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The second checkpoint does not fit."""
    own, calls = writing.save_checkpoint, [0]

    def save(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return own(*arguments)

    patch.setattr(writing, "save_checkpoint", save)
    problem(None).fit(tiny_llama(), FitConfig(**SETTINGS), output_dir=folder)
    return {}


def no_record(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The metrics of the third step do not fit."""
    own = MetricsLog.append

    def append(self: MetricsLog, record: Any) -> None:
        if self.folder is not None and record["step"] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(self, record)

    patch.setattr(MetricsLog, "append", append)
    problem(None).fit(tiny_llama(), FitConfig(**SETTINGS), output_dir=folder)
    return {}


def told(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """SIGTERM reaches the second process alone."""

    def after_step(done: int) -> None:
        if done == 2 and PartialState().process_index == 1:
            signal.raise_signal(signal.SIGTERM)

    config = FitConfig(**SETTINGS)
    problem(None).fit(tiny_llama(), config, output_dir=folder, after_step=after_step)
    return {}


def order(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run that is stopped by a signal and resumed, and one that is not: by length, with KL."""
    settings = SETTINGS | {"group_by_length": True}
    given = problem(PactConfig())
    whole, resumed = tiny_llama(), tiny_llama()
    given.fit(whole, FitConfig(**settings))

    def after_step(done: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    try:
        config = FitConfig(**settings)
        given.fit(tiny_llama(), config, output_dir=folder, after_step=after_step)
    except KeyboardInterrupt:
        pass
    given.fit(resumed, FitConfig(**settings, resume=True), output_dir=folder)
    ours, theirs = parameters_of(resumed), parameters_of(whole)
    return {"same": all(torch.equal(ours[name], theirs[name]) for name in theirs)}


WAIT = timedelta(seconds=120)
"""After which a process that waits in vain for the other fails."""

SCENES: tuple[Callable[..., dict[str, Any]], ...] = (
    not_finite,
    left_out,
    disk_full,
    no_record,
    told,
    order,
)


def main(folder: Path) -> None:
    processes = PartialState(cpu=True, timeout=WAIT)
    for scene in SCENES:
        place = folder / scene.__name__
        place.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            try:
                found: dict[str, Any] = scene(place, patch)
            except (ValueError, KeyboardInterrupt) as error:
                found = {"error": str(error), "code": getattr(error, "exit_code", 2)}
        newest = newest_checkpoint(place)
        found["newest"] = None if newest is None else newest.name
        name = f"{scene.__name__}-{processes.process_index}.json"
        (folder / name).write_text(json.dumps(found))
        processes.wait_for_everyone()
