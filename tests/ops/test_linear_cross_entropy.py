"""`linear_cross_entropy` against the dense formula and against torch's own cross-entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from tests.ops.calls import Calls
from tests.ops.compare import assert_matches_naive, outcome
from tests.ops.problem import problem
from tests.rounding import EXACT

OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "num_items": {"num_items": 96},  # more than the rows: those of a whole optimiser step
    "num_items tensor": {"num_items": torch.tensor(96)},
    "softcap": {"softcap": 5.0},
    "logit_scale": {"logit_scale": 0.7},
    "softcap of scaled logits, by row": {"softcap": 5.0, "logit_scale": -0.7, "reduction": "none"},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "everything": {"softcap": 4.0, "logit_scale": 0.7, "label_smoothing": 0.2, "z_loss": 0.02},
    "everything, by row": {
        "softcap": 4.0,
        "logit_scale": 0.7,
        "label_smoothing": 0.2,
        "z_loss": 0.02,
        "reduction": "none",
    },
}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_match_naive(name: str, trained: bool) -> None:
    p = problem()

    def call(hidden, weight, bias):
        return pk.linear_cross_entropy(hidden, weight, p.target, bias=bias, **OPTIONS[name])

    bias = p.bias if trained or "softcap" in name else None
    assert_matches_naive(call, p.hidden, p.weight, bias, trained=trained)


def test_it_is_torchs_cross_entropy() -> None:
    p = problem()
    logits = p.hidden @ p.weight.T + p.bias
    expected = torch.nn.functional.cross_entropy(logits, p.target, label_smoothing=0.1)
    got = pk.linear_cross_entropy(
        p.hidden, p.weight, p.target, bias=p.bias, label_smoothing=0.1, reduction="mean"
    )
    torch.testing.assert_close(got, expected, rtol=EXACT, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_sequences_are_flattened_rows(reduction: str) -> None:
    p = problem(rows=36)
    target = p.target.reshape(4, 9)

    def call(hidden, weight, _):
        return pk.linear_cross_entropy(hidden, weight, target, reduction=reduction)

    got = assert_matches_naive(call, p.hidden.reshape(4, 9, -1), p.weight)
    assert got["value"].shape == (() if reduction == "mean" else (4, 9))
    assert got["by_hidden"].shape == (4, 9, 19)


def test_another_ignore_index_may_be_a_token() -> None:
    p = problem(ignored=0.0)
    target = p.target.clone()
    target[::3] = 7  # a padding token whose id is in the vocabulary

    def call(hidden, weight, _):
        return pk.linear_cross_entropy(hidden, weight, target, ignore_index=7)

    got = assert_matches_naive(call, p.hidden, p.weight)
    assert not got["by_hidden"][::3].any()
    assert got["by_hidden"][1::3].any(-1).all()


def test_int32_targets() -> None:
    p = problem()
    wide = pk.linear_cross_entropy(p.hidden, p.weight, p.target)
    assert torch.equal(pk.linear_cross_entropy(p.hidden, p.weight, p.target.int()), wide)


@pytest.mark.parametrize("rows", [0, 5])
def test_no_counted_row_is_zero_with_zero_gradients(rows: int) -> None:
    p = problem(rows=5)
    target = torch.full((rows,), -100)

    def call(hidden, weight, bias):
        return pk.linear_cross_entropy(hidden, weight, target, bias=bias)

    got = assert_matches_naive(call, p.hidden[:rows], p.weight, p.bias)
    assert all(not value.any() for value in got.values())


@pytest.mark.parametrize("implementation", ["naive", "chunked"])
def test_the_denominators_dtype_is_not_the_losss(implementation: str) -> None:
    p = problem()
    for count in (96, torch.tensor(96), torch.tensor(96.0, dtype=torch.float64)):
        with pk.implementation(implementation):
            loss = pk.linear_cross_entropy(
                p.hidden.float(), p.weight.float(), p.target, num_items=count
            )
        assert loss.dtype == torch.float32


def test_no_items_in_the_whole_step_is_zero_not_nan() -> None:
    p = problem(rows=5)
    target = torch.full((5,), -100)

    def call(hidden, weight, _):
        return pk.linear_cross_entropy(hidden, weight, target, num_items=torch.tensor(0))

    got = assert_matches_naive(call, p.hidden, p.weight)
    assert all(not value.any() for value in got.values())


@pytest.mark.parametrize(
    "rows, hidden, vocabulary",
    [
        (1, 1, 2),  # nothing to vectorise
        (3, 7, 5),  # fewer tokens than states
        (130, 33, 257),  # one past a power of two in every size
    ],
)
def test_odd_shapes(rows: int, hidden: int, vocabulary: int) -> None:
    p = problem(rows, hidden, vocabulary, 2)

    def call(hidden, weight, bias):
        return pk.linear_cross_entropy(hidden, weight, p.target, bias=bias, reduction="none")

    assert_matches_naive(call, p.hidden, p.weight, p.bias)


EXTREME = {
    "large": 1e4 / 3.0,  # logits of about +-1e4
    "all equal": 0.0,
    "tiny": 1e-6,
}


@pytest.mark.parametrize("name", EXTREME)
def test_extreme_logits(name: str) -> None:
    p = problem()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        hidden, weight = (p.hidden * EXTREME[name]).to(dtype), p.weight.to(dtype)

        def call(hidden, weight, _):
            return pk.linear_cross_entropy(hidden, weight, p.target, z_loss=1e-6)

        got = outcome(call, hidden, weight)
        expected = outcome(call, hidden.double(), weight.double(), implementation="naive")
        for key, value in expected.items():
            torch.testing.assert_close(got[key].double(), value, rtol=tolerance, atol=tolerance)


def test_tokens_forbidden_by_an_infinite_bias() -> None:
    p = problem()
    bias = p.bias.clone()
    bias[torch.arange(0, 301, 5)] = -torch.inf
    target = p.target.where(p.target % 5 != 0, p.target + 1)  # allowed ones; -100 becomes -99
    target = target.where(p.target != -100, -100)
    forbidden = torch.zeros_like(p.weight)
    forbidden[::5] = 1

    def call(hidden, weight, bias):
        return pk.linear_cross_entropy(hidden, weight, target, bias=bias)

    got = assert_matches_naive(call, p.hidden, p.weight, bias)
    assert torch.isfinite(got["value"])
    assert not (got["by_weight"] * forbidden).any()


def test_ignored_rows_are_never_read() -> None:
    p = problem()
    hidden = p.hidden.clone()
    hidden[p.target == -100] = torch.nan

    def call(hidden, weight, bias):
        return pk.linear_cross_entropy(hidden, weight, p.target, bias=bias)

    got, clean = (outcome(call, h, p.weight, p.bias) for h in (hidden, p.hidden))
    assert all(torch.equal(got[name], clean[name]) for name in clean)
    assert not got["by_hidden"][p.target == -100].any()


def test_inputs_may_be_strided_and_stay_as_they_are() -> None:
    p = problem(rows=36)
    target = torch.stack((p.target, p.target), -1)[:, 0].reshape(4, 9)  # every other element
    hidden = p.hidden.reshape(9, 4, -1).transpose(0, 1)
    weight = p.weight.T.contiguous().T
    bias = p.bias.repeat_interleave(2)[::2]
    assert not any(t.is_contiguous() for t in (hidden, weight, bias, target))

    def call(hidden, weight, bias):
        return pk.linear_cross_entropy(hidden, weight, target, bias=bias, softcap=5.0)

    before = [t.clone() for t in (hidden, weight, bias, target)]
    with pk.workspace(0.02):
        got = call(hidden, weight, bias)
    expected = outcome(call, hidden, weight, bias, implementation="naive")["value"]
    torch.testing.assert_close(got, expected, rtol=EXACT, atol=0)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (hidden, weight, bias, target), strict=True)
    )


def test_scaled_loss_scales_the_gradient() -> None:
    p = problem()

    def gradient(factor: float) -> torch.Tensor:
        hidden = p.hidden.clone().requires_grad_()
        (factor * pk.linear_cross_entropy(hidden, p.weight, p.target)).backward()
        return hidden.grad

    torch.testing.assert_close(gradient(0.37), 0.37 * gradient(1.0), rtol=1e-14, atol=0)


def test_a_loss_scale_past_fp16_does_not_overflow_in_backward() -> None:
    """65536, where torch's GradScaler starts, is infinite in fp16; the scaled gradient is not."""
    p = problem()
    hidden = (p.hidden * 1e-2).half().requires_grad_()
    loss = pk.linear_cross_entropy(hidden, (p.weight * 1e-2).half(), p.target)
    (65536.0 * loss).backward()
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad.any()


