"""The grid: what it must hold, and that nothing is computed twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from benchmarks.experiment.grid import (
    DEFAULT_LABEL,
    LEFT_OUT,
    METHODS,
    RECOMMENDED_LABEL,
    full_grid,
    quick_grid,
)
from pact.objective import PactConfig


def test_the_main_table_has_every_method_on_the_sets_it_is_for() -> None:
    grid = full_grid()
    groups = {line.group for line in grid.main}
    assert groups == {"benign only", "10 % harmful", "30 % harmful"}
    for group in groups:
        lines = [line for line in grid.main if line.group == group]
        assert [line.label for line in lines] == [
            "aligned",
            *(label for label in METHODS if label not in LEFT_OUT.get(group, ())),
        ]
        for line in lines[1:]:
            assert sorted(cell.seed for cell in line.cells) == [0, 1, 2]
            assert len({replace(cell, seed=0) for cell in line.cells}) == 1
    shares = Counter(cell.harmful_share for line in grid.main for cell in line.cells)
    assert shares == {0.0: 10 * 3 + 3, 0.1: 9 * 3, 0.3: 5 * 3}  # three lines of the aligned model


def test_the_released_objective_stays_and_the_default_is_recommended() -> None:
    assert METHODS["PACT selection (released)"].pact == PactConfig(over="selection")
    assert METHODS[DEFAULT_LABEL].pact == METHODS[RECOMMENDED_LABEL].pact == PactConfig()
    assert full_grid().recommended == RECOMMENDED_LABEL


def test_every_ablation_changes_one_thing() -> None:
    """All lines of a group agree but for a field, or for the fields of one kind of gate."""
    for group in {line.group for line in full_grid().ablations}:
        lines = [line for line in full_grid().ablations if line.group == group]
        labels = [line.label for line in lines]
        assert len(set(labels)) == len(labels)
        cells = [line.cells[0].settings() for line in lines]
        flat = [{**cell.pop("pact", {}), **cell} for cell in cells]
        varied = {name for cell in flat for name in cell if cell[name] != flat[0].get(name)}
        gates = {name for name in varied if name.startswith("gate")}
        allowed = 5 if gates and group == "reference context" else 1
        if group == "what is trained":  # plain reads none of the objective's settings
            varied = varied & {"full_finetuning"}
        assert len(varied) <= allowed, (group, varied)


def test_trade_offs_have_five_weights_each() -> None:
    weights = Counter(line.group for line in full_grid().trade_off)
    assert set(weights.values()) == {5}
    assert len(weights) == 4


def test_no_cell_is_computed_twice() -> None:
    for grid in (full_grid(), quick_grid()):
        cells = grid.cells()
        assert len({cell.name for cell in cells}) == len(cells)
        assert cells[0].method == "aligned"
    assert len(quick_grid().cells()) < len(full_grid().cells()) / 4


def test_costs_are_of_every_method_and_of_benign_data() -> None:
    priced = full_grid().priced()
    assert list(priced) == list(METHODS)
    assert all(cell.harmful_share == 0.0 for cell in priced.values())
