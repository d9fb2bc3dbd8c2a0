"""Render the results as Markdown: figures with verdicts, tables by op, and what was not measured.

Every number comes from the results file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases.case import OPS, Case
from benchmarks.cases.catalogue import lines, plans
from benchmarks.cases.plan import title
from benchmarks.measuring.entries import NEEDS_A_GPU
from benchmarks.measuring.machine import NO_GPU
from benchmarks.reporting.pictures import plot_all
from benchmarks.reporting.results import Result
from benchmarks.reporting.scaling import Fit, tracks
from benchmarks.reporting.targets import targets

REPORT = "ops.md"
HEAD = """# What was measured

Written by `python -m benchmarks report` from `ops.csv`. All implementations of a case are called in
turn, each round beginning with another one, after each was compared with the dense formula in
float64 and the fastest of its settings was chosen; ratios are of medians of the same rounds. "Of
baseline" is the time by that of the line with a 1. "Of GEMMs" is the time of the matrix products
that the op cannot do without, by the vendor's library in chunks of rows or, if that is faster, in
tiles of a chunk, into memory that was there before, as a share of the line's own; TFLOP/s count
these products alone. Memory is the peak beyond the inputs, outputs included. "Error / bound" is the
largest error as a share of what is allowed: twice that of eager torch in the same dtype, a small
floor, and a rounding step where a result comes in fewer bits than eager's.
"""
BF16_NOTE = """In bf16 this processor multiplies by {}, through torch, for every implementation.
The package forms logits in bf16, a tile of the vocabulary at a time, takes the tile to fp32 for
softmax and loss, and writes the exponentials back in bf16 for the product with the head, whose
parts are summed in fp32. A target's own gradient stays in fp32, as does the sum of a trained
head's, from fp32 copies of tiles. A processor without such instructions has bf16 emulated by torch.
"""


class Place(NamedTuple):
    """Where results come from."""

    device: str
    machine: str


def render(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the report and its pictures into a folder."""
    written: list[Path] = []
    sections = [HEAD]
    for place in places(results):
        here = [result for result in results if (result.device, result.machine) == place]
        pictures = plot_all(place.device, place.machine, here, folder)
        sections += section(place, here, [path.name for path in pictures])
        written += pictures
    report = folder / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    report.write_text("\n".join(sections), encoding="utf-8")
    return [report, *written]


def places(results: Iterable[Result]) -> list[Place]:
    """Machines in the order of the file; a GPU is named where none has been measured on."""
    found = list(dict.fromkeys(Place(each.device, each.machine) for each in results))
    if not any(place.device == "cuda" for place in found):
        found.append(Place("cuda", NO_GPU))
    return found


def section(place: Place, results: Sequence[Result], pictures: Sequence[str]) -> list[str]:
    """All that is said of one machine."""
    measured = [result for result in results if result.measured]
    name = f"a GPU ({place.machine})" if place.device == "cuda" and not measured else place.machine
    parts = [f"## On {name}\n"]
    parts += [circumstances(measured)] if measured else [f"Nothing was measured: {NEEDS_A_GPU}.\n"]
    parts += [figures(place.device, results)]
    parts += [f"![]({picture})\n" for picture in pictures]
    for op in OPS:
        cases = list(dict.fromkeys(each.case for each in measured if each.case.op == op))
        if cases:
            parts += [f"### {op}\n", op_table(_in_plan_order(cases), measured)]
    parts += [
        bf16_note(place.device, measured),
        scaling_table(place.device, measured),
        remarks(measured),
        not_measured(results),
    ]
    return [part for part in parts if part]


