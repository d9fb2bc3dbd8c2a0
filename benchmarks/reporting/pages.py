"""The measured sections of README.md and the pages of docs/, from the recorded files.

A section stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` and is the macro of that
name in pages.md.j2. Every figure is read from benchmarks/results: ops.csv, the records of the
experiment, and what an H200 said. `python -m benchmarks report` and
`python -m benchmarks.experiment render` write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from benchmarks.cases.case import Case
from benchmarks.cases.plans import EAGER, GEMMA, HEADS, OURS, RELEASED, SMALL, make_case
from benchmarks.reporting.results import Result, load_results
from benchmarks.reporting.targets import Sheet, targets

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/how-it-fails.md")
SECTION = re.compile(r"<!-- ([a-z-]+): begin -->\n.*?<!-- \1: end -->\n", re.DOTALL)
_entropy = partial(make_case, "linear_cross_entropy", sequences=1)
CROSS_ENTROPIES = {
    "512, 576 x 49152": _entropy(SMALL, length=512),
    "256, trainable head": _entropy(SMALL, length=256, trainable_head=True),
    "128 of 256, the rest prompt": _entropy(SMALL, length=256, prompt_share=0.5),
    "128, peaked logits": _entropy(SMALL, length=128, peaked=True),
    "128, bf16": _entropy(SMALL, length=128, dtype="bfloat16"),
    "64, 640 x 262144": _entropy(GEMMA, length=64),
}
AGAINST_RELEASED = {
    f"{sequences} x {length}, {name} prompt, {HEADS[head].hidden} x {HEADS[head].vocabulary}": (
        make_case("pact_loss", head, sequences, length, prompt_share=share, over="selection")
    )
    for head, sequences, length in ((SMALL, 4, 512), (GEMMA, 1, 128), (GEMMA, 4, 512))
    for name, share in (("half", 0.5), ("90 %", 0.9))
}
STEPS = (
    "plain, transformers",
    "liger",
    "plain, fused",
    "PACT cached, selection",
    "PACT cached, vocabulary, no gate",
    "PACT live, selection",
    "released algorithm",
)
EVIDENCE = ("aligned", "plain", "plain, 10 % refusals")
"""Labels of the experiment's main table; beside them the released one and three of ours."""


def write_pages(root: Path = ROOT) -> list[Path]:
    """Every page that there is, with its sections as the recorded files have them now."""
    paths = [path for name in PAGES if (path := root / name).is_file()]
    for path in paths:
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    return paths


def rendered(page: str) -> str:
    """A page's text with each marked section made anew.

    Raises:
        ValueError: a marker names no section.
    """

    def made(match: re.Match[str]) -> str:
        name = match[1]
        if name not in SECTIONS:
            raise ValueError(f"a section must be of {', '.join(SECTIONS)}, got {name}")
        return f"<!-- {name}: begin -->\n{SECTIONS[name]()}\n<!-- {name}: end -->\n"

    return SECTION.sub(made, page)


def _methods(asked: Mapping[str, tuple[str, str, str]]) -> list[Sequence[str]]:
    """Name and measures of each of the experiment's main methods.

    Args:
        asked: by the head of a column, the folder of the records, "." for the demo's model, the
            fine-tuning set and the measure. What another model has no record of is a dash; seeds
            are said where they are others than those of the row or, of another model, the head.
    """
    from benchmarks.experiment import methods
    from benchmarks.experiment.grid import SEEDS, full_grid

    lines = {
        (folder, line.group, line.label): line
        for folder in {".", *(folder for folder, _, _ in asked.values())}
        for line in _main_lines(folder).itertuples()
    }
    released = next(x for x, cell in methods.METHODS.items() if cell == methods.RELEASED)
    rows: list[Sequence[str]] = []
    second = _second() or {}
    ours = methods.WITH_REFUSALS_LABEL, methods.ANCHORED_LABEL, full_grid().recommended
    for label in dict.fromkeys([*EVIDENCE, released, *ours]):
        measures, lacks = [], lines[".", "benign only", label].lacking
        for folder, group, key in asked.values():
            line = lines.get((folder, group, label))
            if line is None and folder == ".":
                raise ValueError(f"{label} must have records of {group}, got none: name another")
            if line is None:
                measures.append("-")
                continue
            said = second.get("seeds") if folder == second.get("folder") else lacks
            seeds = line.lacking or f" ({len(SEEDS)} seeds)"
            is_said = line.lacking == said or label == "aligned"  # which has none
            measures.append(str(getattr(line, key)) + ("" if is_said else seeds))
        rows.append((lines[".", "benign only", label].name, *measures))
    return rows


