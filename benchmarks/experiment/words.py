"""A cell's settings, a section's data and the records' surroundings in words."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

import pandas as pd

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.frame import LINE

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
