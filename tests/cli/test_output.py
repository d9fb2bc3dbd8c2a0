"""What the commands print: nothing that a terminal obeys, whatever its letters are."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from pact import cli
from pact.cli import main, show
from pact.common.printable import PrintableFormatter
from pact.recipes.recipe import recipe_text
from tests.cli.wrong_files import ESCAPE
from tests.tiny import save_tiny

TITLE = "\x1b]0;a title\x07"
"""Names a terminal's window."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_runs_out_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Any) -> None:
        raise error

    monkeypatch.setattr(show, "run", run)
    assert main(["show"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("pact show: error: there is not enough memory: lower the sizes of ")
    assert line.count("\n") == 1 and str(error) in line


def test_a_fault_of_ours_is_not_taken_for_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Any) -> None:
        raise RuntimeError("a circle")

    monkeypatch.setattr(show, "run", run)
    with pytest.raises(RuntimeError, match="a circle"):
        main(["show"])


def test_an_error_without_words_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(show, "run", run)
    assert main(["show"]) == 2
    assert capsys.readouterr().err == "pact show: error: TimeoutError\n"


def test_logs_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    main(["recipe", "nothing"])
    (handler,) = logging.root.handlers
    assert isinstance(handler.formatter, PrintableFormatter)
    record = logging.LogRecord("pact", logging.INFO, "", 0, "columns %s", (TITLE,), None)
    assert handler.format(record) == "pact: columns \\x1b]0;a title\\x07"


def test_letters_that_the_terminal_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "mine.yaml"
    lines = recipe_text("gemma-2-9b").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("description: "))
    lines[first] = "description: café"
    recipe.write_text("\n".join(lines), encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["recipe", "show", str(recipe)]) == 0
    sys.stdout.flush()
    assert b"description: caf\\xe9\n" in written.getvalue()


def test_a_dry_run_shows_the_datas_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "model")
    turns = [
        {"role": "user", "content": f"{TITLE}Hello?"},
        {"role": "assistant", "content": f"{ESCAPE}Good day."},
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns}))
    paths = ["--model", tmp_path / "model", "--train-file", tmp_path / "train.jsonl"]
    flags = ["--output-dir", str(tmp_path / "out"), "--method", "plain", "--dry-run"]
    assert main(["train", *map(str, paths), *flags]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b]0;a title\\x07Hello?" in text and "[[\\x1b[31mGood day." in text


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_prepare_output", told)
    assert main(["recipe", "list"]) == 130
    assert capsys.readouterr().err == ""
