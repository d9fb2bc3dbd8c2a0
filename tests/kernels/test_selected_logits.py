"""Logits of selected tokens and their gradients, against the dense formula and autograd.

The interpreter takes the tiles of sm_90: 64 rows and tokens, and a gradient's 128 columns.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pact_kernels.kernels._kernels.selected_logits import launch_selected_gradient
from pact_kernels.kernels._launch.configs import FEW_TOKENS
from pact_kernels.kernels._launch.runtime import (
    INTERPRETED,
    TARGETS,
    descriptor,
    interpreting,
    recording,
)
from pact_kernels.kernels.selected_logits import selected_logits, selected_logits_backward
from pact_kernels.naive.selected_logits import selected_logits as naive
from pact_kernels.types import Head
from tests.kernels.problem import (
    DTYPES,
    EVEN_WIDTH,
    HEADS,
    PLENTY,
    TOLERANCE,
    WIDTH,
    Problem,
    amid_nans,
    assert_near,
    problem,
    with_exact_sums,
    with_head,
)
from tests.ops.precision import assert_at_most_twice

pytestmark = pytest.mark.usefixtures("poisoned")

NAMES = ("hidden", "weight", "bias")
SELECTED = 75  # a tile of 64 tokens and a ragged one; two steps of 32 in the gradient, and a third
ALL = (True, True, True)


def incoming(rows: int, selected: int) -> Tensor:
    """A different gradient in every place, of both signs."""
    grad = torch.linspace(-1.5, 1.0, rows * selected).roll(rows // 2)
    return grad.reshape(rows, selected)


def in_eighths(grad: Tensor) -> Tensor:
    """A gradient whose products with a head of exact sums are added exactly, too: up to 75 or 70
    multiples of 1/128 (by the head) or 1/32 (by the states), each below 16."""
    return (grad * 8).round() / 8


def forward(p: Problem, **options: Any) -> Tensor:
    head, options = with_head(p.weight, p.bias, {"limit_bytes": PLENTY, **options})
    return selected_logits(p.hidden, head, **options)


def backward(p: Problem, grad: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    grad = incoming(p.hidden.shape[0], p.weight.shape[0]) if grad is None else grad
    options = {"limit_bytes": PLENTY, "needs_grad": ALL, **options}
    head, options = with_head(p.weight, p.bias, options)
    gradients = selected_logits_backward(grad, p.hidden, head, **options)
    return dict(zip(NAMES, gradients, strict=True))


def autograd(p: Problem, **head: Any) -> dict[str, Tensor]:
    """Gradients of the dense formula, those by the head in the accumulator's dtype as ours are."""
    leaves = [t.detach().clone().requires_grad_() for t in (p.hidden, p.weight, p.bias)]
    z = naive(leaves[0], leaves[1], torch.arange(p.weight.shape[0]), bias=leaves[2], **head)
    z.backward(incoming(*z.shape).to(z.dtype))
    by_hidden, by_weight, by_bias = (leaf.grad for leaf in leaves)
    return dict(zip(NAMES, (by_hidden, by_weight.to(z.dtype), by_bias.to(z.dtype)), strict=True))


def assert_gradients(p: Problem, got: dict[str, Tensor], **head: Any) -> None:
    """Near float64 up to the rounding of the gradient by the states to their dtype."""
    exact = autograd(p.exact(), **head)
    assert got["hidden"].dtype == p.hidden.dtype
    rounding = torch.finfo(p.hidden.dtype).eps
    assert_near(got.pop("hidden").float(), exact.pop("hidden"), max(rounding, TOLERANCE))
    for name, value in exact.items():
        assert_near(got[name], value)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_eager_torchs(dtype: torch.dtype, name: str) -> None:
    p = problem(tokens=SELECTED, dtype=dtype)
    head = HEADS[name]
    ids = torch.arange(SELECTED)
    got, eager, exact = (
        {"logits": logits, **gradients}
        for logits, gradients in (
            (forward(p, **head), backward(p, **head)),
            (naive(p.hidden, p.weight, ids, bias=p.bias, **head), autograd(p, **head)),
            (p.logits(**head), autograd(p.exact(), **head)),
        )
    )
    assert_at_most_twice(got, eager, exact, dtype)
    assert_near(got["logits"], exact["logits"])


