"""Peak resident memory of one side of the training step, in a process of its own.

It loads the model and takes two steps; the peak is read after its imports, and with everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring.process import in_own_process, peak_mib
from benchmarks.training.sides import SIDES, make_setting, random_task, take_step
from pact.loading import load_model

STEPS = 2


class Memory(NamedTuple):
    """What one process held."""

    imports_mib: float
    """Peak before the model is loaded: the interpreter and its libraries."""
    peak_mib: float


def measure_memory(model: Path, side: str, sequences: int, length: int) -> Memory:
    """The memory of one side, measured in a new process."""
    return in_own_process(_measure, model, side, sequences, length)


def memory_of(model: Path, sides: Iterable[str], sequences: int, length: int) -> dict[str, Memory]:
    """By side, one process after the other."""
    return {side: measure_memory(model, side, sequences, length) for side in sides}


def _measure(model: Path, side: str, sequences: int, length: int) -> Memory:
    imports_mib = peak_mib()
    setting = make_setting(load_model(model))
    task = random_task(setting.student, sequences, length)
    loss = SIDES[side](setting, task)
    for _ in range(STEPS):
        take_step(setting, loss)
    return Memory(imports_mib, peak_mib())
