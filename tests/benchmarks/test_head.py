"""The head's targets: which chunks a side takes, and what is said of a case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks import harness, head
from benchmarks.cases.case import Case
from benchmarks.cases.plans import OURS, Plan
from benchmarks.harness import Bench
from benchmarks.head import EXPONENTIALS, GOALS, LOGITS, Goal
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.measuring.machine import GIB, circumstances
from benchmarks.measuring.memory import Memory
from benchmarks.reporting.results import Result

CPU = torch.device("cpu")
TINY = Case(  # V odd; two prompts of 3
    op="linear_cross_entropy", sequences=2, length=12, hidden=8, vocabulary=131, prompt_share=0.25
)
MS = {GEMMS: 9.8, OURS: 10.0, EXPONENTIALS: 10.0, LOGITS: 11.0, "Liger": 10.5}


def taken(target: str) -> bool:
    """Whether a small head's chunks would be exponentials there."""
    pytest.importorskip("triton")
    from pact_kernels.common.requests import TermRequest
    from pact_kernels.kernels._exponential_chunks import takes_exponentials
    from pact_kernels.kernels._launch.runtime import TARGETS, recording
    from pact_kernels.types import Head

    hidden, weight = (torch.empty(n, 64, dtype=torch.bfloat16, device="meta") for n in (16, 1000))
    with recording(TARGETS[target]):
        term = TermRequest(kind="cross_entropy")
        return takes_exponentials(hidden, Head(weight), torch.ones(16), term, None)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])  # as shipped one takes them, for many rows
def test_a_side_takes_its_chunks_on_every_target_and_at_every_size(target: str) -> None:
    before = taken(target)
    for exponentials in (True, False):
        with head.taking(exponentials):
            assert taken(target) is exponentials
    with pytest.raises(RuntimeError), head.taking(not before):
        raise RuntimeError
    assert taken(target) is before


def test_sides_call_the_op_with_their_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is given answer rows, and chooses for itself where no side does."""
    pytest.importorskip("triton")
    from pact_kernels.kernels._launch import configs

    shipped, seen = dict(configs.TAKES_EXPONENTIALS), []

    def op(hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        seen.append((tuple(hidden.shape), dict(configs.TAKES_EXPONENTIALS)))
        return hidden.sum()

    monkeypatch.setattr(head.pk, "linear_cross_entropy", op)
    inputs = harness.make_inputs(TINY)
    ours, exponentials, logits, liger = head.sides(TINY)
    for side in (ours, exponentials, logits):
        side.prepare(TINY, inputs, {})()
    tables = [shipped, dict.fromkeys(shipped, True), dict.fromkeys(shipped, False)]
    assert seen == [((TINY.rows, TINY.hidden), table) for table in tables]
    assert [side.name for side in (ours, exponentials, logits)] == [OURS, EXPONENTIALS, LOGITS]
    assert "GPU" in str(liger.unavailable(TINY, CPU))


def test_a_case_is_measured_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor, where both kinds of chunks are the same code."""
    monkeypatch.setattr(harness, "cpu_memory", lambda *_: Memory(3.0))
    bench = Bench(
        device=CPU,
        peers_for=head.sides,
        circumstances=circumstances(CPU),
        memory_limit_bytes=GIB,
        rounds=3,
    )
    goals, said = {"tiny": Goal(TINY, speed=1e-9), "capped": Goal(TINY, speed=1e9)}, []
    records = head.run(goals, bench, said.append)
    assert records == said and json.loads(json.dumps(said)) == said
    first, second = records
    assert set(first["ms"]) == {GEMMS, OURS, EXPONENTIALS, LOGITS}
    assert "GPU" in first["sides"]["Liger"]["reason"]
    figure = first["figures"][0]
    assert figure["value"] == first["ms"][GEMMS] / first["ms"][OURS]
    assert (figure["met"], second["figures"][0]["met"]) == (True, False)
    lines = head.table(goals, records).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["met", "missed"]
    assert lines[1].startswith(f"tiny: {first['shape']}")


@pytest.mark.parametrize(
    ("name", "ms", "found"),
    [
        ("frozen", MS, {"speed / products": True, "speed / Liger": True}),
        ("frozen", MS | {OURS: 10.6}, {"speed / products": False, "speed / Liger": False}),
        ("frozen", {GEMMS: 9.8, OURS: 10.0}, {"speed / products": True}),  # Liger is not there
        ("kl-50", {OURS: 10.0, CROSS_ENTROPY_ALONE: 9.95}, {"time / cross-entropy": True}),
        ("kl-50", {OURS: 10.0, CROSS_ENTROPY_ALONE: 9.8}, {"time / cross-entropy": False}),
        ("rows-256", {GEMMS: 0.8, OURS: 1.0}, {"speed / products": True}),
        ("rows-1024", {GEMMS: 0.8, OURS: 1.0}, {"speed / products": None}),  # nothing is asked
        ("frozen", {}, {}),
    ],
)
def test_what_is_asked_is_met_or_missed(
    name: str, ms: Mapping[str, float], found: Mapping[str, bool | None]
) -> None:
    verdicts = {each.name: each.met for each in head.figures(name, GOALS[name], ms)}
    verdicts.pop(f"{name}: speed / chunks of logits", None)
    assert verdicts == {f"{name}: {label}": met for label, met in found.items()}


def test_every_case_has_its_own_shape() -> None:
    assert len({goal.case for goal in GOALS.values()}) == len(GOALS)
    assert {goal.case.dtype for goal in GOALS.values()} == {"bfloat16"}


def test_lines_are_printed_and_written_as_they_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "head.jsonl"
    kept: list[int] = []

    def measured(plan: Plan, bench: Bench) -> list[Result]:
        kept.append(len(file.read_text(encoding="utf-8").splitlines()))
        return [
            Result(case=plan.case, device="cuda", machine="card", implementation=side, p50_ms=ms)
            for side, ms in MS.items()
        ]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(head, "circumstances", lambda _: circumstances(CPU))
    monkeypatch.setattr(head, "memory_limit_bytes", lambda _: GIB)
    monkeypatch.setattr(harness, "measure", measured)
    head.main(["--device", "cuda", "--cases", "trainable", "rows-256", "--json", str(file)])
    printed = capsys.readouterr().out.splitlines()
    assert kept == [1, 2]  # what the run depends on, then case after case
    assert file.read_text(encoding="utf-8").splitlines() == printed[:3]
    assert [json.loads(line).get("case") for line in printed[:3]] == [None, "trainable", "rows-256"]
    assert [line.split()[-1] for line in printed[4:]] == ["met", "met"]


def test_without_a_card_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, said in (([], "torch sees none"), (["--cases", "all"], "'trainable'")):
        with pytest.raises(SystemExit):
            head.main(["--device", "cuda", *given])
        assert said in capsys.readouterr().err
