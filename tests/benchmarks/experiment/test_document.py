"""The document is the template with the records in it: nothing typed, nothing left over."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
import pytest

from benchmarks.experiment import __main__ as command
from benchmarks.experiment import plots
from benchmarks.experiment.cell import path_of
from benchmarks.experiment.document import TEMPLATE, TEMPLATES, render, table
from benchmarks.reporting import drawing
from tests.benchmarks.experiment.synthetic import COSTS, METHODS, RELEASED_LABEL, Grid, whole

NAMES = ("SmolLM2-135M-Instruct", "arXiv 2603.07445", "95 % Wilson")
"""The only digits that the template has: of names."""
DOCUMENT = Path(__file__).parents[3] / "docs" / "evidence.md"


PROTOCOL = {
    "alignment": {"steps": 161, "batch_size": 9},
    "prompts": {"max_new_tokens": 23},
    "batch_size": 5,
    "learning_rate": 0.0123,
    "full_learning_rate": 0.0456,
}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are named and not drawn: that takes nearly all of the time."""
    monkeypatch.setattr(drawing, "save", lambda figure, path: path)
    for name in ("plot_main", "plot_plane", "plot_over_time"):
        monkeypatch.setattr(plots, name, lambda *given: None)


def written(
    grid: Grid, records: Path, folder: Path, others: Sequence[Path] = (), **protocol
) -> str:
    (records / "protocol.json").write_text(json.dumps(PROTOCOL | protocol))
    (records / "cost.json").write_text(json.dumps(COSTS))
    return render(grid, [records, *others], folder).read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_the_page_is_what_the_records_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["experiment", "render"])
    command.main()
    now = (tmp_path / "docs" / "evidence.md").read_text(encoding="utf-8").splitlines()
    kept = DOCUMENT.read_text(encoding="utf-8").splitlines()
    differing = [pair for pair in zip(kept, now, strict=False) if pair[0] != pair[1]]
    assert not differing, "run python -m benchmarks.experiment render"
    assert len(kept) == len(now)


def test_no_number_of_the_template_is_typed() -> None:
    """Neither in its prose nor in its expressions."""
    tree = TEMPLATES.parse((Path(command.__file__).parent / TEMPLATE).read_text(encoding="utf-8"))
    prose = " ".join(node.data for node in tree.find_all(jinja2.nodes.TemplateData))
    for name in NAMES:
        assert name in prose
        prose = prose.replace(name, "")
    constants = [str(node.value) for node in tree.find_all(jinja2.nodes.Const)]
    assert re.findall(r"\d", " ".join([prose, *constants])) == []


def test_a_table() -> None:
    """A group is named once; what is no number stands to the left; an empty column is left out."""
    rows = pd.DataFrame({"group": ["a", "a", "b"], "x": ["1 %", "3 %", "-"], "never": ["-"] * 3})
    rows["of"] = [1 + 2j, 0.5, 4]
    heads = {"varied": "group", "measured": "x", "not measured": "never", "unknown": "nowhere"}
    assert table(rows, heads, {"part": "of.real"}).splitlines() == [
        "| varied | measured | part |",
        "| :--- | ---: | ---: |",
        "| a | 1 % | 1.0 |",
        "|  | 3 % | 0.5 |",
        "| b | - | 4.0 |",
    ]
    assert table(rows[["x"]][:1]) == "| x |\n| ---: |\n| 1 % |"
    assert table(rows[:0], heads) == "Not measured."


