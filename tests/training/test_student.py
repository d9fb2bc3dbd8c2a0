"""What is trained, and the loss of one batch against the model's own logits."""

from __future__ import annotations

import pytest
import torch

from pact.models import output_head
from pact.reference import AdaptersOff
from pact.training.checks import trainable_parameters
from pact.training.config import TrainConfig
from pact.training.student import Student, batch_loss, make_trainable
from tests.objectives import matching
from tests.rounding import NO_KL, SUMS
from tests.tiny import tiny_llama
from tests.training.problem import problem

RUN = {"model": "m", "train_file": "t", "output_dir": "o", "method": "plain"}


def test_lora_trains_its_adapters_alone_and_in_float32() -> None:
    model = make_trainable(tiny_llama().bfloat16(), TrainConfig(**RUN, lora_r=4))
    parameters = trainable_parameters(model)
    assert len(parameters) == 2 * 2 * 2  # layers, projections, A and B
    assert all(".q_proj.lora_" in name or ".v_proj.lora_" in name for name in parameters)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert output_head(model).weight.dtype == torch.bfloat16


def test_adapters_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        make_trainable(tiny_llama(), TrainConfig(**RUN, seed=seed)).state_dict()
        for seed in (0, 0, 1)
    )
    name = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert torch.equal(state, torch.get_rng_state())


def test_full_finetuning_trains_everything() -> None:
    model = tiny_llama().requires_grad_(False)
    make_trainable(model, TrainConfig(**RUN, full_finetuning=True))
    assert len(trainable_parameters(model)) == len(list(model.parameters()))


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one parameter must be trainable, got none"):
        trainable_parameters(tiny_llama().requires_grad_(False))
    with pytest.raises(ValueError, match="must be float32, got torch.bfloat16 for model.embed"):
        trainable_parameters(tiny_llama().bfloat16())
    with pytest.raises(ValueError, match="nowhere_proj"):
        make_trainable(tiny_llama(), TrainConfig(**RUN, lora_targets=("nowhere_proj",)))


@pytest.mark.parametrize("num_items", [None, 1000])
def test_plain_loss_is_the_models_own(num_items: int | None) -> None:
    given = problem(None, count=4)
    model = tiny_llama()
    batch = given.collator(list(given.dataset))
    rows = batch["row_target"].numel()
    loss = batch_loss(model, given.objective, None, batch, num_items)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    theirs = model(**inputs).loss  # a mean over the same rows
    assert loss.loss.item() == pytest.approx(theirs.item() * rows / (num_items or rows), rel=SUMS)


def test_fresh_adapters_are_where_their_reference_is() -> None:
    """With B = 0 the student is the reference: without a gate, the KL of confidences is 0."""
    given = problem(matching("vocabulary", gate=False), count=4)
    model = make_trainable(tiny_llama(), TrainConfig(**RUN))
    batch = given.collator(list(given.dataset))
    student = Student(model, given.objective, AdaptersOff(model))
    loss = student(batch)
    assert abs(loss.kl.item()) < NO_KL
    loss.loss.backward()
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1
    moved = student(batch)
    assert moved.kl.item() > 1e-3
