"""What is trained, and the loss of one batch against the model's own logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pact.data.collate import Collator
from pact.models import output_head
from pact.objective import PactObjective
from pact.reference import AdaptersOff
from pact.training.checks import trainable_parameters
from pact.training.config import TrainConfig
from pact.training.student import Student, batch_loss, make_trainable
from tests.families import tiny
from tests.objectives import matching
from tests.rounding import NO_KL, SUMS
from tests.tiny import tiny_llama
from tests.training.problem import largest_error, problem

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


@pytest.mark.parametrize("family", ["mixtral, experts", "qwen 3, experts", "gpt-oss"])
def test_the_loss_that_balances_experts_is_kept(family: str) -> None:
    """That of padded lines, by the model's forward; of a part of a step, its share of the rows."""
    model = tiny(family)
    batch = Collator((), 0, post_only=False)(
        [
            {"input_ids": ids, "labels": [-100, *ids[1:]]}
            for ids in ([3, 5, 8, 13, 21, 34], [2, 7, 1, 8])
        ]
    )
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    own = model(**given)
    assert float(own.aux_loss) > 0
    ours = batch_loss(model, PactObjective.plain(), None, batch)
    torch.testing.assert_close(ours.loss, own.loss, rtol=SUMS, atol=SUMS)
    assert float(ours.loss) > float(ours.cross_entropy)
    half = batch_loss(model, PactObjective.plain(), None, batch, num_items=16)  # of 8 rows
    torch.testing.assert_close(half.loss, own.loss / 2, rtol=SUMS, atol=SUMS)
    gradients, theirs = (
        dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        for loss in (ours.loss, own.loss)
        for names, parameters in [zip(*_routers(model).items(), strict=True)]
    )
    assert largest_error(gradients, theirs) < SUMS * 10
    model.config.output_router_logits = False
    assert float(batch_loss(model, PactObjective.plain(), None, batch).loss) == pytest.approx(
        float(ours.cross_entropy), rel=SUMS
    )


def _routers(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {n: p for n, p in model.named_parameters() if "gate.weight" in n or "router" in n}
    assert found
    return found