@pytest.mark.usefixtures("undrawn")
def test_the_whole_document(tmp_path: Path) -> None:
    text = written(whole(tmp_path), tmp_path, tmp_path / "docs")
    assert "{{" not in text and "}}" not in text and "\n\n\n" not in text
    assert "161 steps of 9" in text and "0.0123" in text and "0.0456" in text
    assert "in 23 tokens at most" in text and "with 3 seeds; a seed" in text
    assert "answers 40 held-out harmful requests, 40 requests of the outside list" in text
    assert "Not run yet" not in text and "nan" not in text
    # all that is left out: costs of the aligned model and of three methods in each of three sets
    assert len(re.findall(r"\| - \| - \|$", text, re.MULTILINE)) == 3 * 4
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    names = ("main", "price", "trade-off", "over-time")
    assert pictures == [f"evidence/{name}.png" for name in names]
    heads = re.findall(r"^##+ .+$", text, re.MULTILINE)
    assert len(heads) == len(set(heads)) == 16
    for head in heads:
        assert re.search(rf"^{re.escape(head)}\n\n[^#\n]", text, re.MULTILINE), head


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("section", "place", "key", "before", "after"),
    [
        ("main", 1, "harmful", "21/120, 18 % [12-25]", "22/120, 18 % [12-26]"),
        ("main", 1, "harmful", "6, 7, 8 of 40", "7, 7, 8 of 40"),
        ("main", 1, "outside", "15] | 3 % [1-8] |", "15] | 4 % [2-9] |"),  # 4 of 120, then 5
        ("main", 2, "classification", "114/360, 32 % [27-37]", "115/360, 32 % [27-37]"),
        ("ablations", 6, "harmful", "random 19/80, 24 % [16-34]", "random 20/80, 25 % [17-35]"),
    ],
)
def test_a_count_that_changes_changes_the_document(
    tmp_path: Path, section: str, place: int, key: str, before: str, after: str
) -> None:
    made = whole(tmp_path)
    grid = Grid(main=made.main[:6])  # one fine-tuning set: the others show like numbers
    grid = grid if section == "main" else grid._replace(**{section: getattr(made, section)})
    texts = [written(grid, tmp_path, tmp_path / "docs")]
    path = path_of(getattr(grid, section)[place].cells[0], tmp_path)
    record = json.loads(path.read_text())
    record["measures"]["counts"][key][0] += 1
    path.write_text(json.dumps(record))
    texts.append(written(grid, tmp_path, tmp_path / "docs"))
    assert [before in text for text in texts] == [True, False]
    assert [after in text for text in texts] == [False, True]


@pytest.mark.usefixtures("undrawn")
def test_every_measure_of_a_record_is_read(tmp_path: Path) -> None:
    """Each count and value that a table names moves the document by itself."""
    grid = Grid(main=whole(tmp_path).main[:3])
    path = path_of(grid.main[1].cells[0], tmp_path)
    record = json.loads(path.read_text())
    texts = {written(grid, tmp_path, tmp_path / "docs")}
    unread = {"prefill", "outside_anywhere", "benign"}
    unread |= {"kl_vocabulary_nats", "confidence", "reference_confidence"}
    for kind, keys in (
        ("counts", record["measures"]["counts"]),
        ("values", record["measures"]["values"]),
    ):
        for key in keys:
            changed = json.loads(json.dumps(record))
            if kind == "counts":
                changed["measures"][kind][key][0] += 3
            else:
                changed["measures"][kind][key] += 3
            path.write_text(json.dumps(changed))
            text = written(grid, tmp_path, tmp_path / "docs")
            assert (text in texts) == (key in unread), key
            texts.add(text)


