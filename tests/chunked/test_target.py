"""Counts, gate and target against loops over their definitions."""

from __future__ import annotations

import math

import pytest
import torch

import pact_kernels as pk
from pact_kernels.chunked._target import (
    LEAST_REST,
    gate_value,
    mix,
    selection_kl,
    top_p_count,
    vocabulary_kl,
)
from tests.ops.precision import near_a_jump


def counted(logits: list[float], top_p: float, temperature: float) -> int:
    """The definition, by a loop."""
    weights = sorted((math.exp(value / temperature) for value in logits), reverse=True)
    total, mass = math.fsum(weights), 0.0
    for count, weight in enumerate(weights, start=1):
        mass += weight / total
        if mass >= top_p:
            return count
    return len(logits)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("selected", [1, 2, 11, 1500])
def test_counts_are_the_definitions(selected: int, top_p: float, temperature: float) -> None:
    """The count of some top_p within the rounding of a cumulative sum, and the count itself where
    no sum lies within it, as no sum of a few tokens does here.

    Adding K positive numbers errs by at most K u of their sum, their total by as much again, and an
    exponential by a few u: 4 of each. In fp32 u is 2^-24, in fp64 2^-53.
    """
    g = torch.Generator().manual_seed(selected)
    logits = 2.0 * torch.randn(20, selected, generator=g, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        rounding = (2 * selected + 8) * torch.finfo(dtype).eps / 2
        rows = logits.to(dtype)
        least, most = (
            [counted(row, top_p + change, temperature) for row in rows.tolist()]
            for change in (-rounding, rounding)
        )
        got = top_p_count(rows, top_p, temperature).tolist()
        for low, count, high in zip(least, got, most, strict=True):
            assert low <= count <= high
        if selected <= 11:
            assert least == most


def test_counts_at_the_ends() -> None:
    flat = torch.zeros(1, 8)
    assert top_p_count(flat, 0.5, 1.0).tolist() == [4]  # reached exactly by the fourth
    assert top_p_count(flat, 1.0, 1.0).tolist() == [8]
    noise = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    assert top_p_count(noise, 1.0, 1.0).le(50).all()  # rounding keeps some sums below 1
    peak = torch.tensor([[100.0, 0.0, 0.0]])
    assert top_p_count(peak, 0.9, 1.0).tolist() == [1]
    assert top_p_count(torch.zeros(0, 4), 0.9, 1.0).tolist() == []


def test_a_shift_leaves_the_counts() -> None:
    """A shift of eighths by eighths, which are added without rounding."""
    logits = torch.randn(50, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = (logits * 8).round() / 8
    assert torch.equal(top_p_count(logits, 0.9, 1.0), top_p_count(logits - 7.5, 0.9, 1.0))


GATES = {
    "default": pk.GateConfig(),
    "hard cut": pk.GateConfig(decay_tau=0.0, prefix_length=4),
    "no prefix": pk.GateConfig(prefix_length=0, decay_tau=3.0),
    "everything": pk.GateConfig(
        top_p=0.6,
        alpha=-3.0,
        bias=0.1,
        temperature=0.5,
        prefix_length=2,
        decay_tau=5.0,
        prefix_boost=1.7,
    ),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", GATES)
def test_the_gate_by_its_formula(name: str, dtype: torch.dtype) -> None:
    gate = GATES[name]
    g = torch.Generator().manual_seed(0)
    student, post = 2.0 * torch.randn(2, 24, 9, generator=g, dtype=torch.float64)
    assert not near_a_jump(torch.cat((student, post)), gate).any()
    step = torch.arange(-4, 20, dtype=dtype)
    expected = []
    for u, p, t in zip(student.tolist(), post.tolist(), step.tolist(), strict=True):
        apart = counted(u, gate.top_p, gate.temperature) - counted(p, gate.top_p, gate.temperature)
        decay = (
            math.exp(-max(t - gate.prefix_length, 0) / gate.decay_tau)
            if gate.decay_tau
            else float(t < gate.prefix_length)
        )
        slope = gate.alpha * (apart / 9 - gate.bias)
        expected.append(decay * gate.prefix_boost / (1 + math.exp(-slope)))
    got = gate_value(student, post, step, gate)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_without_a_gate_the_mixture_is_the_full_context() -> None:
    full, post = torch.randn(2, 3, 4)
    assert mix(full, None, None) is full
    assert torch.equal(mix(full, post, torch.zeros(3)), full)
    assert torch.equal(mix(full, post, torch.ones(3)), post)


@pytest.mark.parametrize("weight", [0.0, -0.0, -3.0])
def test_a_token_without_positive_weight_is_no_target(weight: float) -> None:
    mixed = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weight = torch.tensor([1.0, weight, 2.0], dtype=torch.float64).clamp(min=0).log()
    student = torch.zeros(5, 3, dtype=torch.float64)
    kl, gradient = selection_kl(student, mixed, log_weight, 2.0)
    # On it the gradient is T times the student's own confidence: it is pushed down alone.
    torch.testing.assert_close(gradient[:, 1], torch.full((5,), 2.0 / 3, dtype=torch.float64))
    assert torch.isfinite(kl).all()


def confidences(lead: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(6, 5) log-confidences of student and reference in tokens that lead 25 others by so much."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 30, generator=g, dtype=torch.float64)
    logits[0, :, :5] += lead
    logits[1, :, :5] += min(lead, 0.0)
    student, full = logits.log_softmax(-1)[..., :5].to(dtype)
    return student, full


@pytest.mark.parametrize("lead", [0.0, 30.0], ids=["some rest", "rest clamped"])
def test_the_share_of_the_softmax(lead: float) -> None:
    """1 - q_rest / P_rest, or where the rest is clamped, and passes no gradient, q's sum over the K
    tokens less the student's once its K + 1 classes are normalised."""
    student, full = confidences(lead, torch.float64)
    kl, softmax_factor, sparse = vocabulary_kl(student, full, None, None)
    p_rest, q_rest = (1 - x.exp().sum(-1) for x in (student, full))
    assert bool((p_rest < LEAST_REST).all()) == (lead > 0)
    assert bool((kl > 0).all())
    clamped = LEAST_REST / (1 - p_rest + LEAST_REST) - q_rest
    torch.testing.assert_close(softmax_factor, clamped if lead else 1 - q_rest / p_rest)
    # Over all tokens the gradient sums to zero: a common shift of the logits changes nothing.
    torch.testing.assert_close(softmax_factor + sparse.sum(-1), torch.zeros(6, dtype=torch.float64))


def test_the_share_keeps_its_digits_where_the_tokens_have_little_mass() -> None:
    """As 50 tokens of many thousands have: 1 - q_rest / P_rest would be right to 1e-7 alone."""
    exact = vocabulary_kl(*confidences(-12.0, torch.float64), None, None).softmax_factor
    softmax_factor = vocabulary_kl(*confidences(-12.0, torch.float32), None, None).softmax_factor
    assert float(exact.abs().max()) < 1e-5
    torch.testing.assert_close(softmax_factor.double(), exact, rtol=1e-4, atol=0)
