"""Numbers that mean nothing are refused by the name of their setting, whichever config has it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from pact.common.fields import Bounds
from pact.objective import PactConfig, PactObjective
from pact.objective.config import BOUNDS as OF_PACT
from pact.training.config import BOUNDS, FitConfig, TrainConfig
from pact_kernels.types import Head
from tests.ops.problem import problem

RUN = {"model": "m", "train_file": "t", "output_dir": "o", "method": "plain", "eval_file": "e"}
HUGE = 10**30
WRONG = [math.nan, math.inf, -math.inf, -1, 0, True, HUGE, 1e30, "3", [1], None]
"""What a number must not be, unless `MAY_BE` says that it may."""
MAY_BE: dict[str, list[Any]] = {
    "warmup_ratio": [0],
    "weight_decay": [0],
    "max_grad_norm": [math.inf],
    "seed": [0],
    "skip_bad_steps": [0],
    "refusal_share": [0],
    "lora_dropout": [0],
    "kl_weight": [0],
    "kl_step_tau": [math.inf],
    "kl_margin": [0],
    "gate_alpha": [-1, 0],
    "gate_bias": [-1, 0],
    "gate_prefix_length": [0],
    "gate_decay_tau": [math.inf, 0],
    "gate_prefix_boost": [0],
}
UNSET = {
    *("max_steps", "micro_batch_size", "save_every", "eval_every", "patience", "pack_length"),
    *("kl_weight", "kl_temperature", "kl_step_tau", "kl_margin"),
}
"""Those that may be None."""


def numbers(config: type) -> list[str]:
    """The fields whose values are numbers."""
    return [f.name for f in dataclasses.fields(config) if str(f.type).startswith(("int", "float"))]


def test_every_number_has_bounds() -> None:
    assert set(numbers(TrainConfig)) == set(BOUNDS)
    assert set(numbers(PactConfig)) == set(OF_PACT)


@pytest.mark.parametrize("name", [*BOUNDS, *OF_PACT])
def test_a_number_that_means_nothing_is_refused_by_name(name: str) -> None:
    config, given = (TrainConfig, RUN) if name in BOUNDS else (PactConfig, {"over": "selection"})
    given = {**given, "batch_size": 4} if name == "micro_batch_size" else given
    taken = []
    for value in WRONG:
        try:
            config(**{**given, name: value})
            taken.append(value)
        except ValueError as error:
            assert str(error).startswith(f"{name} must be "), error
            assert repr(value) in str(error)
    unset = [None] if name in UNSET else []
    assert taken == [v for v in WRONG if v in MAY_BE.get(name, ()) and v is not True] + unset


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (TrainConfig, {"report_to": "wandb"}, "report_to must be a list, each text, got 'wandb'"),
        (TrainConfig, {"lora_targets": "q_proj"}, "lora_targets must be a list, each text"),
        (TrainConfig, {"lora_targets": (1,)}, "lora_targets must be a list, each text"),
        (TrainConfig, {"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        (TrainConfig, {"learning_rate": "3e-5"}, "learning_rate must be a number, got '3e-5'"),
        (TrainConfig, {"resume": 1}, "resume must be true or false, got 1"),
        (TrainConfig, {"quantize": "3bit"}, "quantize must be '4bit' or '8bit' or unset"),
        (TrainConfig, {"model": None}, "model must be text, got None"),
        (TrainConfig, {"columns": ["a"]}, "columns must be a mapping of names to values or unset"),
        (TrainConfig, {"weight_decay": 1e5}, "weight_decay must be below 1 / learning_rate=3e-05"),
        (FitConfig, {"learning_rate": math.inf}, "learning_rate must be finite, got inf"),
        (FitConfig, {"learning_rate": 1e30}, r"learning_rate must be at most 100, got 1e\+30"),
        (FitConfig, {"seed": -1}, "seed must be at least 0, got -1"),
        (PactConfig, {"over": "all"}, "over must be 'vocabulary' or 'selection', got 'all'"),
        (PactConfig, {"gate": 1}, "gate must be true or false or unset, got 1"),
        (PactConfig, {"kl_margin": 1000.0}, "kl_margin must be at most 50, or unset, got 1000.0"),
        (PactConfig, {"gate_decay_tau": 1e-300}, "gate_decay_tau must be at least 0.001, or 0"),
        (PactConfig, {"kl_step_tau": 1e-300}, "kl_step_tau must be at least 0.001, or inf"),
    ],
)
def test_what_is_of_another_kind_or_beyond_is_named(
    config: type, settings: dict[str, Any], message: str
) -> None:
    given = RUN if config is TrainConfig else {}
    with pytest.raises(ValueError, match=message):
        config(**{**given, **settings})


def test_a_whole_number_is_a_number_and_a_list_a_tuple() -> None:
    assert FitConfig(learning_rate=1, weight_decay=0).learning_rate == 1
    assert TrainConfig(**RUN, lora_targets=["q_proj"]).lora_targets == ["q_proj"]


@pytest.mark.parametrize(
    ("bounds", "value", "need"),
    [
        (Bounds(0, 1, open_least=True), 0, "in (0, 1]"),
        (Bounds(0, 1, open_most=True), 1, "in [0, 1)"),
        (Bounds(0, 9, open_most=True), 9, "below 9"),
        (Bounds(0, 9, or_inf=True), -math.inf, "finite, or inf"),
    ],
)
def test_an_open_end_is_left_out(bounds: Bounds, value: float, need: str) -> None:
    assert not bounds.holds(value)
    assert bounds.need(value) == need


EXTREME = {
    "steepest step": {"kl_step_tau": 1e-3},
    "widest margin": {"kl_margin": 50.0},
    "heaviest": {"kl_weight": 10**6},
    "hottest": {"over": "selection", "kl_temperature": 1000.0},
    "coldest": {"over": "selection", "kl_temperature": 1e-3},
    "shortest decay": {"gate": True, "gate_decay_tau": 1e-3},
    "steepest gate": {"gate": True, "gate_alpha": 10**6, "gate_temperature": 1e-3},
    "strongest gate": {"over": "selection", "gate_prefix_boost": 1000.0},
}


@pytest.mark.parametrize("settings", EXTREME.values(), ids=EXTREME)
def test_what_is_taken_is_finite(settings: dict[str, Any]) -> None:
    """At the ends of the bounds: loss and gradient of ordinary rows are numbers."""
    p = problem(ignored=0.0)
    hidden = p.hidden.clone().requires_grad_()
    objective = PactObjective(p.token_ids, p.token_weights, PactConfig(**settings))
    found = objective(hidden, Head(p.weight), p.target, p.step, p.states)
    found.loss.backward()
    assert bool(found.loss.isfinite())
    assert hidden.grad is not None and bool(hidden.grad.isfinite().all())
