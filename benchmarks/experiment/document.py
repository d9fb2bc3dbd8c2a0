"""docs/evidence.md from the records: a template's prose, and every number in its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import inf
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from benchmarks.experiment import plots, verdicts
from benchmarks.experiment.cell import Cell, read_json
from benchmarks.experiment.cost import COSTS_FILE
from benchmarks.experiment.frame import LINE, NOT_MEASURED, SECTIONS, lines_of, read_records
from benchmarks.experiment.grid import Grid, without_base
from benchmarks.experiment.methods import (
    ANCHORED_LABEL,
    ANCHORS_ONLY_LABEL,
    WITH_REFUSALS_LABEL,
)
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
IN_SHORT = ("aligned", "plain", WITH_REFUSALS_LABEL, ANCHORED_LABEL, ANCHORS_ONLY_LABEL)
"""Labels of the lines at the beginning."""
ORIGIN_FILE = "ORIGIN.md"
"""Beside a model's records: where its weights are from, in sentences for its section."""
EMPTY_LINES = re.compile(r"\n{3,}")
"""Between blocks that each bring their own, and where a part came to nothing."""
METHODS = {
    "aligned": "nothing: the model before fine-tuning",
    "plain": "cross-entropy alone",
    "mixing": "cross-entropy",
    "full_kl": "cross-entropy and the KL to the reference over the whole vocabulary, "
    "lambda {cell.strength:g}",
    "first_tokens": "cross-entropy whose first answer tokens are held back (Qi et al. 2025), "
    "strength {cell.strength:g}",
    "token_logits": "cross-entropy and the squared difference to the reference's logits of the "
    "tokens of refusal templates (arXiv 2604.17210), lambda {cell.strength:g}",
    "patch": "cross-entropy alone, then {cell.patch_steps} steps on one refusal (arXiv 2601.01887)",
    "lisa": "cross-entropy on the data and on refusals by turns, each kept near the end of the "
    "turn before (Lisa), rho {cell.strength:g}",
    "safe_lora": "cross-entropy alone, then adapters are projected onto what alignment changed "
    "where their cosine with it is at most {cell.strength:g} (SafeLoRA)",
    "selection": "cross-entropy and the KL among K = {cell.top_k} {source}safety tokens, "
    "lambda {cell.pact.kl_weight:g}",
    "vocabulary": "cross-entropy and the KL of the true confidences on K = {cell.top_k} "
    "{source}safety tokens, lambda {cell.pact.kl_weight:g}",
}
"""What each method minimises, PACT by what its KL is over."""
SOURCES = {"random": "random ", "frequency": "frequent ", "plain": "base-free "}
"""Kinds of safety tokens that are not discovered against a base model, as adjectives."""


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
        in_short=IN_SHORT,
        verdicts=verdicts,
        **{function.__name__: function for function in TELLERS},
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


def describe(cell: Cell) -> str:
    """A cell's objective in words, with its numbers."""
    pact, ours = cell.pact, cell.method == "pact"
    method = METHODS[str(pact.over) if ours else cell.method]
    parts: list[Any] = [method.format(cell=cell, source=SOURCES.get(cell.token_source, ""))]
    if ours:
        tau, temperature = pact.kl_step_tau or inf, pact.kl_temperature
        parts += [
            temperature is not None and f"temperature {temperature:g}",
            pact.positive_only and "those of positive weight alone",
            pact.kl_margin and f"the reference raised by a margin of {pact.kl_margin:g} nats",
            tau < inf and f"answer step t weighs exp(-t / {tau:g})",
            "gated" if pact.gate else "no gate",
            not cell.weighted and "all tokens weigh the same",
        ]
    held = f"held at the first {cell.anchor_steps} tokens of anchors, share {cell.anchor_share:g}"
    parts += [
        cell.refusal_share and f"with refusals mixed into the data, share {cell.refusal_share:g}",
        cell.anchor_share and held,
        ours and pact.anchors_only and "and at no row of the data",
    ]
    words = ", ".join(part for part in parts if part)
    return f"{words}; all weights" if cell.full_finetuning else words


def listed(parts: Iterable[Any]) -> str:
    """a, b and c."""
    *others, last = map(str, parts)
    return f"{', '.join(others)} and {last}" if others else last


def setting(lines: pd.DataFrame) -> str:
    """On what a section's lines were fine-tuned, and how often; the start of a curve aside."""
    trained = lines[(lines.label != "aligned") & (lines.step > 0)]
    shares = sorted(trained.share.unique())
    data = listed(f"with {100 * s:g} % harmful pairs" if s else "on benign data" for s in shares)
    return f"Fine-tuned {data}, {seeds(trained)} a line."


def seeds(lines: pd.DataFrame) -> str:
    """How many the fine-tuned lines have; not the aligned model, which no seed enters."""
    wanted = sorted(lines.wanted[lines.label != "aligned"].unique())
    return f"{listed(wanted)} {'seed' if wanted == [1] else 'seeds'}"


def environment(records: pd.DataFrame) -> str:
    """Every key with its values, and the time that all took."""
    known = pd.DataFrame(list(records.drop_duplicates("record").environment.dropna()))
    hours = known.pop("seconds").astype(float).sum() / 3600
    told = [f"{key} {', '.join(sorted(known[key].dropna().unique()))}" for key in known]
    return "; ".join([*told, f"{hours:.1f} hours of computing in all"])


def not_run(records: pd.DataFrame) -> dict[str, str]:
    """Lines without any record, by group."""
    tuned = records[records.label != "aligned"]
    found = tuned.groupby(LINE[:4], sort=False).record.count().reset_index()
    unrun = found[found.record == 0].groupby("group", sort=False).label
    return {str(group): ", ".join(f'"{x}"' for x in labels.unique()) for group, labels in unrun}


TELLERS = (describe, environment, listed, not_run, seeds, setting, table)
"""What the template calls."""