@pytest.mark.parametrize("width", [EVEN_WIDTH, WIDTH], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("name", HEADS)
def test_options_match_naive(name: str, width: int) -> None:
    p = problem(rows=133, width=width, tokens=SELECTED, dtype=torch.bfloat16)
    tiles = descriptor(p.hidden, [64, 64], INTERPRETED)
    assert (tiles is not p.hidden) == (width == EVEN_WIDTH)
    assert_near(forward(p, **HEADS[name]), p.logits(**HEADS[name]))
    assert_gradients(p, backward(p, **HEADS[name]), **HEADS[name])


@pytest.mark.parametrize("selected", [1, 11, 64, FEW_TOKENS + 44])
def test_numbers_of_tokens(selected: int) -> None:
    """One, a part of a tile, a whole one, and so many that the streaming tiles take over."""
    p = problem(rows=20, width=19, tokens=selected)  # fewer columns than a step
    assert_near(forward(p), p.logits())
    assert_gradients(p, backward(p))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_the_tiles_of_every_target(name: str, dtype: torch.dtype) -> None:
    # More than a tile of 64 rows; one of the widths masks its steps, the other does not.
    p = problem(rows=70, width=128 if dtype == torch.float32 else 67, tokens=SELECTED, dtype=dtype)
    with interpreting(TARGETS[name]):
        logits, gradients = forward(p), backward(p)
    assert_near(logits, p.logits())
    assert_gradients(p, gradients)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows: int, name: str) -> None:
    p = problem(rows=rows, tokens=SELECTED)
    assert_near(forward(p, **HEADS[name]), p.logits(**HEADS[name]))
    assert_gradients(p, backward(p, **HEADS[name]), **HEADS[name])


def test_without_a_bias() -> None:
    p = problem(tokens=SELECTED)
    p.bias.zero_()
    head, options = with_head(p.weight, None, {**HEADS["capped"], "limit_bytes": PLENTY})
    none = (p.hidden, head)
    assert torch.equal(selected_logits(*none, **options), forward(p, **HEADS["capped"]))
    grad = incoming(37, SELECTED)
    got = selected_logits_backward(grad, *none, **options, needs_grad=(True, True, False))
    expected = backward(p, **HEADS["capped"])
    assert torch.equal(got[0], expected["hidden"])
    assert torch.equal(got[1], expected["weight"])


@pytest.mark.parametrize("index", range(3))
def test_a_gradient_that_is_not_wanted_is_empty(index: int) -> None:
    p = problem(tokens=SELECTED)
    needs_grad = [True, True, True]
    needs_grad[index] = False
    got, expected = backward(p, needs_grad=tuple(needs_grad)), backward(p)
    assert got[NAMES[index]].numel() == 0
    for name in set(NAMES) - {NAMES[index]}:
        assert torch.equal(got[name], expected[name])


