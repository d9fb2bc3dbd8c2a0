"""Small cases of every op, and what a peer's result on them may differ from the oracle's by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.case import Case, make_inputs
from benchmarks.cases.plans import QUICK_SOFTCAP
from benchmarks.peers.every_op import Eager
from benchmarks.peers.naive import oracle
from benchmarks.peers.peer import Outputs, Peer, Setting

CPU = torch.device("cpu")
# 33 positions: prompts of 16, answers of 17, so that their lengths differ; 34 rows, no multiple of
# 8. D 40 and V 1031, a prime, are no multiples of a tile; K 7 is no power of two.
BASE = Case(
    op="linear_cross_entropy",
    sequences=2,
    length=33,
    hidden=40,
    vocabulary=1031,
    prompt_share=0.5,
    tokens=7,
)
FACTOR = 4.0
"""Times eager's own error: another order of summation is as good, and eager may be lucky."""
FLOOR = 2e-6
"""16 roundings of fp32."""
KL_FLOOR = 1e-5
"""Floor of a KL alone. Student and reference nearly agree: 1 - q_rest / P_rest, about 0.01 here, is
what is left of two numbers of size 1: it has lost two digits."""
MOST_OF_EAGER = 1e-4
"""Beyond rounding in fp32, so that a wrong formula of eager's does not excuse itself and others."""
OBJECTIVES: tuple[dict[str, Any], ...] = (
    {},
    {"over": "selection"},
    {"gated": False},
    {"cached": True, "trainable_head": True},
    {"cached": True, "gated": False, "over": "selection"},
    {"over": "selection", "trainable_head": True, "prompt_share": 0.0},
)
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "linear_cross_entropy": (
        {},
        {"trainable_head": True},
        {"prompt_share": 0.0, "trainable_head": True},
        {"softcap": QUICK_SOFTCAP},
    ),
    "pact_kl": OBJECTIVES,
    "pact_loss": OBJECTIVES,
    "linear_logsumexp": ({}, {"prompt_share": 0.0}, {"softcap": QUICK_SOFTCAP}),
    "selected_confidences": ({}, {"over": "selection"}),
    "token_scores": ({}, {"prompt_share": 0.0}),
}
CASES = [
    replace(BASE, op=op, **variant) for op, variants in VARIANTS.items() for variant in variants
]


def label(case: Case) -> str:
    """What differs from BASE, for a test's name."""
    names = ("over", "cached", "gated", "trainable_head", "prompt_share", "softcap")
    own = [f"{n}={getattr(case, n)}" for n in names if getattr(case, n) != getattr(BASE, n)]
    return "-".join([case.op, *own])


def assert_equal(outputs: Outputs, case: Case, seed: int = 0) -> None:
    """All values and gradients of the oracle are there, and right."""
    truth = oracle(case, make_inputs(case, seed=seed))
    rounded = Eager().prepare(case, make_inputs(case, seed=seed), {})()
    floor = KL_FLOOR if case.op == "pact_kl" else FLOOR
    assert set(outputs) == set(truth)
    for name, tensor in truth.items():
        assert outputs[name].shape == tensor.shape, name
        error, allowed = relative(outputs[name], tensor), relative(rounded[name], tensor)
        assert allowed < MOST_OF_EAGER, f"{name} of eager: {allowed}"
        assert error <= FACTOR * allowed + floor, f"{name}: {error}, eager {allowed}"


def relative(tensor: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    assert not tensor.requires_grad
    return float((tensor.double() - truth).norm() / truth.norm())


def run(peer: Peer, case: Case, setting: Setting) -> Outputs:
    return peer.prepare(case, make_inputs(case), setting)()
