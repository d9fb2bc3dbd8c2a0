"""A cell's settings, a section's data and the records' surroundings in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from benchmarks.experiment.cell import TASKS, Cell
from benchmarks.experiment.frame import NOT_MEASURED, Line

METHODS = {
    "aligned": "nothing: the model before fine-tuning",
    "plain": "cross-entropy alone",
    "mixing": "cross-entropy",
    "full_kl": "cross-entropy and the KL to the reference over the whole vocabulary, "
    "lambda {weight}",
    "first_tokens": "cross-entropy whose first answer tokens are held back (Qi et al. 2025), "
    "strength {weight}",
    "token_logits": "cross-entropy and the squared difference to the reference's logits of the "
    "tokens of refusal templates (arXiv 2604.17210), lambda {weight}",
    "patch": "cross-entropy alone, then {patch} steps on one refusal (arXiv 2601.01887)",
    "lisa": "cross-entropy on the data and on refusals by turns, each kept near the end of the "
    "turn before (Lisa), rho {weight}",
    "safe_lora": "cross-entropy alone, then adapters are projected onto what alignment changed "
    "where their cosine with it is at most {weight} (SafeLoRA)",
    "selection": "cross-entropy and the KL among K = {k} {source}safety tokens, lambda {weight}",
    "vocabulary": "cross-entropy and the KL of the true confidences on K = {k} {source}safety "
    "tokens, lambda {weight}",
}
"""What each method minimises, PACT by what its KL is over; another one is told by its name."""
SOURCES = {"random": "random", "frequency": "frequent", "plain": "base-free"}
"""Kinds of safety tokens that are not discovered against a base model, as adjectives."""
JUDGED = {"harmful": "held-out", "prefill": "after the prefill", "outside": "outside prompts"}
"""Answers that a second judge is asked about."""
PROMPTS = {
    "harmful": "held-out harmful requests",
    "outside": "requests of the outside list",
    "benign": "held-out benign requests",
}


def describe(cell: Cell | None, weights: Iterable[str] = ()) -> str:
    """A cell's objective in words, with its numbers; `weights` are told in place of its own."""
    if not cell:
        return NOT_MEASURED
    pact, ours = cell.pact, cell.method == "pact"
    told = METHODS.get(
        str(pact.over if ours else cell.method), f"{cell.method}, strength {{weight}}"
    )
    source = f"{SOURCES[cell.token_source]} " if cell.token_source in SOURCES else ""
    weight = ", ".join(dict.fromkeys(weights)) or f"{pact.kl_weight if ours else cell.strength:g}"
    tau = math.inf if pact.kl_step_tau is None else pact.kl_step_tau
    parts = {
        told.format(weight=weight, k=cell.top_k, source=source, patch=cell.patch_steps): True,
        f"temperature {pact.kl_temperature or 0:g}": ours and pact.kl_temperature is not None,
        "those of positive weight alone": ours and pact.positive_only,
        f"the reference raised by a margin of {pact.kl_margin or 0:g} nats": ours
        and pact.kl_margin,
        f"answer step t weighs exp(-t / {tau:g})": ours and tau != math.inf,
        "gated" if pact.gate else "no gate": ours,
        "all tokens weigh the same": ours and not cell.weighted,
        f"with refusals mixed into the data, share {cell.refusal_share:g}": cell.refusal_share,
        f"held at the first {cell.anchor_steps} tokens of anchors, share {cell.anchor_share:g}": (
            cell.anchor_share
        ),
    }
    words = ", ".join(part for part, is_told in parts.items() if is_told)
    return f"{words}; all weights" if cell.full_finetuning else words


def listed(parts: Iterable[Any]) -> str:
    """a, b and c."""
    *others, last = list(parts) or [""]
    return f"{', '.join(map(str, others))} and {last}" if others else str(last)


