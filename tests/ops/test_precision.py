"""Errors in fp32, bf16 and fp16 against fp64: at most twice those of eager torch, op for op.

The inputs are rounded to the dtype first, so that only the arithmetic differs. Errors are root mean
squares: the largest of a few thousand roundings is a matter of luck. Top-p counts jump where a
cumulative sum crosses top_p, so rows where one lies within 1e-5 of it are left out; selected logits
are formed in fp32 whatever the dtype, which makes 1e-5 enough for 16 bits as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from tests.ops.compare import outcome
from tests.ops.precision import FLOOR, near_a_jump
from tests.ops.problem import Problem, problem

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rounded_problem(dtype: torch.dtype) -> Problem:
    """Every tensor rounded to `dtype` and held in fp64, without rows near a jump of the counts."""
    p = problem(rows=150, hidden=67, vocabulary=509, selected=40, ignored=0.0)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).double()

    full, post, weight, _ = (None if t is None else rounded(t) for t in p.states)
    p.hidden, p.weight, p.bias = rounded(p.hidden), rounded(p.weight), rounded(p.bias)
    p.token_weights = rounded(p.token_weights)
    student = pk.selected_logits(p.hidden, p.weight, p.token_ids, bias=p.bias)
    other = pk.selected_logits(post, weight, p.token_ids, bias=p.bias)
    keep = ~(near_a_jump(student, pk.GateConfig()) | near_a_jump(other, pk.GateConfig()))
    assert int(keep.sum()) > 100
    p.hidden, p.target, p.step = p.hidden[keep], p.target[keep], p.step[keep]
    p.states = pk.ReferenceStates(full[keep], post[keep], weight)
    return p


def calls(p: Problem, dtype: torch.dtype) -> dict[str, Any]:
    """Every op on the leaves that it is given, beside references and weights in `dtype`."""
    full, post, head, _ = p.states
    kl = (
        p.token_ids,
        p.token_weights.to(dtype),
        p.step,
        pk.ReferenceStates(full.to(dtype), post.to(dtype), head.to(dtype)),
    )
    return {
        "linear_cross_entropy": lambda h, w, b: pk.linear_cross_entropy(
            h, w, p.target, bias=b, label_smoothing=0.1, z_loss=1e-3
        ),
        "linear_cross_entropy by row": lambda h, w, b: pk.linear_cross_entropy(
            h, w, p.target, bias=b, softcap=20.0, reduction="none"
        ),
        "linear_logsumexp": lambda h, w, b: pk.linear_logsumexp(h, w, bias=b),
        "selected_logits": lambda h, w, b: pk.selected_logits(h, w, p.token_ids, bias=b),
        "selected_confidences": lambda h, w, b: pk.selected_confidences(h, w, p.token_ids, bias=b),
        "confidences in the selection": lambda h, w, b: pk.selected_confidences(
            h, w, p.token_ids, bias=b, over="selection", temperature=2.0
        ),
        "pact_kl": lambda h, w, b: pk.pact_kl(h, w, *kl, bias=b),
        "pact_kl over the vocabulary": lambda h, w, b: pk.pact_kl(
            h, w, *kl, bias=b, over="vocabulary", reduction="none"
        ),
        "pact_loss": lambda h, w, b: pk.pact_loss(h, w, p.target, *kl, bias=b),
        "pact_loss over the vocabulary": lambda h, w, b: pk.pact_loss(
            h, w, p.target, *kl, bias=b, over="vocabulary", softcap=20.0
        ),
    }


PROBLEMS: dict[torch.dtype, Problem] = {}
NAMES = list(calls(problem(rows=1, ignored=0.0), torch.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_error_is_at_most_twice_eager_torchs(dtype: torch.dtype, name: str) -> None:
    p = PROBLEMS.setdefault(dtype, rounded_problem(dtype))
    exact = outcome(
        calls(p, torch.float64)[name], p.hidden, p.weight, p.bias, implementation="naive"
    )
    narrow = (p.hidden.to(dtype), p.weight.to(dtype), p.bias.to(dtype))
    call = calls(p, dtype)[name]
    got = outcome(call, *narrow, mib=0.2)
    eager = outcome(call, *narrow, implementation="naive")
    for key, value in exact.items():
        size = float(value.double().square().mean().sqrt())
        ours, theirs = (
            float((found[key].double() - value).square().mean().sqrt()) / max(size, 1e-9)
            for found in (got, eager)
        )
        assert got[key].dtype == eager[key].dtype, key
        assert ours <= 2 * theirs + FLOOR[dtype], f"{key}: {ours:.2e}, eager {theirs:.2e}"


@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_token_scores(dtype: torch.dtype, mode: str) -> None:
    p = PROBLEMS.setdefault(dtype, rounded_problem(dtype))
    full, _, head, _ = p.states

    def scores(implementation: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        args = (t.to(dtype) for t in (p.hidden, p.weight, full, head))
        with pk.implementation(implementation), pk.workspace(0.2):
            return pk.token_scores(*args, p.step % 4, mode=mode)

    exact, got, eager = (
        scores("naive", torch.float64),
        scores("chunked", dtype),
        scores("naive", dtype),
    )
    for value, ours, theirs in zip(exact, got, eager, strict=True):
        size = value.square().mean().sqrt()
        error, bound = (
            float((found.double() - value).square().mean().sqrt() / size)
            for found in (ours, theirs)
        )
        assert error <= 2 * bound + FLOOR[dtype], f"{error:.2e}, eager {bound:.2e}"


def test_a_16_bit_gradient_is_scaled_in_fp32() -> None:
    """The incoming factor itself is not rounded: eager keeps it in fp32 as well."""
    factor = torch.tensor(1.0 + 2.0**-10)  # 1 in bf16
    gradient = torch.full((3, 5), 256.0 * (1 + 2.0**-7), dtype=torch.bfloat16)
    scaled = torch.ops.pact_kernels.scale_gradient(
        gradient, factor, torch.float32, 2**20, "chunked"
    )
    torch.testing.assert_close(scaled, gradient.float() * factor, rtol=1e-7, atol=0)
