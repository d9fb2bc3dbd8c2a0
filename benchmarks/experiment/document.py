"""docs/evidence.md from the records: a template's prose, and every number in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.experiment import claims, plots, tables, verdicts
from benchmarks.experiment.costs import Cost
from benchmarks.experiment.pooled import (
    NOT_MEASURED,
    Pooled,
    Results,
    in_groups,
    pool_grid,
)

if TYPE_CHECKING:
    from benchmarks.experiment.grid import Grid

TEMPLATE = Path(__file__).with_name("evidence.md.in")
PROTOCOL_FILE = "protocol.json"
"""A file beside the records with what all cells share; without it those numbers are left out."""
NO_LINES = "Not measured."
UNRECORDED = "an unrecorded number of"
MAIN = (
    "Refusals, refusals after the prefill, over-refusal and task accuracy of every method",
    "Dots: all seeds together, with their interval; ticks: single seeds. The dotted line is the "
    "aligned model or, for the tasks, plain fine-tuning.",
)
"""What a picture shows, for those who do not see it, and what stands below it."""
TRADE_OFF = (
    "Refusals against task accuracy, a line per method through its weights",
    "The number at a point is its weight, left out where it would lie on others. Up and to the "
    "right is better; the dotted lines are the refusals of the aligned model and the accuracy of "
    "plain fine-tuning.",
)
OVER_TIME = (
    "Refusals, safety-token confidence and task accuracy over the fine-tuning",
    "Bands: least and greatest over the seeds. Dashed: the reference's confidence on the same "
    "tokens.",
)
EMPTY_LINES = re.compile(r"\n{3,}")
"""Where a field came to nothing."""
FIELD = re.compile(r"\{\{ *([a-z_.]+) *\}\}")


def render(grid: Grid, folder: Path, costs: Mapping[str, Cost], docs: Path) -> Path:
    """Write the document and its pictures.

    Args:
        grid: which cells are shown where.
        folder: of their records; what is missing there is "not measured".
        costs: of a training step, by the method's label in the main tables.
        docs: folder that gets `evidence.md` and `evidence/*.png`.

    Returns:
        The document's path.
    """
    results = pool_grid(grid, folder)
    fields = {
        **_design_fields(results, folder / PROTOCOL_FILE),
        **_table_fields(results, costs),
        **_verdict_fields(results),
        **_picture_fields(results, docs),
    }
    path = docs / "evidence.md"
    text = fill(TEMPLATE.read_text(encoding="utf-8"), fields)
    path.write_text(EMPTY_LINES.sub("\n\n", text), encoding="utf-8")
    return path


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Put the fields' texts where the template names them as {{ name }}.

    Raises:
        ValueError: the template names a field that there is not, or leaves one out.
    """
    named = set(FIELD.findall(template))
    if unknown := sorted(named - set(fields)):
        raise ValueError(
            f"the template may only name fields that there are, got {', '.join(unknown)}: "
            f"name one of {', '.join(sorted(fields))}"
        )
    if unused := sorted(set(fields) - named):
        raise ValueError(
            f"the template must name every field, got none of {', '.join(unused)}: "
            "name it, or compute it no more"
        )
    return FIELD.sub(lambda match: fields[match[1]], template)


def _design_fields(results: Results, protocol_file: Path) -> dict[str, str]:
    """What was done, read off the cells, the records and their protocol."""
    main = results.main
    recommended = next((one.cell for one in main if one.label == results.recommended), None)
    trained = [line.cell for line in main if line.cell.method != "aligned"]
    protocol = json.loads(protocol_file.read_text("utf-8")) if protocol_file.is_file() else {}
    alignment, prompts = protocol.get("alignment", {}), protocol.get("prompts", {})
    return {
        "quick": (
            "**This is the quick form: fewer cells and prompts. It shows that everything runs, and "
            "at most a direction.**"
            if results.quick
            else ""
        ),
        "recommended": results.recommended,
        "recommended.words": tables.describe(recommended) if recommended else NOT_MEASURED,
        "methods": tables.method_table(main, results.recommended),
        "sets": _listed(in_groups(main)),
        "tasks": _listed(tables.tasks_of(main)),
        "seeds": _number(max((line.wanted for line in main), default=0)),
        "steps": _listed(str(steps) for steps in sorted({cell.steps for cell in trained})),
        "batch": str(protocol.get("batch_size", UNRECORDED)),
        "learning_rate": str(protocol.get("learning_rate", "unrecorded")),
        "learning_rate.full": str(protocol.get("full_learning_rate", "unrecorded")),
        "max_new_tokens": str(prompts.get("max_new_tokens", UNRECORDED)),
        "alignment.steps": str(alignment.get("steps", UNRECORDED)),
        "alignment.batch": str(alignment.get("batch_size", UNRECORDED)),
        "prompts": _prompts(main),
        "environment": _environment(results),
    }


