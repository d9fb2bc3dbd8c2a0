"""The grid: what it must hold, and that nothing is computed twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.experiment.grid import full_grid, quick_grid, without_base
from benchmarks.experiment.methods import (
    ANCHORED_LABEL,
    AT_EVERY_SHARE,
    DEFAULT_LABEL,
    LEFT_OUT,
    METHODS,
    SETS,
    WITH_REFUSALS_LABEL,
)
from pact.objective import PactConfig


def test_the_main_table_has_every_method_on_the_sets_it_is_for() -> None:
    grid = full_grid()
    groups = {line.group for line in grid.main}
    assert groups == set(SETS)
    assert list(SETS.values()) == [0.0, 0.05, 0.1, 0.2, 0.3]
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
    few = 3 * len(AT_EVERY_SHARE)
    assert shares == {0.0: 16 * 3 + 5, 0.05: few, 0.1: 15 * 3, 0.2: few, 0.3: 11 * 3}  # 5: aligned


def test_the_released_objective_stays_and_anchors_are_recommended() -> None:
    assert METHODS["PACT selection (released)"].pact == PactConfig(over="selection")
    assert METHODS[DEFAULT_LABEL].pact == METHODS[WITH_REFUSALS_LABEL].pact == PactConfig()
    assert METHODS[ANCHORED_LABEL].pact == PactConfig(kl_weight=30.0)
    alone = METHODS[full_grid().recommended].pact
    assert alone == PactConfig(kl_weight=30.0, anchors_only=True)
    assert quick_grid().recommended == full_grid().recommended


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


def test_rivals_are_varied_around_the_setting_of_the_main_table() -> None:
    rivals = [line for line in full_grid().ablations if line.group.startswith("rivals: ")]
    methods = {line.cells[0].method for line in rivals}
    assert methods == {"token_logits", "patch", "lisa", "safe_lora"}
    cells = [line.cells[0] for line in rivals]
    for method in methods:
        (own,) = (cell for cell in METHODS.values() if cell.method == method)
        assert replace(own, harmful_share=0.1) in cells
        assert len([cell for cell in cells if cell.method == method]) >= 3


def test_trade_offs_have_five_weights_each() -> None:
    lines = full_grid().trade_off
    weights = Counter((line.group, line.cells[0].harmful_share) for line in lines)
    assert set(weights.values()) == {5}
    assert [group for group, share in weights if not share] == [ANCHORED_LABEL]
    assert len(weights) == 6


def test_no_cell_is_computed_twice() -> None:
    for grid in (full_grid(), quick_grid()):
        cells = grid.cells()
        assert len({cell.name for cell in cells}) == len(cells)
        assert cells[0].method == "aligned"
    assert len(quick_grid().cells()) < len(full_grid().cells()) / 4


def test_a_part_of_the_grid_has_the_cells_that_are_named() -> None:
    grid = full_grid()
    part = grid.only(methods=["plain"], sets=["5 % harmful", "benign only"], seeds=[1])
    assert [(line.group, line.label, len(line.cells)) for line in part.lines()] == [
        ("benign only", "aligned", 1),
        ("benign only", "plain", 1),
        ("5 % harmful", "aligned", 1),
        ("5 % harmful", "plain", 1),
    ]
    assert {cell.seed for cell in part.cells() if cell.method == "plain"} == {1}
    assert set(part.cells()) <= set(grid.cells())
    varied = grid.only(ablations=["anchors"])
    assert {line.group.split(",")[0] for line in varied.lines()} == {"anchors"}
    both = grid.only(methods=["plain"], ablations=["anchors"])
    assert both.ablations == varied.ablations and len(both.main) == 2 * len(SETS)
    seeded = grid.only(seeds=[0, 2])
    assert {cell.seed for cell in seeded.cells()} == {0, 2}
    assert seeded.ablations == grid.ablations
    assert grid.only() == grid


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"methods": ["plane"]}, "--methods must be of aligned, plain, .*, got plane"),
        ({"sets": ["7 % harmful"]}, "--sets must be of benign only, .*, got 7 % harmful"),
        ({"ablations": ["color"]}, "--ablations must begin one of .*, got color"),
        ({"seeds": [3]}, "--seeds must be of 0, 1, 2, got 3"),
        ({"methods": ["Lisa"], "sets": ["5 % harmful"]}, "not tried on these sets"),
    ],
)
def test_a_part_that_there_is_not_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full_grid().only(**part)


def test_without_a_base_there_is_no_projection() -> None:
    kept, grid = without_base(full_grid()), full_grid()
    lost = set(grid.cells()) - set(kept.cells())
    assert {(cell.method, cell.token_source) for cell in lost} == {
        ("safe_lora", "p_diff"),
        ("pact", "plain"),  # where there is no base, p_diff is that already
    }
    assert len(lost) == 9 + 3 + 1


def test_costs_are_of_every_method_and_of_benign_data() -> None:
    priced = full_grid().priced()
    assert list(priced) == list(METHODS)
    assert all(cell.harmful_share == 0.0 for cell in priced.values())
