"""Cells and their records: a name for every setting that counts, and none for what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.record import Measures, Record, load_record, path_of, save_record
from pact.objective import PactConfig

PACT = Cell(method="pact")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"harmful_share": 0.1},
        {"tasks": ("extraction",)},
        {"pact": PactConfig(kl_weight=3.0)},
        {"pact": PactConfig(over="selection")},
        {"refusal_share": 0.05},
        {"top_k": 20},
        {"token_source": "random"},
        {"num_samples": 8},
        {"max_response_length": 1},
        {"weighted": False},
        {"full_finetuning": True},
        {"steps": 7},
        {"curve_every": 2},
    ],
    ids=str,
)
def test_what_counts_is_in_the_name(change: dict[str, object]) -> None:
    assert replace(PACT, **change).name != PACT.name  # type: ignore[arg-type]
    assert replace(PACT, **change).settings() != PACT.settings()  # type: ignore[arg-type]


def test_what_a_method_does_not_read_is_not() -> None:
    assert replace(PACT, strength=9.0).name == PACT.name
    plain = Cell(method="plain")
    same = replace(plain, strength=9.0, top_k=3, weighted=False, pact=PactConfig(kl_weight=2.0))
    assert same.name == plain.name
    assert replace(plain, seed=1).name != plain.name
    weighed = Cell(method="full_kl", strength=2.0)
    assert weighed.name != Cell(method="full_kl", strength=1.0).name
    aligned = Cell(method="aligned")
    assert aligned.settings() == {"method": "aligned"}


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Also the released objective, whose steps weigh alike: JSON has no infinity."""
    cell = Cell(method="pact", pact=PactConfig(over="selection"))
    measures = Measures(counts={"harmful": (3, 4)}, values={"confidence": 0.25})
    record = Record(
        settings=cell.settings(),
        measures=measures,
        curve={0: measures, 6: measures},
        environment={"torch": "2"},
    )
    assert load_record(cell, tmp_path) is None
    save_record(record, cell, tmp_path)
    assert load_record(cell, tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == [f"{cell.name}.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads(path_of(cell, tmp_path).read_text(), parse_constant=refuse)
    assert saved["settings"]["pact"]["kl_step_tau"] == "inf"
