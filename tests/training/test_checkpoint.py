"""Stop and go on: the same bits as without the stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pact.objective import PactConfig
from pact.training.checkpoint import (
    CHECKPOINTS,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from pact.training.config import FitConfig, TrainConfig
from pact.training.student import make_trainable
from tests.tiny import tiny_llama
from tests.training.problem import Problem, Stopping, parameters_of, problem


def _model(full: bool) -> nn.Module:
    """Adapters with dropout, whose noise has to go on as well; or all weights."""
    run = {"model": "m", "train_file": "t", "output_dir": "o", "method": "plain"}
    return make_trainable(tiny_llama(), TrainConfig(**run, full_finetuning=full, lora_dropout=0.3))


def _stopped(given: Problem, model: nn.Module, config: FitConfig, folder: Path, reads: int) -> None:
    with pytest.raises(ConnectionError):
        given._replace(dataset=Stopping(given.dataset, reads)).fit(model, config, output_dir=folder)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(full: bool, tmp_path: Path) -> None:
    """Stopped in step 5 of 8, in the second epoch, and gone on from the checkpoint after step 4."""
    given = problem(PactConfig(over="selection"))
    settings: dict[str, Any] = {"max_steps": 8, "learning_rate": 1e-2, "micro_batch_size": 4}
    whole = _model(full)
    records = given.fit(whole, FitConfig(**settings))

    _stopped(
        given, _model(full), FitConfig(**settings, save_every=2), tmp_path, reads=8 + 8 + 4 + 8 + 3
    )
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "step-00000004"
    resumed = _model(full)
    resumed_records = given.fit(
        resumed, FitConfig(**settings, save_every=2, resume=True), output_dir=tmp_path
    )
    ours, theirs = parameters_of(resumed), parameters_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    timeless = [[r | {"tokens_per_s": 0} for r in run] for run in (resumed_records, records)]
    assert timeless[0] == timeless[1]


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    given = problem(None)
    models = tiny_llama(), tiny_llama()
    given.fit(models[0], FitConfig(max_steps=2))
    given.fit(models[1], FitConfig(max_steps=2, resume=True), output_dir=tmp_path)
    ours, theirs = parameters_of(models[1]), parameters_of(models[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    given, model = problem(None), tiny_llama()
    config = FitConfig(max_steps=3, save_every=2)
    given.fit(model, config, output_dir=tmp_path)
    again = tiny_llama()
    records = given.fit(
        again, FitConfig(max_steps=3, save_every=2, resume=True), output_dir=tmp_path
    )
    assert [record["step"] for record in records] == [1, 2, 3]
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_partial_checkpoint_is_never_taken_and_old_ones_go(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    parameters = {"weight": nn.Parameter(torch.arange(3.0))}
    optimizer = torch.optim.AdamW(parameters.values())
    (tmp_path / CHECKPOINTS / "partial-00000012").mkdir(parents=True)
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 10):  # 9 comes after 10 by name alone
        save_checkpoint(tmp_path, step, parameters, optimizer)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000010"]
    restored = {"weight": nn.Parameter(torch.zeros(3))}
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert load_checkpoint(checkpoint, restored, torch.optim.AdamW(restored.values())) == 10
    assert torch.equal(restored["weight"], parameters["weight"])


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    given = problem(None)
    given.fit(_model(full=False), FitConfig(max_steps=1, save_every=1), output_dir=tmp_path)
    resume = FitConfig(max_steps=2, resume=True)
    with pytest.raises(ValueError, match="must hold the parameters that this run trains, got oth"):
        given.fit(tiny_llama(), resume, output_dir=tmp_path)
