"""Lisa's turns and its proximal term, and SafeLoRA's projection, against their formulas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks.experiment.rivals import (
    ALIGNMENT_STEPS,
    USER_STEPS,
    Proximal,
    Turns,
    project_adapters,
)
from pact.data.collate import Collator
from pact.objective import CrossEntropy
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.student import add_adapters
from pact_kernels.types import Head
from tests.tiny import tiny_llama
from tests.training.problem import problem as training_problem

RHO = 0.6


def rows(count: int = 5) -> tuple[Any, ...]:
    """Hidden states, a head, targets and steps."""
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 3, generator=stream)
    weight = torch.randn(7, 3, generator=stream)
    return hidden, Head(weight, None, None, 1.0), torch.arange(count) % 7, torch.arange(count)


def test_the_distance_is_from_the_last_switch_point() -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    objective = Proximal([w], RHO)
    plain = CrossEntropy()(*rows()).loss
    torch.testing.assert_close(objective(*rows()).loss, plain)
    with torch.no_grad():
        w += torch.tensor([0.5, -1.0])
    loss = objective(*rows()).loss
    torch.testing.assert_close(loss, plain + RHO / 2 * (0.25 + 1.0))
    (gradient,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(gradient, RHO * torch.tensor([0.5, -1.0]))
    objective.switch_point = None
    torch.testing.assert_close(objective(*rows()).loss, plain)


def test_micro_batches_have_one_distance_together() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    objective = Proximal([w], RHO)
    hidden, head, target, step = rows()
    objective(hidden, head, target, step)
    with torch.no_grad():
        w += 1.0
    whole = objective(hidden, head, target, step).loss
    parts = [
        objective(hidden[part], head, target[part], step[part], num_items=torch.tensor(5)).loss
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("rho", (-0.1, float("inf"), float("nan")))
def test_a_weight_out_of_range_is_refused(rho: float) -> None:
    with pytest.raises(AssertionError):
        Proximal([], rho)


def test_the_loop_takes_examples_and_refusals_by_turns() -> None:
    """Two steps of refusals, ten of the data; at each change the distance begins anew."""
    given = training_problem(None)
    user = [dict(given.dataset[n], of="user") for n in range(len(given.dataset))]
    refusals = [dict(given.dataset[n], of="refusals") for n in range(3)]
    model = add_adapters(tiny_llama())
    objective = Proximal((p for p in model.parameters() if p.requires_grad), 1.0)
    turns = Turns(user, refusals, objective)
    collator = Collator((), given.tokenizer.pad_token_id, post_only=False)
    seen: list[str] = []
    starts: list[int] = []

    def collate(examples: list[Any]) -> Any:
        kinds = {example["of"] for example in examples}
        assert len(kinds) == 1
        seen.append(kinds.pop())
        if objective.switch_point is None:
            starts.append(len(seen) - 1)
        return collator([{k: v for k, v in row.items() if k != "of"} for row in examples])

    steps = ALIGNMENT_STEPS + USER_STEPS + ALIGNMENT_STEPS + 1
    config = FitConfig(max_steps=steps, batch_size=2, learning_rate=1e-2)
    fit(model, turns, objective, None, collate, config, after_step=turns.after_step)
    once = ["refusals"] * ALIGNMENT_STEPS + ["user"] * USER_STEPS
    assert seen == (once + once)[:steps]
    assert starts == [0, ALIGNMENT_STEPS, len(once), len(once) + ALIGNMENT_STEPS]


def adapted() -> tuple[Any, Any]:
    """A model with trained adapters, and what it was aligned from."""
    aligned, base = tiny_llama(seed=0), tiny_llama(seed=1)
    model = add_adapters(copy.deepcopy(aligned))
    stream = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=stream)
    return model, base


def updates(model: Any, base: Any) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """By adapter: B, A, and V = W_aligned - W_base, all by hand."""
    own = dict(model.named_parameters())
    found = []
    for name in [n for n in own if n.endswith("lora_B.default.weight")]:
        layer = name.removesuffix(".lora_B.default.weight")
        frozen = base.get_parameter(layer.removeprefix("base_model.model.") + ".weight")
        change = own[f"{layer}.base_layer.weight"] - frozen
        down = own[f"{layer}.lora_A.default.weight"]
        found.append((own[name].detach().clone(), down.detach(), change.detach()))
    return found


def test_adapters_below_the_cosine_are_projected() -> None:
    """The threshold lies between the cosines of the model's four adapters."""
    model, base = adapted()
    before = updates(model, base)
    projections = [change @ change.T / change.norm() for *_, change in before]
    cosines = [
        torch.cosine_similarity((c @ up @ down).flatten(), (up @ down).flatten(), dim=0).item()
        for (up, down, _), c in zip(before, projections, strict=True)
    ]
    lowest, second, *_ = sorted(cosines)
    assert second - lowest > 1e-4
    assert project_adapters(model, base, (lowest + second) / 2) == (1, len(before))
    for (after, _, _), (up, _, _), c, cosine in zip(
        updates(model, base), before, projections, cosines, strict=True
    ):
        torch.testing.assert_close(after, c @ up if cosine == lowest else up)


@pytest.mark.parametrize(("threshold", "count"), [(-1.0, 0), (1.0, 4)])
def test_the_ends_of_the_threshold_project_none_and_all(threshold: float, count: int) -> None:
    model, base = adapted()
    assert project_adapters(model, base, threshold) == (count, 4)  # q and v of two layers


def test_what_cannot_be_projected_is_refused() -> None:
    model, _ = adapted()
    with pytest.raises(ValueError, match="base must differ from the aligned model"):
        project_adapters(model, tiny_llama(seed=0), 0.5)
    with pytest.raises(AssertionError, match="must have LoRA adapters"):
        project_adapters(tiny_llama(), tiny_llama(seed=1), 0.5)
