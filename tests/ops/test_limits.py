"""States and logits of 1e4, soft caps and numbers at their ends, K = V and K = 1, equal logits.

Every op in every dtype: finite, and off by no more than eager torch at that dtype and what a
rounding of the logits makes. No row at all and an empty batch are in `test_values`, fp32 at 1e4
with a bound derived there too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.types import LEAST_NUMBER, MOST_NUMBER
from tests.implementations import KERNELS, on_gpu
from tests.ops.compare import outcome
from tests.ops.every_op import NAMES, every_op
from tests.ops.problem import Problem
from tests.ops.rounded_problem import rounded

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNEL_NAMES = [
    "linear_cross_entropy",
    "selected_confidences",
    "pact_kl",
    "pact_kl over the vocabulary by row, cached",
    "pact_loss over the vocabulary",
]
"""What the interpreter has time for."""


def base(dtype: torch.dtype, selected: int = 4) -> Problem:
    """Six rows of which two are ignored."""
    return rounded(dtype, rows=6, hidden=3, vocabulary=13, selected=selected, ignored=0.3)


def held(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In float64, what the dtype holds of it."""
    return tensor.to(dtype).double()


def large_logits(dtype: torch.dtype) -> Problem:
    """States of 1e4 and -1e4, and logits up to as much: fp16 holds both."""
    p = base(dtype)
    p.hidden = held(1e4 * p.hidden.sign(), dtype)
    p.weight = held(p.weight / (3 * p.weight.abs().max()), dtype)
    return p


def large_states(dtype: torch.dtype) -> Problem:
    """Logits of units from states of 1e4; the reference's states are its own."""
    p = base(dtype)
    p.hidden, p.weight = held(p.hidden * 1e4, dtype), held(p.weight * 1e-4, dtype)
    return p


def biases(value: float) -> Callable[[torch.dtype], Problem]:
    """All logits equal, of this value."""

    def made(dtype: torch.dtype) -> Problem:
        p = base(dtype)
        p.hidden, p.bias = p.hidden * 0.0, held(torch.full_like(p.bias, value), dtype)
        return p

    return made


def split_bias(dtype: torch.dtype) -> Problem:
    """Some tokens at 1e4, the others at -1e4, of which no probability is left."""
    p = base(dtype)
    p.bias = held(torch.where(torch.arange(13) % 3 == 0, 1e4, -1e4).double(), dtype)
    return p


def far_reference(dtype: torch.dtype) -> Problem:
    """Both contexts of the reference at 3e3 and its opposite: logits of 1e4."""
    p = base(dtype)
    full, post, weight, bias = p.states
    p.states = pk.ReferenceStates(held(full * 3e3, dtype), held(post * -3e3, dtype), weight, bias)
    return p


def equal_over_all(dtype: torch.dtype) -> Problem:
    """K = V and every logit 0."""
    p = base(dtype, selected=13)
    p.hidden, p.bias = p.hidden * 0.0, p.bias * 0.0
    return p


SITUATIONS: dict[str, Callable[[torch.dtype], Problem]] = {
    "logits of 1e4": large_logits,
    "states of 1e4": large_states,
    "equal logits of 1e4": biases(1e4),
    "equal logits of -1e4": biases(-1e4),
    "biases of 1e4 and -1e4": split_bias,
    "a reference of 1e4": far_reference,
    "K = V": lambda dtype: base(dtype, selected=13),
    "K = V, equal logits": equal_over_all,
    "K = 1": lambda dtype: base(dtype, selected=1),
}

PAIRS = list(zip(SITUATIONS, [*DTYPES] * 3, strict=True))
"""Each situation in one dtype."""


def largest_logit(p: Problem) -> float:
    """In magnitude, of the student's and the reference's, as sums of magnitudes."""
    full, post, weight, bias = p.states
    student = p.hidden.abs() @ p.weight.abs().T + p.bias.abs()
    other = torch.maximum(full.abs(), post.abs()) @ weight.abs().T + bias.abs()
    return float(torch.cat((student, other)).max())