def setting(lines: Iterable[Line]) -> str:
    """On what a section's lines were fine-tuned, and how often; the start of a curve aside."""
    trained = [x for x in lines if x.cell.method != "aligned" and x.step]
    if not trained:
        return ""
    shares = sorted({line.share for line in trained})
    data = listed(f"with {100 * s:g} % harmful pairs" if s else "on benign data" for s in shares)
    return f"Fine-tuned {data}, {seeds(trained)} a line."


def seeds(lines: Iterable[Line]) -> str:
    """How many the fine-tuned lines have; not the aligned model, which no seed enters."""
    wanted = sorted({line.wanted for line in lines if line.cell.method != "aligned"})
    return f"{listed(wanted)} {'seed' if wanted == [1] else 'seeds'}"


def second_judge(lines: Iterable[Line]) -> dict[str, str]:
    """The columns of a table of both judges: what the records have of the second."""
    found: dict[str, str] = {}
    for key, name in JUDGED.items():
        if any(line.counts(f"{key}_second") for line in lines):
            found |= {f"{name}: keywords": key, f"{name}: second judge": f"{key}_second"}
            found |= {f"{name}: both agree": f"{key}_agree"}
    return found


def tasks_of(lines: Iterable[Line]) -> dict[str, str]:
    """The tasks that any of the lines was trained and measured on, each by its own name."""
    found = {task: task for x in lines for task in x.cell.tasks if x.counts(task)}
    return found or {task: task for task in TASKS}


def methods(lines: Iterable[Line], recommended: str) -> list[dict[str, str]]:
    """What each method minimises; those of a trade-off with all of their weights."""
    cells: dict[str, tuple[Cell, list[str]]] = {}
    for line in lines:
        name, weight = (
            (line.group, [line.label]) if line.section == "trade_off" else (line.label, [])
        )
        cells.setdefault(name, (line.cell, []))[1].extend(weight)
    bold = {name: f"**{name}**" if name == recommended else name for name in cells}
    return [{":method": bold[x], ":what it minimises": describe(*cells[x])} for x in cells]


def prompts(lines: list[Line]) -> str:
    """How many of each a model is asked, as counted in the records."""
    named = PROMPTS | {task: f"of the {task} task" for task in tasks_of(lines)}
    sizes = {key: sorted({n for line in lines for _, n in line.counts(key)}) for key in named}
    asked = listed(f"{listed(n)} {named[key]}" for key, n in sizes.items() if n)
    return asked or NOT_MEASURED


def environment(frame: pd.DataFrame) -> str:
    """Every key with its values; of the dates the first and the last."""
    known = pd.DataFrame(list(frame.drop_duplicates("record").environment.dropna()))
    told = {key: sorted(known[key].dropna().unique()) for key in known}
    seconds = known.get("seconds", pd.Series(dtype=float)).dropna().astype(float).sum()
    parts = [
        f"{key} {' to '.join(dict.fromkeys([x[0], x[-1]])) if key == 'date' else ', '.join(x)}"
        for key, x in told.items()
        if key != "seconds"
    ]
    hours = [f"{seconds / 3600:.1f} hours of computing in all"] if seconds else []
    return "; ".join(parts + hours) or "not recorded"


def not_run(records: pd.DataFrame) -> list[str]:
    """What has no record yet: lines of groups that have others, and whole groups."""
    some: dict[str, list[str]] = {}
    whole = []
    for (section, group), rows in records.groupby(["section", "group"], sort=False):
        tuned = rows[rows.label != "aligned"]
        unrun = tuned[tuned.record.isna()]
        name = f"the weights of {group}" if section == "trade_off" else str(group)
        if not len(unrun):
            continue
        if len(unrun) == len(tuned):
            whole.append(name)
        else:
            labels = ", ".join(f'"{label}"' for label in unrun.label.unique())
            some.setdefault(labels, []).append(name)
    told = [f"{listed(names)}: {labels}" for labels, names in some.items()]
    return told + ([f"all of: {'; '.join(whole)}"] if whole else [])
