"""`PatchedTrainer` before trainers that are not the package's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import pact
from pact.discovery import SafetyTokens
from pact.integrations.mixin import PatchedTrainer
from pact.integrations.transformers_models import is_patched, last_loss
from pact.objective import PactConfig
from pact.reference import FrozenModel
from pact.training import PactTrainer
from tests.rounding import STATES
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import TOKEN_IDS, TOKEN_WEIGHTS, problem

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)


class Theirs(Trainer):
    """As LLaMA-Factory's: arguments of its own, before Trainer's by name."""

    def __init__(self, finetuning_args: str, processor: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.finetuning_args = finetuning_args

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)


class Mine(PatchedTrainer, Theirs):
    """What a user writes."""


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**given, **settings})


GIVEN = problem(PactConfig(gate=False), count=12)
DATA = GIVEN.dataset.select_columns(["input_ids", "labels"])


def collate(examples: list[Any]) -> dict[str, Tensor]:
    batch = GIVEN.collator(examples)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def logged(trainer: Any) -> list[dict[str, float]]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def test_losses_and_their_parts_are_pact_trainers(tmp_path: Path) -> None:
    reference = FrozenModel(tiny_llama(seed=1))
    mine = Mine(
        "theirs",
        model=tiny_llama(),
        args=arguments(tmp_path),
        train_dataset=DATA,
        data_collator=collate,
        tokens=TOKENS,
        reference=reference,
    )
    assert is_patched(mine.model) and mine.finetuning_args == "theirs"
    ours = PactTrainer(
        tiny_llama(),
        arguments(tmp_path),
        tokens=TOKENS,
        reference=reference,
        data_collator=GIVEN.collator,
        train_dataset=DATA,
    )
    found, expected = logged(mine), logged(ours)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        for name in ("loss", "cross_entropy", "kl"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=STATES), name


def test_an_evaluation_is_no_part_of_a_training_log(tmp_path: Path) -> None:
    mine = Mine(
        "theirs",
        model=tiny_llama(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=1),
        train_dataset=DATA,
        eval_dataset=DATA.select(range(4)),
        data_collator=collate,
    )
    entries = logged(mine)
    assert len(entries) == 2 and all(entry["kl"] == 0.0 for entry in entries)
    for entry in entries:
        assert float(entry["loss"]) == pytest.approx(float(entry["cross_entropy"]), rel=1e-3)
    assert sum("eval_loss" in entry for entry in mine.state.log_history) == 2


def test_the_reference_follows_the_student(tmp_path: Path) -> None:
    """A copy made on one device is used on another; `meta` stands for the first."""
    model = tiny_llama()
    mine = Mine("theirs", model=model, args=arguments(tmp_path), tokens=TOKENS)
    held = mine.model._pact.reference.model
    moved = []
    own = type(held).to
    held.to = lambda device: (moved.append(device), own(held, device))[1]
    mine.model(**collate([DATA[0]]))
    assert not moved and last_loss(mine.model) is not None
    held.to_empty(device="meta")
    with pytest.raises(NotImplementedError):  # nothing can leave meta, but it was asked for
        mine.model(**collate([DATA[0]]))
    assert moved == [torch.device("cpu")]


def test_what_replaces_the_loss_is_refused(tmp_path: Path) -> None:
    for settings, options, said in (
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
        ({}, {"compute_loss_func": len}, "compute_loss_func"),
    ):
        with pytest.raises(ValueError, match=said):
            Mine("t", model=tiny_llama(), args=arguments(tmp_path, **settings), **options)
    model = Mine("t", model=tiny_llama(), args=arguments(tmp_path)).model
    assert is_patched(Mine("t", model=model, args=arguments(tmp_path)).model)
    with pytest.raises(ValueError, match="patched already, got tokens too"):
        Mine("t", model=model, args=arguments(tmp_path), tokens=TOKENS)


def test_a_second_training_and_a_resumed_one_log_their_own_parts(tmp_path: Path) -> None:
    """Each log's parts are means over the steps since the one before, in this run."""
    given = {"train_dataset": DATA, "data_collator": collate}
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = Mine("theirs", model=tiny_llama(), args=arguments(tmp_path, **saving), **given)
    entries = logged(whole)
    whole.train()
    again = [entry for entry in whole.state.log_history if "grad_norm" in entry]
    assert len(again) == 4
    resumed = Mine("theirs", model=tiny_llama(), args=arguments(tmp_path, max_steps=4), **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = [entry for entry in resumed.state.log_history if "grad_norm" in entry]
    for entry in (*entries, *again, *after):
        assert float(entry["loss"]) == pytest.approx(float(entry["cross_entropy"]), rel=1e-3)


def test_a_loss_that_is_formed_elsewhere_is_no_pacts(tmp_path: Path) -> None:
    class Elsewhere(Theirs):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(input_ids=inputs["input_ids"]).logits.float().logsumexp(-1).mean()

    class Mixed(PatchedTrainer, Elsewhere):
        pass

    trainer = Mixed(
        "theirs",
        model=tiny_llama(),
        args=arguments(tmp_path),
        train_dataset=DATA,
        data_collator=collate,
    )
    with pytest.raises(ValueError, match="Mixed forms its loss without the forward of the patched"):
        trainer.train()


def test_trl_s_own_head_and_a_patch_do_not_meet(tmp_path: Path) -> None:
    """SFTTrainer puts a fused head on the model, whose loss would be trained instead."""

    class Mixed(PatchedTrainer, SFTTrainer):
        pass

    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    given = {"processing_class": tiny_tokenizer(), "train_dataset": DATA}
    with pytest.raises(ValueError, match="for TRL, use pact.integrations.trl.PactSFTTrainer"):
        Mixed(tiny_llama(), config, **given)
    with pytest.raises(ValueError, match="this trainer of TRL puts a loss of its own"):
        SFTTrainer(pact.patch(tiny_llama()), config, **given)
