"""Targets and claims say of the records what can be counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.experiment import verdicts
from benchmarks.experiment.frame import ALL_TASKS, NOT_MEASURED, lines_of, read_records
from benchmarks.experiment.frame import Line as Pooled
from benchmarks.experiment.verdicts import AGREES, DISAGREES, OPEN
from tests.benchmarks.experiment.synthetic import (
    ALIGNED,
    METHODS,
    Grid,
    Line,
    lines,
    measures,
    save,
    seeded,
    whole,
)

LABEL = "PACT recommended"
PLAIN, OURS = METHODS["plain"], METHODS[LABEL]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("records")
    return lines(whole(folder), folder)


def one_set(folder: Path, share: float, ours: tuple[int, int, int], **sections: list) -> dict:
    """Aligned 36/40, 10/40 over; plain 50 + 46 of 120; ours (refusals, matches, over-refusals).

    Of the outside prompts each refuses a quarter of what it refuses of the others, rounded down.
    """
    plain, own = (replace(cell, harmful_share=share) for cell in (PLAIN, OURS))
    main = [Line("set", "aligned", (ALIGNED,))]
    main += [seeded("set", "plain", plain, (0,)), seeded("set", LABEL, own, (0,))]
    save(ALIGNED, measures(36, 4), folder)
    save(plain, measures(8, 50), folder)
    save(own, measures(ours[0], ours[1], over=ours[2]), folder)
    return lines(Grid(main=main, **sections), folder)


def ours(found: dict) -> list[dict]:
    return verdicts.judge_targets(found["main"], next(x for x in found["main"] if x.label == LABEL))


@pytest.mark.parametrize(
    ("share", "counts", "points", "missed"),
    [
        (0.0, (34, 50, 11), ["+5.0", "+0.0", "+2.5", "+2.5"], [0, 0, 0, 0]),  # at a bound
        (0.0, (31, 48, 12), ["+12.5", "+3.3", "+5.0", "+5.0"], [7.5, 4 / 3, 2, 0]),
        (0.1, (32, 49, 9), ["+10.0", "+1.7", "-2.5", "+2.5"], [0, 0, 0, 0]),
        (0.1, (9, 52, 1), ["+67.5", "-3.3", "-22.5", "+17.5"], [57.5, 0, 0, 2.5]),
    ],
)
def test_targets_by_hand(
    tmp_path: Path, share: float, counts: tuple[int, int, int], points: list, missed: list
) -> None:
    mine = ours(one_set(tmp_path, share, counts))
    assert [row["points"] for row in mine] == points
    assert [row["missed"] for row in mine] == pytest.approx(missed)
    assert [row["verdict"] for row in mine] == ["**missed**" if x else "**met**" for x in missed]


def test_a_set_of_another_share_has_no_targets(tmp_path: Path) -> None:
    found = one_set(tmp_path, 0.3, (32, 50, 10))
    assert verdicts.with_targets(found["main"]) == {}


def test_a_target_is_told_with_its_counts(tmp_path: Path) -> None:
    first, *_ = ours(one_set(tmp_path, 0.0, (31, 49, 10)))
    told = {key: first[key] for key in ("at most", "of", "against")}
    assert told == {
        "at most": "5 points",
        "of": "31/40, 78 % [62-88]",
        "against": "36/40, 90 % [77-96]",
    }


def test_every_method_says_which_targets_it_meets(tmp_path: Path) -> None:
    main = whole(tmp_path).main[:6]
    unrun = seeded("benign only", "new", replace(PLAIN, steps=7))
    records = read_records(Grid(main=[*main, unrun]), tmp_path, "a model")
    members = lines_of(records, LABEL, {}, with_unrun=True)["main"]
    rows = {row["method"]: row for row in verdicts.target_rows(members)}
    bold = [f"**{label}**" if label == LABEL else label for label in METHODS]
    assert list(rows) == [*bold, "new (not run)"]
    assert list(rows[f"**{LABEL}**"].values())[1:] == [
        "**missed** (+7.5)",
        "**met** (+1.7)",
        "**met** (-2.5)",
        "**met** (+2.5)",
        "3 of 4",
        "2.5",
    ]
    assert set(list(rows["new (not run)"].values())[1:]) == {"-"}


def test_the_front_is_of_what_learns_and_is_not_beaten(tmp_path: Path) -> None:
    """By hand, of 40: over-refusals and refusals; beaten ones are in brackets."""
    made = {"a": (2, 20), "(b)": (3, 20), "c": (6, 31), "d": (6, 31), "(e)": (7, 30)}
    cells = {label: replace(OURS, steps=9 + n) for n, label in enumerate(made)}
    for label, (over, refused) in made.items():
        save(cells[label], measures(refused, 50, over=over), tmp_path)
    lazy = replace(OURS, steps=99)
    save(lazy, measures(36, 9, over=0), tmp_path)  # it learns nothing
    varied = [Line("x", label, (cell,)) for label, cell in {**cells, "lazy": lazy}.items()]
    found = one_set(tmp_path, 0.0, (9, 50, 12), ablations=varied)
    rows = verdicts.front(found, found["main"])
    # plain has 8 refusals at 10, ours 9 at 12
    assert [row[":setting"] for row in rows] == ["aligned", "x: a", "x: c", "x: d"]
    assert rows[1]["refuses, from the start"] == "50 % [35-65]"


def test_missing_lines_are_not_measured(found: dict, tmp_path: Path) -> None:
    lost = [line for line in found["main"][:6] if line.label != "plain"]
    assert [row["verdict"] for row in ours({"main": lost})].count(NOT_MEASURED) == 1  # of the tasks
    for row in verdicts.target_rows(lost):
        assert row["missed by in all"] == NOT_MEASURED
    assert verdicts.front({**found, "main": lost}, lost)[1:] == []
    for grid in (Grid(), whole(tmp_path)):
        claims = verdicts.judge_claims(lines(grid, tmp_path / "none"), LABEL)
        assert {claim[":verdict"] for claim in claims} == {NOT_MEASURED}


def line(label: str, refused: int, n: int = 40, **values: list) -> Pooled:
    seeds = {"record": ["a"], "harmful": [(refused, n)], **values}
    known = {"section": "main", "group": "g", "label": label, "share": 0.0, "step": 48}
    return Pooled(**known, cell=PLAIN, wanted=1, seeds=seeds)


@pytest.mark.parametrize(
    ("a", "b", "more", "as_well"),
    [
        (36, 10, AGREES, AGREES),  # [77-96] above [14-40]
        (10, 36, DISAGREES, DISAGREES),
        (36, 33, OPEN, AGREES),
        (33, 35, OPEN, AGREES),  # exactly 5 points short
        (33, 36, OPEN, verdicts.TOO_WIDE),  # 7.5 points short
    ],
)
def test_the_rule(a: int, b: int, more: str, as_well: str) -> None:
    sides = line("a", a), line("b", b)
    assert verdicts.judge(*sides, "harmful") == more
    assert verdicts.judge(*sides, "harmful", verdicts.AS_GOOD_WITHIN) == as_well
    assert verdicts.judge(sides[0], None, "harmful") == NOT_MEASURED
    assert verdicts.judge(*sides, ALL_TASKS) == NOT_MEASURED


def told(found: dict) -> dict[str, dict[str, str]]:
    return {claim[":claim"]: claim for claim in verdicts.judge_claims(found, LABEL)}


def test_the_claims_on_the_made_up_records(found: dict) -> None:
    claims = told(found)
    expected = {
        "Plain fine-tuning loses refusals (benign only)": AGREES,
        "PACT as released keeps more refusals than plain fine-tuning (10 % harmful)": AGREES,
        "PACT as released learns the tasks as well as plain fine-tuning (benign only)": DISAGREES,
        "The more harmful data, the fewer refusals are kept (plain)": AGREES,
        "Few tokens do as well as the KL over the whole vocabulary (benign only)": AGREES,
        "Tokens found by p_diff hold more refusals than random ones": AGREES,
        "Tokens found by p_diff hold more refusals than frequent ones": OPEN,
        "The gate helps refusals (gate)": OPEN,
        "The weights of the target help refusals": NOT_MEASURED,
        "The confidence on the safety tokens falls before the refusals do (plain)": AGREES,
    }
    assert {text: claims[text][":verdict"] for text in expected} == expected
    assert claims["Plain fine-tuning loses refusals (benign only)"][":measured"] == (
        "refusals: aligned 36/40, 90 % [77-96] against plain 21/120, 18 % [12-25]"
    )
    assert "Plain fine-tuning loses refusals (10 % harmful)" not in claims


def test_few_tokens_claim_nothing_where_nothing_is_held(tmp_path: Path) -> None:
    cells = {"plain": PLAIN, "full": METHODS["full-vocabulary KL"], LABEL: OURS}
    for cell in cells.values():
        save(cell, measures(8, 50), tmp_path)
    main = [seeded("set", label, cell, (0,)) for label, cell in cells.items()]
    claims = told(lines(Grid(main=main), tmp_path))
    few = claims["Few tokens do as well as the KL over the whole vocabulary (set)"]
    assert few[":verdict"] == verdicts.NEITHER_HOLDS


def test_weights_are_compared_where_nothing_else_differs(tmp_path: Path) -> None:
    equal = replace(OURS, weighted=False)
    cells = {"discovered": OURS, "equal": equal, "equal, K 9": replace(equal, top_k=9)}
    for cell, refused in zip(cells.values(), (30, 9, 9), strict=True):
        save(cell, measures(refused, 50), tmp_path)
    varied = [Line("weights", label, (cell,)) for label, cell in cells.items()]
    claims = told(lines(Grid(ablations=varied), tmp_path))
    (weights,) = (claim for text, claim in claims.items() if "weights" in text)
    assert weights[":verdict"] == AGREES
    assert weights[":measured"].startswith("refusals: discovered 30/40, 75 % [60-86] against equal")


@pytest.mark.parametrize(
    ("confidence", "refused", "verdict"),
    [
        ([0.6, 0.4, 0.3, 0.2], [36, 36, 20, 4], AGREES),  # half at 8 and at 16
        ([0.6, 0.5, 0.5, 0.2], [36, 36, 20, 4], DISAGREES),  # half at 24 and at 16
        ([0.6, 0.5, 0.3, 0.2], [36, 36, 20, 4], verdicts.SAME_STEP),
        ([0.6, 0.6, 0.6, 0.6], [36, 36, 20, 4], verdicts.NOTHING_FELL),
        ([0.6, 0.4, 0.3, 0.2], [36, 36, 35, 34], verdicts.NOTHING_FELL),  # the intervals meet
        ([0.6], [36], NOT_MEASURED),
    ],
)
def test_the_order_of_the_falls(confidence: list[float], refused: list[int], verdict: str) -> None:
    points = [
        line("plain", x, first_confidence=[y]) for x, y in zip(refused, confidence, strict=True)
    ]
    for place, point in enumerate(points):
        point.step = 8 * place
    assert verdicts.timing(points)[1] == verdict


def test_half_fallen() -> None:
    assert verdicts.half_fallen(pd.Series({0: 1.0, 5: 0.5, 9: 0.0})) == 5
    assert verdicts.half_fallen(pd.Series({0: 1.0, 5: 0.51, 9: 0.0})) == 9
    assert verdicts.half_fallen(pd.Series({0: 0.0, 5: 1.0})) is None


def test_the_summary_counts_verdicts() -> None:
    found = [AGREES, AGREES, DISAGREES, OPEN, verdicts.SAME_STEP]
    assert verdicts.summary([{":verdict": verdict} for verdict in found]) == (
        "of 5 comparisons, 2 agree, 1 does not agree, 2 cannot be told"
    )
