"""`linear_logsumexp` against the log-sum-exp of all logits."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from tests.ops.compare import assert_matches_naive
from tests.ops.problem import problem


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("head", [{}, {"softcap": 5.0, "logit_scale": 0.7}], ids=["plain", "head"])
def test_heads_match_naive(head: dict[str, float], trained: bool) -> None:
    p = problem()

    def call(hidden, weight, bias):
        return pk.linear_logsumexp(hidden, weight, bias=bias, **head)

    assert_matches_naive(call, p.hidden, p.weight, p.bias, trained=trained)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    p = problem(15, 3, 13)
    hidden = p.hidden[: int(torch.tensor(shape).prod())].reshape(*shape, 3)

    def call(hidden, weight, _):
        return pk.linear_logsumexp(hidden, weight)

    got = assert_matches_naive(call, hidden, p.weight)
    assert got["value"].shape == shape


@pytest.mark.parametrize("factor", [3e3, 0.0, -3e3])
def test_extreme_logits(factor: float) -> None:
    p = problem()
    hidden = (p.hidden * factor).float()
    got = pk.linear_logsumexp(hidden, p.weight.float())
    expected = (hidden.double() @ p.weight.float().double().T).logsumexp(-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
