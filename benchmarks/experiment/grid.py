"""Which cells the experiment has: the main table, the trade-off, the ablations, the drift.

Cells that stand in several of them are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

from benchmarks.experiment.alignment import Alignment
from benchmarks.experiment.cell import TASKS, Cell
from benchmarks.experiment.protocol import Prompts, Protocol
from pact.objective import PactConfig
from pact.training.config import TrainConfig

SEEDS = (0, 1, 2)
ONE_SEED = (0,)
SETS = {"benign only": 0.0, "10 % harmful": 0.1, "30 % harmful": 0.3}
LAMBDAS = (0.3, 1.0, 3.0, 10.0, 30.0)

MIXED = TrainConfig.refusal_share
"""Refusals among the fine-tuning examples, where they are mixed in."""
ABLATION_SHARE = 0.1
"""Harmful pairs in the data of the ablations: enough that plain fine-tuning loses all refusals."""
QUICK_STEPS = 16
POST_ALONE = {
    "gate_alpha": 0.0,
    "gate_bias": 0.0,
    "gate_prefix_boost": 2.0,
    "gate_prefix_length": 10**6,
}
"""A gate that is 1 at every step: sigmoid(0) times 2."""

ALIGNED = Cell(method="aligned")
PLAIN = Cell(method="plain")
RELEASED = Cell(method="pact", pact=PactConfig(over="selection"))
"""The released objective, as released."""
VOCABULARY = Cell(
    method="pact",
    pact=PactConfig(
        over="vocabulary",
        kl_weight=1.0,
        kl_step_tau=inf,
        kl_margin=0.0,
        positive_only=False,
        gate=True,
    ),
)
"""The same settings over the vocabulary."""
DEFAULT = Cell(method="pact", pact=PactConfig())
"""The package's default."""
MARGIN = replace(DEFAULT, pact=PactConfig(kl_margin=1.5))
"""For data without refusals."""
RECOMMENDED = replace(DEFAULT, refusal_share=MIXED)
"""The default, with some of the refusals that discovery reads in the data too."""
FULL_KL = Cell(method="full_kl", strength=1.0)
FIRST_TOKENS = Cell(method="first_tokens", strength=1.0)

DEFAULT_LABEL = "PACT default"
RECOMMENDED_LABEL = "PACT default, 10 % refusals"
METHODS = {
    "plain": PLAIN,
    "PACT selection (released)": RELEASED,
    DEFAULT_LABEL: DEFAULT,
    "PACT default, margin": MARGIN,
    RECOMMENDED_LABEL: RECOMMENDED,
    "PACT lambda 30, 10 % refusals": replace(RECOMMENDED, pact=PactConfig(kl_weight=30.0)),
    "full-vocabulary KL": FULL_KL,
    "first tokens": FIRST_TOKENS,
    "plain, 5 % refusals": Cell(method="mixing", refusal_share=0.05),
    "plain, 10 % refusals": Cell(method="mixing", refusal_share=MIXED),
}
"""By their label in the tables, each at its own default."""
LEFT_OUT = {
    "10 % harmful": {"PACT default, margin"},
    "30 % harmful": {
        DEFAULT_LABEL,
        "PACT default, margin",
        "PACT lambda 30, 10 % refusals",
        "first tokens",
        "plain, 5 % refusals",
    },
}
"""By set, methods that are made for another one; from the last some are left out for time."""


NOT_QUICK = {"PACT default, margin", "PACT lambda 30, 10 % refusals", "plain, 10 % refusals"}
"""Variants of methods that the quick form has already."""


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

    def cells(self) -> list[Cell]:
        """Each once: first what shows all tables with one seed, then the other seeds."""
        cells = dict.fromkeys(cell for line in self.lines() for cell in line.cells)
        return sorted(cells, key=lambda cell: cell.seed)

    def priced(self) -> dict[str, Cell]:
        """By method, a cell whose training is timed."""
        lines = {line.label: line.cells[0] for line in self.main if line.label != "aligned"}
        return {label: replace(cell, harmful_share=0.0) for label, cell in lines.items()}


