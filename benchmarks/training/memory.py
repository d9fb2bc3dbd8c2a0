"""Peak resident memory of one side of the training step, in a process of its own.

    python -m benchmarks.training.memory MODEL SIDE SEQUENCES LENGTH

Loads the model, takes two steps and prints the process's peak in MiB, once with its imports alone,
then with everything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring.resident import peak_mib
from benchmarks.training.sides import SIDES, make_setting, random_task, take_step
from pact.loading import load_model

STEPS = 2
ROOT = Path(__file__).resolve().parents[2]


class Memory(NamedTuple):
    """What one process held."""

    imports_mib: float
    """Peak before the model is loaded: the interpreter and its libraries."""
    peak_mib: float


def measure_memory(model: Path, side: str, sequences: int, length: int) -> Memory:
    """The memory of one side, measured in a new process."""
    arguments = [str(model), side, str(sequences), str(length)]
    command = [sys.executable, "-m", "benchmarks.training.memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory of {side!r} could not be measured:\n{done.stderr}")
    imports, peak = done.stdout.split()[-2:]
    return Memory(float(imports), float(peak))


def memory_of(model: Path, sides: Iterable[str], sequences: int, length: int) -> dict[str, Memory]:
    """By side, one process after the other."""
    return {side: measure_memory(model, side, sequences, length) for side in sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("sequences", type=int)
    parser.add_argument("length", type=int)
    args = parser.parse_args()
    imports_mib = peak_mib()
    setting = make_setting(load_model(args.model))
    task = random_task(setting.student, args.sequences, args.length)
    loss = SIDES[args.side](setting, task)
    for _ in range(STEPS):
        take_step(setting, loss)
    print(imports_mib, peak_mib())


if __name__ == "__main__":
    main()