def test_without_records_there_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a document needs records, got none in"):
        written(Grid(), tmp_path, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_quick_document_says_so(tmp_path: Path) -> None:
    grid = Grid(main=whole(tmp_path).main)
    assert "quick form" not in written(grid, tmp_path, tmp_path / "docs")
    text = written(grid._replace(quick=True), tmp_path, tmp_path / "docs")
    assert "**This is the quick form" in text
    for head in ("What a refusal costs", "What matters", "One task", "How refusals go"):
        assert f"## {head}" not in text


@pytest.mark.usefixtures("undrawn")
def test_missing_seeds_lines_and_sets_are_told(tmp_path: Path) -> None:
    grid = Grid(main=whole(tmp_path).main)
    path_of(grid.main[1].cells[0], tmp_path).unlink()
    for line in [grid.main[2], *grid.main[13:]]:
        for cell in line.cells:
            path_of(cell, tmp_path).unlink()
    text = written(grid, tmp_path, tmp_path / "docs")
    assert "| plain (2 of 3 seeds) | 19 % [12-29] | 7, 8 of 40 |" in text
    last = ", ".join(f'"{label}"' for label in METHODS)
    told = f'- benign only: "{RELEASED_LABEL}"\n- 30 % harmful: {last}\n'
    assert f"Not run yet, and therefore left out:\n\n{told}\n" in text
    assert "### Fine-tuned on: 10 % harmful" in text
    assert "### Fine-tuned on: 30 % harmful" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_second_judge_has_a_table_where_the_records_have_it(tmp_path: Path) -> None:
    grid = Grid(main=whole(tmp_path).main[:6])
    assert "second judge" not in written(grid, tmp_path, tmp_path / "docs")
    path = path_of(grid.main[1].cells[0], tmp_path)
    record = json.loads(path.read_text())
    record["measures"]["counts"] |= {"harmful_second": [9, 40], "harmful_agree": [38, 40]}
    path.write_text(json.dumps(record))
    judge = {"name": "guard:a-guard", "refusal_label": None}
    text = written(grid, tmp_path, tmp_path / "docs", second_judge=judge)
    assert "The second judge, guard:a-guard, reads the same answers" in text
    heads = "| method | held-out: keywords | held-out: second judge | held-out: both agree |"
    assert heads in text and "prefill: second" not in text
    assert "| plain | 18 % [12-25] | 22 % [12-38] | 95 % [83-99] |" in text
    assert "| first tokens | 60 % [51-68] | - | - |" in text


@pytest.mark.usefixtures("undrawn")
def test_a_second_model_has_tables_of_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / "demo", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    grid = whole(folders[0])
    other = Grid(main=whole(folders[1]).main[:6])
    kept = {path_of(cell, folders[1]) for line in other.main for cell in line.cells}
    for path in {*folders[1].glob("*.json")} - kept:
        path.unlink()
    protocol = {"model": "Other-1B", "model_hash": "abc", "base": "plainly fine-tuned"}
    protocol |= PROTOCOL | {"learning_rate": 0.0789}
    (folders[1] / "protocol.json").write_text(json.dumps(protocol))
    (folders[1] / "ORIGIN.md").write_text("These weights came by post.\n")
    path = path_of(other.main[1].cells[0], folders[1])
    record = json.loads(path.read_text())
    record["measures"]["counts"]["harmful"][0] += 1
    path.write_text(json.dumps(record))
    text = written(grid, folders[0], tmp_path / "docs", others=folders[1:])
    first, second = text.split("# Other-1B\n")
    assert "# SmolLM2-135M-Instruct\n" in first
    assert "21/120" in first and "22/120" not in first
    assert "22/120" in second and "21/120" not in second
    assert "Other-1B is taken as it came" in second and "abc" in second
    assert "have one. These weights came by post. Digest" in second
    assert "found against: the same model, plainly fine-tuned." in second
    assert "with\n3 seeds, at a peak learning rate of 0.0789." in second
    assert "evidence/main.png" in first and "evidence/Other-1B-main.png" in second
    assert text.count("## How to read the tables") == text.count("## What cannot be concluded") == 1
    shown = re.findall(r"^## (.+)$", second, re.MULTILINE)
    assert "Targets" in shown and "| target | at most | measured |" in second
    assert not {"What a refusal costs", "What matters in the method", "How refusals go"} & {*shown}
    assert "ms per step" in first and "ms per step" not in second  # no costs


@pytest.mark.usefixtures("undrawn")
def test_a_model_without_records_is_left_out(tmp_path: Path) -> None:
    demo, other = (tmp_path / name for name in ("demo", "other"))
    demo.mkdir()
    grid = Grid(main=whole(demo).main)
    (other / "protocol.json").parent.mkdir()
    (other / "protocol.json").write_text(json.dumps(PROTOCOL | {"model": "Other-1B"}))
    assert "Other-1B" not in written(grid, demo, tmp_path / "docs", others=[other])


def test_a_model_whose_run_has_just_begun(tmp_path: Path) -> None:
    """The aligned model and a seed of plain fine-tuning are there; then the latter alone."""
    grid = Grid(main=whole(tmp_path).main)
    kept = [path_of(grid.main[place].cells[0], tmp_path) for place in (0, 1)]
    for path in tmp_path.glob("*.json"):
        if path not in kept:
            path.unlink()
    text = written(grid, tmp_path, tmp_path / "docs")
    assert "against its targets, in percentage points:\n\nFine-tuned on: benign only\n\nNot" in text
    assert "| plain (1 of 3 seeds) |" in text
    kept[0].unlink()
    assert "## Targets" not in written(grid, tmp_path, tmp_path / "docs")


@pytest.mark.usefixtures("undrawn")
def test_a_model_is_shown_once(tmp_path: Path) -> None:
    grid = Grid(main=whole(tmp_path).main)
    with pytest.raises(ValueError, match="shows each model once, got SmolLM2-135M-Instruct from"):
        written(grid, tmp_path, tmp_path / "docs", others=[tmp_path])
    assert not (tmp_path / "docs" / "evidence.md").exists()
