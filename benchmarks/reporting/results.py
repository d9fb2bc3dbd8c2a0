"""All measurements in one CSV file, a line for each case, implementation and machine.

pandas reads and writes it. The columns are those of a dataclass, each with its words and its type;
pandera or pydantic would state them a second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import pandas as pd

from benchmarks.cases.case import Case
from benchmarks.measuring.machine import NO_GPU


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one implementation made of one case, or why nothing was measured."""

    case: Case
    device: str
    """cpu or cuda."""
    machine: str
    """Name of processor or card."""
    implementation: str
    """Name of a peer or a baseline."""
    reason: str = ""
    """Why it was not measured; empty where it was."""
    remark: str = ""
    """What else a reader has to know: settings that were refused, memory that could not be read."""
    version: str = ""
    setting: str = ""
    """The one that was chosen, as JSON."""
    settings_tried: int = 0
    rounds: int = 0
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    tflop_per_s: float | None = None
    """The op's minimal flops, whatever was computed, by the median time."""
    of_gemms: float | None = None
    """Median time of the same products alone, by this one's, of the same rounds."""
    of_cross_entropy: float | None = None
    """This one's median time by that of our cross-entropy alone, of the same rounds."""
    baseline: str = ""
    of_baseline: float | None = None
    """This one's median time by the baseline's, of the same rounds."""
    extra_mib: float | None = None
    """Peak memory beyond the inputs, outputs included."""
    output_mib: float | None = None
    """Size of what the call returns: values and gradients."""
    error: float | None = None
    """The largest relative error against naive in float64."""
    error_share: float | None = None
    """The largest share of its bound that an error takes up."""
    checked_rows: int = 0
    """Rows of the case that was compared as a whole; 0 where nothing was compared."""
    threads: int = 0
    torch: str = ""
    triton: str = ""
    cuda: str = ""
    commit: str = ""
    date: str = ""
    bf16: str = ""
    """How a processor multiplies bf16."""
    command: str = ""

    @property
    def measured(self) -> bool:
        return self.p50_ms is not None

    @property
    def beyond_outputs_mib(self) -> float | None:
        """Workspace: peak memory beyond inputs and outputs."""
        if self.extra_mib is None or self.output_mib is None:
            return None
        return self.extra_mib - self.output_mib


CASE_COLUMNS = [field.name for field in fields(Case)]
COLUMNS = CASE_COLUMNS + [field.name for field in fields(Result) if field.name != "case"]
KINDS = {**get_type_hints(Case), **get_type_hints(Result)}
TYPES = {name: KINDS[name] if KINDS[name] in (str, int, bool) else float for name in COLUMNS}
"""By column. A number with a point may be lacking."""


def frame_of(results: Iterable[Result]) -> pd.DataFrame:
    """A row each: the file's columns, the case, and what follows from them."""
    rows = [
        {**vars(each.case), **vars(each), "beyond_outputs_mib": each.beyond_outputs_mib}
        for each in results
    ]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "case", "beyond_outputs_mib"])
    return frame.astype({**TYPES, "beyond_outputs_mib": float})


def merged(known: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """New lines in the place of those known of the same case, peer and machine, others behind.

    What a machine without a GPU could not measure gives way to any GPU's measurement.
    """
    lines = {
        (each.case, each.implementation, each.device, each.machine): each for each in (*known, *new)
    }
    on_gpus = {key[:3] for key in lines if key[3] != NO_GPU}
    return [result for key, result in lines.items() if key[3] != NO_GPU or key[:3] not in on_gpus]


def load_results(path: Path) -> list[Result]:
    """All lines of a file; none where there is no file.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.is_file():
        return []
    there = list(pd.read_csv(path, nrows=0).columns)
    if there != COLUMNS:
        raise ValueError(
            f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(there)}: it is of "
            "another version; move it away"
        )
    empty = {name: [""] for name, kind in TYPES.items() if kind is float}
    frame = pd.read_csv(path, dtype=TYPES, na_values=empty, keep_default_na=False)
    lines = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [
        Result(case=Case(**{name: line.pop(name) for name in CASE_COLUMNS}), **line)
        for line in lines
    ]


def save_results(results: Iterable[Result], path: Path) -> None:
    """Write them whole or not at all."""
    frame = frame_of(results)[COLUMNS]
    frame = frame.map(lambda cell: " ".join(cell.split()) if isinstance(cell, str) else cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    frame.to_csv(unfinished, index=False, float_format="%.6g", lineterminator="\n")
    unfinished.rename(path)


def add_results(new: Iterable[Result], path: Path) -> None:
    """Put them into the file."""
    save_results(merged(load_results(path), new), path)
