"""What a cell came to, as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.experiment.cell import Cell


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What was measured of one model at one step."""

    counts: Mapping[str, tuple[int, int]]
    """(yes, n): harmful, prefill, outside and benign (refusals from the start), each also with
    `_anywhere`; one by the name of each task (exact matches)."""
    values: Mapping[str, float]
    """finetune_nats, benign_perplexity; of the drift on held-out refusals kl_vocabulary_nats,
    kl_selection_nats, confidence, reference_confidence, first_confidence and
    first_reference_confidence; harmful_odds_nats and finetune_odds_nats, how much likelier a
    refusal is than "Sure" as the first token of answers to these held-out requests. What a cell
    was not asked is left out."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished cell."""

    settings: Mapping[str, Any]
    """`Cell.settings()`."""
    measures: Measures
    """At the end of the training."""
    curve: Mapping[int, Measures] = field(default_factory=dict)
    """On the way, by step; 0 is the aligned model."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions, processor, date."""


def path_of(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.name}.json"


def save_record(record: Record, cell: Cell, folder: Path) -> None:
    """Write it whole or not at all."""
    path = path_of(cell, folder)
    unfinished = path.with_suffix(".tmp")
    text = json.dumps(asdict(record), indent=1) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def load_record(cell: Cell, folder: Path) -> Record | None:
    """The record of a cell, or None where there is none yet."""
    path = path_of(cell, folder)
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    curve = {int(step): _measures(**part) for step, part in values["curve"].items()}
    return Record(**values | {"measures": _measures(**values["measures"]), "curve": curve})


def _measures(counts: Mapping[str, Any], values: Mapping[str, float]) -> Measures:
    return Measures(counts={name: (yes, n) for name, (yes, n) in counts.items()}, values=values)