def test_extreme_logits() -> None:
    p = problem(tokens=SELECTED, width=16)
    # About 1e4 and -1e4 in turn, far beyond the cap: on it, with no slope left.
    p.hidden.abs_().mul_(3e3)
    p.weight.abs_()[::2] *= -1.0
    assert_near(forward(p), p.logits())
    z = forward(p, **HEADS["capped"])
    assert_near(z, p.logits(**HEADS["capped"]))
    assert bool((z.abs() == 4.0).all())
    assert_gradients(p, backward(p, **HEADS["capped"]), **HEADS["capped"])
    p.bias[3:] = -torch.inf
    assert bool((forward(p)[:, 3:] == -torch.inf).all())
    assert bool(forward(p)[:, :3].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_keeps_the_range_and_accuracy_of_fp32(dtype: torch.dtype) -> None:
    """Loss-scaled or tiny: one product of 16-bit pieces of raw would round it, or lose it."""
    p = problem(rows=70, tokens=SELECTED, dtype=dtype)
    for size in (1e-12, 1.0, 1e12):
        raw = incoming(70, SELECTED) * size
        out = p.hidden.new_empty(p.hidden.shape, dtype=torch.float32)
        launch_selected_gradient(raw, p.weight, out)
        exact = raw.double() @ p.weight.double()
        assert_near(out, exact, 2.0**-16 if dtype == torch.bfloat16 else TOLERANCE)


@pytest.mark.parametrize("columns", [8, 3], ids=["descriptors", "pointers"])
def test_strided_rows_amid_nans(columns: int) -> None:
    p = with_exact_sums(problem(width=EVEN_WIDTH, tokens=SELECTED, dtype=torch.bfloat16))
    strided = Problem(amid_nans(p.hidden, columns), amid_nans(p.weight, columns), p.bias)
    assert (descriptor(strided.hidden, [64, 64], INTERPRETED) is strided.hidden) == (columns == 3)
    grad = in_eighths(incoming(37, SELECTED))
    assert torch.equal(forward(strided, **HEADS["capped"]), forward(p, **HEADS["capped"]))
    got, expected = backward(strided, amid_nans(grad, columns)), backward(p, grad)
    for name in NAMES:
        assert torch.equal(got[name], expected[name])
    got = backward(strided, amid_nans(incoming(37, SELECTED), columns), **HEADS["capped"])
    assert_gradients(p, got, **HEADS["capped"])


def test_strided_columns() -> None:
    p = with_exact_sums(problem(tokens=SELECTED))
    turned = Problem(p.hidden.T.contiguous().T, p.weight.T.contiguous().T, p.bias)
    grad = in_eighths(incoming(37, SELECTED))
    assert turned.hidden.stride(1) == 37
    for limit in (PLENTY, 20 * 4 * WIDTH):  # all rows' copies, or those of 20
        assert torch.equal(forward(turned, limit_bytes=limit), forward(p))
    got, expected = backward(turned, grad.T.contiguous().T), backward(p, grad)
    for name in NAMES:
        assert torch.equal(got[name], expected[name])
    turned_grad = incoming(37, SELECTED).T.contiguous().T
    assert turned_grad.stride(1) == 37
    assert_gradients(p, backward(turned, turned_grad, **HEADS["capped"]), **HEADS["capped"])
    one = torch.ones(()).expand(37, SELECTED)  # what the backward of a sum hands over
    assert torch.equal(backward(p, one)["hidden"], backward(p, one.contiguous())["hidden"])


def test_chunks_of_the_rows() -> None:
    p = with_exact_sums(problem(tokens=SELECTED, dtype=torch.bfloat16))
    limit = 10 * 4 * (4 * SELECTED + WIDTH)  # of ten rows
    grad = in_eighths(incoming(37, SELECTED))
    whole, cut = backward(p, grad), backward(p, grad, limit_bytes=limit)
    for name in NAMES:
        assert torch.equal(cut[name], whole[name])
    assert_gradients(p, backward(p, **HEADS["capped"], limit_bytes=limit), **HEADS["capped"])


def test_a_frozen_head_is_one_launch() -> None:
    hidden = torch.empty(5000, 64, device="meta", dtype=torch.bfloat16)
    weight, grad = hidden[:50], torch.empty(5000, 50, device="meta")
    options = {"limit_bytes": PLENTY, "needs_grad": (True, False, False)}
    with recording(TARGETS["sm_90"]) as launches:
        selected_logits_backward(grad, hidden, Head(weight), **options)
    assert [launch.kernel.__name__ for launch in launches] == ["_selected_gradient_kernel"]
