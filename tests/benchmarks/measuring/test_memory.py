"""Peak memory of a call: in a process of its own, beyond its inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch

from benchmarks.cases.case import Case
from benchmarks.measuring import memory, process
from benchmarks.measuring.memory import cpu_memory, output_mib
from tests.benchmarks import fake_peers as fakes

CASE = Case(op="linear_cross_entropy", sequences=1, length=64, hidden=16, vocabulary=8192)
MIB = 2**20


@pytest.mark.skipif(not process.STATUS.exists(), reason="needs Linux's /proc")
def test_a_process_sees_what_a_call_holds_for_a_moment() -> None:
    torch.ones(2**28)  # 1 GiB here, which the other process must not take over
    held, right = (cpu_memory(CASE, x, {}).extra_mib for x in (fakes.HUNGRY, fakes.RIGHT))
    assert held is not None and right is not None
    assert fakes.BALLAST_MIB - 1 < held < fakes.BALLAST_MIB + 8  # whose own logits are 2 MiB each
    assert 4 < right < 16  # logits, their softmax, a gradient; no imports or inputs
    longer = replace(CASE, length=1024)  # logits of 32 MiB, which the heap might keep
    grown = cpu_memory(longer, fakes.RIGHT, {}).extra_mib
    assert grown is not None and 64 <= grown < 160


def test_a_peak_that_may_not_be_reset_is_told_from_the_calls_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks_mib = iter([900.0, 900.0, 900.0, 950.0])
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    monkeypatch.setattr(memory, "resident_mib", lambda: 700.0)
    monkeypatch.setattr(memory, "peak_mib", lambda: next(peaks_mib))
    hidden, seen = (memory._measure(CASE, fakes.RIGHT, {}) for _ in range(2))
    assert hidden.extra_mib is None and "may not be reset" in hidden.remark
    assert seen == (250.0, "")


@pytest.mark.parametrize(
    ("error", "remark"),
    [
        (BrokenProcessPool(), "the process that measures memory was killed"),
        (ValueError("no"), "the process that measures memory failed: ValueError: no"),
    ],
)
def test_a_process_that_ends_early_is_a_remark(
    error: Exception, remark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(ThreadPoolExecutor):
        def __init__(self, workers: int, mp_context: object) -> None:
            super().__init__(workers)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(process, "ProcessPoolExecutor", Ending)
    monkeypatch.setattr(memory, "_measure", fail)
    assert cpu_memory(CASE, fakes.RIGHT, {}) == (None, remark)


def test_outputs_that_share_memory_count_once() -> None:
    tensor = torch.zeros(MIB // 4)
    both = {"hidden": tensor, "weight": torch.zeros(MIB // 8, dtype=torch.bfloat16)}
    assert output_mib({"loss": tensor, **both}) == 1.25
