"""`PactTrainer` trains what `fit` trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import BloomConfig, BloomForCausalLM, TrainingArguments

from pact.data.anchors import with_anchors
from pact.discovery import SafetyTokens
from pact.objective import PactConfig, PactObjective
from pact.reference import AdaptersOff, FrozenModel
from pact.training import PactTrainer
from pact.training.config import FitConfig, TrainConfig
from pact.training.schedule import Plan
from pact.training.student import batch_loss, make_trainable
from tests.objectives import matching
from tests.rounding import AFTER_ADAM, NO_KL, STATES, SUMS
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import (
    TOKEN_IDS,
    TOKEN_WEIGHTS,
    largest_error,
    parameters_of,
    problem,
)

TOKENS = SafetyTokens(TOKEN_IDS, TOKEN_WEIGHTS)


class InOrder(PactTrainer):
    """Takes the examples in the order in which they are given."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def _arguments(folder: Path, **settings: Any) -> TrainingArguments:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return TrainingArguments(str(folder), **(quiet | settings))


def _adapters(dropout: float = 0.0) -> Any:
    run = {"model": "m", "train_file": "t", "output_dir": "o", "method": "plain"}
    return make_trainable(tiny_llama(), TrainConfig(**run, lora_dropout=dropout))


@pytest.mark.parametrize(
    "pact, share",
    [
        (PactConfig(), 0.0),
        (PactConfig(), 0.3),
        (PactConfig(over="selection"), 0.0),
        (matching("vocabulary", gate=False), 0.0),
        (None, 0.0),
    ],
    ids=["recommended", "with anchors", "released", "vocabulary", "plain"],
)
def test_it_trains_the_weights_that_fit_trains(
    pact: PactConfig | None, share: float, tmp_path: Path
) -> None:
    """One epoch of 20 examples in steps of 8, 8 and 4, in micro-batches of 2; 6 may be anchors."""
    given = problem(pact)
    if share:
        learnt, anchors = given.dataset.select(range(14)), given.dataset.select(range(14, 20))
        given = given._replace(dataset=with_anchors(learnt, anchors, share, steps=3, seed=0))
    config = FitConfig(epochs=1, learning_rate=1e-2, warmup_ratio=0.0, micro_batch_size=2)
    by_fit = tiny_llama()
    records = given.fit(by_fit, config)

    plan = Plan(config, len(given.dataset))
    order = [index for step in range(plan.num_steps) for index in plan.indices(step)]
    trainer = InOrder(
        tiny_llama(),
        _arguments(
            tmp_path,
            num_train_epochs=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            logging_steps=1,
        ),
        objective=given.objective,
        reference=given.reference(tiny_llama(seed=1)),
        data_collator=given.collator,
        train_dataset=given.dataset.select(order),
    )
    trainer.train()
    assert largest_error(parameters_of(trainer.model), parameters_of(by_fit)) < 1e-4
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == len(records) == 3
    for ours, theirs in zip(logged, records, strict=True):
        for name in ("loss", "cross_entropy", "kl", "gate", "grad_norm"):
            assert float(ours[name]) == pytest.approx(theirs[name], rel=STATES, abs=1e-7), name


def test_it_trains_on_packed_lines_what_it_trains_on_padded_ones(tmp_path: Path) -> None:
    """Two steps of 8 examples, in micro-batches of 4."""
    given = problem(PactConfig(over="selection"), count=16)
    trainers = []
    for each in (given, given.packed(pack_length=300)):
        trainer = InOrder(
            _adapters(),
            _arguments(
                tmp_path,
                max_steps=2,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                learning_rate=1e-2,
                logging_steps=1,
            ),
            objective=each.objective,
            data_collator=each.collator,
            train_dataset=each.dataset,
        )
        trainer.train()
        trainers.append(trainer)
    padded, packed = trainers
    assert largest_error(parameters_of(packed.model), parameters_of(padded.model)) < AFTER_ADAM
    for ours, theirs in zip(packed.state.log_history, padded.state.log_history, strict=True):
        for name in ("loss", "cross_entropy", "kl", "gate", "grad_norm"):
            if name in theirs:
                assert float(ours[name]) == pytest.approx(
                    float(theirs[name]), rel=STATES, abs=NO_KL
                )


