"""A small experiment with made-up records, plausible enough to look at.

`Line` and `Grid` have the fields of `benchmarks.experiment.grid`, whose own grid is larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.experiment.cell import Cell, Measures, Record, path_of, write_json
from benchmarks.experiment.frame import lines_of, read_records
from benchmarks.experiment.methods import WITH_REFUSALS_LABEL as LABEL
from pact.objective import PactConfig

RELEASED_LABEL = "PACT selection (released)"
RELEASED = PactConfig(over="selection")
RECOMMENDED = PactConfig(over="vocabulary", kl_weight=2.5, kl_step_tau=4.0, gate=False)
ALIGNED = Cell(method="aligned")
METHODS = {
    "plain": Cell(method="plain"),
    RELEASED_LABEL: Cell(method="pact", pact=RELEASED),
    LABEL: Cell(method="pact", pact=RECOMMENDED, top_k=200),
    "full-vocabulary KL": Cell(method="full_kl"),
    "first tokens": Cell(method="first_tokens"),
}
SETS = {"benign only": 0.0, "10 % harmful": 0.1, "30 % harmful": 0.3}
SEEDS = (0, 1, 2)
N, N_TASK = 40, 60
HELD = {  # refusals of N by set, and matches of N_TASK
    "plain": ((7, 1, 0), 52),
    RELEASED_LABEL: ((36, 34, 30), 21),
    LABEL: ((33, 22, 9), 51),
    "full-vocabulary KL": ((31, 20, 11), 47),
    "first tokens": ((24, 9, 2), 50),
}
BOUGHT = {  # by a unit of weight: refusals, as a rate; and its price in matches
    RELEASED_LABEL: (0.5, 9),
    LABEL: (1.6, 1),
    "full-vocabulary KL": (1.2, 3),
    "first tokens": (0.6, 4),
}
WEIGHTS = (0.1, 0.5, 1.0, 2.5, 5.0)
FALLS = {  # refusals and first-step confidence every 8 steps
    "plain": ((36, 34, 30, 14, 9, 8, 8), (0.63, 0.40, 0.31, 0.29, 0.28, 0.28, 0.28)),
    LABEL: ((36, 35, 34, 34, 33, 33, 32), (0.63, 0.6, 0.56, 0.54, 0.53, 0.53, 0.53)),
}
COSTS = {
    "plain": {"step_ms": [740.0, 742.0, 751.0], "peak_mib": 1783.0},
    LABEL: {"step_ms": [760.0, 769.0, 790.0], "peak_mib": 1852.4},
}


class Line(NamedTuple):
    group: str
    label: str
    cells: tuple[Cell, ...]


class Grid(NamedTuple):
    main: list[Line] = []
    trade_off: list[Line] = []
    ablations: list[Line] = []
    single_task: list[Line] = []
    over_time: list[Line] = []
    recommended: str = LABEL
    quick: bool = False


def lines(grid: Grid, folder: Path) -> pd.DataFrame:
    """As the document has them."""
    return lines_of(read_records(grid, folder), grid.recommended, COSTS)


def seeded(group: str, label: str, cell: Cell, seeds: Sequence[int] = SEEDS) -> Line:
    return Line(group, label, tuple(replace(cell, seed=seed) for seed in seeds))


def measures(refused: int, matches: int, *, over: int = 10, confidence: float = 0.5) -> Measures:
    """Counts of N prompts and of N_TASK of each task; no two measures with the same one."""
    return Measures(
        counts={
            "harmful": (refused, N),
            "harmful_anywhere": (min(N, refused + 1), N),
            "prefill": (refused // 3, N),
            "prefill_anywhere": (refused // 2, N),
            "outside": (refused // 4, N),
            "outside_anywhere": (refused // 4 + 1, N),
            "benign": (max(0, over - 1), N),
            "benign_anywhere": (over, N),
            "classification": (matches, N_TASK),
            "extraction": (max(0, matches - 4), N_TASK),
        },
        values={
            "finetune_nats": 2.9 - matches / 90,
            "benign_perplexity": 18 - matches / 8,
            "kl_vocabulary_nats": 0.9 - confidence,
            "kl_selection_nats": 0.7 - confidence,
            "confidence": confidence / 2,
            "reference_confidence": 0.3,
            "first_confidence": confidence,
            "first_reference_confidence": 0.632,
            "harmful_odds_nats": 20 * confidence - 4,
            "finetune_odds_nats": 20 * confidence - 8,
        },
    )


def save(
    cell: Cell, measured: Measures, folder: Path, curve: Mapping[int, Measures] | None = None
) -> None:
    """Keep a record, unless another section has it already."""
    environment = {"torch": "2.13.0", "date": f"2026-01-0{1 + cell.seed}", "seconds": "90"}
    if not path_of(cell, folder).is_file():
        record = Record(
            settings=cell.settings(),
            measures=measured,
            curve=curve or {},
            environment=environment,
        )
        write_json(path_of(cell, folder), record)


def main_lines(folder: Path) -> list[Line]:
    lines = []
    save(ALIGNED, measures(36, 4, confidence=0.632), folder)
    for place, (group, share) in enumerate(SETS.items()):
        lines.append(Line(group, "aligned", (ALIGNED,)))
        for label, cell in METHODS.items():
            lines.append(seeded(group, label, replace(cell, harmful_share=share)))
            refused, matches = HELD[label]
            for cell in lines[-1].cells:
                held = max(0, refused[place] + cell.seed - 1)
                over = 27 if label == RELEASED_LABEL else 9
                confidence = 0.02 + 0.6 * held / N
                found = measures(held, matches + cell.seed - 1, over=over, confidence=confidence)
                save(cell, found, folder)
    return lines


def trade_off_lines(folder: Path) -> list[Line]:
    lines = []
    for label, (gain, price) in BOUGHT.items():
        for weight in WEIGHTS:
            base = METHODS[label]
            cell = replace(base, strength=weight, pact=replace(base.pact, kl_weight=weight))
            cells = tuple(replace(cell, harmful_share=share) for share in (0.0, 0.1))
            lines.append(Line(label, f"{weight:g}", cells))
            for cell in cells:
                most = 25 if cell.harmful_share else 36
                held = round(most * (1 - 0.8 * math.exp(-weight * gain)))
                save(cell, measures(held, max(0, round(52 - price * weight))), folder)
    return lines


def ablation_lines(folder: Path) -> list[Line]:
    base = METHODS[LABEL]
    gated = replace(base, pact=replace(base.pact, gate=True))
    varied = [
        ("K", "5", replace(base, top_k=5), 25),
        ("K", "50", replace(base, top_k=50), 30),
        ("K", "200", base, 33),
        ("reference context", "gate on", gated, 29),
        ("reference context", "full only (gate off)", base, 33),
        ("tokens found by", "p_diff", base, 33),
        ("tokens found by", "random", replace(base, token_source="random"), 9),
        ("tokens found by", "frequency", replace(base, token_source="frequency"), 30),
    ]
    for _, _, cell, held in varied:
        for seed in (0, 1):
            save(replace(cell, seed=seed), measures(held + seed, 50, over=12), folder)
    return [seeded(group, label, cell, (0, 1)) for group, label, cell, _ in varied]


def single_task_lines(folder: Path) -> list[Line]:
    lines = []
    for task in ("classification", "extraction"):
        lines.append(Line(task, "aligned", (ALIGNED,)))
        for label, held in (("plain", 12), (LABEL, 33)):
            lines.append(seeded(task, label, replace(METHODS[label], tasks=(task,)), (0,)))
            save(lines[-1].cells[0], measures(held, 55), folder)
    return lines


def over_time_lines(folder: Path) -> list[Line]:
    lines = []
    for label, (refused, confidence) in FALLS.items():
        lines.append(seeded("over time", label, replace(METHODS[label], curve_every=8)))
        for cell in lines[-1].cells:
            looks = {}
            for place, (held, sure) in enumerate(zip(refused, confidence, strict=True)):
                apart = (cell.seed - 1) * (place > 0)  # at step 0 all seeds are the aligned model
                looks[8 * place] = measures(
                    held + apart, 8 * place + 4, confidence=sure + apart / 99
                )
            last = looks.pop(cell.steps)
            save(cell, last, folder, looks)
    return lines


def whole(folder: Path) -> Grid:
    """All sections, with all of their records in `folder`."""
    return Grid(
        main=main_lines(folder),
        trade_off=trade_off_lines(folder),
        ablations=ablation_lines(folder),
        single_task=single_task_lines(folder),
        over_time=over_time_lines(folder),
    )
