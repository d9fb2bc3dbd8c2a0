"""The harness: who is refused, who takes turns, and what becomes of each as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.cases.case import Case, make_inputs
from benchmarks.cases.plans import OURS, Plan
from benchmarks.cases.products import flops, minimal_products
from benchmarks.harness import Bench, Rounds, measure
from benchmarks.measuring.clock import quantiles, take_turns
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS, Gemms
from benchmarks.measuring.machine import GIB, circumstances
from benchmarks.measuring.memory import Memory
from benchmarks.peers.cross_entropies import Liger
from benchmarks.peers.every_op import Eager, Ours
from benchmarks.peers.peer import Peer
from benchmarks.peers.released import Released
from benchmarks.reporting.results import Result
from tests.benchmarks import fake_peers as fakes

CPU = torch.device("cpu")
SMALL = Case(  # V odd; two prompts of 3
    op="linear_cross_entropy", sequences=2, length=12, hidden=8, vocabulary=131, prompt_share=0.25
)
LONG = replace(SMALL, sequences=1, length=500, prompt_share=0.0)  # past the 256 compared rows


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured in a process of its own, which has its own test."""
    monkeypatch.setattr(harness, "cpu_memory", lambda *_: Memory(3.0))


def lines_of(case: Case, *peers: Peer, device: str = "cpu", **options: object) -> dict[str, Result]:
    bench = Bench(
        device=torch.device(device),
        peers_for=lambda _: peers,
        circumstances=circumstances(torch.device(device)),
        memory_limit_bytes=GIB,
        rounds=2,
    )
    bench = replace(bench, **options)  # type: ignore[arg-type]
    plan = Plan(case=case, varied="base", baseline="right")
    return {line.implementation: line for line in measure(plan, bench)}


def test_a_right_peer_is_measured_beside_the_products_of_the_op() -> None:
    lines = lines_of(SMALL, fakes.RIGHT)
    assert list(lines) == ["right", GEMMS]
    line = lines["right"]
    assert line.reason == "" and line.rounds == 2 and line.checked_rows == SMALL.rows
    assert line.p20_ms is not None and line.p50_ms is not None and line.p80_ms is not None
    assert line.p20_ms <= line.p50_ms <= line.p80_ms
    assert line.error is not None and line.error < 1e-6  # of fp32
    assert line.error_share is not None and line.error_share <= 1.0
    assert line.of_baseline == 1.0 and line.extra_mib == 3.0
    assert line.output_mib == pytest.approx((24 * 8 + 1) * 4 / 2**20)  # a gradient and a loss
    assert line.tflop_per_s == pytest.approx(flops(SMALL) / line.p50_ms / 1e9)
    gemms = lines[GEMMS]
    assert gemms.p50_ms is not None and gemms.extra_mib is None and gemms.error is None
    assert line.of_gemms == pytest.approx(gemms.p50_ms / line.p50_ms)


@pytest.mark.parametrize(
    ("case", "peer", "reason"),
    [
        (SMALL, fakes.WRONG, "wrong: loss is off by 0.0001"),
        (SMALL, fakes.SILENT, "wrong: gradient of hidden is off by inf"),
        (LONG, fakes.LATE, "wrong: gradient of hidden in some rows"),
        (SMALL, fakes.MISSING, "missing is not installed"),
        (SMALL, fakes.FAILING, "fails: RuntimeError: the paper"),
    ],
)
def test_who_cannot_take_part_is_a_line_with_its_reason(
    case: Case, peer: Peer, reason: str
) -> None:
    lines = lines_of(case, fakes.RIGHT, peer)
    line = lines[peer.name]
    assert line.reason.startswith(reason)
    assert line.p50_ms is None and not line.measured
    assert lines["right"].measured


def test_the_late_peer_is_right_where_all_is_compared() -> None:
    """So it is the look at the timed case's own rows that finds it out."""
    assert lines_of(SMALL, fakes.LATE)["late"].measured


def test_the_fastest_right_setting_is_chosen_and_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "clock_of", lambda _: fakes.ticking)
    line = lines_of(SMALL, fakes.CHOOSY)["choosy"]
    assert line.setting == '{"way": "quick"}' and line.settings_tried == 3
    assert line.remark == '{"way": "failing"}: fails: RuntimeError: cannot'
    assert line.p50_ms == 1.0 and line.tflop_per_s == pytest.approx(flops(SMALL) / 1e9)


def test_another_objective_is_timed_but_not_compared() -> None:
    line = lines_of(SMALL, fakes.OTHER)["other"]
    assert line.measured and line.remark == "twice the loss"
    assert line.error is None and line.checked_rows == 0


def test_what_would_need_too_much_memory_is_not_tried() -> None:
    assert Eager().needed_bytes(SMALL) == 16 * 18 * 131
    limit_bytes = 16 * 18 * 131 - 1
    line = lines_of(SMALL, fakes.FAILING, memory_limit_bytes=limit_bytes)["failing"]
    assert line.reason == "would need 0.0 GiB, more than 0.0"
    assert "fails" in lines_of(SMALL, fakes.FAILING)["failing"].reason


def test_a_case_that_does_not_fit_is_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("the card is full")

    monkeypatch.setattr(harness, "make_inputs", full)
    lines = lines_of(SMALL, fakes.RIGHT, fakes.MISSING)
    assert lines["right"].reason == "does not fit: the card is full"
    assert lines["missing"].reason == "missing is not installed"


