"""What the flags mean, and which do not go together."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiment import __main__ as command
from benchmarks.experiment.frame import read_records
from benchmarks.experiment.grid import Grid, full_grid, without_base
from benchmarks.experiment.protocol import SecondJudge


def given(monkeypatch: pytest.MonkeyPatch, line: list[str]) -> Namespace:
    monkeypatch.setattr(sys, "argv", ["experiment", *line])
    return command._arguments()


def test_the_demo_keeps_its_folder_and_another_model_has_one_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grid, folder = command._chosen(given(monkeypatch, ["run"]))
    assert (grid, folder) == (full_grid(), command.RESULTS)
    for model in (str(tmp_path / "chat-model"), f"{tmp_path}/chat-model/", "somebody/chat-model"):
        grid, folder = command._chosen(given(monkeypatch, ["run", "--model", model]))
        assert folder == command.RESULTS / "chat-model"
        assert "safe_lora" not in {cell.method for cell in grid.cells()}
    based = ["run", "--model", "a/b", "--base", "a/c", "--results", str(tmp_path)]
    grid, folder = command._chosen(given(monkeypatch, based))
    assert (grid, folder) == (full_grid(), tmp_path)


def test_a_part_and_a_second_judge_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["run", "--methods", "Lisa", "plain", "--sets", "10 % harmful", "--seeds", "0", "2"]
    line += ["--judge", "classifier:p", "--refusal-label", "no"]
    grid, _ = command._chosen(given(monkeypatch, line))
    assert [cell.method for cell in grid.cells()] == ["aligned", "plain", "lisa", "plain", "lisa"]
    assert grid.protocol.second_judge == SecondJudge("classifier:p", "no")


def test_the_lines_of_a_model_without_a_base_are_those_it_can_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = {}

    def read(grid: Grid, folder: Path) -> Any:
        shown[folder.name] = grid
        return read_records(grid, folder)

    monkeypatch.setattr("benchmarks.experiment.document.read_records", read)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    for name, base in (("alone", "plainly fine-tuned"), ("based", "a-base")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "protocol.json").write_text(json.dumps({"model": name, "base": base}))
    for line in (["render"], ["render", "--results", str(tmp_path / "alone")]):
        shown.clear()
        monkeypatch.setattr(sys, "argv", ["experiment", *line])
        with pytest.raises(SystemExit, match="a document needs records"):
            command.main()
        assert shown["alone"] == without_base(full_grid())
    monkeypatch.setattr(sys, "argv", ["experiment", "render"])
    with pytest.raises(SystemExit):
        command.main()
    assert shown["based"] == shown[tmp_path.name] == full_grid()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["run", "--base", "b"], "--base is of a --model, got b without one"),
        (["run", "--refusal-label", "no"], "--refusal-label is of a --judge"),
        (["run", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["render", "--seeds", "0"], "give no --methods, --sets, --ablations, --seeds"),
        (["render", "--model", "a/b"], "the document shows every model, got --model a/b"),
        (["list", "--workers", "2"], "--workers is for run alone, got it with list"),
        (["render", "--judge", "guard:p"], "--judge is for run alone, got it with render"),
        (["list", "--model", "m", "--methods", "SafeLoRA"], "--methods must be of .*got SafeLoRA"),
    ],
)
def test_wrong_combinations_are_one_line(
    monkeypatch: pytest.MonkeyPatch, line: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiment", *line])
    with pytest.raises(SystemExit, match=message) as ended:
        command.main()
    assert str(ended.value).count("\n") == 0
