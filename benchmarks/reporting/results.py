"""All measurements in one CSV file, a line for each case, implementation and machine."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from benchmarks.cases.case import Case
from benchmarks.measuring.machine import NO_GPU

RESULTS = Path(__file__).resolve().parents[1] / "results"
OPS_CSV = RESULTS / "ops.csv"

Key = tuple[Case, str, str, str]


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
    def key(self) -> Key:
        """What a new measurement replaces."""
        return self.case, self.implementation, self.device, self.machine

    @property
    def measured(self) -> bool:
        return self.p50_ms is not None

    @property
    def beyond_outputs_mib(self) -> float | None:
        """Workspace: peak memory beyond inputs and outputs."""
        if self.extra_mib is None or self.output_mib is None:
            return None
        return self.extra_mib - self.output_mib


CASE_COLUMNS = tuple(field.name for field in fields(Case))
OWN_COLUMNS = tuple(field.name for field in fields(Result) if field.name != "case")


def merged(known: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """New lines in the place of known ones with their key, the others behind.

    What a machine without a GPU could not measure gives way to any GPU's measurement.
    """
    lines: dict[Key, Result] = {}
    for result in (*known, *new):
        lines[result.key] = result
    on_gpus = {key[:3] for key in lines if key[3] != NO_GPU}
    return [result for key, result in lines.items() if key[3] != NO_GPU or key[:3] not in on_gpus]


def load_results(path: Path) -> list[Result]:
    """All lines of a file; none where there is no file.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        expected = (*CASE_COLUMNS, *OWN_COLUMNS)
        if tuple(reader.fieldnames or ()) != expected:
            raise ValueError(
                f"{path} must have the columns {', '.join(expected)}, got "
                f"{', '.join(reader.fieldnames or ())}: it is of another version; move it away"
            )
        return [_parsed(line) for line in reader]


def save_results(results: Sequence[Result], path: Path) -> None:
    """Write them whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*CASE_COLUMNS, *OWN_COLUMNS))
        for result in results:
            cells = [getattr(result.case, name) for name in CASE_COLUMNS]
            cells += [getattr(result, name) for name in OWN_COLUMNS]
            writer.writerow([_text(cell) for cell in cells])
    unfinished.rename(path)


def add_results(new: Iterable[Result], path: Path) -> None:
    """Put them into the file."""
    save_results(merged(load_results(path), new), path)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())  # a reason of several lines becomes one


def _parsed(line: Mapping[str, str]) -> Result:
    case = Case(**_values(Case, {name: line[name] for name in CASE_COLUMNS}))
    return Result(case=case, **_values(Result, {name: line[name] for name in OWN_COLUMNS}))


def _values(owner: type, texts: Mapping[str, str]) -> dict[str, Any]:
    hints = get_type_hints(owner)
    return {name: _value(text, hints[name]) for name, text in texts.items()}


def _value(text: str, kind: Any) -> Any:
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and not text:
        return None
    if bool in kinds:
        return text == "True"
    return next(each for each in kinds if each is not type(None))(text)