def full_grid() -> Grid:
    """What `make experiment` computes."""
    return Grid(
        main=_main(METHODS, SETS, SEEDS),
        trade_off=list(_trade_off((0.1,), LAMBDAS)),
        ablations=list(_ablations()),
        single_task=[
            _line(name, label, replace(METHODS[label], tasks=(name,)), ONE_SEED)
            for name in TASKS
            for label in ("plain", RECOMMENDED_LABEL)
        ],
        over_time=[
            _line("over time", label, replace(METHODS[label], curve_every=6), ONE_SEED)
            for label in ("plain", RECOMMENDED_LABEL)
        ],
        recommended=RECOMMENDED_LABEL,
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
    some = {label: methods[label] for label in ("plain", RECOMMENDED_LABEL)}
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
        recommended=RECOMMENDED_LABEL,
        quick=True,
        protocol=Protocol(alignment=Alignment(steps=60), prompts=Prompts(outside=10, heldout=20)),
    )


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
        return _pact(cell, kl_weight=weight)
    return replace(cell, strength=weight)


def _trade_off(shares: Iterable[float], weights: Iterable[float]) -> Iterator[Line]:
    compared = {
        "PACT selection (released)": RELEASED,
        RECOMMENDED_LABEL: RECOMMENDED,
        "full-vocabulary KL": FULL_KL,
        "first tokens": FIRST_TOKENS,
    }
    for share in shares:
        for label, base in compared.items():
            for weight in weights:
                cell = replace(_weighted(base, weight), harmful_share=share)
                yield _line(label, f"{weight:g}", cell, ONE_SEED)


def _ablations() -> Iterator[Line]:
    """One thing at a time; what needs a gate or the selection is varied where there is one."""
    ours = replace(DEFAULT, harmful_share=ABLATION_SHARE)
    gated = replace(VOCABULARY, harmful_share=ABLATION_SHARE)
    released = replace(RELEASED, harmful_share=ABLATION_SHARE)
    plain = replace(PLAIN, harmful_share=ABLATION_SHARE)

    def vary(group: str, cells: Mapping[str, Cell]) -> Iterator[Line]:
        for label, cell in cells.items():
            yield _line(group, label, cell, ONE_SEED)

    yield from vary("plain, for comparison", {"plain": plain})
    yield from vary("safety tokens K", {f"{k}": replace(ours, top_k=k) for k in (5, 20, 50, 200)})
    yield from vary(
        "decay of the step weights, tau",
        {
            "none" if tau == inf else f"{tau:g}": _pact(ours, kl_step_tau=tau)
            for tau in (0.5, 1.0, 4.0, inf)
        },
    )
    first = replace(ours, max_response_length=1)  # many tokens that refusals make less likely
    yield from vary(
        "safety tokens held, of the first step",
        {
            "of positive weight": _pact(first, positive_only=True),
            "all": _pact(first, positive_only=False),
        },
    )
    yield from vary(
        "margin, nats, on benign data",
        {f"{m:g}": _pact(DEFAULT, kl_margin=m) for m in (0.0, 1.5, 3.0)},
    )
    lengths = {f"{n}": replace(ours, max_response_length=n) for n in (1, 8)}
    yield from vary("answer steps that discovery looks at", lengths)
    yield from vary(
        "reference context",
        {
            "full only (gate off)": _pact(ours, gate=False),
            "gate on": _pact(ours, gate=True),
            "post-only alone": _pact(ours, gate=True, **POST_ALONE),
        },
    )
    yield from vary(
        "tokens found by",
        {
            "p_diff": ours,
            "frequency": replace(ours, token_source="frequency"),
            "random": replace(ours, token_source="random"),
        },
    )
    samples = {f"{n}": replace(ours, num_samples=n) for n in (8, 100)}
    yield from vary("refusals that discovery looks at", samples)
    yield from vary(
        "released: weights", {"discovered": released, "equal": replace(released, weighted=False)}
    )
    yield from vary(
        "released: temperature T",
        {f"{t:g}": _pact(released, kl_temperature=t) for t in (1.0, 2.0)},
    )
    yield from vary(
        "gated vocabulary: top_p", {f"{p:g}": _pact(gated, gate_top_p=p) for p in (0.5, 0.9)}
    )
    yield from vary(
        "gated vocabulary: prefix length",
        {f"{n}": _pact(gated, gate_prefix_length=n) for n in (2, 8)},
    )
    yield from vary(
        "what is trained",
        {
            "adapters, plain": plain,
            "adapters, PACT": ours,
            "all weights, plain": replace(plain, full_finetuning=True),
            "all weights, PACT": replace(ours, full_finetuning=True),
        },
    )


def _pact(cell: Cell, **changes: Any) -> Cell:
    return replace(cell, pact=replace(cell.pact, **changes))