def assert_within(p: Problem, name: str, dtype: torch.dtype, implementation: str) -> None:
    """Finite, and off by twice eager's error, two roundings of the largest logit, or of 1.

    A gradient is a probability's error times the other factor, and where a rounding of the logits
    passes 1 any probability is as good as another: all of that factor.
    """
    op, exact_op = every_op(p, dtype)[name], every_op(p, torch.float64)[name]
    leaves = [t.to(dtype) for t in (p.hidden, p.weight, p.bias)]
    got = outcome(op, *leaves, implementation=implementation)
    eager = outcome(op, *leaves, implementation="naive")
    exact = outcome(exact_op, p.hidden, p.weight, p.bias, implementation="naive")
    rounding = 4 * torch.finfo(dtype).eps * (1.0 + largest_logit(p))
    rows = len(p.target)
    factors = {
        "by_hidden": min(rounding, 4.0) * float(p.weight.abs().max()),
        "by_weight": min(rounding, 4.0) * rows * float(p.hidden.abs().max()),
        "by_bias": min(rounding, 4.0) * rows,
    }
    for key, value in exact.items():
        assert bool(torch.isfinite(got[key]).all()), key
        ours, theirs = (float((x[key].double() - value).abs().max()) for x in (got, eager))
        size = max(float(value.abs().max()), 1.0)
        bound = 2 * theirs + factors.get(key, rounding) + 4 * torch.finfo(dtype).eps * size
        assert ours <= bound, f"{name} {key}: {ours:.1e} against {bound:.1e}, eager {theirs:.1e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_op(situation: str, dtype: str) -> None:
    p = SITUATIONS[situation](DTYPES[dtype])
    for name in NAMES:
        assert_within(p, name, DTYPES[dtype], "chunked")


@pytest.mark.parametrize("situation, dtype", PAIRS)
@pytest.mark.parametrize("implementation", KERNELS, indirect=True)
def test_the_kernels(implementation: str, situation: str, dtype: str) -> None:
    """On a GPU fp32 logits of 1e4 lose the digits of the vocabulary's rest: what is left of a KL
    over it is `test_values.test_extreme_logits`' matter.
    """
    p = SITUATIONS[situation](DTYPES[dtype])
    lost = dtype == "fp32" and situation == "logits of 1e4" and on_gpu()
    for name in KERNEL_NAMES:
        if not (lost and "over the vocabulary" in name):
            assert_within(p, name, DTYPES[dtype], implementation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_confidences_of_a_row_sum_to_one_at_most(dtype: torch.dtype) -> None:
    """Whatever the rounding of its log-sum-exp, 4 or 32 at logits of 1e4; with a gradient, too."""
    p = large_logits(dtype)
    hidden, weight = p.hidden.to(dtype).requires_grad_(), p.weight.to(dtype)
    for ids in (p.token_ids, torch.arange(13)):
        confidences = pk.selected_confidences(hidden, weight, ids)
        confidences.sum().backward()
        with torch.no_grad():
            again = pk.selected_confidences(hidden, weight, ids)
        for found in (confidences.detach(), again):
            assert bool((found.sum(-1) <= 1 + 1e-5).all())
        assert bool(torch.isfinite(hidden.grad).all())


CAPS = [LEAST_NUMBER, 1e-6, 1e3, 1e6, MOST_NUMBER]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("implementation", ["chunked", *KERNELS], indirect=True)
def test_soft_caps_at_their_ends(implementation: str, softcap: float, dtype: torch.dtype) -> None:
    """A tiny one makes all logits next to 0, a huge one leaves them as they are, digits and all."""
    p = base(dtype)
    kept = (p.target != -100).nonzero().squeeze(1)

    def ops(dtype: torch.dtype) -> dict[str, Any]:
        states = pk.ReferenceStates(*(t.to(dtype) for t in p.states))
        kl = (p.token_ids, p.token_weights.to(dtype), p.step, states)
        cap = {"softcap": softcap}
        return {
            "logits": lambda h, w, b: pk.selected_logits(h, w, p.token_ids, bias=b, **cap),
            "cross-entropy": lambda h, w, b: pk.linear_cross_entropy(h, w, p.target, bias=b, **cap),
            "kl": lambda h, w, b: pk.pact_kl(h[kept], w, *kl, bias=b, **cap),
            "loss": lambda h, w, b: pk.pact_loss(
                h, w, p.target, *kl, bias=b, over="vocabulary", **cap
            ),
        }

    leaves = [t.to(dtype) for t in (p.hidden, p.weight, p.bias)]
    for name, op in ops(dtype).items():
        got = outcome(op, *leaves, implementation=implementation)
        eager = outcome(op, *leaves, implementation="naive")
        exact = outcome(
            ops(torch.float64)[name], p.hidden, p.weight, p.bias, implementation="naive"
        )
        for key, value in exact.items():
            ours, theirs = (float((x[key].double() - value).abs().max()) for x in (got, eager))
            size = max(float(value.abs().max()), min(softcap, 1.0))
            # Sixteen roundings: of logits of ten units, and of products of three terms.
            bound = 2 * theirs + 16 * torch.finfo(dtype).eps * size + 2e-7
            assert ours <= bound, f"{name} {key}: {ours:.1e} against {bound:.1e}"
