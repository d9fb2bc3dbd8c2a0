"""One optimiser step is the same however its examples are cut, packed and ordered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pact.objective import PactConfig
from pact.reference import AdaptersOff, Reference
from pact.training.student import add_adapters
from tests.objectives import matching
from tests.rounding import SUMS
from tests.tiny import tiny_llama
from tests.training.problem import Problem, largest_error, one_step, problem

OBJECTIVES = {
    "with a margin": PactConfig(kl_margin=1.5),
    "selection": matching("selection"),
    "selection, no gate": matching("selection", gate=False),
    "vocabulary": matching("vocabulary"),
    "vocabulary, no gate": matching("vocabulary", gate=False),
    "plain": None,
}


def _adapted() -> Any:
    """Adapters that do something, so that both of their matrices have a gradient."""
    model = add_adapters(tiny_llama())
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return model


def _step(given: Problem, full: bool, **settings: Any) -> Any:
    model: nn.Module = tiny_llama() if full else _adapted()
    reference: Reference | None = None
    if given.objective.needs_reference:
        reference = given.reference(tiny_llama(seed=1)) if full else AdaptersOff(model)
    return one_step(given, model, reference, **settings)


@pytest.mark.parametrize(
    ("objective", "full"),
    [*((name, False) for name in OBJECTIVES), ("selection", True), ("plain", True)],
)
def test_no_cut_changes_loss_or_gradient(objective: str, full: bool) -> None:
    """1 x 8, 2 x 4, 8 x 1 and 3 + 3 + 2 examples, padded and packed, in two orders.

    Of all weights, whose reference is a frozen copy, with the gate and without a pull.
    """
    pact = OBJECTIVES[objective]
    given = problem(pact, count=8)
    backwards = given._replace(dataset=given.dataset.select([*range(8)][::-1]))
    whole, gradients = _step(given, full)
    assert whole["loss"] > 1.0 and (pact is None or whole["kl"] > 1e-3)
    runs = {
        "padded 2 x 4": (given, {"micro_batch_size": 4}),
        "padded 8 x 1": (given, {"micro_batch_size": 1}),
        "padded 3 + 3 + 2": (given, {"micro_batch_size": 3}),
        "padded, another order": (backwards, {}),
        "padded, by length": (given, {"group_by_length": True, "micro_batch_size": 2}),
        "packed 1 x 8": (given.packed(), {}),
        "packed 1 x 8 in one line": (given.packed(pack_length=2000), {}),
        "packed 2 x 4": (given.packed(pack_length=150), {"micro_batch_size": 4}),
        "packed 8 x 1": (given.packed(), {"micro_batch_size": 1}),
        "packed, another order": (backwards.packed(), {}),
    }
    for run, (problem_of_run, settings) in runs.items():
        record, theirs = _step(problem_of_run, full, **settings)
        for name in ("loss", "cross_entropy", "kl", "gate", "grad_norm", "rows"):
            assert record[name] == pytest.approx(whole[name], rel=SUMS), (run, name)
        assert largest_error(theirs, gradients) < SUMS, run


def test_a_change_of_the_examples_shows() -> None:
    """What the tolerance above would hide: one example of eight exchanged for another."""
    given = problem(PactConfig(over="selection"), count=9)
    first, second = (
        _step(given._replace(dataset=given.dataset.select(examples)), full=True)
        for examples in (range(8), [*range(7), 8])
    )
    assert abs(first[0]["loss"] - second[0]["loss"]) > 1e-3
    assert largest_error(first[1], second[1]) > 1e-2
