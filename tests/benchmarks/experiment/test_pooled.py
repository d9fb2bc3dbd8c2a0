"""Seeds are pooled as they were counted, and what is missing stays missing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.pooled import (
    ALL_TASKS,
    NOT_MEASURED,
    Mean,
    Share,
    pool,
    pool_curve,
    pool_grid,
)
from benchmarks.experiment.record import Measures
from tests.benchmarks.experiment.synthetic import (
    ALIGNED,
    Grid,
    Line,
    measures,
    save,
    seeded,
    whole,
)

PLAIN = Cell(method="plain")


def test_counts_are_summed_and_have_their_wilson_interval() -> None:
    share = Share.of([(3, 4), (1, 4)])
    # Wilson of 4 in 8: 1/2 -+ z sqrt(1/32 + z^2/256) / (1 + z^2/8), z = 1.96
    assert (share.rate.successes, share.rate.n, share.rate.rate) == (4, 8, 0.5)
    assert share.rate.low == pytest.approx(0.2152, abs=1e-4)
    assert share.rate.high == pytest.approx(0.7848, abs=1e-4)
    assert share.seed_percents == [75.0, 25.0]
    assert share.counted == "4/8, 50 % [22-78]"


def test_a_mean_over_seeds_weighs_seeds_of_unlike_size_alike() -> None:
    share = Share.of([(1, 2), (0, 8)])
    assert share.percent == 10
    assert share.mean_percent == Fraction(25)


def test_a_value_shows_its_range_where_seeds_differ() -> None:
    assert Mean.of([1.0, 4.0, 1.0]).text(".2f") == "2.00 (1.00-4.00)"
    assert Mean.of([2.0]).text(".2f") == "2.00"


def test_a_line_is_the_sum_of_its_records(tmp_path: Path) -> None:
    line = seeded("set", "plain", PLAIN)
    for cell, refused, matches in zip(line.cells, (7, 5, 9), (50, 40, 45), strict=True):
        save(cell, measures(refused, matches), tmp_path)
    pooled = pool(line, tmp_path)
    assert pooled.counts["harmful"].per_seed == ((7, 40), (5, 40), (9, 40))
    assert pooled.counts["harmful"].rate.successes == 21
    # extraction is 4 behind classification: (50 + 46) + (40 + 36) + (45 + 41)
    assert pooled.counts[ALL_TASKS].rate.successes == 258
    assert pooled.counts[ALL_TASKS].rate.n == 360
    assert pooled.values["benign_perplexity"].mean == pytest.approx(18 - 45 / 8)
    assert pooled.name == "plain"


def test_missing_seeds_are_told_and_not_filled_in(tmp_path: Path) -> None:
    line = seeded("set", "plain", PLAIN)
    nothing = pool(line, tmp_path)
    assert (nothing.measured, nothing.wanted, nothing.counts) == (0, 3, {})
    assert nothing.count("harmful") == nothing.value("finetune_nats", ".3f") == NOT_MEASURED
    save(line.cells[1], measures(8, 50), tmp_path)
    one = pool(line, tmp_path)
    assert one.name == "plain (1 of 3 seeds)"
    assert one.count("harmful") == "20 % [10-35]"  # 8 of 40, not of 120


def test_a_measure_is_pooled_over_the_seeds_that_have_it(tmp_path: Path) -> None:
    line = seeded("set", "plain", PLAIN, (0, 1))
    save(line.cells[0], measures(8, 50), tmp_path)
    few = measures(9, 51)
    counts = {key: n for key, n in few.counts.items() if key not in ("outside", "extraction")}
    save(line.cells[1], Measures(counts=counts, values=few.values), tmp_path)
    pooled = pool(line, tmp_path)
    assert pooled.counts["harmful"].rate.n == 80
    assert pooled.counts["outside"].rate.n == 40
    assert pooled.counts[ALL_TASKS].rate.n == 120  # both tasks of the first seed alone


def test_accuracy_is_of_the_tasks_that_were_trained(tmp_path: Path) -> None:
    cell = replace(PLAIN, tasks=("extraction",))
    save(cell, measures(8, 50), tmp_path)
    pooled = pool(Line("extraction", "plain", (cell,)), tmp_path)
    assert pooled.counts[ALL_TASKS].per_seed == ((46, 60),)


def test_the_aligned_model_counts_once(tmp_path: Path) -> None:
    line = seeded("set", "aligned", ALIGNED)  # no seed enters it
    save(line.cells[1], measures(36, 4), tmp_path)
    pooled = pool(line, tmp_path)
    assert (pooled.measured, pooled.wanted) == (1, 1)
    assert pooled.counts["harmful"].rate.n == 40


def test_a_curve_has_the_steps_of_all_seeds_and_the_last(tmp_path: Path) -> None:
    line = seeded("over time", "plain", replace(PLAIN, curve_every=8), (0, 1))
    looks = {step: measures(36 - step, step) for step in (0, 8, 16)}
    save(line.cells[0], measures(7, 50), tmp_path, looks)
    del looks[16]
    save(line.cells[1], measures(9, 52), tmp_path, looks)
    points = pool_curve(line, tmp_path).points
    assert list(points) == [0, 8, 48]
    assert points[0].counts["harmful"].rate.n == 40  # the aligned model, which both start from
    assert points[8].counts["harmful"].rate.n == 80
    assert points[48].counts["harmful"].rate.successes == 16


def test_a_curve_without_records_has_no_points(tmp_path: Path) -> None:
    line = seeded("over time", "plain", replace(PLAIN, curve_every=8))
    assert pool_curve(line, tmp_path).points == {}


def test_shares_of_a_trade_off_are_kept_apart(tmp_path: Path) -> None:
    cells = (PLAIN, replace(PLAIN, harmful_share=0.1))
    for place, cell in enumerate(cells):
        save(cell, measures(8 - place, 50), tmp_path)
    lines = pool_grid(Grid(trade_off=[Line("plain", "1", cells)]), tmp_path).trade_off
    assert [line.counts["harmful"].rate.successes for line in lines] == [8, 7]


def test_the_environment_is_merged_and_its_seconds_summed(tmp_path: Path) -> None:
    results = pool_grid(whole(tmp_path), tmp_path)
    assert results.environment == {
        "torch": ["2.13.0"],
        "date": ["2026-01-01", "2026-01-02", "2026-01-03"],
    }
    assert results.computed_s == 90 * len(list(tmp_path.glob("*.json")))