def test_the_released_algorithm_needs_memory_for_prompts_too() -> None:
    assert Released().needed_bytes(SMALL) == 20 * 24 * 131
    assert Liger().needed_bytes(SMALL) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_cases_are_lines_too() -> None:
    lines = lines_of(SMALL, fakes.RIGHT, fakes.MISSING, device="cuda")
    assert {line.reason for line in lines.values()} == {"needs a GPU"}
    assert {line.machine for line in lines.values()} == {"none here"}


def test_a_loss_with_a_kl_is_divided_by_our_cross_entropy_alone() -> None:
    case = replace(SMALL, op="pact_loss", cached=True, tokens=7)
    lines = lines_of(case, fakes.RIGHT, Ours())
    assert list(lines) == [OURS, "right", GEMMS, CROSS_ENTROPY_ALONE]
    alone, ours = lines[CROSS_ENTROPY_ALONE], lines[OURS]
    assert ours.p50_ms is not None and alone.p50_ms is not None
    assert ours.of_cross_entropy == pytest.approx(ours.p50_ms / alone.p50_ms)
    assert alone.checked_rows == 0 and ours.checked_rows == case.rows


def test_calls_take_turns_from_the_first_round_on() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}

    def clock(call: object) -> float:
        assert callable(call)
        call()
        return float(len(order))

    times_ms = take_turns([calls] * 4, clock, warm_up=0)
    assert "".join(order) == "abcbcacababc"
    assert times_ms["a"] == [1.0, 6.0, 8.0, 10.0]


@pytest.mark.parametrize(
    ("times_ms", "expected"),
    [
        ([3.0], (3.0, 3.0, 3.0)),
        ([5.0, 1.0, 2.0, 4.0, 3.0], (1.8, 3.0, 4.2)),  # 0.2 of the way between neighbours
        ([1.0, 2.0], (1.2, 1.5, 1.8)),
    ],
)
def test_quantiles_lie_between_neighbours(
    times_ms: Sequence[float], expected: tuple[float, float, float]
) -> None:
    assert tuple(quantiles(times_ms).values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "products"),
    [
        ({}, [(131, 2)]),
        ({"trainable_head": True}, [(131, 3)]),
        ({"op": "linear_logsumexp"}, [(131, 1)]),
        ({"op": "token_scores"}, [(131, 2)]),
        ({"op": "selected_confidences"}, [(131, 1)]),
        ({"op": "selected_confidences", "over": "selection"}, [(7, 1)]),
        ({"op": "pact_loss", "cached": True}, [(131, 2)]),
        ({"op": "pact_loss"}, [(131, 4)]),  # both contexts' log-sum-exp
        ({"op": "pact_loss", "gated": False}, [(131, 3)]),
        ({"op": "pact_loss", "over": "selection"}, [(131, 2), (7, 2)]),
        ({"op": "pact_kl", "over": "selection"}, [(7, 4)]),
        ({"op": "pact_kl", "over": "selection", "cached": True}, [(7, 2)]),
        ({"op": "pact_kl", "trainable_head": True, "cached": True}, [(131, 3)]),
    ],
)
def test_flops_are_of_the_products_that_the_formula_needs(
    changes: dict[str, object], products: list[tuple[int, int]]
) -> None:
    case = replace(SMALL, tokens=7, **changes)  # type: ignore[arg-type]
    assert [(each.columns, each.number) for each in minimal_products(case)] == products
    assert flops(case) == sum(2 * 18 * 8 * columns * number for columns, number in products)


@pytest.mark.parametrize("chunk_rows", [5, 18])  # 18 rows in chunks of 5: the last has 3
@pytest.mark.parametrize("columns", [{}, {"tile_columns": 50}])  # of 131: the last tile has 31
def test_the_floor_forms_these_products(chunk_rows: int, columns: dict[str, int]) -> None:
    case = replace(SMALL, trainable_head=True)
    inputs = make_inputs(case)
    buffers: list[torch.Tensor] = []
    real = torch.empty_like

    def remembered(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        buffers.append(real(tensor, **options).fill_(float("nan")))
        return buffers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", remembered)
        call = Gemms().prepare(case, inputs, {"chunk_rows": chunk_rows, **columns})
    for _ in range(2):  # nothing is added to what the first left
        call()
    hidden = inputs.hidden.detach()[inputs.target >= 0]
    logits = hidden @ inputs.weight.detach().T
    torch.testing.assert_close(buffers[0], logits @ inputs.weight.detach())
    torch.testing.assert_close(buffers[1], logits.T @ hidden)


def test_the_floor_tries_chunks_that_fit() -> None:
    assert Gemms().settings(SMALL, CPU) == [{"chunk_rows": 18}]
    wide = replace(SMALL, sequences=64, length=2048, vocabulary=2**20)  # 256 rows are 1 GiB
    tiled = {"chunk_rows": 1024, "tile_columns": 1024}
    assert Gemms().settings(wide, CPU) == [{"chunk_rows": 256}, tiled]


def test_rounds_are_fewer_where_they_take_long() -> None:
    assert Rounds(3, 11, 9e3).of(1.0) == 11
    assert Rounds(3, 11, 9e3).of(1800.0) == 5
    assert Rounds(3, 11, 9e3).of(60e3) == 3
