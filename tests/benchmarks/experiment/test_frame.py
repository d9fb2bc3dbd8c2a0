"""Seeds are pooled as they were counted, and what is missing stays missing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from benchmarks.experiment.frame import (
    ALL_TASKS,
    NOT_MEASURED,
    Line,
    base_of,
    lines_of,
    read_records,
)
from benchmarks.experiment.record import Measures
from benchmarks.experiment.words import environment, not_run
from tests.benchmarks.experiment import synthetic
from tests.benchmarks.experiment.synthetic import (
    ALIGNED,
    METHODS,
    Grid,
    measures,
    save,
    seeded,
    whole,
)

PLAIN = METHODS["plain"]


def line(*counts: tuple[int, int], **values: list[float]) -> Line:
    seeds = {"record": list(map(str, counts)), "harmful": list(counts), **values}
    known = {"section": "main", "group": "set", "label": "plain", "share": 0.0, "step": 48}
    return Line(**known, cell=PLAIN, wanted=len(counts), seeds=seeds)


def plain(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Line:
    (found,) = synthetic.lines(Grid(main=[seeded("set", "plain", PLAIN, seeds)]), folder)["main"]
    return found


def test_counts_are_summed_and_have_their_wilson_interval() -> None:
    pooled = line((3, 4), (1, 4))
    rate = pooled.rate("harmful")
    # Wilson of 4 in 8: 1/2 -+ z sqrt(1/32 + z^2/256) / (1 + z^2/8), z = 1.96
    assert rate is not None and (rate.successes, rate.n, rate.rate) == (4, 8, 0.5)
    assert (rate.low, rate.high) == pytest.approx((0.2152, 0.7848), abs=1e-4)
    assert pooled.counted("harmful") == "4/8, 50 % [22-78]"


def test_a_mean_over_seeds_weighs_seeds_of_unlike_size_alike() -> None:
    pooled = line((1, 2), (0, 8))
    assert pooled.percent("harmful") == Fraction(25)
    assert pooled.show("harmful").startswith("10 %")
    assert pooled["seeds"] == "1/2, 0/8"


def test_a_value_shows_its_range_where_seeds_differ() -> None:
    pooled = line((1, 2), benign_perplexity=[1.0, 4.0, 1.0, float("nan")], finetune_nats=[2.0])
    assert pooled.show("benign_perplexity") == "2.00 (1.00-4.00)"
    assert pooled.show("finetune_nats") == "2.000"


def test_a_line_is_the_sum_of_its_records(tmp_path: Path) -> None:
    for seed, refused, matches in ((0, 7, 50), (1, 5, 40), (2, 9, 45)):
        save(replace(PLAIN, seed=seed), measures(refused, matches), tmp_path)
    pooled = plain(tmp_path)
    assert pooled["seeds"] == "7, 5, 9 of 40"
    # extraction is 4 behind classification: (50 + 46) + (40 + 36) + (45 + 41)
    assert pooled.counted(ALL_TASKS).startswith("258/360")
    assert pooled.spread("benign_perplexity")[0] == pytest.approx(18 - 45 / 8)
    assert pooled["name"] == "plain"
    assert pooled["cost"] == "742 | 1783"


def test_missing_seeds_are_told_and_not_filled_in(tmp_path: Path) -> None:
    save(replace(PLAIN, seed=1), measures(8, 50), tmp_path)
    one = plain(tmp_path)
    assert one["name"] == "plain (1 of 3 seeds)"
    assert one["harmful"] == "20 % [10-35]"  # 8 of 40, not of 120


def test_a_line_that_is_not_run_has_dashes_where_another_of_its_group_is(tmp_path: Path) -> None:
    save(PLAIN, measures(8, 50), tmp_path)
    new = replace(PLAIN, steps=7)
    main = [seeded("set", "plain", PLAIN, (0,)), seeded("set", "new", new), seeded("x", "new", new)]
    records = read_records(Grid(main=main), tmp_path, "a model")
    plain_line, unrun = lines_of(records, "new", {}, with_unrun=True)["main"]
    assert plain_line.is_run and not unrun.is_run
    assert unrun["name"] == "**new** (not run)" and unrun["group"] == "set"
    for key in ("harmful", "seeds", "drift", "finetune_nats", "outside", "accuracy"):
        assert unrun[key] == "-"
    assert unrun["cost"] == unrun["harmful_odds_nats"] == "- | -"
    assert len(lines_of(records, "new", {})["main"]) == 1


def test_a_measure_is_pooled_over_the_seeds_that_have_it(tmp_path: Path) -> None:
    save(PLAIN, measures(8, 50), tmp_path)
    few = measures(9, 51)
    counts = {key: n for key, n in few.counts.items() if key not in ("outside", "extraction")}
    save(replace(PLAIN, seed=1), Measures(counts=counts, values=few.values), tmp_path)
    pooled = plain(tmp_path, (0, 1))
    # both tasks of the first seed alone
    asked = {key: pooled.rate(key).n for key in ("harmful", "outside", ALL_TASKS)}
    assert asked == {"harmful": 80, "outside": 40, ALL_TASKS: 120}
    assert pooled["never asked"] == NOT_MEASURED


def test_accuracy_is_of_the_tasks_that_were_trained(tmp_path: Path) -> None:
    cell = replace(PLAIN, tasks=("extraction",))
    save(cell, measures(8, 50), tmp_path)
    grid = Grid(single_task=[seeded("extraction", "plain", cell, (0,))])
    (pooled,) = synthetic.lines(grid, tmp_path)["single_task"]
    assert pooled.counts(ALL_TASKS) == [(46, 60)]
    assert pooled["accuracy"].startswith("77 %")


def test_the_aligned_model_counts_once_and_is_no_set_by_itself(tmp_path: Path) -> None:
    save(ALIGNED, measures(36, 4), tmp_path)
    save(PLAIN, measures(8, 50), tmp_path)
    grid = Grid(main=[seeded("set", "aligned", ALIGNED), seeded("other", "aligned", ALIGNED)])
    grid.main.append(seeded("set", "plain", PLAIN, (0,)))
    aligned, _ = synthetic.lines(grid, tmp_path)["main"]
    assert (aligned.wanted, aligned.counts("harmful")) == (1, [(36, 40)])


def test_a_curve_has_the_steps_of_all_seeds_and_the_last(tmp_path: Path) -> None:
    curve = seeded("over time", "plain", replace(PLAIN, curve_every=8), (0, 1))
    looks = {step: measures(36 - step, step) for step in (0, 8, 16)}
    save(curve.cells[0], measures(7, 50), tmp_path, looks)
    del looks[16]
    save(curve.cells[1], measures(9, 52), tmp_path, looks)
    points = synthetic.lines(Grid(over_time=[curve]), tmp_path)["over_time"]
    # at step 0 is the aligned model, which both start from
    asked = {point.step: point.counted("harmful").split(",")[0] for point in points}
    assert asked == {0: "36/40", 8: "56/80", 48: "16/80"}
    assert all(point.lacking == "" for point in points)


def test_shares_of_a_trade_off_are_kept_apart(tmp_path: Path) -> None:
    cells = (PLAIN, replace(PLAIN, harmful_share=0.1))
    for place, cell in enumerate(cells):
        save(cell, measures(8 - place, 50), tmp_path)
    grid = Grid(trade_off=[synthetic.Line("plain", "1", cells)])
    pooled = synthetic.lines(grid, tmp_path)["trade_off"]
    assert [(x["share"], x["seeds"]) for x in pooled] == [("0 %", "8 of 40"), ("10 %", "7 of 40")]


def test_the_base_of_the_ablations_is_bold(tmp_path: Path) -> None:
    found = synthetic.lines(whole(tmp_path), tmp_path)["ablations"]
    bold = [x["name"] for x in found if "*" in x["name"]]
    assert bold == ["**200**", "**off**", "**p_diff**"]
    assert base_of(found) == METHODS["PACT recommended"]
    assert base_of(found[:3]) is None  # each stands once


def test_the_frame_says_where_it_is_from_and_what_it_lacks(tmp_path: Path) -> None:
    grid = whole(tmp_path)
    frame = read_records(grid, tmp_path, "a model")
    hours = 90 * len(list(tmp_path.glob("*.json"))) / 3600
    assert environment(frame) == (
        f"torch 2.13.0; date 2026-01-01 to 2026-01-03; {hours:.1f} hours of computing in all"
    )
    assert set(frame.model) == {"a model"}
    assert not_run(frame) == []
    new = replace(PLAIN, steps=7)
    more = [seeded(name, "new", new) for name in ("benign only", "30 % harmful", "40 % harmful")]
    told = not_run(read_records(grid._replace(main=[*grid.main, *more]), tmp_path, "a model"))
    assert told == ['benign only and 30 % harmful: "new"', "all of: 40 % harmful"]
