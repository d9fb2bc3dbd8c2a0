"""Evaluations on the way of a run: what they measure, the best weights, an early stop, a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pact.objective import PactConfig
from pact.reference import FrozenModel
from pact.training import trackers
from pact.training.config import OF_EVALUATIONS, FitConfig, TrainConfig
from pact.training.evaluating import BestWeights, Evaluation
from pact.training.loop import fit
from pact.training.student import batch_loss
from tests.rounding import STATES
from tests.tiny import tiny_llama
from tests.training.problem import largest_error, parameters_of, problem

GIVEN = problem(PactConfig(gate=False), count=20)
TRAINED, OTHERS = GIVEN.dataset.select(range(12)), GIVEN.dataset.select(range(12, 20))


def evaluation(**options: Any) -> Evaluation:
    reference = FrozenModel(tiny_llama(seed=1))
    return Evaluation(OTHERS, GIVEN.objective, reference, GIVEN.collator, **options)


def run(
    model: nn.Module, folder: Path | None = None, *, losses: Any = None, **settings: Any
) -> Any:
    """A run that is evaluated every second step; `losses` stand for what is found."""
    made: Any = evaluation()
    if losses is not None:
        scripted = iter(losses)
        made = lambda *_: {"eval_loss": next(scripted), "eval_cross_entropy": 1.0}  # noqa: E731
    given = {"max_steps": 8, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 2, **settings}
    reference = GIVEN.reference(tiny_llama(seed=1))
    arguments = (model, TRAINED, GIVEN.objective, reference, GIVEN.collator, FitConfig(**given))
    return fit(*arguments, output_dir=folder, evaluation=made)


def test_the_loss_is_the_mean_over_all_rows_of_all_batches() -> None:
    model, given = tiny_llama().train(), evaluation(max_tokens=100)
    found = given(model, Accelerator(cpu=True), "fp32")
    assert model.training
    whole = GIVEN.collator([OTHERS[n] for n in range(8)])
    with torch.no_grad():
        expected = batch_loss(model.eval(), GIVEN.objective, given.reference, whole)
    assert found["eval_loss"] == pytest.approx(float(expected.loss), rel=STATES)
    assert found["eval_cross_entropy"] == pytest.approx(float(expected.cross_entropy), rel=STATES)
    assert (
        found["eval_kl"] == pytest.approx(float(expected.kl), rel=STATES) and found["eval_kl"] > 0
    )


def test_refusals_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["I cannot help with that.", "Sure, here it is.", "I'm sorry, but I can't.", "Yes."]
    monkeypatch.setattr("pact.evaluation.generate.generate_answers", lambda *_, **__: answers)
    prompts = [[{"role": "user", "content": f"request {n}"}] for n in range(4)]
    given = evaluation(prompts=prompts, tokenizer=GIVEN.tokenizer)
    assert given(tiny_llama(), Accelerator(cpu=True), "fp32")["eval_refusals"] == 0.5


def test_a_model_answers_the_prompts_as_it_is() -> None:
    prompts = [[{"role": "user", "content": f"request {n}"}] for n in range(3)]
    given = evaluation(prompts=prompts, tokenizer=GIVEN.tokenizer, max_new_tokens=4)
    assert 0.0 <= given(tiny_llama(), Accelerator(cpu=True), "fp32")["eval_refusals"] <= 1.0


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_run_ends_with_the_best_weights(on_disk: bool, tmp_path: Path) -> None:
    """Those of step 4, and all steps are taken."""
    folder = tmp_path if on_disk else None
    at_4, last = tiny_llama(), tiny_llama()
    run(at_4, losses=[3.0, 2.0], max_steps=4, schedule="constant")
    run(last, losses=[3.0, 2.0, 2.5, 2.0], keep_best=False, schedule="constant")
    model = tiny_llama()
    records = run(model, folder, losses=[3.0, 2.0, 2.5, 2.0], schedule="constant")
    assert largest_error(parameters_of(model), parameters_of(at_4)) == 0.0
    assert largest_error(parameters_of(model), parameters_of(last)) > 1e-2
    assert [record["step"] for record in records if "eval_loss" in record] == [2, 4, 6, 8]
    assert sum("loss" in record for record in records) == 8
    if on_disk:
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
        assert (tmp_path / "metrics.png").is_file()


def test_it_stops_where_nothing_gets_better(tmp_path: Path) -> None:
    """A run that has stopped stays so, with its best weights."""
    settings: dict[str, Any] = {"patience": 2, "max_steps": 10, "save_every": 2}
    losses = [3.0, 2.0, 2.5, 2.0, 1.0]
    model, again = tiny_llama(), tiny_llama()
    records = run(model, tmp_path, losses=losses, **settings)
    assert records[-1]["step"] == 8 and records[-1]["eval_loss"] == 2.0
    assert run(again, tmp_path, losses=[], resume=True, **settings) == records
    assert largest_error(parameters_of(again), parameters_of(model)) == 0.0


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_resumed_run_is_the_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    """Its real evaluations, its best weights, and its early stop."""
    settings: dict[str, Any] = {"save_every": 1, "patience": 2, "learning_rate": 0.1}
    whole, broken = tiny_llama(), tiny_llama()
    (tmp_path / "whole").mkdir(), (tmp_path / "broken").mkdir()
    records = run(whole, tmp_path / "whole", **settings)

    class Gone(Exception):
        """The machine, away after some steps."""

    def leave(done: int) -> None:
        if done == stop:
            raise Gone

    reference = GIVEN.reference(tiny_llama(seed=1))
    config = FitConfig(max_steps=8, batch_size=4, eval_every=2, **settings)
    arguments = (broken, TRAINED, GIVEN.objective, reference, GIVEN.collator, config)
    with pytest.raises(Gone):
        fit(*arguments, output_dir=tmp_path / "broken", evaluation=evaluation(), after_step=leave)
    resumed = tiny_llama()
    again = run(resumed, tmp_path / "broken", **settings, resume=True)
    assert largest_error(parameters_of(resumed), parameters_of(whole)) == 0.0
    losses = [[r["eval_loss"] for r in made if "eval_loss" in r] for made in (again, records)]
    assert losses[0] == losses[1]


def test_best_weights_that_are_gone_are_said(tmp_path: Path) -> None:
    best = BestWeights(tmp_path, [{"step": 1.0, "eval_loss": 1.0}], None)
    with pytest.raises(ValueError, match="it has no manifest"):
        best.restore({})
    with pytest.raises(ValueError, match="at least one example"):
        Evaluation([], GIVEN.objective, None, GIVEN.collator)


def test_without_keep_best_the_last_weights_stay_and_nothing_is_written(tmp_path: Path) -> None:
    losses = [1.0, 2.0, 3.0, 4.0]  # the best come first
    last, best = tiny_llama(), tiny_llama()
    run(last, tmp_path, losses=losses, keep_best=False)
    run(best, losses=losses)
    assert not (tmp_path / "best").exists()
    assert not torch.equal(last.lm_head.weight, best.lm_head.weight)


def test_checkpoints_are_kept_up_to_the_limit(tmp_path: Path) -> None:
    run(tiny_llama(), tmp_path, save_every=1, save_total_limit=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000007", "step-00000008"]


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd"])
def test_an_optimiser_by_name(optimizer: str) -> None:
    model, start = tiny_llama(), tiny_llama()
    run(model, optimizer=optimizer, learning_rate=0.1, max_steps=2)
    assert largest_error(parameters_of(model), parameters_of(start)) > 1e-4


def test_an_unknown_optimiser_or_tracker_is_one_line() -> None:
    with pytest.raises(ValueError, match="optimizer 'adamm' cannot be had"):
        run(tiny_llama(), optimizer="adamm")
    with pytest.raises(ValueError, match="installed, got 'tensorbored'.*knows aim"):
        run(tiny_llama(), report_to=("tensorbored",))


class Notes(GeneralTracker):
    """A tracker that writes down what accelerate tells it."""

    name, requires_logging_directory = "tensorboard", False
    made: list[Notes] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name, self.finished = run_name, 0
        self.settings: dict[str, Any] = {}
        self.records: list[dict[str, float]] = []
        self.made.append(self)

    @property
    def tracker(self) -> Notes:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None and not self.finished
        self.records.append({"step": step, **values})

    def finish(self) -> None:
        self.finished += 1


def test_trackers_get_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker of accelerate's, which is told of the end as well."""
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [Notes.name])
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, Notes.name, Notes)
    monkeypatch.setattr(Notes, "made", [])
    records = run(tiny_llama(), tmp_path, report_to=(Notes.name,), max_steps=4)
    (notes,) = Notes.made
    assert notes.run_name == "pact" and notes.settings["max_steps"] == 4
    assert notes.records == records and notes.finished == 1