def circumstances(results: Sequence[Result]) -> str:
    """What the numbers depend on beside the code."""

    def all_of(attribute: str) -> list[str]:
        return sorted({str(getattr(each, attribute)) for each in results} - {""})

    dates = all_of("date")
    told = [dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"]
    for name, attribute in (
        ("torch", "torch"),
        ("triton", "triton"),
        ("CUDA", "cuda"),
        ("threads:", "threads"),
        ("commit", "commit"),
    ):
        if values := all_of(attribute):
            told.append(f"{name} {', '.join(values)}")
    commands = ", ".join(f"`{command}`" for command in all_of("command"))
    return f"{'; '.join(told)} (UTC; a commit's + says that files had changed). {commands}\n"


def bf16_note(device: str, results: Sequence[Result]) -> str:
    """Which path a processor takes in bf16, where anything was measured in it."""
    ways = {each.bf16 for each in results if each.case.dtype == "bfloat16"}
    if device != "cpu" or not ways:
        return ""
    names = {"through fp32": "widening to fp32"}
    return BF16_NOTE.format(" or ".join(names.get(way, f"{way} instructions") for way in ways))


def figures(device: str, results: Iterable[Result]) -> str:
    """Every figure that was measured or has a target: met, missed, or why it was not measured."""
    cells = [
        (each.figure.name, each.figure.target, each.value, each.verdict)
        for each in targets(device, results)
        if each.measured or each.figure.target
    ]
    return table(("figure", "target", "value", "verdict"), cells)


def op_table(cases: Sequence[Case], results: Sequence[Result]) -> str:
    """A block of lines for each case, the fastest first."""
    header = (
        "case",
        "implementation",
        "p50 ms",
        "p20 - p80",
        "of baseline",
        "TFLOP/s",
        "of GEMMs",
        "extra MiB",
        "error / bound",
        "setting",
    )
    cells = []
    for case in cases:
        block = sorted((e for e in results if e.case == case), key=lambda each: each.p50_ms or 0.0)
        for place, each in enumerate(block):
            name = f"{each.implementation} {each.version}".strip()
            cells.append(
                (
                    "" if place else title(case),
                    name,
                    number(each.p50_ms),
                    f"{number(each.p20_ms)} - {number(each.p80_ms)}",
                    number(each.of_baseline),
                    number(each.tflop_per_s),
                    number(each.of_gemms),
                    number(each.extra_mib),
                    number(each.error_share),
                    "" if each.setting in ("", "{}") else f"`{each.setting}`",
                )
            )
    return table(header, cells)


def scaling_table(device: str, results: Sequence[Result]) -> str:
    """Fitted exponents of time and memory along each line."""

    def exponent(fit: Fit | None) -> str:
        return "" if fit is None else f"{fit.exponent:.2f}"

    cells = [
        (
            f"{line.size}, {track.sizes[0]} to {track.sizes[-1]}",
            track.implementation,
            exponent(track.time_fit()),
            exponent(track.memory_fit()),
            number(track.memory_growth()),
        )
        for line in lines(device)
        for track in tracks(line, results)
    ]
    if not cells:
        return ""
    header = (
        "along",
        "implementation",
        "exponent of time",
        "exponent of memory beyond outputs",
        "its growth from end to end",
    )
    return f"### Growth\n\n{table(header, cells)}"


def remarks(results: Iterable[Result]) -> str:
    """What else has to be known of an implementation, and at how many cases."""
    counts = Counter(
        (each.case.op, each.implementation, each.remark) for each in results if each.remark
    )
    if not counts:
        return ""
    cells = [(*key, str(count)) for key, count in counts.items()]
    return f"### Remarks\n\n{table(('op', 'implementation', 'remark', 'cases'), cells)}"


def not_measured(results: Iterable[Result]) -> str:
    """Reasons, with whom they concern and at how many cases."""
    concerned: dict[str, dict[str, int]] = {}
    for each in results:
        if not each.measured:
            names = concerned.setdefault(f"{each.case.op}: {each.reason}", {})
            names[each.implementation] = names.get(each.implementation, 0) + 1
    if not concerned:
        return ""
    cells = [
        (*reason.split(": ", 1), ", ".join(f"{name} ({count})" for name, count in names.items()))
        for reason, names in concerned.items()
    ]
    return f"### Not measured\n\n{table(('op', 'reason', 'implementation (cases)'), cells)}"


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *cells]
    rows = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join(rows) + "\n"


def number(value: float | None) -> str:
    """Three digits, or as many as are before the point; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _in_plan_order(cases: Sequence[Case]) -> list[Case]:
    planned = [plan.case for subset in ("cpu", "cpu-large", "gpu") for plan in plans(subset)]
    place = {case: index for index, case in enumerate(planned)}
    return sorted(cases, key=lambda case: place.get(case, len(place)))
