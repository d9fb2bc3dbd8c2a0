"""The sets of cases: what they must hold."""

from __future__ import annotations

import pytest

from benchmarks.cases.case import OPS
from benchmarks.cases.plans import (
    HEADS,
    OURS,
    RELEASED,
    SMALL,
    SUBSETS,
    lines,
    make_case,
    plans,
    title,
)
from benchmarks.peers.registry import PEERS


@pytest.mark.parametrize("subset", SUBSETS)
def test_no_case_is_planned_twice_and_every_name_is_a_peers(subset: str) -> None:
    planned = plans(subset)
    assert len({plan.case for plan in planned}) == len(planned)
    assert {plan.case.op for plan in planned} == set(OPS) or subset == "cpu-large"
    names = {peer.name for peer in PEERS}
    for plan in planned:
        assert {plan.baseline, *plan.only} <= names
        assert plan.case.rows > 0 and title(plan.case)


def test_another_subset_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of cpu, cpu-large, gpu, quick, got 'tpu'"):
        plans("tpu")


def test_the_gpu_set_varies_what_it_says() -> None:
    cases = [plan.case for plan in plans("gpu")]
    assert {(case.hidden, case.vocabulary) for case in cases} == set(HEADS.values())
    assert {case.tokens for case in cases} == {50, 200, 1000}
    assert {case.prompt_share for case in cases} == {0.0, 0.5, 0.9}
    rows = {case.rows for case in cases if case.op == "linear_cross_entropy"}
    assert min(rows) == 256 and max(rows) == 131072
    for flag in ("trainable_head", "peaked", "cached"):
        assert {getattr(case, flag) for case in cases} == {False, True}
    assert {case.softcap for case in cases} == {None, 30.0}  # Gemma 2's


def test_the_cpu_set_holds_what_is_promised() -> None:
    planned = plans("cpu")
    released = [plan.case for plan in planned if plan.only == (OURS, RELEASED)]
    small = HEADS[SMALL]
    assert [(case.hidden, case.vocabulary, case.prompt_share) for case in released] == [
        (*small, 0.5),
        (*small, 0.9),
        (640, 262144, 0.5),
        (640, 262144, 0.9),
    ]
    assert all((case.over, case.cached) == ("selection", False) for case in released)
    assert released[0].positions == 2048
    large = [plan.case for plan in plans("cpu-large") if plan.only == (OURS, RELEASED)]
    assert [(case.vocabulary, case.positions) for case in large] == [(262144, 2048)] * 2
    everyone = [plan.case for plan in planned if not plan.only]
    assert {case.op for case in everyone} == set(OPS)
    assert any(plan.case.dtype == "bfloat16" for plan in planned)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_line_varies_one_size_and_all_of_it_is_planned(device: str) -> None:
    planned = {plan.case for plan in plans("gpu" if device == "cuda" else "cpu")}
    for line in lines(device):
        assert line.sizes() == sorted(set(line.sizes())) and len(line.sizes()) >= 4
        assert set(line.cases) <= planned
        other = {case.vocabulary if line.size == "N" else case.rows for case in line.cases}
        assert len(other) == len({case.hidden for case in line.cases}) == 1


def test_a_soft_cap_is_of_ops_whose_every_implementation_may_take_it() -> None:
    with pytest.raises(ValueError, match="soft cap is of .*, got pact_loss"):
        make_case("pact_loss", SMALL, 1, 2, softcap=30.0)


def test_titles_tell_cases_apart() -> None:
    for subset in SUBSETS:
        planned = plans(subset)
        assert len({(plan.case.op, title(plan.case)) for plan in planned}) == len(planned)
