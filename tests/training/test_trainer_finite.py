"""Every trainer ends at what is not finite, before it is logged as 0 or saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig

from pact.discovery import SafetyTokens
from pact.integrations.mixin import PatchedTrainer
from pact.integrations.trl import PactSFTTrainer
from pact.objective import PactConfig
from pact.training import PactTrainer
from pact.training.trainer_settings import NUMBERS
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, conversations, problem

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)
GIVEN = problem(PactConfig(), count=12)


class Patched(PatchedTrainer, Trainer):
    """As Axolotl's plugin makes its trainer, of another base."""


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return {"output_dir": str(folder), "max_steps": 4, "bf16": False, **quiet, **changes}


def by_pact(folder: Path, model: Any, **changes: Any) -> Any:
    return PactTrainer(
        model,
        TrainingArguments(**settings(folder, **changes)),
        tokens=TOKENS,
        processing_class=tiny_tokenizer(),
        train_dataset=GIVEN.dataset,
        eval_dataset=GIVEN.dataset,
    )


def by_patch(folder: Path, model: Any, **changes: Any) -> Any:
    def collate(examples: list[Any]) -> dict[str, torch.Tensor]:
        batch = GIVEN.collator(examples)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    return Patched(
        model=model,
        args=TrainingArguments(**settings(folder, **changes)),
        train_dataset=GIVEN.dataset,
        eval_dataset=GIVEN.dataset,
        data_collator=collate,
        tokens=TOKENS,
    )


def by_trl(folder: Path, model: Any, **changes: Any) -> Any:
    data = Dataset.from_list([{"messages": turns} for turns in conversations(12)])
    return PactSFTTrainer(
        model,
        SFTConfig(**settings(folder, **changes), max_length=200),
        tokens=TOKENS,
        processing_class=tiny_tokenizer(),
        train_dataset=data,
        eval_dataset=data,
    )


TRAINERS = {"PactTrainer": by_pact, "PatchedTrainer": by_patch, "PactSFTTrainer": by_trl}


def spoiled(trainer: Any, model: Any, step: int) -> Any:
    """A weight turns NaN before a step, from 1."""
    own = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if trainer.state.global_step == step - 1:
            model.lm_head.weight.detach()[5] = torch.nan
        return own(*args, **kwargs)

    trainer.training_step = training_step
    return trainer


@pytest.mark.parametrize("name", TRAINERS)
def test_a_loss_that_is_not_finite_is_neither_logged_as_0_nor_saved(
    name: str, tmp_path: Path
) -> None:
    """The filter of Trainer is on, as it is unless it is told otherwise."""
    model = tiny_llama()
    saves = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    trainer = spoiled(TRAINERS[name](tmp_path, model, **saves), model, 3)
    assert trainer.args.logging_nan_inf_filter
    with pytest.raises(ValueError, match=r"loss must be finite, got nan in step 3 \(cross-entropy"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert all(entry["loss"] > 0 for entry in entries)
    with pytest.raises(ValueError, match="must be finite"):
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", TRAINERS)
def test_a_training_without_logs_and_saves_does_not_end_well(name: str, tmp_path: Path) -> None:
    model = tiny_llama()
    trainer = spoiled(TRAINERS[name](tmp_path, model, logging_strategy="no"), model, 3)
    with pytest.raises(ValueError, match="loss must be finite, got nan in step 3 "):
        trainer.train()
    assert not any("train_loss" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_gradient_between_two_logs_is_seen(name: str, tmp_path: Path) -> None:
    """It is infinite in step 2, so clipping makes an update of NaN; the log is after step 4."""
    model, calls = tiny_llama(), [0]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * torch.inf if calls[0] == 2 else gradient

    model.model.norm.weight.register_hook(spoil)
    trainer = TRAINERS[name](tmp_path, model, logging_steps=4)
    with pytest.raises(ValueError, match="gradient's norm must be finite, got (inf|nan) in step 2"):
        trainer.train()


@pytest.mark.parametrize("name", TRAINERS)
def test_an_evaluation_of_nan_has_no_loss(name: str, tmp_path: Path) -> None:
    """Trainer leaves such batches out of the mean."""
    model = tiny_llama()
    trainer = TRAINERS[name](tmp_path, model, per_device_eval_batch_size=4)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    model.lm_head.weight.detach()[5] = torch.nan
    with pytest.raises(ValueError, match="evaluation's losses must be finite, got NaN .* in 3 of"):
        trainer.evaluate()


@pytest.mark.parametrize("make", [by_pact, by_patch], ids=["PactTrainer", "PatchedTrainer"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_mean_nothing_are_refused(name: str, make: Any, tmp_path: Path) -> None:
    for value in (math.nan, -1.0, 1e30):
        with pytest.raises(ValueError, match=f"{name} must be"):
            make(tmp_path, tiny_llama(), **{name: value})


def test_one_process_may_save_alone(tmp_path: Path) -> None:
    """As after training under `if trainer.is_world_process_zero()`: no other is waited for."""
    trainer = by_pact(tmp_path, tiny_llama())
    trainer.train()

    def waits(*_: Any, **__: Any) -> None:
        raise AssertionError("another process was waited for")

    trainer.accelerator.gather = trainer.accelerator.reduce = waits
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "config.json").is_file()
