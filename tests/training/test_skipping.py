"""Steps that are not finite: what is said of them, and what it is to leave them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pact.training.checkpoint import CHECKPOINTS, whole_checkpoint
from pact.training.config import FitConfig
from pact.training.finite import Fault, Watch, name_examples
from pact.training.metrics import METRICS_FILE
from pact.training.schedule import Plan
from pact.training.skipping import SKIPPED, Skips
from tests.tiny import tiny_llama
from tests.training.problem import Problem, parameters_of, problem
from tests.training.spoiled import spoil

SETTINGS: dict[str, Any] = {
    "max_steps": 7,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "save_every": 1,
    "save_total_limit": 9,
    "skip_bad_steps": 2,
}
"""20 examples in steps of 4, so that an example is in every fifth step or so."""


def state(folder: Path, step: int) -> dict[str, Any]:
    """What a checkpoint keeps of the optimiser, its tensors by path."""
    path = folder / CHECKPOINTS / f"step-{step:08d}" / "state.pt"
    found: dict[str, Any] = {}

    def walk(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                walk(each, f"{where}/{key}")
        elif isinstance(value, list):
            walk(dict(enumerate(value)), where)
        else:
            found[where] = value

    walk(torch.load(path, weights_only=True)["optimizer"], "")
    return found


def is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    return bool(ours == theirs)


def steps_of(example: int, count: int = 20) -> list[int]:
    """The steps, from 1, that an example is in."""
    plan = Plan(FitConfig(**SETTINGS), count)
    return [step + 1 for step in range(plan.num_steps) if example in plan.indices(step)]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Example 13 spoils the second step and the sixth: see `steps_of`."""
    made = problem(None)
    spoil(monkeypatch, made, [SPOILED])
    return made


SPOILED = 13
"""An example of a step that is neither the first nor the last, and of one in the next epoch."""


def test_a_step_left_out_is_as_if_it_had_not_been(
    given: Problem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, moments and Adam's step count are those of before, to the bit."""
    bad = steps_of(SPOILED)
    seen: dict[int, Any] = {0: parameters_of(tiny_llama())}
    model = tiny_llama()

    def look(step: int) -> None:
        seen[step] = parameters_of(model)

    records = given.fit(model, FitConfig(**SETTINGS), output_dir=tmp_path, after_step=look)
    for step in range(1, 8):
        is_same_weights = all(torch.equal(seen[step][n], seen[step - 1][n]) for n in seen[0])
        assert is_same_weights == (step in bad), step
        if step > 1:
            now, before = state(tmp_path, step), state(tmp_path, step - 1)
            same = {name: is_same(now[name], before.get(name)) for name in now}
            assert all(same.values()) == (step in bad), (step, same)
    assert [r["step"] for r in records] == list(range(1, 8))
    assert [r["step"] for r in records if "loss" not in r] == bad
    assert [r[SKIPPED] for r in records] == [sum(b <= s for b in bad) for s in range(1, 8)]
    assert all(torch.isfinite(torch.tensor(list(r.values()))).all() for r in records)
    said = [line for line in caplog.messages if "left out" in line]
    assert len(said) == len(bad) == 2
    assert said[0].startswith(
        f"left out a step, 1 of at most 2: its loss was nan in step {bad[0]} "
    )
    examples = ", ".join(map(str, Plan(FitConfig(**SETTINGS), 20).indices(bad[0] - 1)))
    assert said[0].endswith(f"examples {examples}, counted from 0")


@pytest.mark.parametrize("at", [1, 4, 6])  # before a bad step, after the first, at the second
def test_a_resumed_run_goes_on_with_the_count_and_ends_with_the_same_bits(
    at: int, given: Problem, tmp_path: Path
) -> None:
    whole = tiny_llama()
    alone = given.fit(whole, FitConfig(**SETTINGS))
    stopped, resumed = tiny_llama(), tiny_llama()

    class Gone(Exception):
        pass

    def stop(step: int) -> None:
        if step == at:
            raise Gone

    with pytest.raises(Gone):
        given.fit(stopped, FitConfig(**SETTINGS), output_dir=tmp_path, after_step=stop)
    config = FitConfig(**SETTINGS, resume=True)
    records = given.fit(resumed, config, output_dir=tmp_path)
    ours, theirs = parameters_of(resumed), parameters_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [r[SKIPPED] for r in records] == [r[SKIPPED] for r in alone]
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)[SKIPPED] for line in lines] == [r[SKIPPED] for r in alone]


