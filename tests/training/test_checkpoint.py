"""Stop and go on: the same bits as without the stop."""

from __future__ import annotations

from collections.abc import Callable
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
    whole_checkpoint,
)
from pact.training.config import FitConfig, TrainConfig
from pact.training.manifest import damage
from pact.training.student import make_trainable
from tests.tiny import tiny_llama
from tests.training.problem import Problem, Stopping, parameters_of, problem


def _model(full: bool) -> nn.Module:
    """Adapters with dropout, whose noise has to go on as well; or all weights."""
    run: dict[str, Any] = {"model": "m", "train_file": "t", "output_dir": "o", "method": "plain"}
    run |= {"full_finetuning": True} if full else {"lora_dropout": 0.3}
    return make_trainable(tiny_llama(), TrainConfig(**run))


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
    for step in (9, 10):
        save_checkpoint(tmp_path, step, parameters, optimizer, keep=1)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000010"]
    restored = {"weight": nn.Parameter(torch.zeros(3))}
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert load_checkpoint(checkpoint, restored, torch.optim.AdamW(restored.values())) == 10
    assert torch.equal(restored["weight"], parameters["weight"])


FILES = ("weights.safetensors", "state.pt", "run.json", "manifest.json")


def _flip(path: Path, place: float) -> None:
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x01
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "first bit": lambda path: _flip(path, 0.0),
    "middle bit": lambda path: _flip(path, 0.5),
    "last bit": lambda path: _flip(path, 1.0),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def _run_of_two(folder: Path) -> tuple[dict[str, nn.Parameter], dict[int, torch.Tensor]]:
    """Checkpoints of two steps, and the weights of each."""
    parameters = {"weight": nn.Parameter(torch.zeros(300))}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    weights = {}
    for step in (1, 2):
        parameters["weight"].grad = torch.full((300,), float(step))
        optimizer.step()
        weights[step] = parameters["weight"].detach().clone()
        save_checkpoint(folder, step, parameters, optimizer, {"settings": {"seed": step}})
    return parameters, weights


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_never_read(
    kind: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is taken, and if that is damaged too, none."""
    parameters, weights = _run_of_two(tmp_path)
    newest = tmp_path / CHECKPOINTS / "step-00000002"
    assert whole_checkpoint(tmp_path) == newest and not caplog.messages
    DAMAGES[kind](newest / file)
    with caplog.at_level("WARNING"):
        checkpoint = whole_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "step-00000001"
    (warning,) = caplog.messages
    assert str(newest) in warning and file in warning
    optimizer = torch.optim.AdamW(parameters.values())
    assert load_checkpoint(checkpoint, parameters, optimizer) == 1
    assert torch.equal(parameters["weight"], weights[1])
    DAMAGES[kind](checkpoint / file)
    with pytest.raises(ValueError, match="from a whole checkpoint, got damaged ones alone: .*, "):
        whole_checkpoint(tmp_path)


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    _run_of_two(tmp_path)
    path = tmp_path / CHECKPOINTS / "step-00000002" / "manifest.json"
    written = path.read_bytes()
    for place in range(len(written)):
        for bit in range(8):
            flipped = bytearray(written)
            flipped[place] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            assert damage(path.parent, 2) is not None, flipped


def test_a_checkpoint_under_another_step_is_not_read(tmp_path: Path) -> None:
    _run_of_two(tmp_path)
    folder = tmp_path / CHECKPOINTS
    (folder / "step-00000002").rename(folder / "step-00000009")
    checkpoint = whole_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "step-00000001"


def test_a_run_goes_on_from_the_whole_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    given = problem(None)
    settings: dict[str, Any] = {"max_steps": 6, "learning_rate": 1e-2, "save_total_limit": 2}
    whole = _model(full=False)
    given.fit(whole, FitConfig(**settings))
    reads = 8 + 8 + 4 + 8 + 3  # into step 5
    _stopped(given, _model(full=False), FitConfig(**settings, save_every=2), tmp_path, reads)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step-00000004"
    _flip(newest / "weights.safetensors", 0.9)
    resumed = _model(full=False)
    config = FitConfig(**settings, save_every=2, resume=True)
    records = given.fit(resumed, config, output_dir=tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    ours, theirs = parameters_of(resumed), parameters_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert whole_checkpoint(tmp_path) == tmp_path / CHECKPOINTS / "step-00000006"


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    given = problem(None)
    given.fit(_model(full=False), FitConfig(max_steps=1, save_every=1), output_dir=tmp_path)
    resume = FitConfig(max_steps=2, resume=True)
    with pytest.raises(ValueError, match="must hold the parameters that this run trains, got oth"):
        given.fit(tiny_llama(), resume, output_dir=tmp_path)


def test_what_a_killed_process_left_goes_with_the_end_of_the_run(tmp_path: Path) -> None:
    """Killed after the last checkpoint was renamed, and before an older one was deleted."""
    given = problem(None)
    config = FitConfig(max_steps=3, save_every=1)
    given.fit(tiny_llama(), config, output_dir=tmp_path)
    checkpoints = tmp_path / CHECKPOINTS
    (checkpoints / "step-00000001").mkdir()
    (checkpoints / "partial-00000003").mkdir()
    resumed = FitConfig(max_steps=3, save_every=1, resume=True)
    given.fit(tiny_llama(), resumed, output_dir=tmp_path)
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["step-00000002", "step-00000003"]
