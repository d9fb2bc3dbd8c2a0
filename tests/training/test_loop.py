"""The loop: the same step however it is cut, in either precision, by one process or several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file

from pact.config import PactConfig
from pact.training.config import FitConfig, TrainConfig
from pact.training.loop import fit
from pact.training.student import make_trainable
from tests.tiny import tiny_llama
from tests.training.distributed import STEPS, by_fit, by_step, by_trainer
from tests.training.problem import (
    largest_error,
    parameters_of,
    problem,
    summed_gradients,
)

REPOSITORY = Path(__file__).parents[2]


def _settings(full: bool, **settings: Any) -> TrainConfig:
    return TrainConfig(
        model="m",
        train_file="t",
        output_dir="o",
        method="plain",
        full_finetuning=full,
        **settings,
    )


def test_cutting_steps_leaves_the_trained_weights_alone() -> None:
    """Four steps, the third smaller than the others (20 = 8 + 8 + 4)."""
    given = problem(PactConfig(over="selection"))
    trained = []
    for size in (8, 2):
        model = tiny_llama()
        config = FitConfig(max_steps=4, micro_batch_size=size, learning_rate=1e-3)
        given.fit(model, config)
        trained.append(parameters_of(model))
    assert largest_error(trained[1], trained[0]) < 1e-3  # Adam divides by small second moments
    assert largest_error(trained[0], parameters_of(tiny_llama())) > 1e-3


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_training_learns(full: bool) -> None:
    model = make_trainable(tiny_llama(), _settings(full))
    records = problem(PactConfig(over="selection")).fit(
        model, FitConfig(max_steps=30, learning_rate=1e-2, warmup_ratio=0.1)
    )
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert not model.training
    assert [record["step"] for record in records] == list(range(1, 31))
    assert records[2]["epoch"] == 1.0  # 3 steps of 20 examples


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_bfloat16_learns_what_float32_learns(full: bool) -> None:
    """LoRA trains float32 adapters on a bfloat16 model, full fine-tuning float32 weights."""
    last = []
    for dtype in ("fp32", "bf16"):
        model = tiny_llama().bfloat16() if dtype == "bf16" and not full else tiny_llama()
        model = make_trainable(model, _settings(full))
        records = problem(PactConfig(over="selection")).fit(
            model, FitConfig(max_steps=15, learning_rate=1e-2, dtype=dtype)
        )
        assert {value.dtype for value in parameters_of(model).values()} == {torch.float32}
        last.append(records[-1])
    assert last[1]["loss"] < 0.8 * records[0]["loss"]
    assert last[1]["loss"] == pytest.approx(last[0]["loss"], rel=0.05)
    assert last[1]["loss"] != last[0]["loss"]  # the products were bfloat16


def test_gradient_checkpointing_changes_no_gradient() -> None:
    given = problem(PactConfig(over="selection"))
    gradients = []
    for checkpointing in (False, True):
        model = make_trainable(tiny_llama(), _settings(full=False))
        gradients.append(summed_gradients(model))
        given.fit(model, FitConfig(max_steps=1, gradient_checkpointing=checkpointing))
    assert largest_error(gradients[1], gradients[0]) == 0.0


def test_how_it_was_launched_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` sets these for scripts that leave them to accelerate."""
    given = problem(None)
    (expected,) = given.fit(tiny_llama(), FitConfig(max_steps=1))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    (record,) = given.fit(tiny_llama(), FitConfig(max_steps=1))
    assert record["loss"] == expected["loss"]
    assert record["grad_norm"] == expected["grad_norm"]


def test_weight_decay_spares_vectors() -> None:
    """One step with a decay so strong that it shows: matrices shrink, norms do not."""
    model, start = tiny_llama(), parameters_of(tiny_llama())
    config = FitConfig(max_steps=1, learning_rate=1e-3, weight_decay=500.0, warmup_ratio=0.0)
    problem(None).fit(model, config)
    for name, after in parameters_of(model).items():
        shrunk = (after.norm() / start[name].norm()).item()
        assert shrunk == pytest.approx(0.5 if after.ndim == 2 else 1.0, abs=0.02), name


def test_dropout_is_seeded_by_the_step() -> None:
    """Neither what was drawn before nor what is drawn after changes a run."""
    losses = []
    for draws in (0, 7):
        model = make_trainable(tiny_llama(), _settings(full=False, lora_dropout=0.5))
        torch.rand(draws)
        records = problem(None).fit(model, FitConfig(max_steps=3, learning_rate=1e-2))
        losses.append([record["loss"] for record in records])
    assert losses[0] == losses[1]


def test_records_are_means_over_their_steps() -> None:
    given = problem(PactConfig(over="selection"))
    every = given.fit(tiny_llama(), FitConfig(max_steps=5))
    some = given.fit(tiny_llama(), FitConfig(max_steps=5, log_every=3))
    assert [record["step"] for record in some] == [3, 5]
    for name in ("loss", "kl", "gate", "rows"):
        assert some[0][name] == pytest.approx(sum(r[name] for r in every[:3]) / 3, rel=1e-5)
        assert some[1][name] == pytest.approx(sum(r[name] for r in every[3:]) / 2, rel=1e-5)


def test_looking_after_each_step_changes_nothing() -> None:
    """Every step is seen once, after its update; what the look draws, training does not see."""
    given, model = problem(None), make_trainable(tiny_llama(), _settings(False, lora_dropout=0.5))
    seen: dict[int, float] = {}

    def look(step: int) -> None:
        torch.rand(7)
        seen[step] = sum(float(p.detach().norm()) for p in model.parameters() if p.requires_grad)

    config = FitConfig(max_steps=3, learning_rate=1e-2)
    looked = given.fit(model, config, after_step=look)
    other = make_trainable(tiny_llama(), _settings(False, lora_dropout=0.5))
    alone = given.fit(other, config)
    assert [record["loss"] for record in looked] == [record["loss"] for record in alone]
    assert list(seen) == [1, 2, 3]
    assert len(set(seen.values())) == 3


def test_what_cannot_work_is_refused() -> None:
    given = problem(PactConfig(over="selection"))
    with pytest.raises(ValueError, match="needs a reference, got None"):
        fit(tiny_llama(), given.dataset, given.objective, None, given.collator, FitConfig())
    with pytest.raises(ValueError, match="the data must hold at least one example, got none"):
        given._replace(dataset=[]).fit(tiny_llama(), FitConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
        with pytest.raises(ValueError, match="several with DDP, got FSDP: launch it without shard"):
            given.fit(tiny_llama(), FitConfig())
    small = tiny_llama(vocab_size=200)
    with pytest.raises(ValueError, match=r"below the model's vocabulary of 200, got \d+ in step 0"):
        problem(None).fit(small, FitConfig(max_steps=1))
    exploding = tiny_llama()
    with torch.no_grad():
        exploding.lm_head.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="the loss must be finite, got nan"):
        problem(None).fit(exploding, FitConfig(max_steps=1))


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Both `fit` and `PactTrainer`, all weights, so that the head's gradient is reduced too."""
    script = [str(REPOSITORY / "tests/training/distributed.py"), str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, *script],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    start = parameters_of(tiny_llama())
    for name, model in {"fit": by_fit(), "trainer": by_trainer(tmp_path, 1)}.items():
        one = parameters_of(model)
        assert largest_error(load_file(tmp_path / f"{name}.safetensors"), one) < 1e-3, name
        assert largest_error(one, start) > 1e-2, name
    one_step = by_step(8, packed=False)
    for name in STEPS.values():
        assert largest_error(load_file(tmp_path / f"{name}.safetensors"), one_step) < 1e-5, name