def test_one_more_ends_the_run_with_the_state_of_before(given: Problem, tmp_path: Path) -> None:
    bad, model, before = steps_of(SPOILED), tiny_llama(), {}

    def look(step: int) -> None:
        before.update(parameters_of(model))

    config = FitConfig(**SETTINGS | {"skip_bad_steps": 1})
    with pytest.raises(ValueError, match=f"in step {bad[1]} .*1 steps were left out before it, as"):
        given.fit(model, config, output_dir=tmp_path, after_step=look)
    now = parameters_of(model)
    assert all(torch.equal(now[name], before[name]) for name in now)
    assert whole_checkpoint(tmp_path) == tmp_path / CHECKPOINTS / f"step-{bad[1] - 1:08d}"


def test_without_the_setting_the_first_ends_the_run(given: Problem) -> None:
    bad = steps_of(SPOILED)[0]
    with pytest.raises(ValueError, match=f"the loss must be finite, got nan in step {bad} "):
        given.fit(tiny_llama(), FitConfig(**SETTINGS | {"skip_bad_steps": 0, "save_every": None}))


def test_a_gradient_that_is_not_finite_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite: the hook turns the head's gradient of the second backward pass to NaN."""
    model, calls = tiny_llama(), [0]

    def spoiled(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * torch.inf if calls[0] == 2 else gradient

    model.lm_head.weight.register_hook(spoiled)
    records = problem(None).fit(model, FitConfig(**SETTINGS))
    assert [r["step"] for r in records if "loss" not in r] == [2]
    assert all(bool(value.isfinite().all()) for value in parameters_of(model).values())


def test_a_window_without_a_step_has_no_means(given: Problem) -> None:
    """Records are over the steps that were taken, and none is made of nothing."""
    bad = steps_of(SPOILED)
    some = given.fit(tiny_llama(), FitConfig(**SETTINGS, log_every=100))
    every = given.fit(tiny_llama(), FitConfig(**SETTINGS))
    taken = [record["loss"] for record in every if "loss" in record]
    assert [record["step"] for record in some] == [*bad, 7]
    assert some[-1]["loss"] == pytest.approx(sum(taken) / len(taken), rel=1e-6)
    last = given.fit(tiny_llama(), FitConfig(**SETTINGS | {"max_steps": bad[0]}))
    assert [record["step"] for record in last if "loss" in record] == list(range(1, bad[0]))


def test_a_run_that_takes_no_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(None)
    spoil(monkeypatch, made, range(20))
    config = FitConfig(**SETTINGS | {"max_steps": 2})
    with pytest.raises(ValueError, match="a run must train something, got 2 steps that were all"):
        made.fit(tiny_llama(), config)


def test_a_fault_names_its_micro_batch_and_ids(given: Problem) -> None:
    bad = steps_of(SPOILED)[0]
    named = given.dataset.add_column("id", [f"row-{n}" for n in range(20)])
    config = FitConfig(max_steps=7, batch_size=4, learning_rate=1e-2, micro_batch_size=1)
    with pytest.raises(ValueError) as caught:
        given._replace(dataset=named).fit(tiny_llama(), config)
    assert f"in step {bad} " in str(caught.value)
    assert f"examples {SPOILED}, counted from 0 (ids 'row-{SPOILED}')" in str(caught.value)


def test_many_examples_are_cut_short() -> None:
    text = name_examples(range(20), [{}] * 20)
    assert text == "examples 0, 1, 2, 3, 4, 5, 6, 7 and 12 more, counted from 0"


class Two:
    """Two processes whose values are given."""

    def __init__(self, other: torch.Tensor) -> None:
        self.other = other

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, self.other])


def test_the_first_of_all_processes_is_told_and_shares_are_summed() -> None:
    ours, theirs = Watch(torch.device("cpu")), Watch(torch.device("cpu"))
    for watch, losses in ((ours, [1.0, 2.0]), (theirs, [0.5, torch.inf])):
        watch.see(3, torch.tensor([[loss, 0.25, 0.125] for loss in losses]), torch.nan)
        watch.see(4, torch.full((1, 3), torch.nan), 1.0)
    values = {"loss": torch.inf, "cross-entropy": 1.0, "kl": 0.5}
    fault = ours.fault(Two(theirs.seen[None]))
    assert fault is not None and fault.values.pop("gradient's norm") != 0.0
    assert fault == Fault(3, values, process=1, place=1)
    ours.forget()
    assert ours.fault(None) is None
    ours.see(5, torch.ones(1, 3), torch.inf)
    found = ours.fault(None)
    assert found is not None and found.place is None and found.name == "gradient's norm"


def test_fewer_may_be_left_out_after_a_resume() -> None:
    """Three were, two may be: one more ends the run."""
    skips = Skips(2, [{"step": 3, "skipped_steps": 3}])
    watch = Watch(torch.device("cpu"))
    watch.see(4, torch.full((1, 3), torch.nan), torch.tensor(1.0))
    with pytest.raises(ValueError, match="3 steps were left out before it"):
        skips.leave_out(watch, Accelerator(cpu=True), None, lambda fault: "")