@pytest.mark.parametrize("name", OF_EVALUATIONS)
def test_settings_of_evaluations_need_examples(name: str) -> None:
    value = "name" if name in ("eval_split", "probe_prompts") else 3
    with pytest.raises(ValueError, match=f"{name} is of evaluations: give eval_file"):
        TrainConfig(model="m", train_file="t", output_dir="o", method="plain", **{name: value})


def test_a_loss_that_is_not_finite_is_no_result() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(ValueError, match="loss of an evaluation must be finite, got eval_loss nan"):
        evaluation()(model, Accelerator(cpu=True), "fp32")


def test_a_model_that_is_not_finite_is_not_looked_at(tmp_path: Path) -> None:
    """The update of step 2 spoils it, which is neither logged nor saved but evaluated."""
    model, folder = tiny_llama(), tmp_path
    looked: list[int] = []

    def spoil(optimizer: Any, *_: Any) -> None:
        if next(iter(optimizer.state.values()))["step"] == 2:
            model.lm_head.weight.detach()[5] = torch.inf

    hook = register_optimizer_step_post_hook(spoil)
    try:
        with pytest.raises(ValueError, match="infinity in lm_head.weight after step 2"):
            run(model, folder, losses=iter(lambda: looked.append(1) or 1.0, None), log_every=100)
    finally:
        hook.remove()
    assert not looked and not (folder / "best").exists()


def test_damaged_best_weights_are_not_taken(tmp_path: Path) -> None:
    """A flipped byte, or the weights of another step than the best one's."""
    parameters = {"weight": nn.Parameter(torch.arange(3.0))}
    best = BestWeights(tmp_path, [], None)
    best.see(4, 2.0, parameters, writes=True)
    assert best.restore(parameters) == 4
    file = tmp_path / "best" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="weights.safetensors is not as it was .*keep_best"):
        best.restore(parameters)
    best.see(6, 1.0, parameters, writes=True)
    best.see(8, 0.5, parameters, writes=False)  # and killed before they were written
    with pytest.raises(ValueError, match="of step 8, must be whole .*it is of step 6"):
        best.restore(parameters)