def _table_fields(results: Results, costs: Mapping[str, Cost]) -> dict[str, str]:
    recommended = results.recommended
    tasks = tables.tasks_of(results.main)
    trade_off, ablations, single_task = results.trade_off, results.ablations, results.single_task
    last = [point for curve in results.over_time for point in list(curve.points.values())[-1:]]
    return {
        "main": _main_tables(results, costs) or NO_LINES,
        "odds": _odds_tables(results) or NO_LINES,
        "trade_off.setting": _setting(trade_off),
        "trade_off.methods": tables.varied_table(trade_off, recommended) if trade_off else "",
        "trade_off.table": _details(tables.trade_off_table(trade_off)) if trade_off else "",
        "ablations.setting": _setting(ablations) + _base(ablations),
        "ablations": tables.ablation_table(ablations, tasks) if ablations else NO_LINES,
        "single_task.setting": _setting(single_task),
        "single_task": tables.single_task_table(single_task) if single_task else NO_LINES,
        "over_time.setting": _setting(last),
        "over_time.table": _details(tables.over_time_table(results.over_time)) if last else "",
    }


def _main_tables(results: Results, costs: Mapping[str, Cost]) -> str:
    tasks = tables.tasks_of(results.main)
    parts = []
    for group, lines in in_groups(results.main).items():
        parts += [
            f"### Fine-tuned on: {group}",
            tables.alignment_table(lines, results.recommended),
            tables.utility_table(lines, results.recommended, costs, tasks),
        ]
    return "\n\n".join(parts)


def _odds_tables(results: Results) -> str:
    """Odds for the two sets whose mechanism the prose tells: no harmful pairs, and the fewest."""
    groups = list(in_groups(results.main).items())[:2]
    return "\n\n".join(
        f"Fine-tuned on: {group}\n\n{tables.odds_table(lines, results.recommended)}"
        for group, lines in groups
    )


def _details(table: str) -> str:
    """Folded away until it is asked for."""
    head = "<details><summary>The numbers of the picture</summary>"
    return f"{head}\n\n{table}\n\n</details>"


def _base(lines: Sequence[Pooled]) -> str:
    base = tables.base_of(lines)
    return (
        ""
        if base is None
        else f" Where no other is named the base, in bold, is {tables.describe(base)}."
    )


def _verdict_fields(results: Results) -> dict[str, str]:
    found = claims.claims(results)
    return {
        "headline": verdicts.headline(results) or NO_LINES,
        "verdict.recommended": verdicts.recommended_verdict(results),
        "verdict.others": verdicts.others_verdict(results),
        "verdict.cheapest": verdicts.cheapest(results),
        "claims": claims.claim_table(found),
        "claims.summary": claims.claim_summary(found),
        "claims.as_good_within": str(claims.AS_GOOD_WITHIN),
    }


def _picture_fields(results: Results, docs: Path) -> dict[str, str]:
    folder = docs / "evidence"
    drawn = {
        "picture.main": (plots.plot_main(results, folder / "main.png"), *MAIN),
        "picture.trade_off": (plots.plot_trade_off(results, folder / "trade-off.png"), *TRADE_OFF),
        "picture.over_time": (plots.plot_over_time(results, folder / "over-time.png"), *OVER_TIME),
    }
    return {
        name: NO_LINES if path is None else f"![{text}](evidence/{path.name})\n\n*{caption}*"
        for name, (path, text, caption) in drawn.items()
    }


def _setting(lines: Iterable[Pooled]) -> str:
    """On what a section's lines were fine-tuned, and how often."""
    trained = [line for line in lines if line.cell.method != "aligned"]
    if not trained:
        return ""
    shares = sorted({line.cell.harmful_share for line in trained})
    data = _listed(f"with {100 * s:g} % harmful pairs" if s else "on benign data" for s in shares)
    seeds = sorted({line.wanted for line in trained})
    each = "seed" if seeds == [1] else "seeds"
    return f"Fine-tuned {data}, {_listed(map(str, seeds))} {each} a line."


def _prompts(lines: Iterable[Pooled]) -> str:
    """How many of each a model is asked, as counted in the records."""
    named = {
        "harmful": "held-out harmful requests",
        "outside": "requests of the outside list",
        "benign": "held-out benign requests",
    }
    counted = [line for line in lines if line.measured]
    named |= {task: f"of the {task} task" for task in tables.tasks_of(counted)}
    parts = []
    for key, words in named.items():
        sizes = sorted(
            {n for line in counted if key in line.counts for _, n in line.counts[key].per_seed}
        )
        if sizes:
            parts.append(f"{_listed(map(str, sizes))} {words}")
    return _listed(parts) or NOT_MEASURED


def _environment(results: Results) -> str:
    """Every key with its values; of the dates the first and the last."""
    parts = []
    for key, values in results.environment.items():
        if key == "date" and len(values) > 1:
            values = [f"{values[0]} to {values[-1]}"]
        parts.append(f"{key} {', '.join(values)}")
    if results.computed_s:
        parts.append(f"{results.computed_s / 3600:.1f} hours of computing in all")
    return "; ".join(parts) or "not recorded"


def _listed(parts: Iterable[Any]) -> str:
    """a, b and c."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else str(last)


def _number(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