def test_packed_lines_need_a_model_that_keeps_them_apart(tmp_path: Path) -> None:
    given = problem(None).packed()
    bloom = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="takes position_ids, got BloomForCausalLM"):
        PactTrainer(
            bloom,
            _arguments(tmp_path),
            objective=given.objective,
            data_collator=given.collator,
            train_dataset=given.dataset,
        )
    with pytest.raises(ValueError, match="takes position_ids, got BloomForCausalLM"):
        given.fit(bloom, FitConfig(max_steps=1))


def test_tokens_and_a_tokenizer_are_enough(tmp_path: Path) -> None:
    """The objective, the collator and, on adapters, the reference are made from them."""
    given = problem(PactConfig(over="selection"))
    trainer = PactTrainer(
        _adapters(dropout=0.2),
        _arguments(tmp_path, max_steps=3, learning_rate=1e-2, logging_steps=2),
        tokens=TOKENS,
        processing_class=tiny_tokenizer(),
        train_dataset=given.dataset,
        eval_dataset=given.dataset.select(range(6)),
    )
    assert isinstance(trainer.reference, AdaptersOff)
    before = parameters_of(trainer.model)
    trainer.train()
    assert largest_error(parameters_of(trainer.model), before) > 1e-2
    assert [e["kl"] > 0 for e in trainer.state.log_history if "kl" in e] == [True]


def test_evaluation_yields_the_loss_of_its_rows(tmp_path: Path) -> None:
    given = problem(PactConfig(over="selection"))
    model = tiny_llama()
    trainer = PactTrainer(
        model,
        _arguments(tmp_path, per_device_eval_batch_size=6),
        tokens=TOKENS,
        pact=PactConfig(over="selection", kl_weight=3.0),
        processing_class=tiny_tokenizer(),
        eval_dataset=given.dataset.select(range(6)),
    )
    assert isinstance(trainer.reference, FrozenModel)
    assert trainer.reference.model is not model
    batch = given.collator([given.dataset[n] for n in range(6)])
    objective = PactObjective(TOKEN_IDS, TOKEN_WEIGHTS, PactConfig(over="selection", kl_weight=3.0))
    with torch.no_grad():
        expected = batch_loss(model, objective, FrozenModel(tiny_llama()), batch).loss
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=SUMS)
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == pytest.approx(
        expected.item(), rel=SUMS
    )


def test_mixed_precision_covers_student_and_reference(tmp_path: Path) -> None:
    """Fresh adapters are where their reference is, in bfloat16 too: both ran alike."""
    given = problem(PactConfig(over="selection"))
    trainer = InOrder(
        _adapters(),
        _arguments(tmp_path, max_steps=1, bf16=True, logging_steps=1),
        tokens=TOKENS,
        pact=matching("vocabulary", gate=False),
        processing_class=tiny_tokenizer(),
        train_dataset=given.dataset,
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["kl"]) < NO_KL
    batch = given.collator([given.dataset[n] for n in range(8)])
    exact = batch_loss(tiny_llama(), PactObjective.plain(), None, batch).loss.item()
    assert first["cross_entropy"] == pytest.approx(exact, rel=0.02)
    assert first["cross_entropy"] != pytest.approx(exact, rel=1e-6)  # the products were bfloat16


def test_it_resumes_from_trainers_own_checkpoints(tmp_path: Path) -> None:
    given = problem(PactConfig(over="selection"))
    trained = []
    for resume in (None, True):
        trainer = InOrder(
            _adapters(),
            _arguments(
                tmp_path, max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-2
            ),
            tokens=TOKENS,
            processing_class=tiny_tokenizer(),
            train_dataset=given.dataset,
        )
        if resume:
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        else:
            trainer.train()
        trained.append(parameters_of(trainer.model))
    assert largest_error(trained[1], trained[0]) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either tokens .* or an objective, got neither"),
        ({"tokens": TOKENS, "objective": PactObjective.plain()}, "got both"),
        ({"tokens": TOKENS}, "got no tokenizer: give it as processing_class"),
        ({"tokens": TOKENS, "compute_metrics": print}, "needs logits, which PactTrainer never"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        PactTrainer(tiny_llama(), _arguments(tmp_path), **options)
