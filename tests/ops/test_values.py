"""Every op through every implementation: values and gradients against the formula in float64.

In fp32 the largest errors, and in 16 bits the root mean squares, are compared with eager torch's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.naive import pact_kl as dense_kl
from tests.implementations import on_gpu
from tests.ops.compare import outcome, relative_error
from tests.ops.every_op import NAMES, every_op, leaves_of, small, value_of
from tests.ops.precision import assert_at_most_twice
from tests.ops.problem import Problem, problem
from tests.ops.rounded_problem import rounded

TOLERANCE = 4 * 2.0**-21
"""Four roundings of a logit between 8 and 16, as the largest of `problem` are, beside twice eager's
error, which cancellation swells. Of the largest value, or of a nat where a loss is less."""
MIB = 0.02
"""A dozen rows of 301 logits to a chunk."""
all_ops = pytest.mark.parametrize("name", NAMES)


def exact_outcome(p: Problem, name: str) -> dict[str, Tensor]:
    """The dense formula's, in float64."""
    op = every_op(p, torch.float64)[name]
    return outcome(op, p.hidden, p.weight, p.bias, implementation="naive")


def nats(value: Tensor) -> float:
    """What the error of a value is a part of: a loss is a difference of logits, however small."""
    return max(float(value.abs().max()), 1.0)


@all_ops
def test_values_and_gradients(name: str, implementation: str) -> None:
    """Values and gradients of 0.37 times the op, with a trained head."""
    p = rounded(rows=20)
    leaves = [t.float() for t in (p.hidden, p.weight, p.bias)]
    before = [leaf.clone() for leaf in leaves]
    got = outcome(every_op(p)[name], *leaves, implementation=implementation, mib=MIB)
    eager = outcome(every_op(p)[name], *leaves, implementation="naive")
    exact = exact_outcome(p, name)
    assert got.keys() == exact.keys()
    for key, value in exact.items():
        assert (got[key].shape, got[key].dtype) == (value.shape, eager[key].dtype), key
        size = float(value.abs().max()) if key.startswith("by_") else nats(value)
        ours, theirs = (float((found[key] - value).abs().max()) / size for found in (got, eager))
        assert ours <= 2 * theirs + TOLERANCE, f"{key}: {ours:.1e}, eager {theirs:.1e}"
    for leaf, copy in zip(leaves, before, strict=True):  # an input is never written
        assert torch.equal(leaf, copy)


@pytest.mark.parametrize(
    "name",
    [
        "linear_cross_entropy",
        "linear_cross_entropy by row",
        "linear_logsumexp",
        "pact_kl",
        "pact_kl over the vocabulary by row, cached",
        "pact_loss",
        "pact_loss over the vocabulary",
    ],
)
def test_a_frozen_head(name: str, implementation: str) -> None:
    p = rounded(rows=9)
    leaves = [t.float() for t in (p.hidden, p.weight, p.bias)]
    frozen = outcome(every_op(p)[name], *leaves, implementation=implementation, trained=False)
    trained = outcome(every_op(p)[name], *leaves, implementation=implementation)
    assert frozen.keys() == trained.keys() - {"by_weight", "by_bias"}
    for key, value in frozen.items():
        assert relative_error(value, trained[key]) <= 2 * TOLERANCE  # each off by one


