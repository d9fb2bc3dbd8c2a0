"""The training-step benchmark: its sides mean the same, and its table says what was missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import training_step
from benchmarks.measuring.clock import take_turns
from benchmarks.measuring.process import MIB, in_own_process
from benchmarks.reporting.figures import Figure, figure_table
from benchmarks.training import sides, steps
from benchmarks.training.data import RELEASED_LENGTH, DemoData, PaddedCollator
from benchmarks.training.sides import (
    CACHED,
    FUSED,
    LIVE,
    LIVE_NO_GATE,
    OWN,
    RELEASED,
    SIDES,
    LossOf,
    Setting,
    Task,
    loss_and_gradients,
    random_task,
    take_step,
)
from benchmarks.training.steps import (
    Size,
    Steps,
    measure_steps,
    process_memory,
    random_model,
)
from benchmarks.training_step import GOALS, Measured, step_figures
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer


@pytest.fixture
def setting() -> Setting:
    """With adapters that are not the identity any more."""
    made = Setting(tiny_llama(), num_tokens=7)  # odd, and no power of two
    with torch.no_grad():
        for name, parameter in made.student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return made


@pytest.fixture
def task(setting: Setting) -> Task:
    return random_task(setting.student, 3, 13)  # a prompt of 6 tokens, an answer of 7


def assert_same(setting: Setting, task: Task, name: str, other: Task, other_name: str) -> None:
    loss, gradients = loss_and_gradients(setting, SIDES[name](setting, task))
    same_loss, same_gradients = loss_and_gradients(setting, SIDES[other_name](setting, other))
    torch.testing.assert_close(loss, same_loss)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)
    for gradient, same in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(gradient, same, rtol=1e-4, atol=1e-6)


def test_the_released_side_has_our_loss_and_gradients(setting: Setting, task: Task) -> None:
    assert_same(setting, task, RELEASED, task, LIVE)


def test_the_released_side_does_not_feel_its_padding(setting: Setting) -> None:
    data = DemoData(tiny_tokenizer())
    padded, natural = data.task(0, 2, PaddedCollator), data.task(0, 2)
    assert padded.batch()["input_ids"].shape == (2, RELEASED_LENGTH)
    assert natural.batch()["input_ids"].shape[1] < RELEASED_LENGTH
    assert_same(setting, padded, RELEASED, natural, LIVE)


def test_the_released_side_refuses_a_head_that_it_does_not_know(
    setting: Setting, task: Task
) -> None:
    setting.student.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="a matrix alone"):
        SIDES[RELEASED](setting, task)()


def test_sides_of_one_meaning_are_checked(
    setting: Setting, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure_steps(setting, task, 1, SIDES, lambda line: None)
    assert len(found.differences) == 3 and set(found.times_ms) == set(SIDES)
    monkeypatch.setitem(SIDES, CACHED, SIDES[OWN])
    with pytest.raises(AssertionError, match=f"{CACHED} / {LIVE} must be alike"):
        measure_steps(setting, task, 1, SIDES, lambda line: None)


@pytest.mark.parametrize("name", SIDES)
def test_a_step_changes_the_adapters_alone(setting: Setting, task: Task, name: str) -> None:
    before = {key: value.clone() for key, value in setting.student.state_dict().items()}
    take_step(setting, SIDES[name](setting, task))
    after = setting.student.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {key for key in before if "lora_" in key}


def test_rounds_begin_with_another_call_and_the_first_is_not_recorded() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times_ms = take_turns(calls for _ in range(3))
    assert "".join(order) == "abcbcacab"
    assert {name: len(times) for name, times in times_ms.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("value", "bound", "met", "verdict"),
    [
        (1.05, {"at_most": 1.05}, True, "met"),  # the bound itself keeps it
        (1.051, {"at_most": 1.05}, False, "missed"),
        (1.9, {"at_least": 1.9}, True, "met"),
        (1.899, {"at_least": 1.9}, False, "missed"),
        (float("nan"), {"at_most": 1.0}, False, "missed"),
        (200.0, {}, None, ""),
    ],
)
def test_a_figure_is_met_or_missed(
    value: float, bound: dict[str, float], met: bool | None, verdict: str
) -> None:
    figure = Figure(name="f", value=value, **bound)
    assert figure.met is met
    line = figure_table([figure]).splitlines()[1].split()
    assert line[-1] == (verdict or f"{value:.3f}")


def test_ratios_are_of_medians() -> None:
    times_ms = {name: [2.0, 4.0, 90.0] for name in [*SIDES, sides.READING]}
    times_ms[RELEASED] = [8.0, 1.0, 8.0]
    found = Steps(times_ms, {}, {}, {})
    figures = {figure.name: figure for figure in step_figures("s", found, GOALS["cpu"])}
    figure = figures[f"time s: {RELEASED} / {CACHED}"]
    assert (figure.value, figure.target, figure.met) == (2.0, ">= 1.9", True)


def test_memory_is_compared_with_and_without_the_imports() -> None:
    peaks, beyond = {CACHED: 100.0, RELEASED: 140.0}, {CACHED: 40.0, RELEASED: 80.0}
    whole, added = step_figures("s", Steps({}, peaks, {}, {}, beyond), GOALS["cpu"])
    assert (whole.value, whole.met) == (1.4, False)
    assert (added.value, added.met) == (2.0, None)


def test_a_run_prints_and_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "in_own_process", lambda *_: (100.0, 40.0))
    monkeypatch.setattr(training_step, "SIZES", (Size(2, 16),))
    monkeypatch.setattr(training_step, "FILLING_EXAMPLES", 4)
    file = tmp_path / "report.json"
    training_step.main(["--runs", "1", "--model", str(save_tiny(tmp_path)), "--json", str(file)])
    report = json.loads(file.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert all(figure["name"] in printed for figure in report["figures"])
    assert all(figure["value"] > 0 for figure in report["figures"])
    assert list(report["steps"]) == ["2 x 16"]
    assert report["cache_bytes_per_row"] == 200  # 2 contexts of 50 tokens in 16 bits


def test_on_a_card_sides_that_do_not_fit_are_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command runs it, in bfloat16, but for the card and the model's size."""

    def too_large(setting: Setting, task: Task) -> LossOf:
        def loss() -> torch.Tensor:
            raise torch.OutOfMemoryError("no")

        return loss

    def small(*_: object) -> object:
        model = random_model(tiny_llama().config, "cpu")
        assert model.dtype == torch.bfloat16
        return model

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "any card")
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * MIB)
    monkeypatch.setattr(steps, "_on_card", lambda _: True)
    monkeypatch.setattr(training_step, "random_model", small)
    monkeypatch.setattr(training_step, "CARD", Size(3, 13))
    monkeypatch.setitem(SIDES, LIVE_NO_GATE, too_large)
    monkeypatch.setattr(sides, "installed_version", lambda _: None)  # Liger's kernels need a card
    file = tmp_path / "report.json"
    training_step.main(["--device", "cuda", "--runs", "1", "--json", str(file)])
    report = json.loads(file.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert report["machine"] == "any card" and "random, 8B" in printed
    step = report["steps"]["3 x 13"]
    assert step["left_out"] == {LIVE_NO_GATE: "out of memory"}
    assert set(step["times_ms"]) == set(step["peak_mib"]) == set(SIDES) - {LIVE_NO_GATE}
    assert all(figure["name"] in printed for figure in report["figures"])
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [line["side"] for line in lines if "side" in line] == [OWN, FUSED, *list(SIDES)[2:]]
    assert {line["side"] for line in lines if "left_out" in line} == {LIVE_NO_GATE}
    assert len(lines) == len(SIDES) + 3 and "machine any card" in printed.splitlines()[0]
    # bfloat16 moves a gradient by hundredths
    assert all(0 < value < 0.1 for value in step["differences"].values())
    assert len(step["differences"]) == 3


def test_a_side_is_told_before_the_next_one_begins(
    setting: Setting, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor beside a card, whose allocator is not asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said: list[dict[str, object]] = []
    before: list[int] = []

    def watched(setting: Setting, task: Task) -> LossOf:
        before.append(len(said))
        return SIDES[FUSED](setting, task)

    watching = {"first": watched, "second": watched}
    read: list[None] = []
    reading = {"reading": lambda: read.append(None)}
    found = measure_steps(setting, task, 2, watching, said.append, reading)
    assert len(read) == 3  # the first is in no turn
    assert before == [0, 1]
    assert [line["side"] for line in said] == ["first", "second"]
    assert all(isinstance(ms := line["second_step_ms"], float) and ms > 0 for line in said)
    assert {name: len(ms) for name, ms in found.times_ms.items()} == dict.fromkeys(
        ("first", "second", "reading"), 2
    )
    assert not found.peak_mib


def test_a_card_that_is_too_small_for_all_leaves_all_out(setting: Setting, task: Task) -> None:
    def too_large(setting: Setting, task: Task) -> LossOf:
        raise torch.OutOfMemoryError("no")

    said: list[dict[str, object]] = []
    found = measure_steps(setting, task, 1, {OWN: too_large}, said.append)
    assert (found.times_ms, found.left_out) == ({}, {OWN: "out of memory"})
    assert said == [{"side": OWN, "left_out": "out of memory"}]
    assert OWN in training_step.table(Measured({"s": found}))


def test_without_a_card_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, said in (([], "torch sees none"), (["--model", "."], "is of --device cpu")):
        with pytest.raises(SystemExit):
            training_step.main(["--device", "cuda", *given])
        assert said in capsys.readouterr().err


def test_peak_memory_is_of_a_process_of_its_own(tmp_path: Path) -> None:
    ballast = torch.ones(2**28)  # 1 GiB, which the other process must not take over
    peak_mib, added_mib = in_own_process(process_memory, save_tiny(tmp_path), CACHED, Size(2, 8))
    assert 0 <= added_mib < peak_mib - 50 < ballast.nbytes / MIB - 50  # more than an interpreter
