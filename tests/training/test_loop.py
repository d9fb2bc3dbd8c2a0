"""The loop: the same step however it is cut, in either precision, by one process or several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from pact.discovery import SafetyTokens
from pact.objective import PactConfig
from pact.reference import FrozenModel
from pact.training import student, train
from pact.training.checkpoint import newest_checkpoint
from pact.training.config import FitConfig, TrainConfig
from pact.training.loop import fit
from pact.training.metrics import METRICS_FILE
from pact.training.student import make_trainable
from tests.rounding import AFTER_ADAM, STATES, SUMS
from tests.tiny import save_tiny, tiny_llama
from tests.training.distributed import STEPS, by_fit, by_step, by_trainer
from tests.training.distributed import main as train_all
from tests.training.problem import (
    TOKEN_IDS,
    TOKEN_WEIGHTS,
    conversations,
    largest_error,
    parameters_of,
    problem,
    summed_gradients,
)
from tests.training.two import in_two_processes

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
    assert largest_error(trained[1], trained[0]) < AFTER_ADAM
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
        assert some[0][name] == pytest.approx(sum(r[name] for r in every[:3]) / 3, rel=SUMS)
        assert some[1][name] == pytest.approx(sum(r[name] for r in every[3:]) / 2, rel=SUMS)


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
    with pytest.raises(
        ValueError, match="of the model must be finite, .* in lm_head.weight as float32: take"
    ):
        problem(None).fit(exploding, FitConfig(max_steps=1))
    with pytest.raises(ValueError, match="of the reference must be finite, .* in lm_head.weight"):
        fit(
            tiny_llama(),
            given.dataset,
            given.objective,
            FrozenModel(exploding),
            given.collator,
            FitConfig(max_steps=1),
        )


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Both `fit` and `PactTrainer`, all weights, so that the head's gradient is reduced too."""
    in_two_processes(train_all, tmp_path)
    start = parameters_of(tiny_llama())
    trained, losses = by_trainer(tmp_path, 1)
    evaluated = load_file(tmp_path / "evaluation.safetensors")
    assert largest_error(evaluated, losses) < AFTER_ADAM
    for name, model in {"fit": by_fit(), "trainer": trained}.items():
        one = parameters_of(model)
        assert largest_error(load_file(tmp_path / f"{name}.safetensors"), one) < AFTER_ADAM, name
        assert largest_error(one, start) > 1e-2, name
    one_step = by_step(8, packed=False)
    for name in STEPS.values():
        assert largest_error(load_file(tmp_path / f"{name}.safetensors"), one_step) < SUMS, name


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = ("accelerate.commands.launch", "--num_processes=2")


def launch(launcher: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pact <arguments>` in two processes, without a word about devices."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "pact", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


def test_launchers_on_a_processor_join_their_processes(tmp_path: Path) -> None:
    """One run, with the weights of one process; what runs in one process alone refuses two."""
    rows = [json.dumps({"messages": turns}) for turns in conversations(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS).save(tmp_path / "tokens.safetensors")
    settings = {
        "model": str(save_tiny(tmp_path / "model")),
        "train_file": str(tmp_path / "train.jsonl"),
        "tokens": str(tmp_path / "tokens.safetensors"),
        "max_steps": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "cache_dir": str(tmp_path / "cache"),
    }
    flags = [
        text
        for name, value in settings.items()
        for text in ("--" + name.replace("_", "-"), str(value))
    ]
    done = launch(ACCELERATE, "train", *flags, "--output-dir", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    alone = train(TrainConfig(**settings, output_dir=str(tmp_path / "one")))
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses == pytest.approx([record["loss"] for record in alone.records], rel=STATES)
    assert done.stdout.count("3 steps, cross-entropy") == 1
    refused = launch(
        TORCHRUN, "show", "--tokens", settings["tokens"], "--tokenizer", settings["model"]
    )
    assert refused.returncode != 0
    assert "WORLD_SIZE=2 where this runs in one process" in refused.stderr


def test_processes_that_were_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        with monkeypatch.context() as launched:
            launched.setenv(name, "2")
            with pytest.raises(ValueError, match=f"must be joined, got {name}=2 where this runs"):
                problem(None).fit(tiny_llama(), FitConfig(max_steps=1))


NOT_FINITE = {
    "loss": r"the loss must be finite, got nan in step 3 \(cross-entropy \d.*, kl 0, gradient's "
    r"norm nan\), examples 14, 9, 1, 15, counted from 0: lower learning_rate",
    "gradient": r"the gradient's norm must be finite, got inf in step 3 \(loss \d.*, examples 1.*: "
    "lower learning_rate",
    "parameter": "must be finite, got NaN or infinity in lm_head.weight after step 4",
}


@pytest.mark.parametrize("log_every", [1, 3, 100])
@pytest.mark.parametrize("what", NOT_FINITE)
def test_what_is_not_finite_reaches_no_file(
    what: str, log_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes up in step 3; a checkpoint is due after steps 2, 4 and at the end."""
    given, model, calls = problem(None), tiny_llama(), {"clip": 0, "loss": 0}
    clip, batch_loss = Accelerator.clip_grad_norm_, student.batch_loss

    def clipped(*arguments: Any) -> Any:
        norm = clip(*arguments)
        calls["clip"] += 1
        if calls["clip"] == 4 and what == "parameter":
            model.lm_head.weight.grad.fill_(torch.nan)  # the update of step 4 takes it up
        return norm * torch.inf if calls["clip"] == 3 and what == "gradient" else norm

    def lost(*arguments: Any) -> Any:
        found = batch_loss(*arguments)
        calls["loss"] += 1
        is_due = calls["loss"] == 3 and what == "loss"
        return found._replace(loss=found.loss * torch.nan) if is_due else found

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clipped)
    monkeypatch.setattr(student, "batch_loss", lost)
    config = FitConfig(max_steps=6, save_every=2, log_every=log_every)
    with pytest.raises(ValueError, match=NOT_FINITE[what]) as caught:
        given.fit(model, config, output_dir=tmp_path)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step-00000002"
    assert str(newest) in str(caught.value)
    weights = load_file(newest / "weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    steps = [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).open()]
    good = 3 if what == "parameter" else 2
    assert steps == [step for step in range(1, good + 1) if step % log_every == 0]


def test_a_model_that_is_not_finite_is_not_saved_at_the_end() -> None:
    """Also where no checkpoint is ever written."""
    model = tiny_llama()
    hook = register_optimizer_step_post_hook(
        lambda *_: model.lm_head.weight.detach().fill_(torch.inf)
    )
    try:
        with pytest.raises(ValueError, match="infinity in lm_head.*no checkpoint was written"):
            problem(None).fit(model, FitConfig(max_steps=1, save_every=None))
    finally:
        hook.remove()
