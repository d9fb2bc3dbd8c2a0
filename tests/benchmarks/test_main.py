"""The run: case by case into the file, within its time, and once for true from the shell."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import OPS_CSV, harness
from benchmarks import __main__ as shell
from benchmarks.cases.plans import EAGER, OURS, Plan, quick_plans
from benchmarks.harness import Bench
from benchmarks.measuring import memory
from benchmarks.measuring.floors import GEMMS
from benchmarks.measuring.machine import circumstances
from benchmarks.peers import registry
from benchmarks.peers.every_op import Eager, Ours
from benchmarks.reporting import pages, report
from benchmarks.reporting.results import Result, load_results

BENCH = Bench(
    device=torch.device("cpu"),
    peers_for=lambda _: (),
    circumstances=circumstances(torch.device("cpu")),
    memory_limit_bytes=0,
)


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell sets up logging to a stream that is gone after its test."""
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    monkeypatch.setattr(logging.root, "level", logging.root.level)


def test_each_case_is_measured_when_the_one_before_is_kept_and_none_past_the_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planned, kept, measured = quick_plans()[:4], [], []

    def measure(plan: Plan, bench: Bench) -> list[Result]:
        assert kept == measured
        measured.append(plan.case)
        return [Result(case=plan.case, device="cpu", machine="m", implementation="ours")]

    def now_s() -> float:
        return 70.0 * len(measured)

    monkeypatch.setattr(harness, "measure", measure)
    with caplog.at_level(logging.WARNING):
        for (line,) in harness.measure_all(planned, BENCH, minutes=2, now_s=now_s):
            kept.append(line.case)
    # 0 and 70 s are before the end; 140 are not
    assert kept == [plan.case for plan in planned[:2]]
    assert caplog.text.count("left out, no time: ") == 2


def test_a_true_run_is_measured_listed_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PEERS", (Ours(), Eager()))  # no minutes of compiling
    monkeypatch.setattr(memory, "preload_compiler", lambda: None)
    path = tmp_path / "ops.csv"
    chosen = ["--device", "cpu", "--subset", "quick", "--match", "pact_kl"]
    shell.main(["list", *chosen])
    listed = capsys.readouterr().out
    assert "pact_kl, 2 x 12, 25 % prompt, 24 x 301" in listed and "1 cases" in listed
    shell.main(["run", *chosen, "--rounds", "2", "--results", str(path)])
    assert "ms" in capsys.readouterr().out
    lines = {line.implementation: line for line in load_results(path)}
    assert list(lines) == [OURS, EAGER, GEMMS]
    for line in lines.values():
        assert line.measured and line.rounds == 2 and line.reason == ""
        assert line.command == (
            "python -m benchmarks run --device cpu --subset quick --match pact_kl --rounds 2"
        )
        assert line.threads == torch.get_num_threads() and line.torch == torch.__version__
    ours = lines[OURS]
    assert ours.error_share is not None and 0 < ours.error_share <= 1
    assert ours.extra_mib is not None and ours.extra_mib < 64  # a case of kilobytes
    shell.main(["report", "--results", str(path), "--output", str(tmp_path / "report")])
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["ops.md"]  # no picture
    text = (tmp_path / "report" / "ops.md").read_text(encoding="utf-8")
    assert "### pact_kl" in text and str(tmp_path) not in text


@pytest.mark.parametrize("text", ["0", "-3"])
def test_rounds_and_minutes_are_positive(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--rounds", "--minutes"):
        with pytest.raises(SystemExit):
            shell.main(["run", option, text])
        assert f"must be positive, got {text}" in capsys.readouterr().err


def test_a_match_chooses_by_op_and_title() -> None:
    assert {plan.case.op for plan in shell.List(match="token_sc").planned()} == {"token_scores"}
    chosen = shell.List(device="cpu", subset="quick", match="selection").planned()
    assert [plan.case.over for plan in chosen] == ["selection"]
    assert chosen[0] == replace(chosen[0], case=replace(chosen[0].case, op="pact_loss"))


def test_a_match_without_a_case_is_refused() -> None:
    with pytest.raises(SystemExit, match="--match: no case of quick has 'pact_los_s'"):
        shell.List(subset="quick", match="pact_los_s").planned()


def test_a_peer_that_is_not_there_is_refused() -> None:
    case = quick_plans()[0].case
    with pytest.raises(SystemExit, match="--peers: no theirs; there are pact-kernels, eager"):
        shell.List(peers=(EAGER, "theirs")).peers_of(case)
    assert [peer.name for peer in shell.List(peers=(EAGER,)).peers_of(case)] == [EAGER]


def test_the_pages_are_written_of_the_recorded_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "render", lambda results, folder: [folder / "ops.md"])
    monkeypatch.setattr(pages, "write_pages", lambda: [Path("README.md")])
    shell.main(["report"])
    assert capsys.readouterr().out.split() == [str(OPS_CSV.parent / "ops.md"), "README.md"]
    shell.main(["report", "--output", str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "ops.md")]