def trained_leaves() -> tuple[Tensor, Tensor]:
    p = problem()
    return p.hidden.float().requires_grad_(), p.weight.float().requires_grad_()


def gradients(leaves: tuple[Tensor, ...], loss: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, **options))


@pytest.mark.parametrize("reduction, num_items", [("mean", None), ("mean", 7), ("sum", None)])
def test_a_loss_that_nothing_comes_after_needs_no_scaling(
    reduction: str, num_items: int | None
) -> None:
    """Gradients are formed for it; what does come, or comes twice, is served from the same."""
    options = {"reduction": reduction, "num_items": num_items}
    target = problem().target
    leaves = trained_leaves()
    loss = pk.linear_cross_entropy(*leaves, target, **options)
    with Calls() as calls:
        plain = gradients(leaves, loss, retain_graph=True)
    assert not calls.names
    with Calls() as calls:
        tripled = gradients(leaves, 3.0 * loss, retain_graph=True)
    assert calls.names == ["pact_kernels::scale_gradient"] * 2
    again = gradients(leaves, loss)
    with pk.implementation("naive"):
        dense = gradients(leaves, pk.linear_cross_entropy(*leaves, target, **options))
    for a, b, c, d in zip(plain, again, tripled, dense, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(3.0 * a, c, rtol=1e-6, atol=0)
        torch.testing.assert_close(a, d, rtol=1e-4, atol=1e-6)


def test_a_retained_graph_does_not_share_the_gradient_it_keeps() -> None:
    target = problem().target
    hidden, weight = trained_leaves()
    loss = pk.linear_cross_entropy(hidden, weight, target)
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    weight.grad.zero_()  # as an optimizer does, in place
    hidden.grad = None
    loss.backward()
    assert torch.equal(weight.grad, first)


def test_an_fp16_gradient_is_scaled_in_backward() -> None:
    """A gradient of a mean, formed in fp16 before a loss scale of 65536 comes, would be lost."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, generator=g).half().requires_grad_()
    weight = (torch.randn(5, 8, generator=g) * 1e-3).half()
    target = torch.tensor([1, 2, 3])
    loss = pk.linear_cross_entropy(hidden, weight, target, num_items=30000)
    (65536.0 * loss).backward()
    exact = hidden.detach().double().requires_grad_()
    (65536.0 * pk.linear_cross_entropy(exact, weight.double(), target, num_items=30000)).backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=5e-3, atol=1e-5)
