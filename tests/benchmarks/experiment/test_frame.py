"""Seeds are pooled as they were counted, and what is missing stays missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.experiment.cell import Measures
from benchmarks.experiment.document import environment, not_run
from benchmarks.experiment.frame import ALL_TASKS, Pooled, lines_of, pool, read_records
from tests.benchmarks.experiment.synthetic import (
    ALIGNED,
    LABEL,
    METHODS,
    Grid,
    Line,
    lines,
    measures,
    save,
    seeded,
    whole,
)

PLAIN = METHODS["plain"]


def pooled(*seeds: object, name: str = "harmful") -> Pooled:
    return pool(pd.Series(seeds, name=name, dtype=object))


def plain(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> pd.Series:
    found = lines(Grid(main=[seeded("set", "plain", PLAIN, seeds)]), folder)
    assert len(found) == 1
    return found.iloc[0]


def test_counts_are_summed_and_have_their_wilson_interval() -> None:
    rate = pooled((3, 4), (1, 4))
    # Wilson of 4 in 8: 1/2 -+ z sqrt(1/32 + z^2/256) / (1 + z^2/8), z = 1.96
    assert (rate.low, rate.mean, rate.high) == pytest.approx((21.52, 50, 78.48), abs=0.01)
    assert rate.seeds == (75, 25)
    told = rate.text, rate.counted, rate.by_seed, rate.n
    assert told == ("50 % [22-78]", "4/8, 50 % [22-78]", "3, 1 of 4", 4)


def test_a_value_shows_its_range_where_seeds_differ() -> None:
    value = pooled(1.0, 4.0, 1.0, float("nan"), name="benign_perplexity")
    assert str(value) == "2.00 (1.00-4.00)"
    assert (value.low, value.high) == (1, 4)
    assert str(pooled(2.0)) == "2.000"
    assert pooled(-2.04).signed == "-2.0"


def test_what_no_seed_has_is_not_measured() -> None:
    nothing = pooled(float("nan"), None)
    assert not nothing and nothing == Pooled()
    assert {str(nothing), nothing.counted, nothing.by_seed, nothing.signed} == {"-"}


def test_a_line_is_the_sum_of_its_records(tmp_path: Path) -> None:
    for seed, refused, matches in ((0, 7, 50), (1, 5, 40), (2, 9, 45)):
        save(replace(PLAIN, seed=seed), measures(refused, matches), tmp_path)
    line = plain(tmp_path)
    assert line.harmful.by_seed == "7, 5, 9 of 40"
    # extraction is 4 behind classification: (50 + 46) + (40 + 36) + (45 + 41)
    assert line[ALL_TASKS].counted.startswith("258/360")
    assert line.benign_perplexity.mean == pytest.approx(18 - 45 / 8)
    assert (line["name"], str(line.step_ms), str(line.peak_mib)) == ("plain", "742", "1783")


def test_missing_seeds_are_told_and_not_filled_in(tmp_path: Path) -> None:
    save(replace(PLAIN, seed=1), measures(8, 50), tmp_path)
    one = plain(tmp_path)
    assert one["name"] == "plain (1 of 3 seeds)"
    assert str(one.harmful) == "20 % [10-35]"  # 8 of 40, not of 120
    assert one.cell == PLAIN  # whichever seed there is


def test_a_line_that_is_not_run_is_left_out_and_named(tmp_path: Path) -> None:
    save(PLAIN, measures(8, 50), tmp_path)
    new = replace(PLAIN, steps=7)
    main = [seeded("set", "plain", PLAIN, (0,)), seeded("set", "new", new), seeded("x", "new", new)]
    records = read_records(Grid(main=main), tmp_path)
    assert list(lines_of(records, "new", {})["name"]) == ["plain"]
    assert not_run(records) == {"set": '"new"', "x": '"new"'}


def test_a_measure_is_pooled_over_the_seeds_that_have_it(tmp_path: Path) -> None:
    save(PLAIN, measures(8, 50), tmp_path)
    few = measures(9, 51)
    counts = {key: n for key, n in few["counts"].items() if key != "outside"}
    save(replace(PLAIN, seed=1), Measures(counts=counts, values=few["values"]), tmp_path)
    line = plain(tmp_path, (0, 1))
    assert [len(line[key].seeds) for key in ("harmful", "outside", ALL_TASKS)] == [2, 1, 2]


def test_accuracy_is_of_the_tasks_that_were_trained(tmp_path: Path) -> None:
    cell = replace(PLAIN, tasks=("extraction",))
    save(cell, measures(8, 50), tmp_path)
    grid = Grid(single_task=[seeded("extraction", "plain", cell, (0,))])
    assert lines(grid, tmp_path)[ALL_TASKS].iloc[0].counted.startswith("46/60")


def test_the_aligned_model_is_no_set_by_itself(tmp_path: Path) -> None:
    save(ALIGNED, measures(36, 4), tmp_path)
    save(PLAIN, measures(8, 50), tmp_path)
    grid = Grid(main=[Line("set", "aligned", (ALIGNED,)), Line("other", "aligned", (ALIGNED,))])
    grid.main.append(seeded("set", "plain", PLAIN, (0,)))
    found = lines(grid, tmp_path)
    assert list(found.group + ": " + found.label) == ["set: aligned", "set: plain"]
    assert found.harmful_odds_nats_change.map(lambda x: x.signed).tolist() == ["-", "+0.0"]


def test_a_curve_has_every_step_that_was_looked_at(tmp_path: Path) -> None:
    curve = seeded("over time", "plain", replace(PLAIN, curve_every=8), (0, 1))
    looks = {step: measures(36 - step, step) for step in (0, 8, 16)}
    save(curve.cells[0], measures(7, 50), tmp_path, looks)
    del looks[16]
    save(curve.cells[1], measures(9, 52), tmp_path, looks)
    points = lines(Grid(over_time=[curve]), tmp_path)
    # at step 0 is the aligned model, which both start from
    told = points.set_index("step").harmful.map(lambda rate: rate.counted.split(",")[0])
    assert told.to_dict() == {0: "36/40", 8: "56/80", 16: "20/40", 48: "16/80"}
    assert list(points.lacking) == ["", "", " (1 of 2 seeds)", ""]


def test_shares_of_a_trade_off_are_kept_apart(tmp_path: Path) -> None:
    cells = (PLAIN, replace(PLAIN, harmful_share=0.1))
    for place, cell in enumerate(cells):
        save(cell, measures(8 - place, 50), tmp_path)
    found = lines(Grid(trade_off=[Line("plain", "1", cells)]), tmp_path)
    assert list(found.pairs) == ["0 %", "10 %"]
    assert [x.by_seed for x in found.harmful] == ["8 of 40", "7 of 40"]


def test_the_base_of_the_ablations_is_bold(tmp_path: Path) -> None:
    grid = whole(tmp_path)
    found = lines(grid, tmp_path)
    varied = found[found.section == "ablations"]
    assert list(varied.name[varied.bold]) == ["**200**", "**full only (gate off)**", "**p_diff**"]
    assert set(found.name[found.bold & (found.section == "main")]) == {f"**{LABEL}**"}
    few = lines(Grid(ablations=grid.ablations[:3]), tmp_path)
    assert not few.bold.any()  # each stands once


def test_a_section_of_nothing_but_the_main_tables_records_is_left_out(tmp_path: Path) -> None:
    save(PLAIN, measures(8, 50), tmp_path)
    main, again = (seeded(name, "plain", PLAIN, (0,)) for name in ("set", "K"))
    assert set(lines(Grid(main=[main], ablations=[again]), tmp_path).section) == {"main"}
    assert set(lines(Grid(ablations=[again]), tmp_path).section) == {"ablations"}


def test_the_records_say_where_they_are_from(tmp_path: Path) -> None:
    records = read_records(whole(tmp_path), tmp_path)
    hours = 90 * len(list(tmp_path.glob("*.json"))) / 3600
    assert environment(records) == (
        "torch 2.13.0; date 2026-01-01, 2026-01-02, 2026-01-03; "
        f"{hours:.1f} hours of computing in all"
    )
    assert not_run(records) == {}
