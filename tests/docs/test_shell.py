"""Shell lines of README.md and docs/ are what the commands take: each is parsed by the real one."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pact.cli import COMMANDS, arguments, main
from tests.docs.blocks import ROOT, blocks, pages, read

LANGUAGES = ("", "sh", "bash", "shell", "console")
LAUNCHERS = ("accelerate", "torchrun", "python")
OTHERS = {("cd", "llama", "&&", "sh", "run.sh")}
"""What `pact recipe write` leaves; its commands are tested with the recipes."""
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
RUN = {"model": "aligned", "train_file": "chats.jsonl", "tokens": "t", "output_dir": "run"}


class Parsed(BaseException):
    """The flags were read; nothing of the command is run."""


def lines() -> list[tuple[str, str]]:
    """(page:line, command), of blocks that show what a command prints the command alone."""
    found = []
    for page in pages():
        for block in blocks(page, *LANGUAGES):
            shown = block.text.replace("\\\n", " ").splitlines()
            for number, line in enumerate(shown, block.line + 1):
                if block.language != "console" and line.strip():
                    found.append((f"{page}:{number}", line))
                elif line.startswith("$ "):
                    found.append((f"{page}:{number}", line.removeprefix("$ ")))
    return found


@pytest.fixture(autouse=True)
def parsing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end once their flags are read; `--config run.yaml` finds a file."""
    parse = arguments.parse

    def and_no_more(*given: Any, **named: Any) -> None:
        parse(*given, **named)
        raise Parsed

    monkeypatch.setattr(arguments, "parse", and_no_more)
    monkeypatch.chdir(tmp_path)
    for name in ("run.yaml", "run/config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(RUN), encoding="utf-8")


def check(words: Sequence[str]) -> None:
    """Raises, or ends with an assertion, where a command is none."""
    match words:
        case ["pact", "recipe", "list"] | ["pact", "recipe", "data"]:
            assert main(words[1:]) == 0
        case ["pact", *rest]:
            with pytest.raises(Parsed):
                assert main(rest) == 0
        case ["make", target, *rest]:
            assert target in TARGETS
            given = dict(word.split("=", 1) for word in rest)
            if target.startswith("demo"):
                check(["pact", "demo", *shlex.split(given.pop("ARGS", ""))])
            assert set(given) <= {"ARGS", "MODEL", "BASE", "PYTHON", "DEPENDENCIES"}
        case ["pip", "install", name]:
            extras = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", name)
            assert extras and set((extras[1] or "method").split(",")) <= set(EXTRAS)
        case [launcher, *rest] if launcher in LAUNCHERS and "-m" in rest:
            check(rest[rest.index("-m") + 1 :])
        case _:
            assert tuple(words) in OTHERS, f"no test knows {words[0]}"


@pytest.mark.parametrize(("place", "line"), lines(), ids=[place for place, _ in lines()])
def test_a_line_is_a_command(place: str, line: str) -> None:
    check(shlex.split(line, comments=True))


@pytest.mark.parametrize(
    "line",
    [
        "pact train --model a --train-file b --output-dir c --tokens d --rank 3",
        "pact trane --model a",
        "make demos",
        "make demo ARGS='--harmful 1'",
        "pip install '.[methods]'",
        "pip install pact-kernels",
        "torchrun --nproc-per-node 2 -m pact train --config walk.yaml",
        "uv pip install .",
    ],
)
def test_a_wrong_line_is_found(line: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, SystemExit)):
        check(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", pages())
def test_commands_in_prose_exist(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    spans = " ; ".join(re.findall(r"`([^`]+)`", text.replace("\n", " ")))
    assert set(re.findall(r"(?:^|; )make ([a-z-]+)", spans)) <= TARGETS
    assert set(re.findall(r"(?:^|; )pact ([a-z-]+)", spans)) <= set(COMMANDS)


def test_the_first_command_is_what_ci_runs() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "make test" in commands
    assert any(line.startswith("make test ") for _, line in lines())
