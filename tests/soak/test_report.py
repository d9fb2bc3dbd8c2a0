"""What makes a soak fail: made-up findings, and a soak that takes no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.soak import __main__ as command
from tests.soak.report import BEGIN, END, GROWTH_MIB, MANY, failures, growth_mib, write_report

FLAT = [300.0, 390.0, 400.0, 402.0, 398.0, 404.0, 400.0, 406.0, 398.0, 402.0]
"""It rises at the start, then moves by what an allocator keeps."""
RISING = [400.0 + 5 * tenth for tenth in range(10)]
"""By 20 MiB from the sixth tenth to the last."""


def found(memory: list[float] = FLAT, **changed: Any) -> dict[str, Any]:
    steady = {"steps": 110_000, "checkpoints": 220, "memory_mib": memory}
    counts = {"runs": MANY, "killed": 150, "interrupted": 20, "terminated": 20}
    rest = {"minutes": 60, "machine": "x86_64", "runs_in_two_processes": 20, "faults": []}
    return {**counts, **rest, "steady": steady, **changed}


def test_the_growth_of_the_second_half() -> None:
    assert growth_mib(RISING) == pytest.approx(20)
    assert growth_mib(FLAT) < GROWTH_MIB / 2 < growth_mib(FLAT[:5] + RISING[5:])
    assert growth_mib([400.0]) == growth_mib([]) == 0  # a soak of seconds


@pytest.mark.parametrize(
    ("made_up", "said"),
    [
        (found(), None),
        (found(RISING), "grew by 20 MiB"),
        (found(faults=["exit code 1"]), "exit code 1"),
        (found(interrupted=0), f"no run was interrupted in {MANY}"),
        (found(interrupted=0, runs=MANY - 1), None),  # chance
    ],
)
def test_what_fails_and_its_exit_code(
    made_up: dict[str, Any],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(failures(made_up)) == (said is not None)
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}old\n{END}after\n")
    monkeypatch.setattr("tests.soak.report.PAGE", tmp_path / "page.md")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "soak.json")
    monkeypatch.setattr(command, "soak", lambda *_: made_up)
    monkeypatch.setattr("sys.argv", ["soak"])
    assert command.main() == (said is not None)
    assert (said or "") in capsys.readouterr().err
    page = (tmp_path / "page.md").read_text()
    assert page == f"before\n{BEGIN}{write_report(made_up)}{END}after\n" and "old" not in page
