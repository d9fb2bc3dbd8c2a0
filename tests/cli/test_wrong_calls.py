"""Every wrong call of the tables: one line with cause and fix, and nothing touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pact.cli import COMMANDS, main
from tests.cli.wrong_calls import FLAGS, NUMBERS, SETTINGS, WrongCall, read
from tests.cli.wrong_calls_of_files import CONTENTS, PATHS
from tests.cli.wrong_files import write_files

REPOSITORY = Path(__file__).parents[2]
CALLS = [call for table in (FLAGS, NUMBERS, SETTINGS, PATHS, CONTENTS) for call in read(table)]
IN_A_PROCESS = (
    "trian",
    "TRAIN --config deep.yaml",
    "TRAIN --train-file role.jsonl",
    "EVALUATE --model ./no_layer",
)
"""Calls that are made in processes of their own, too."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """files/, where calls are made, and home/."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "home").mkdir()
    (root / "files").mkdir()
    write_files(root / "files")
    return root


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was looked for on a network, which is not there."""
    asked: list[Any] = []

    def refuse(*words: Any, **_: Any) -> None:
        asked.append(words)
        raise OSError("there is no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return asked


@pytest.fixture
def home(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files as working folder; nothing in them, at home or among the caches may change."""
    monkeypatch.chdir(root / "files")
    monkeypatch.setenv("HOME", str(root / "home"))
    before = _tree(root)
    yield
    assert _tree(root) == before


def _tree(root: Path) -> dict[str, tuple[int, ...]]:
    """Every path below a folder, with what changes where a file is written or replaced."""
    paths = {}
    for folder, folders, files in os.walk(root):
        paths |= {os.path.join(folder, name): (0,) for name in folders}
        for name in files:
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            paths[path] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return paths


def _check(code: object, error: str, call: WrongCall) -> None:
    """One line that begins as it should, with cause and fix."""
    line = error.splitlines()[-1]
    command = call.argv[0] if call.argv[0] in COMMANDS else ""
    assert code == 2, error
    assert "Traceback" not in error
    assert line.startswith(f"pact {command}".strip()) and error.count(": error: ") == 1
    assert line.isprintable()
    assert call.cause in line and call.fix in line, line


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("call", CALLS, ids=[call.text[:60] for call in CALLS])
def test_a_wrong_call_is_one_line_and_touches_nothing(
    call: WrongCall, asked: list[Any], capfd: pytest.CaptureFixture[str], reference_caches: Path
) -> None:
    try:
        code: object = main(call.argv)
    except SystemExit as stop:
        code = stop.code
    output, error = capfd.readouterr()
    _check(code, error, call)
    assert not output
    assert not asked
    assert not reference_caches.exists()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("text", IN_A_PROCESS)
def test_a_process_says_no_more_than_that(text: str) -> None:
    (call,) = (call for call in CALLS if call.text == text)
    done = subprocess.run(
        [sys.executable, "-m", "pact", *call.argv],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    _check(done.returncode, done.stderr, call)
    assert not done.stdout
    assert done.stderr.count("\n") == 1


def test_the_tables_are_of_every_command() -> None:
    assert len(CALLS) >= 60 and len({call.text for call in CALLS}) == len(CALLS)
    assert {call.argv[0] for call in CALLS} >= set(COMMANDS)
    from pact.cli.recipe import ACTIONS

    assert {call.argv[1] for call in CALLS if call.argv[0] == "recipe"} >= set(ACTIONS)
