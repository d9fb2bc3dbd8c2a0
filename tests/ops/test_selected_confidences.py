"""`selected_confidences` against columns of the softmax."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from tests.ops.compare import assert_matches_naive
from tests.ops.problem import problem

HEADS = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "both": {"softcap": 5.0, "logit_scale": 0.7},
}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_heads_match_naive(over: str, name: str, temperature: float) -> None:
    p = problem(rows=36)

    def call(hidden, weight, bias):
        return pk.selected_confidences(
            hidden,
            weight,
            p.token_ids,
            over=over,
            temperature=temperature,
            bias=bias,
            **HEADS[name],
        )

    got = assert_matches_naive(call, p.hidden.reshape(4, 9, -1), p.weight, p.bias)
    assert got["value"].shape == (4, 9, 11)


def test_over_the_selection_they_sum_to_one_and_over_all_tokens_to_less() -> None:
    p = problem()
    own = pk.selected_confidences(p.hidden, p.weight, p.token_ids, over="selection")
    full = pk.selected_confidences(p.hidden, p.weight, p.token_ids)
    torch.testing.assert_close(own.sum(-1), torch.ones(37, dtype=torch.float64))
    assert bool((full.sum(-1) < 1).all())
    every = pk.selected_confidences(p.hidden, p.weight, torch.arange(301))
    torch.testing.assert_close(every.sum(-1), torch.ones(37, dtype=torch.float64))


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_no_row(over: str) -> None:
    p = problem(rows=0)
    got = pk.selected_confidences(p.hidden, p.weight, p.token_ids, over=over)
    assert got.shape == (0, 11)


@pytest.mark.parametrize("implementation", ["chunked", "triton"])
def test_without_a_gradient_the_values_are_the_same(implementation: str) -> None:
    """One pass over the vocabulary instead of two ops; on large logits both keep to [0, 1]."""
    p = problem(9)
    hidden, weight, bias = p.hidden.float() * 20, p.weight.float(), p.bias.float()
    with pk.implementation(implementation):
        with_gradient = pk.selected_confidences(
            hidden.requires_grad_(), weight, p.token_ids, bias=bias
        )
        with torch.no_grad():
            without = pk.selected_confidences(hidden, weight, p.token_ids, bias=bias)
    torch.testing.assert_close(without, with_gradient.detach(), rtol=1e-4, atol=1e-6)
    assert not without.requires_grad
    assert bool((without <= 1.0 + 1e-5).all())
