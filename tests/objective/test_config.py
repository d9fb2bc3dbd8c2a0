"""What `PactConfig` fills in where a setting is left unset."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from inspect import signature

import pytest

import pact_kernels as pk
from pact.objective import PactConfig

RECOMMENDED = {
    "kl_weight": 10.0,
    "kl_step_tau": 0.5,
    "kl_margin": 0.0,
    "positive_only": True,
    "gate": False,
}
RELEASED = {
    "kl_weight": 1.0,
    "kl_step_tau": math.inf,
    "kl_margin": 0.0,
    "positive_only": False,
    "gate": True,
}
BY_OVER = {"vocabulary": RECOMMENDED, "selection": RELEASED}


def test_the_default_is_the_recommended_objective():
    assert PactConfig() == PactConfig(over="vocabulary", **RECOMMENDED)
    assert PactConfig(over="selection") != PactConfig()


@pytest.mark.parametrize("over, defaults", BY_OVER.items(), ids=BY_OVER)
def test_over_fills_in_what_is_unset(over, defaults):
    filled = asdict(PactConfig(over=over))
    assert {name: filled[name] for name in defaults} == defaults
    # What no `over` decides is unset or the gate's own, as before.
    assert filled["kl_temperature"] is None and filled["gate_top_p"] == 0.9


@pytest.mark.parametrize(
    "over, name, value",
    [
        ("vocabulary", "kl_weight", 0.0),
        ("vocabulary", "kl_step_tau", math.inf),
        ("vocabulary", "kl_margin", 1.5),
        ("vocabulary", "positive_only", False),
        ("vocabulary", "gate", True),
        ("selection", "kl_weight", 0.0),
        ("selection", "kl_step_tau", 0.5),
        ("selection", "kl_margin", 0.0),  # the only one
        ("selection", "positive_only", True),
        ("selection", "gate", False),
    ],
)
def test_what_is_given_wins_and_the_rest_is_filled_in(over, name, value):
    """Zero and False are given, too."""
    given = asdict(PactConfig(over=over, **{name: value}))
    assert given == asdict(PactConfig(over=over)) | {name: value}


def test_replace_keeps_what_was_filled_in():
    assert replace(PactConfig(), kl_weight=3.0) == PactConfig(kl_weight=3.0)
    released = replace(PactConfig(over="selection"), over="vocabulary")
    assert released == PactConfig(over="vocabulary", **RELEASED)
    with pytest.raises(ValueError, match="kl_margin=1.5 with over='selection'"):
        replace(PactConfig(kl_margin=1.5), over="selection")
    with pytest.raises(ValueError, match="kl_step_tau must be finite, or inf, or unset, got nan"):
        PactConfig(kl_step_tau=math.nan)


def test_the_released_objective_has_the_ops_own_defaults():
    """One of them states them: a config over the selection is what the op does by itself."""
    op = {name: given.default for name, given in signature(pk.pact_loss).parameters.items()}
    config = PactConfig(over=op["over"])
    assert config.gate_config() == op["gate"]
    assert config.kl_weight == op["kl_weight"] and config.kl_temperature == op["temperature"]
    assert PactConfig(gate=True).gate_config() == op["gate"]
