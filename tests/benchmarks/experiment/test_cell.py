"""Cells and their records: a name for every setting that counts, and none for what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.experiment.cell import Cell, Measures, Record, path_of, read_json, write_json
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
        {"anchor_share": 0.1},
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


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (Cell(method="aligned"), "aligned-h00-s0-b759530975"),
        (Cell(method="plain"), "plain-h00-s0-eb1888f4b6"),
        (Cell(method="pact"), "pact-h00-s0-bb8c8adc4b"),
        (Cell(method="pact", pact=PactConfig(over="selection")), "pact-h00-s0-4206f89bd5"),
        (Cell(method="full_kl"), "full_kl-h00-s0-1d9eb18ae2"),
        (Cell(method="first_tokens"), "first_tokens-h00-s0-c502b1f44c"),
        (Cell(method="mixing", refusal_share=0.05), "mixing-h00-s0-8b33cc73a5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_are_there_are_found_again(cell: Cell, name: str) -> None:
    """Fields that are new must not change the names of cells that do not read them."""
    assert cell.name == name


def test_the_patch_alone_reads_its_steps() -> None:
    patch = Cell(method="patch")
    assert replace(patch, patch_steps=9).name != patch.name
    assert replace(patch, strength=9.0).name == patch.name
    assert replace(PACT, patch_steps=9).name == PACT.name
    for method in ("token_logits", "lisa", "safe_lora"):
        cell = Cell(method=method)  # type: ignore[arg-type]
        assert replace(cell, strength=9.0).name != cell.name
        assert replace(cell, patch_steps=9).name == cell.name


def test_anchors_are_of_pact_alone_and_name_no_cell_without_them() -> None:
    assert replace(PACT, anchor_steps=4).name == PACT.name
    anchored = replace(PACT, anchor_share=0.3)
    assert replace(anchored, anchor_steps=4).name != anchored.name
    for wrong in ({"method": "full_kl"}, {"anchor_share": 1.0}, {"anchor_steps": 33}):
        with pytest.raises(AssertionError):
            replace(anchored, **wrong)  # type: ignore[arg-type]


def test_safe_lora_has_adapters() -> None:
    with pytest.raises(AssertionError, match="it projects adapters"):
        Cell(method="safe_lora", full_finetuning=True)


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
    path = path_of(cell, tmp_path)
    assert not read_json(path)
    write_json(path, record)
    assert read_json(path) == json.loads(json.dumps(record))
    assert [path.name for path in tmp_path.iterdir()] == [f"{cell.name}.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads(path_of(cell, tmp_path).read_text(), parse_constant=refuse)
    assert saved["settings"]["pact"]["kl_step_tau"] == "inf"
