"""The document is the template with the records in it: nothing typed, nothing left over."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.experiment import plots
from benchmarks.experiment.document import FIELD, TEMPLATE, fill, render
from benchmarks.experiment.record import path_of
from tests.benchmarks.experiment.synthetic import COSTS, Grid, whole

NAMES = ("SmolLM2-135M-Instruct", "arXiv 2603.07445", "95 % Wilson")
"""The only digits that the template has: of names."""


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: they take nearly all of the time."""
    for name in ("plot_main", "plot_trade_off", "plot_over_time"):
        monkeypatch.setattr(plots, name, lambda results, path: None)


def written(grid: Grid, records: Path, folder: Path, costs=COSTS) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return render(grid, records, costs, folder).read_text(encoding="utf-8")


def test_a_template_is_filled() -> None:
    assert fill("{{ a.b }}, {{c}} and {{ a.b }}", {"a.b": "1", "c": "2"}) == "1, 2 and 1"


def test_a_field_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="got b: name one of a"):
        fill("{{ a }} {{ b }}", {"a": "1"})


def test_a_field_that_is_left_out() -> None:
    with pytest.raises(ValueError, match="must name every field, got none of b, c"):
        fill("{{ a }}", {"a": "1", "b": "2", "c": "3"})


def test_no_number_of_the_template_is_typed() -> None:
    text = FIELD.sub("", TEMPLATE.read_text(encoding="utf-8"))
    for name in NAMES:
        assert name in text
        text = text.replace(name, "")
    assert re.findall(r"\d", text) == []


def test_the_whole_document(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    grid = whole(records)
    protocol = {"alignment": {"steps": 161, "batch_size": 9}, "learning_rate": 0.0123}
    (records / "protocol.json").write_text(json.dumps(protocol))
    text = written(grid, records, tmp_path / "docs")
    assert "{{" not in text and "}}" not in text and "\n\n\n" not in text
    assert "161 steps of 9" in text and "0.0123" in text
    # all that is left out: costs of three methods in each of three tables, and one ablation
    assert len(re.findall(r"not measured \| - \|$", text, re.MULTILINE)) == 9
    assert text.count("not measured") == 9 + 2
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert 0 < (tmp_path / "docs" / picture).stat().st_size < 120_000
    assert len(list((tmp_path / "docs" / "evidence").iterdir())) == 3
    assert written(grid, records, tmp_path / "again") == text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("section", "place", "key", "before", "after"),
    [
        ("main", 1, "harmful", "21/120, 18 % [12-25]", "22/120, 18 % [12-26]"),
        ("main", 1, "harmful", "6, 7, 8 of 40", "7, 7, 8 of 40"),
        ("main", 1, "outside", "| 3 % [1-8] |", "| 4 % [2-9] |"),  # 4 of 120, then 5
        ("main", 2, "classification", "114/360, 32 % [27-37]", "115/360, 32 % [27-37]"),
        ("ablations", 6, "harmful", "random 19/80, 24 % [16-34]", "random 20/80, 25 % [17-35]"),
    ],
)
def test_a_count_that_changes_changes_the_document(
    tmp_path: Path, section: str, place: int, key: str, before: str, after: str
) -> None:
    grid = Grid(**{section: getattr(whole(tmp_path), section)})
    grid = grid._replace(main=grid.main[:6])  # one fine-tuning set: the others show like numbers
    texts = [written(grid, tmp_path, tmp_path / "docs")]
    path = path_of(getattr(grid, section)[place].cells[0], tmp_path)
    record = json.loads(path.read_text())
    record["measures"]["counts"][key][0] += 1
    path.write_text(json.dumps(record))
    texts.append(written(grid, tmp_path, tmp_path / "docs"))
    assert [before in text for text in texts] == [True, False]
    assert [after in text for text in texts] == [False, True]


@pytest.mark.usefixtures("undrawn")
def test_every_share_of_a_record_is_read(tmp_path: Path) -> None:
    """Each count that a table names moves the document by itself."""
    grid = Grid(main=whole(tmp_path).main[:3])
    path = path_of(grid.main[0].cells[0], tmp_path)
    record = json.loads(path.read_text())
    texts = {written(grid, tmp_path, tmp_path / "docs")}
    keys = ("harmful", "harmful_anywhere", "prefill_anywhere", "outside", "benign_anywhere")
    for key in (*keys, "classification", "extraction"):
        changed = json.loads(json.dumps(record))
        changed["measures"]["counts"][key][0] += 3
        path.write_text(json.dumps(changed))
        texts.add(written(grid, tmp_path, tmp_path / "docs"))
    assert len(texts) == 1 + len(keys) + 2


def test_a_quick_document_without_records(tmp_path: Path) -> None:
    text = written(Grid(quick=True), tmp_path, tmp_path / "docs", costs={})
    assert "quick form" in text
    assert "![" not in text and "\n\n\n" not in text
    assert text.count("Not measured.") > 5
    assert not (tmp_path / "docs" / "evidence").exists()


@pytest.mark.usefixtures("undrawn")
def test_missing_seeds_are_told(tmp_path: Path) -> None:
    grid = Grid(main=whole(tmp_path).main)
    path_of(grid.main[1].cells[0], tmp_path).unlink()
    text = written(grid, tmp_path, tmp_path / "docs")
    assert "| plain (2 of 3 seeds) | 19 % [12-29] | 7, 8 of 40 |" in text
