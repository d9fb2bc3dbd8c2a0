"""The results file: a round trip, and what replaces what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cases.case import Case
from benchmarks.measuring.machine import NO_GPU
from benchmarks.reporting.results import Result, add_results, load_results, merged, save_results

CASE = Case(
    op="pact_loss",
    sequences=3,
    length=7,
    hidden=5,
    vocabulary=11,
    prompt_share=0.5,
    trainable_head=True,
    over="selection",
)
MEASURED = Result(
    case=CASE,
    device="cpu",
    machine='A "fast" one, 2 cores',  # quotes and a comma, as the format has them too
    implementation="ours",
    setting='{"chunk": 512}',
    rounds=5,
    p20_ms=1.25,
    p50_ms=1.5,
    p80_ms=2.0,
    extra_mib=64.5,
    output_mib=0.5,
    threads=2,
    commit="0123456",
)
REFUSED = replace(
    MEASURED,
    implementation="theirs",
    reason="fails:\nout of\npaper",
    p20_ms=None,
    p50_ms=None,
    p80_ms=None,
    extra_mib=None,
)


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ops.csv"
    save_results([MEASURED, REFUSED], path)
    back = load_results(path)
    assert back == [MEASURED, replace(REFUSED, reason="fails: out of paper")]
    assert back[0].measured and not back[1].measured
    assert back[0].beyond_outputs_mib == 64.0 and back[1].beyond_outputs_mib is None
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert load_results(tmp_path / "none.csv") == []


def test_a_rerun_replaces_its_own_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "ops.csv"
    others = [
        replace(MEASURED, implementation="theirs"),
        replace(MEASURED, case=replace(CASE, peaked=True)),
        replace(MEASURED, machine="another"),
        replace(MEASURED, device="cuda", machine="card"),
    ]
    save_results([MEASURED, *others], path)
    again = replace(MEASURED, p50_ms=9.0)
    add_results([again], path)
    assert load_results(path) == [again, *others]


def test_a_gpus_measurement_takes_the_place_of_none() -> None:
    nowhere = replace(REFUSED, device="cuda", machine=NO_GPU, reason="needs a GPU")
    card = replace(MEASURED, device="cuda", machine="card", implementation="theirs")
    assert merged([nowhere], [card]) == [card]
    assert merged([card], [nowhere]) == [card]
    other = replace(nowhere, implementation="third")
    assert merged([nowhere, other], [card]) == [other, card]


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ops.csv"
    path.write_text("op,time\npact_kl,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must have the columns op, .* got op, time"):
        load_results(path)
