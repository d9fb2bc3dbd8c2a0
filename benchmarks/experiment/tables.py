"""Markdown tables of pooled lines.

A share reads "78 % [69-85]", with its Wilson interval; a value reads "2.31 (2.28-2.35)", with the
least and the greatest over the seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.experiment.cell import TASKS, Cell
from benchmarks.experiment.costs import Cost
from benchmarks.experiment.pooled import ALL_TASKS, NOT_MEASURED, Curve, Pooled, in_groups

ALIGNMENT = {
    "after the prefill, anywhere": "prefill_anywhere",
    "outside prompts, from the start": "outside",
    "over-refusal, anywhere": "benign_anywhere",
}
"""Shares of the alignment table beside the held-out refusals, by the head of their column."""
SOURCES = {"random": "random", "frequency": "frequent"}
"""Kinds of safety tokens that are not discovered, as adjectives."""
ABLATION = {
    "refuses, from the start": "harmful",
    "anywhere": "harmful_anywhere",
    "after the prefill": "prefill_anywhere",
    "over-refusal": "benign_anywhere",
}
TRADE_OFF = {
    "refuses, from the start": "harmful",
    "over-refusal": "benign_anywhere",
    "accuracy": ALL_TASKS,
}
NOTHING = "-"
"""In the columns after "not measured", and where there is nothing to measure."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns stand to the left and whose others to the right."""
    rule = [":---" if place < texts else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def alignment_table(lines: Sequence[Pooled], recommended: str) -> str:
    """What is left of the refusals after one fine-tuning set, one row a method."""
    head = [
        "method",
        "refuses held-out harmful, from the start",
        "seed by seed",
        "anywhere",
        *ALIGNMENT,
    ]
    keys = ["harmful_anywhere", *ALIGNMENT.values()]
    rows = [
        _row(
            _marked(line, recommended),
            [line.count("harmful"), _seeds(line, "harmful"), *map(line.count, keys)],
            line,
        )
        for line in lines
    ]
    return markdown(head, rows)


def utility_table(
    lines: Sequence[Pooled], recommended: str, costs: Mapping[str, Cost], tasks: Sequence[str]
) -> str:
    """What was learned from one fine-tuning set, what moved, and what a step costs."""
    head = [
        "method",
        *tasks,
        "fine-tuning loss, nats",
        "benign perplexity",
        "KL on the safety tokens, nats",
        "first-step confidence",
        "reference's",
        "ms per step",
        "peak MiB",
    ]
    rows = []
    for line in lines:
        trained = line.cell.method != "aligned"
        measured = [
            *map(line.count, tasks),
            line.value("finetune_nats", ".3f"),
            line.value("benign_perplexity", ".2f"),
            line.value("kl_selection_nats", ".3f") if trained else NOTHING,
            line.value("first_confidence", ".3f"),
            line.value("first_reference_confidence", ".3f"),
        ]
        cost = _cost(costs.get(line.label)) if trained else [NOTHING, NOTHING]
        rows.append([*_row(_marked(line, recommended), measured, line), *cost])
    return markdown(head, rows)


def odds_table(lines: Sequence[Pooled], recommended: str) -> str:
    """Odds of opening with a refusal against "Sure" on both kinds of request, and their fall."""
    keys = ("harmful_odds_nats", "finetune_odds_nats")
    start = next((line for line in lines if line.cell.method == "aligned"), None)
    rows = []
    for line in lines:
        cells = []
        for key in keys:
            if key not in line.values:
                cells += [NOT_MEASURED, NOTHING]
                continue
            mean = line.values[key].mean
            known = line is not start and start is not None and key in start.values
            change = f"{mean - start.values[key].mean:+.1f}" if known and start else NOTHING
            cells += [f"{mean:+.1f}", change]
        rows.append([*_row(_marked(line, recommended), cells, line), line.count("harmful")])
    head = ["method", "harmful requests", "change", "everyday requests", "change"]
    return markdown([*head, "refuses, from the start"], rows)


def ablation_table(lines: Sequence[Pooled], tasks: Sequence[str]) -> str:
    """One row a value of what is varied, all groups under one head; the base is bold."""
    head = ["varied", "value", *ABLATION, *tasks, "fine-tuning loss, nats"]
    base = base_of(lines)
    rows = []
    for group, members in in_groups(lines).items():
        for place, line in enumerate(members):
            measured = [
                *map(line.count, [*ABLATION.values(), *tasks]),
                line.value("finetune_nats", ".3f"),
            ]
            name = f"**{line.name}**" if line.cell == base else line.name
            rows.append([group if place == 0 else "", *_row(name, measured, line)])
    return markdown(head, rows, texts=2)


def base_of(lines: Iterable[Pooled]) -> Cell | None:
    """What is varied one thing at a time: the cell that stands in most groups, in two at least."""
    cells = Counter(line.cell for line in lines).most_common(1)
    return cells[0][0] if cells and cells[0][1] > 1 else None


def single_task_table(lines: Sequence[Pooled]) -> str:
    """Fine-tuning on one task alone, with the accuracy on that task."""
    head = ["task", "method", *ABLATION, "accuracy", "fine-tuning loss, nats"]
    rows = []
    for group, members in in_groups(lines).items():
        trained = [line.cell.tasks for line in members if line.cell.method != "aligned"]
        for place, line in enumerate(members):
            tasks = trained[0] if trained else line.cell.tasks
            measured = [
                *map(line.count, ABLATION.values()),
                ", ".join(map(line.count, tasks)),
                line.value("finetune_nats", ".3f"),
            ]
            rows.append([group if place == 0 else "", *_row(line.name, measured, line)])
    return markdown(head, rows, texts=2)


def method_table(lines: Sequence[Pooled], recommended: str) -> str:
    """What every method of the main tables is, read off its cells."""
    methods = {line.label: line for line in lines}
    rows = [(_bold(label, recommended), describe(line.cell)) for label, line in methods.items()]
    return markdown(["method", "what it minimises"], rows, texts=2)


def varied_table(lines: Sequence[Pooled], recommended: str) -> str:
    """The methods of the trade-off, with the weights that each is trained at."""
    rows = []
    for method, members in in_groups(lines).items():
        weights = ", ".join(dict.fromkeys(line.label for line in members))
        rows.append((_bold(method, recommended), describe(members[0].cell, weights)))
    return markdown(["method", "what it minimises"], rows, texts=2)


def trade_off_table(lines: Sequence[Pooled]) -> str:
    """The numbers of the trade-off's picture."""
    head = ["method", "harmful pairs", "lambda", *TRADE_OFF]
    rows = []
    for method, members in in_groups(lines).items():
        for line in sorted(members, key=lambda line: line.cell.harmful_share):
            name = line.name.replace(line.label, method, 1)
            share = f"{100 * line.cell.harmful_share:g} %"
            rest = _row(line.label, [*map(line.count, TRADE_OFF.values())], line)
            rows.append([name, share, *rest])
    return markdown(head, rows)


def over_time_table(curves: Sequence[Curve]) -> str:
    """The numbers of the picture over time."""
    head = ["method", "step", "refuses, from the start", "first-step confidence", "accuracy"]
    rows = []
    for curve in curves:
        for step, point in curve.points.items():
            confidence = point.value("first_confidence", ".3f")
            cells = [point.count("harmful"), confidence, point.count(ALL_TASKS)]
            rows.append([point.name, str(step), *cells])
        if not curve.points:
            rows.append([curve.label, NOTHING, NOT_MEASURED, NOTHING, NOTHING])
    return markdown(head, rows)


def describe(cell: Cell, weight: str | None = None) -> str:
    """A cell's objective in words, with its numbers; `weight` is told in place of its own."""
    if cell.method == "pact":
        return _describe_pact(cell, weight or f"{cell.pact.kl_weight:g}")
    weight = weight or f"{cell.strength:g}"
    words = {
        "aligned": "nothing: the model before fine-tuning",
        "plain": "cross-entropy alone",
        "full_kl": "cross-entropy and the KL to the reference over the whole vocabulary, lambda "
        f"{weight}",
        "first_tokens": "cross-entropy whose first answer tokens are held back (Qi et al. 2025), "
        f"strength {weight}",
        "mixing": f"cross-entropy{_mixed(cell)}",
    }[cell.method]
    return f"{words}; all weights" if cell.full_finetuning else words


def _describe_pact(cell: Cell, weight: str) -> str:
    pact = cell.pact
    source = f"{SOURCES[cell.token_source]} " if cell.token_source in SOURCES else ""
    over = {
        "selection": f"the KL among K = {cell.top_k} {source}safety tokens",
        "vocabulary": f"the KL of the true confidences on K = {cell.top_k} {source}safety tokens",
    }[pact.over]
    parts = [f"cross-entropy and {over}", f"lambda {weight}"]
    if pact.kl_temperature is not None:
        parts.append(f"temperature {pact.kl_temperature:g}")
    if pact.positive_only:
        parts.append("those of positive weight alone")
    if pact.kl_margin:
        parts.append(f"the reference raised by a margin of {pact.kl_margin:g} nats")
    if pact.kl_step_tau is not None and pact.kl_step_tau != math.inf:
        parts.append(f"answer step t weighs exp(-t / {pact.kl_step_tau:g})")
    parts.append("gated" if pact.gate else "no gate")
    if not cell.weighted:
        parts.append("all tokens weigh the same")
    return ", ".join(parts) + _mixed(cell) + ("; all weights" if cell.full_finetuning else "")


def _mixed(cell: Cell) -> str:
    share = cell.refusal_share
    return f", with refusals mixed into the data, share {share:g}" if share else ""


def _row(name: str, cells: Sequence[str], line: Pooled) -> list[str]:
    """A line without any record says so once."""
    if line.measured == 0:
        return [name, NOT_MEASURED, *[NOTHING] * (len(cells) - 1)]
    return [name, *cells]


def _marked(line: Pooled, recommended: str) -> str:
    """Bold if it is the recommended setting."""
    return _bold(line.label, recommended) + line.name.removeprefix(line.label)


def _bold(label: str, recommended: str) -> str:
    return f"**{label}**" if label == recommended else label


def _seeds(line: Pooled, key: str) -> str:
    """31, 29, 33 of 40."""
    if key not in line.counts:
        return NOT_MEASURED
    per_seed = line.counts[key].per_seed
    sizes = {n for _, n in per_seed}
    if len(sizes) > 1:
        return ", ".join(f"{yes}/{n}" for yes, n in per_seed)
    return ", ".join(str(yes) for yes, _ in per_seed) + f" of {sizes.pop()}"


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return [NOT_MEASURED, NOTHING]
    return [f"{cost.median_ms:.0f}", f"{cost.peak_mib:.0f}"]


def tasks_of(lines: Iterable[Pooled]) -> list[str]:
    """The tasks that any of the lines was measured on."""
    measured = {key for line in lines for key in line.counts}
    trained = dict.fromkeys(task for line in lines for task in line.cell.tasks)
    return [task for task in trained if task in measured] or list(TASKS)
