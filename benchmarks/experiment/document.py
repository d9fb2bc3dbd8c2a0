"""docs/evidence.md from the records: a template's prose, and every number in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from benchmarks.experiment import frame, plots, verdicts, words
from benchmarks.experiment.costs import Cost
from benchmarks.experiment.frame import lines_of, read_records
from benchmarks.experiment.protocol import PROTOCOL_FILE

if TYPE_CHECKING:
    from benchmarks.experiment.grid import Grid

DEMO_MODEL = "SmolLM2-135M-Instruct"
"""Whose records they are where their protocol names no model."""


class Unrecorded(jinja2.ChainableUndefined):
    """What the protocol does not have."""

    def __str__(self) -> str:
        return "unrecorded"


TEMPLATE = "evidence.md.j2"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=Unrecorded,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
EMPTY_LINES = re.compile(r"\n{3,}")
"""Where a field came to nothing."""


def render(
    grid: Grid,
    folder: Path,
    costs: Mapping[str, Cost],
    docs: Path,
    others: Iterable[tuple[Grid, Path, Mapping[str, Cost]]] = (),
) -> Path:
    """Write the document and its pictures.

    Args:
        grid: which cells are shown where; a line without any record has dashes, and is named.
        folder: of the records and their protocol.
        costs: of a training step, by the method's label in the main tables.
        docs: folder that gets `evidence.md` and `evidence/*.png`.
        others: the same of the models that are shown after this one.

    Returns:
        The document's path.

    Raises:
        ValueError: two folders hold records of one model.
    """
    studies: dict[str, Any] = {}
    for study in ((grid, folder, costs), *others):
        path = study[1] / PROTOCOL_FILE
        protocol = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        name = protocol.get("model", DEMO_MODEL)
        if name in studies:
            raise ValueError(
                f"the document shows each model once, got {name} from {study[1]} and from "
                f"{studies[name][1]}: remove one of the folders"
            )
        studies[name] = (*study, protocol)
    frames = [read_records(study[0], study[1], name) for name, study in studies.items()]
    records = pd.concat(frames)
    models: list[dict[str, Any]] = []
    for name, (_, _, prices, protocol) in studies.items():
        mine = records[records.model == name]
        shown = lines_of(mine, grid.recommended, prices, with_unrun=True)
        lines = {section: [x for x in some if x.is_run] for section, some in shown.items()}
        prefix = f"{name}-" if models else ""
        pictures = plots.draw(lines, grid.recommended, docs / "evidence", prefix)
        model = {"name": name, "demo": name == DEMO_MODEL, "protocol": protocol, "records": mine}
        claims = verdicts.judge_claims(lines, grid.recommended)
        models.append({**model, **shown, "lines": lines, "pictures": pictures, "claims": claims})
    text = TEMPLATES.get_template(TEMPLATE).render(
        models=models,
        quick=grid.quick,
        recommended=grid.recommended,
        table=table,
        frame=frame,
        words=words,
        verdicts=verdicts,
    )
    docs.mkdir(parents=True, exist_ok=True)
    path = docs / "evidence.md"
    path.write_text(EMPTY_LINES.sub("\n\n", text), encoding="utf-8")
    return path


def table(rows: Sequence[Any], *columns: Mapping[str, str]) -> str:
    """A markdown table, whose first column stands to the left.

    Args:
        rows: lines, or texts by name.
        columns: which text stands below each head; by default they are named like it. A head that
            begins with a colon stands to the left, one with a bar is two.
    """
    if not rows:
        return "Not measured."
    named = {head: key for part in columns for head, key in part.items()} or {x: x for x in rows[0]}
    heads = " | ".join(named).split(" | ")
    rule = ["---:" if place and head[0] != ":" else ":---" for place, head in enumerate(heads)]
    cells = [[head.removeprefix(":") for head in heads], rule]
    cells += [[row[key] for key in named.values()] for row in rows]
    for above, row in reversed(list(pairwise(cells))) if "group" in named.values() else ():
        row[0] = "" if row[0] == above[0] else row[0]  # a group is named once
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
