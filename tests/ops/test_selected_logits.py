"""`selected_logits` against the columns of all logits."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from tests.ops.compare import assert_matches_naive, outcome
from tests.ops.problem import problem

HEADS = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "logit_scale": {"logit_scale": -0.7},
    "both": {"softcap": 5.0, "logit_scale": 0.7},
}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_match_naive(name: str, trained: bool) -> None:
    p = problem()

    def call(hidden, weight, bias):
        return pk.selected_logits(hidden, weight, p.token_ids, bias=bias, **HEADS[name])

    got = assert_matches_naive(call, p.hidden, p.weight, p.bias, trained=trained, mib=0.001)
    assert got["value"].shape == (37, 11)


@pytest.mark.parametrize("selected", [1, 13], ids=["K = 1", "K = V"])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5)])
def test_shapes(shape: tuple[int, ...], selected: int) -> None:
    p = problem(15, 3, 13, selected)
    hidden = p.hidden[: int(torch.tensor(shape).prod())].reshape(*shape, 3)

    def call(hidden, weight, bias):
        return pk.selected_logits(hidden, weight, p.token_ids, bias=bias)

    got = assert_matches_naive(call, hidden, p.weight, p.bias)
    assert got["value"].shape == (*shape, selected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_multiplied_in_fp32(dtype: torch.dtype) -> None:
    p = problem()
    hidden, weight = p.hidden.to(dtype), p.weight.to(dtype)
    got = pk.selected_logits(hidden, weight, p.token_ids)
    assert got.dtype == torch.float32
    exact = hidden.double() @ weight.double().T
    torch.testing.assert_close(got.double(), exact[:, p.token_ids], rtol=0, atol=1e-5)


def test_ids_in_any_order_and_inputs_strided() -> None:
    p = problem()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    hidden = p.hidden.T.contiguous().T
    weight = p.weight.repeat_interleave(2, 0)[::2]
    assert not hidden.is_contiguous() and not weight.is_contiguous()
    got = pk.selected_logits(hidden, weight, p.token_ids[order])
    expected = pk.selected_logits(p.hidden, p.weight, p.token_ids)
    torch.testing.assert_close(got, expected[:, order], rtol=1e-13, atol=1e-13)


def test_the_unselected_rows_of_the_head_are_never_read() -> None:
    p = problem()
    poisoned = torch.full_like(p.weight, torch.nan)
    poisoned[p.token_ids] = p.weight[p.token_ids]

    def call(hidden, weight, _):
        return pk.selected_logits(hidden, weight, p.token_ids)

    got, clean = (outcome(call, p.hidden, w, trained=False) for w in (poisoned, p.weight))
    assert all(torch.equal(got[name], clean[name]) for name in clean)