NARROW = [
    "linear_cross_entropy",
    "selected_confidences",
    "pact_kl",
    "pact_loss",
    "pact_loss over the vocabulary",
]


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_16_bits(
    dtype: torch.dtype, name: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation == "triton":
        from tests.kernels.rounding import round_to_nearest

        round_to_nearest(monkeypatch)
    p = rounded(dtype, rows=60)  # errors are root mean squares: over a few dozen rows at least
    leaves = [t.to(dtype) for t in (p.hidden, p.weight, p.bias)]
    got = outcome(every_op(p, dtype)[name], *leaves, implementation=implementation, mib=0.05)
    eager = outcome(every_op(p, dtype)[name], *leaves, implementation="naive")
    assert_at_most_twice(got, eager, exact_outcome(p, name), dtype)


@pytest.mark.parametrize("mode", ["p_diff", "pref_logratio"])
def test_token_scores(mode: str, implementation: str) -> None:
    p = rounded(rows=20, ignored=0.0)
    full, _, head, _ = p.states
    sample = p.step % 4

    def scores(implementation: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        args = (t.to(dtype) for t in (p.hidden, p.weight, full, head))
        with pk.implementation(implementation), pk.workspace(MIB):
            return pk.token_scores(*args, sample, mode=mode)

    exact = scores("naive", torch.float64)
    for got, value in zip(scores(implementation, torch.float32), exact, strict=True):
        assert relative_error(got, value) <= TOLERANCE


def strided(tensor: Tensor) -> Tensor:
    """Equal values: every second entry of a vector, columns first of a matrix."""
    if tensor.dim() == 2:
        return tensor.T.contiguous().T
    return torch.stack((tensor, tensor + 1), 1).reshape(-1)[::2]


@all_ops
@pytest.mark.usefixtures("implementation")
def test_strides(name: str) -> None:
    """Nothing needs to be contiguous: neither inputs nor the gradient of a plain sum."""
    p = small()
    values = []
    for change in (lambda t: t.contiguous(), strided):
        q = small()
        for field in ("target", "token_ids", "token_weights", "step", "row_weight"):
            setattr(q, field, change(getattr(p, field)))
        q.token_weights = change(p.token_weights.float())
        q.states = pk.ReferenceStates(*(change(t.float()) for t in p.states))
        given = [change(t.float()).requires_grad_() for t in (p.hidden, p.weight, p.bias)]
        with torch.no_grad():
            streamed = value_of(every_op(q)[name](*given))
        out = value_of(every_op(q)[name](*given))
        out.sum().backward()
        values.append([streamed, out.detach(), *(leaf.grad for leaf in given)])
    for got, expected in zip(*values, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2 * TOLERANCE * nats(expected))


@all_ops
@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("rows", ["all ignored", "empty"])
def test_no_row(rows: str, name: str) -> None:
    """A mean over no row is 0, and so is every gradient."""
    p = problem(rows=0 if rows == "empty" else 5, hidden=3, vocabulary=13, selected=4, ignored=1.0)
    given = leaves_of(p)
    out = value_of(every_op(p)[name](*given))
    out.sum().backward()
    if name.startswith(("linear_cross", "pact")):
        assert not out.any()
        for leaf in given:
            assert leaf.grad.shape == leaf.shape and not leaf.grad.any()
    else:  # these have no target: every position is a row
        assert out.shape[0] == p.hidden.shape[0] and bool(torch.isfinite(out).all())


@pytest.mark.parametrize("size", [1e2, 1e4])
@all_ops
def test_extreme_logits(
    name: str, size: float, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token takes all of the mass in most rows; values are finite, near those in float64.

    A log-sum-exp of this size is rounded by size * 2^-24 nats or so, and with it every probability
    is; on a GPU a product of fp32 operands leaves out 2^-22 of its terms (three of tf32), as much
    again in all. A gradient multiplies those by the other factor of the product.

    Over the vocabulary the rest, 1 - (sum of the K probabilities), is that much off, too, which is
    many times its size where the K take nearly all. Nothing at hand forms it better: the
    log-sum-exp has lost those digits. So results may lie as far from the exact ones as these do
    from themselves when the rest is off by as much.
    """
    p = small()
    rounding = (16 if implementation == "triton" and on_gpu() else 8) * size * 2.0**-24
    p.hidden = (p.hidden * size).float().double()
    given = [t.float() for t in (p.hidden, p.weight, p.bias)]
    got = outcome(every_op(p)[name], *given, implementation=implementation)
    exact = exact_outcome(p, name)
    moved: dict[str, float] = {key: 0.0 for key in exact}
    for shift in (-1, -1 / 4, -1 / 16, 1 / 16, 1 / 4, 1):  # of the clamp's two sides, some near it
        rest_moved_by(shift * rounding, monkeypatch)
        for key, value in exact_outcome(p, name).items():
            moved[key] = max(moved[key], float((value - exact[key]).abs().max()))
    factors = {"by_hidden": float(p.weight.abs().max()), "by_weight": float(p.hidden.abs().max())}
    for key, value in exact.items():
        scale = max(float(value.abs().max()), factors.get(key, 1.0))
        error = float((got[key].double() - value).abs().max())
        bound = (1e-5 + rounding) * scale + moved[key]
        assert error <= bound, f"{key}: {error:.1e} against {bound:.1e}"  # NaN fails, too


def rest_moved_by(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the dense formula form the rest of the mass that much off."""

    def with_rest(log_confidence: Tensor) -> Tensor:
        rest = (1 - log_confidence.exp().sum(-1, keepdim=True) + shift).clamp(min=1e-6)
        return torch.cat((log_confidence, rest.log()), -1)

    monkeypatch.setattr(dense_kl, "_with_rest", with_rest)


@pytest.mark.usefixtures("implementation")
def test_pact_loss_is_cross_entropy_plus_weighted_kl() -> None:
    p = rounded(rows=9)
    calls: dict[str, Any] = every_op(p)
    leaves = [t.float() for t in (p.hidden, p.weight, p.bias)]
    whole = calls["pact_loss by row"](*leaves)
    cross_entropy = calls["linear_cross_entropy by row"](*leaves)
    near = {"rtol": 0, "atol": 2 * TOLERANCE * nats(cross_entropy)}
    torch.testing.assert_close(whole.cross_entropy, cross_entropy, **near)
    torch.testing.assert_close(whole.loss, cross_entropy + 1.7 * whole.kl, **near)


def test_float64_takes_the_pure_torch_implementation() -> None:
    p = small()
    leaves = (p.hidden, p.weight, p.bias)
    for name, op in every_op(p, torch.float64).items():
        with pk.implementation("triton"):
            got = value_of(op(*leaves))
        assert got.dtype == torch.float64
        assert torch.equal(got, value_of(op(*leaves))), name