def _main_lines(folder: str) -> pd.DataFrame:
    """The lines of a model's main tables, with what they are of 3 seeds in `lacking`."""
    from benchmarks.experiment.frame import lines_of, read_records
    from benchmarks.experiment.grid import full_grid

    grid = full_grid()
    found = lines_of(read_records(grid, RESULTS / "experiment" / folder), grid.recommended, {})
    return found[found.section == "main"]


def _second() -> dict[str, str] | None:
    """The first model beside the demo's that has records of fine-tunings on benign data."""
    from benchmarks.experiment.protocol import PROTOCOL_FILE

    for path in sorted((RESULTS / "experiment").glob(f"*/{PROTOCOL_FILE}")):
        lines = _main_lines(path.parent.name)
        tuned = lines[(lines.group == "benign only") & (lines.label != "aligned")]
        if len(tuned):
            return {"folder": path.parent.name, "seeds": max(tuned.lacking)}
    return None


def _entries(sheet: Sheet, case: Case) -> dict[str, Result | None]:
    """Who a table is about: ours, the fastest peer, eager torch and the released algorithm."""
    found = sheet.of[case]
    if OURS not in found:
        raise ValueError(f"ops.csv must have a measured line of {case}, got none")
    return {
        "ours": found[OURS],
        "peer": sheet.fastest(case),
        "eager": found.get(EAGER),
        "released": found.get(RELEASED),
    }


@cache
def _known() -> dict[str, Any]:
    """What the template is given: the lines of the last processor, and what a card said."""
    from benchmarks.experiment.grid import SEEDS

    results = [x for x in load_results(RESULTS / "ops.csv") if x.device == "cpu" and x.measured]
    machine = results[-1].machine
    results = [each for each in results if each.machine == machine]
    steps = {x["side"]: x for x in _lines("training_step_8b.jsonl") if x.get("shape") == "4 x 2048"}
    card = _lines("second_day.jsonl")

    days = sorted({each.date.split(" ")[0] for each in results})
    return {
        "num_seeds": len(SEEDS),
        "methods": _methods,
        "second": _second(),
        "machine": machine,
        "values": lambda column: ", ".join(sorted({getattr(each, column) for each in results})),
        "days": " to ".join(dict.fromkeys((days[0], days[-1]))),
        "of": partial(_entries, Sheet(results)),
        "cross_entropies": CROSS_ENTROPIES,
        "against_released": AGAINST_RELEASED,
        "misses": [each for each in targets("cpu", results) if each.verdict == "missed"],
        "steps": {side: steps[side] for side in STEPS},
        "card": card[0]["card"],
        "loss": [line["ms"] for line in card if line.get("name") == "frozen"][-1],
        "ms": lambda value: f"{value:.1f}" if value < 100 else f"{value:.0f}",
        "mib": lambda value: f"{value:.1f}" if value < 10 else f"{value:.0f}",
    }


def _lines(name: str) -> list[dict[str, Any]]:
    text = (RESULTS / "h200" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


TEMPLATE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("pages.md.j2")


def _section(name: str) -> str:
    made = getattr(TEMPLATE.make_module(_known()), name.replace("-", "_"))
    return str(made()).strip()


SECTIONS = {
    name: partial(_section, name)
    for name in (
        "measured",
        "failures",
        "circumstances",
        "cross-entropy",
        "released",
        "missed",
        "step",
    )
}
