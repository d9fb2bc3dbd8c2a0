"""Which cells the experiment has: the main table, the trade-off, the ablations, the drift.

Cells that stand in several of them are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.experiment.ablations import ablations
from benchmarks.experiment.alignment import Alignment
from benchmarks.experiment.cell import TASKS, Cell
from benchmarks.experiment.methods import (
    ALIGNED,
    ANCHORED,
    ANCHORED_LABEL,
    ANCHORS_ONLY_LABEL,
    FIRST_TOKENS,
    FULL_KL,
    LEFT_OUT,
    METHODS,
    RELEASED,
    SAFE_LORA_LABEL,
    SETS,
    WITH_REFUSALS,
    WITH_REFUSALS_LABEL,
)
from benchmarks.experiment.protocol import Prompts, Protocol

SEEDS = (0, 1, 2)
ONE_SEED = (0,)
LAMBDAS = (0.3, 1.0, 3.0, 10.0, 30.0)
QUICK_STEPS = 16
NOT_QUICK = {
    "PACT default, margin",
    "PACT lambda 30, 10 % refusals",
    "plain, 10 % refusals",
    "safety-token logits",
    "Lisa",
    SAFE_LORA_LABEL,
}
"""Variants of methods that the quick form has already, and rivals for time."""


class Line(NamedTuple):
    """A line of a table, or a point of a curve."""

    group: str
    label: str
    cells: tuple[Cell, ...]
    """One a seed."""


class Grid(NamedTuple):
    """All lines, by the table or picture that shows them."""

    main: list[Line]
    """Groups are fine-tuning sets, labels methods."""
    trade_off: list[Line]
    """Groups are methods, labels weights."""
    ablations: list[Line]
    """Groups are what is varied, labels its values."""
    single_task: list[Line]
    """Groups are the task that is fine-tuned on alone, labels methods."""
    over_time: list[Line]
    """Measured on their way."""
    recommended: str
    """A label of main."""
    quick: bool
    protocol: Protocol

    def lines(self) -> Iterator[Line]:
        for part in (self.main, self.over_time, self.single_task, self.ablations, self.trade_off):
            yield from part

    def only(
        self,
        *,
        methods: Sequence[str] | None = None,
        sets: Sequence[str] | None = None,
        ablations: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Grid:
        """A part of the grid.

        Args:
            methods: labels of the main table. Its other lines but for the aligned model's, and all
                other tables, are left out.
            sets: groups of the main table, likewise.
            ablations: beginnings of groups of the ablations. The others, and all other tables but
                for what `methods` and `sets` name, are left out.
            seeds: the cells of other seeds are left out of every table; the aligned model has none.

        Raises:
            ValueError: the grid has no such method, set, group or seed, or nothing is left.
        """
        groups = [line.group for line in self.main]
        labels = [line.label for line in self.main]
        found = [cell.seed for line in self.main for cell in line.cells]
        for name, given, known in (
            ("--methods", methods, labels),
            ("--sets", sets, groups),
            ("--seeds", seeds, found),
        ):
            if unknown := [value for value in given or () if value not in known]:
                raise ValueError(
                    f"{name} must be of {', '.join(map(str, dict.fromkeys(known)))}, got "
                    f"{unknown[0]}"
                )
        grid = self
        if methods is not None or sets is not None or ablations is not None:
            main = self._main_of(methods, sets) if methods or sets else []
            varied = _beginning(self.ablations, ablations or ())
            empty: Any = dict.fromkeys(PARTS, [])
            grid = self._replace(**empty | {"main": main, "ablations": varied})
        if seeds is not None:
            parts: Any = {part: _of_seeds(getattr(grid, part), seeds) for part in PARTS}
            grid = grid._replace(**parts)
        return grid

    def _main_of(self, methods: Sequence[str] | None, sets: Sequence[str] | None) -> list[Line]:
        main = [
            line
            for line in self.main
            if (methods is None or line.label in ("aligned", *methods))
            and (sets is None or line.group in sets)
        ]
        if all(line.label == "aligned" for line in main):
            raise ValueError("these methods are not tried on these sets: give others")
        return main

    def cells(self) -> list[Cell]:
        """Each once: first what shows all tables with one seed, then the other seeds."""
        cells = dict.fromkeys(cell for line in self.lines() for cell in line.cells)
        return sorted(cells, key=lambda cell: cell.seed)

    def priced(self) -> dict[str, Cell]:
        """By method, a cell whose training is timed."""
        lines = {line.label: line.cells[0] for line in self.main if line.label != "aligned"}
        return {label: replace(cell, harmful_share=0.0) for label, cell in lines.items()}


PARTS = ("main", "trade_off", "ablations", "single_task", "over_time")
"""The tables of a grid."""


def without_base(grid: Grid) -> Grid:
    """What can be computed of a model whose base is not at hand, and nothing of it twice.

    Its tokens are found against the plainly fine-tuned model anyway.
    """
    parts: Any = {
        part: [
            line
            for line in getattr(grid, part)
            if line.cells[0].method != "safe_lora" and line.cells[0].token_source != "plain"
        ]
        for part in PARTS
    }
    return grid._replace(**parts)


def full_grid() -> Grid:
    """What `make experiment` computes."""
    return Grid(
        main=_main(METHODS, SETS, SEEDS),
        trade_off=list(_trade_off(LAMBDAS)),
        ablations=[_line(*one, ONE_SEED) for one in ablations()],
        single_task=[
            _line(name, label, replace(METHODS[label], tasks=(name,)), ONE_SEED)
            for name in TASKS
            for label in ("plain", WITH_REFUSALS_LABEL)
        ],
        over_time=[
            _line("over time", label, replace(METHODS[label], curve_every=6), ONE_SEED)
            for label in ("plain", WITH_REFUSALS_LABEL)
        ],
        recommended=ANCHORS_ONLY_LABEL,
        quick=False,
        protocol=Protocol(),
    )


def quick_grid() -> Grid:
    """A few cells of everything on a third of the steps: that it works, and a direction."""
    methods = {
        label: replace(cell, steps=QUICK_STEPS)
        for label, cell in METHODS.items()
        if label not in NOT_QUICK
    }
    some = {label: methods[label] for label in ("plain", WITH_REFUSALS_LABEL)}
    sets = {name: SETS[name] for name in ("benign only", "10 % harmful")}
    return Grid(
        main=_main(methods, sets, ONE_SEED),
        trade_off=[],
        ablations=[],
        single_task=[],
        over_time=[
            _line("over time", label, replace(cell, curve_every=QUICK_STEPS // 4), ONE_SEED)
            for label, cell in some.items()
        ],
        recommended=ANCHORS_ONLY_LABEL,
        quick=True,
        protocol=Protocol(alignment=Alignment(steps=60), prompts=Prompts(outside=10, heldout=20)),
    )


def _beginning(lines: Sequence[Line], names: Iterable[str]) -> list[Line]:
    """Lines whose group begins with one of the names."""
    groups = {line.group for line in lines}
    for name in names:
        if not any(group.startswith(name) for group in groups):
            raise ValueError(
                f"--ablations must begin one of {', '.join(sorted(groups)) or 'none'}, got {name}"
            )
    return [line for line in lines if line.group.startswith(tuple(names))]


def _of_seeds(lines: Iterable[Line], seeds: Sequence[int]) -> list[Line]:
    """Lines with the cells of some seeds; those without any are left out."""
    kept = [
        line._replace(
            cells=tuple(cell for cell in line.cells if cell.seed in seeds or cell == ALIGNED)
        )
        for line in lines
    ]
    return [line for line in kept if line.cells]


def _line(group: str, label: str, cell: Cell, seeds: Iterable[int]) -> Line:
    return Line(group, label, tuple(replace(cell, seed=seed) for seed in seeds))


def _main(
    methods: Mapping[str, Cell], sets: Mapping[str, float], seeds: Iterable[int]
) -> list[Line]:
    lines = []
    for name, share in sets.items():
        lines.append(Line(name, "aligned", (ALIGNED,)))
        for label, cell in methods.items():
            if label not in LEFT_OUT.get(name, ()):
                lines.append(_line(name, label, replace(cell, harmful_share=share), seeds))
    return lines


def _weighted(cell: Cell, weight: float) -> Cell:
    if cell.method == "pact":
        return replace(cell, pact=replace(cell.pact, kl_weight=weight))
    return replace(cell, strength=weight)


def _trade_off(weights: Sequence[float]) -> Iterator[Line]:
    """With harmful pairs in the data; what holds without them, on benign data too."""
    compared = {
        "PACT selection (released)": (RELEASED, (0.1,)),
        WITH_REFUSALS_LABEL: (WITH_REFUSALS, (0.1,)),
        ANCHORED_LABEL: (ANCHORED, (0.0, 0.1)),
        "full-vocabulary KL": (FULL_KL, (0.1,)),
        "first tokens": (FIRST_TOKENS, (0.1,)),
    }
    for label, (base, shares) in compared.items():
        for share in shares:
            for weight in weights:
                cell = replace(_weighted(base, weight), harmful_share=share)
                yield _line(label, f"{weight:g}", cell, ONE_SEED)
