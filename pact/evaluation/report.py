"""An evaluation on disk.

evaluation.json    every number, and the settings
evaluation.txt     the numbers as a table
generations.jsonl  every answer with its prompt and verdict
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pact.common.settings import user_path
from pact.evaluation.drift import Drift
from pact.evaluation.heldout import HeldOutLoss
from pact.evaluation.intervals import Rate
from pact.evaluation.result import Evaluation, Generation, Refusals
from pact.evaluation.table import evaluation_table

NUMBERS_FILE = "evaluation.json"
TABLE_FILE = "evaluation.txt"
GENERATIONS_FILE = "generations.jsonl"


def save_evaluation(evaluation: Evaluation, folder: str | Path) -> None:
    """Write the three files into an existing folder."""
    folder = Path(folder)
    numbers = asdict(evaluation)
    generations = numbers.pop("generations")
    _write(folder / NUMBERS_FILE, json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    _write(folder / TABLE_FILE, evaluation_table(evaluation))
    lines = [json.dumps(generation, ensure_ascii=False) + "\n" for generation in generations]
    _write(folder / GENERATIONS_FILE, "".join(lines))


def load_evaluation(folder: str | Path) -> Evaluation:
    """Read what `save_evaluation` wrote.

    Raises:
        ValueError: a file is missing, or is not as it was written.
    """
    folder = user_path(folder)
    for name in (NUMBERS_FILE, GENERATIONS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} must hold {name}: give a folder that `pact evaluate` wrote")
    try:
        return _read(folder)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} must hold {NUMBERS_FILE} and {GENERATIONS_FILE} as `pact evaluate` wrote "
            f"them, and they cannot be read ({type(error).__name__}: {error}): evaluate again"
        ) from error


def _read(folder: Path) -> Evaluation:
    numbers = json.loads((folder / NUMBERS_FILE).read_text(encoding="utf-8"))
    # split("\n") alone: answers may hold other line separators, which JSON leaves as they are
    lines = (folder / GENERATIONS_FILE).read_text(encoding="utf-8").split("\n")[:-1]
    return Evaluation(
        settings=numbers["settings"],
        harmful=_refusals(numbers["harmful"]),
        benign=_refusals(numbers["benign"]),
        heldout=numbers["heldout"] and HeldOutLoss(**numbers["heldout"]),
        task=numbers["task"] and Rate(**numbers["task"]),
        drift=numbers["drift"] and Drift(**numbers["drift"]),
        generations=tuple(Generation(**json.loads(line)) for line in lines),
    )


def _refusals(numbers: dict[str, Any] | None) -> Refusals | None:
    if numbers is None:
        return None
    return Refusals(starts=Rate(**numbers["starts"]), contains=Rate(**numbers["contains"]))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
