"""What CONTRIBUTING, CHANGELOG, CITATION and the workflow of CI say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", CONTRIBUTING)
FILES = [name for name in CODE if re.fullmatch(r"[\w./-]+\.(py|md|toml|txt)", name)]
PLACES = ("", "pact_kernels", "pact_kernels/kernels", "tests/benchmarks/peers", "tests/ops")
"""Where its file names begin."""


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def workflow() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(set(FILES)))
def test_files_that_contributing_names_exist(name: str) -> None:
    assert any((ROOT / place / name).is_file() for place in PLACES)


def test_commands_that_contributing_names_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", CONTRIBUTING))
    assert {"test", "lint", "kernel-report"} <= named <= targets()
    modules = set(re.findall(r"python -m (benchmarks[\w.]*)", CONTRIBUTING))
    assert modules >= {"benchmarks", "benchmarks.kernel_report", "benchmarks.head"}
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_the_version_is_in_the_changelog_and_in_the_citation() -> None:
    version = (ROOT / "pact_kernels/VERSION").read_text(encoding="ascii").strip()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^]]+)\]", changes, re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (version, project["license"])
    (paper,) = citation["references"]
    assert paper["url"] == project["urls"]["Paper"]


def test_ci_runs_what_each_cell_says() -> None:
    """Every Python of the classifiers, and each kind of dependencies that the Makefile knows."""
    jobs = workflow()["jobs"]
    matrix, environment = jobs["run"]["strategy"]["matrix"], jobs["run"]["steps"][-1]["env"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert matrix["python"] == classified == jobs["wheel"]["strategy"]["matrix"]["python"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = re.findall(r"^pins_(\w+) =", makefile, re.MULTILINE)
    also = [cell["dependencies"] for cell in matrix["include"]]
    assert sorted(matrix["dependencies"] + also) == sorted(known) == ["highest", "lowest", "pinned"]
    assert jobs["run"]["steps"][-1]["run"] == ".ci/run"
    assert environment["DEPENDENCIES"] == "${{ matrix.dependencies }}"
    for name in environment:
        assert f"\n{name} ?=" in makefile  # the Makefile listens to it


def test_ci_runs_the_suite_on_every_core() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^test:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "pytest -n auto" in recipe
    commands = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert [line for line in commands if "pytest" in line] == []
    assert {"make test", "make kernel-report", "make lint"} <= set(commands)
