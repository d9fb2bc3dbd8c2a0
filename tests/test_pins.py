"""The linters have one version: here, before a commit, and in CI."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LINTERS = ("ruff", "mypy", "types-PyYAML")


def pinned(lines: list[str]) -> dict[str, str]:
    """By name, of what is given as name==version."""
    return dict(line.split("==") for line in lines if "==" in line)


def test_linters_have_one_version() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = pinned(setup["project"]["optional-dependencies"]["lint"])
    constraints = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    for name in LINTERS:
        assert extra[name] == constraints[name]


def test_a_commit_is_linted_by_the_same_versions() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = pinned(setup["project"]["optional-dependencies"]["lint"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (ruff,) = (each for each in hooks["repos"] if each["repo"].endswith("/ruff-pre-commit"))
    assert ruff["rev"] == f"v{extra['ruff']}"
    assert {hook["id"] for hook in ruff["hooks"]} == {"ruff-check", "ruff-format"}
    (local,) = (each for each in hooks["repos"] if each["repo"] == "local")
    for hook in local["hooks"]:  # of the environment that `make lint` makes, which runs the same
        folder, tool = hook["entry"].rsplit("/", 1)
        assert (hook["language"], folder) == ("system", ".venv/bin")
        assert f"\t$(BIN)/{tool}\n" in makefile
    assert [hook["id"] for hook in local["hooks"]] == ["mypy", "import-linter"]
    assert len(hooks["repos"]) == 2


def test_types_are_checked_for_the_oldest_python() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = setup["project"]["requires-python"].removeprefix(">=")
    assert setup["tool"]["mypy"]["python_version"] == oldest
    assert setup["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"Programming Language :: Python :: {oldest}" in setup["project"]["classifiers"]
