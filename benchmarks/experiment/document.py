"""docs/evidence.md from the records: a template's prose, and every number in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from benchmarks.experiment import plots, verdicts, words
from benchmarks.experiment.cell import read_json
from benchmarks.experiment.cost import COSTS_FILE
from benchmarks.experiment.frame import NOT_MEASURED, SECTIONS, lines_of, read_records
from benchmarks.experiment.grid import Grid, without_base
from benchmarks.experiment.methods import WITH_REFUSALS_LABEL
from benchmarks.experiment.protocol import PLAIN_BASE, PROTOCOL_FILE

DEMO_MODEL = "SmolLM2-135M-Instruct"
"""Whose records they are where their protocol names no model."""
TEMPLATE = "evidence.md.j2"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ORIGIN_FILE = "ORIGIN.md"
"""Beside a model's records: where its weights are from, in sentences for its section."""
EMPTY_LINES = re.compile(r"\n{3,}")
"""Between blocks that each bring their own, and where a part came to nothing."""


def render(grid: Grid, folders: Sequence[Path], docs: Path) -> Path:
    """Write the document and its pictures.

    Args:
        grid: which cells are shown where; what has no record is left out, and named.
        folders: of the records of a model each, with their protocol and the costs of a step.
        docs: folder that gets `evidence.md` and `evidence/*.png`.

    Returns:
        The document's path.

    Raises:
        ValueError: there are no records, or two folders hold those of one model.
    """
    models: dict[str, dict[str, Any]] = {}
    for place in folders:
        protocol, origin = read_json(place / PROTOCOL_FILE), place / ORIGIN_FILE
        has_no_base = protocol.get("base") == PLAIN_BASE
        records = read_records(without_base(grid) if has_no_base else grid, place)
        lines = lines_of(records, grid.recommended, read_json(place / COSTS_FILE))
        if "main" not in set(lines.section):
            continue
        name = protocol.get("model", DEMO_MODEL)
        if name in models:
            raise ValueError(
                f"the document shows each model once, got {name} from {place} and from "
                f"{models[name]['place']}: remove one of the folders"
            )
        models[name] = {section: lines[lines.section == section] for section in SECTIONS} | {
            "name": name,
            "place": place,
            "protocol": protocol,
            "records": records[records.section.isin(lines.section)],
            "origin": origin.read_text(encoding="utf-8").strip() if origin.is_file() else "",
            "lines": lines,
            "pictures": plots.draw(lines, docs / "evidence", f"{name}-" if models else ""),
        }
    if not models:
        raise ValueError(f"a document needs records, got none in {folders[0]}: run the experiment")
    text = TEMPLATES.get_template(TEMPLATE).render(
        models=list(models.values()),
        demo=DEMO_MODEL,
        quick=grid.quick,
        recommended=grid.recommended,
        in_short=("aligned", "plain", WITH_REFUSALS_LABEL, grid.recommended),
        table=table,
        words=words,
        verdicts=verdicts,
    )
    docs.mkdir(parents=True, exist_ok=True)
    path = docs / "evidence.md"
    path.write_text(EMPTY_LINES.sub("\n\n", text), encoding="utf-8")
    return path


def table(rows: pd.DataFrame, *columns: Mapping[str, str]) -> str:
    """A markdown table; a column in which nothing is measured is left out, a group is named once.

    Args:
        rows: what stands in the cells: a text or a measure, by name.
        columns: the name of what stands below each head, such as `harmful` or `harmful.counted`;
            by default heads are the names.
    """
    if rows.empty:
        return "Not measured."
    heads = {head: key for part in columns for head, key in part.items()} or {x: x for x in rows}
    cells = pd.DataFrame()
    for head, (name, *rest) in ((head, key.split(".")) for head, key in heads.items()):
        if name in rows:
            cells[head] = [str(reduce(getattr, rest, value)) for value in rows[name]]
    cells = cells.loc[:, (cells != NOT_MEASURED).any()]
    is_number = cells.apply(lambda texts: texts.str.match(r"[-+\d]").all())
    rule = ["---:" if right else ":---" for right in is_number]
    if "group" in heads.values():
        names = cells.iloc[:, 0]
        cells.isetitem(0, names.where(names != names.shift(), ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells, rule, *cells.to_numpy()])
