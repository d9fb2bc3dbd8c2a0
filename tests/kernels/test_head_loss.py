"""The chunk loop on the kernels against the pure-torch one in float64: rows and gradients.

Legend: R positions, N rows (positions whose target is not ignored).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pact_kernels.kernels import head_loss as kernels
from tests.kernels.chunk import LossOptions
from tests.kernels.head_case import (
    ALL,
    NONE,
    PLENTY,
    ROWS,
    TOLERANCE,
    assert_near,
    kl_spec,
    run,
)
from tests.kernels.poison import poison
from tests.ops.rounded_problem import rounded

overs = pytest.mark.parametrize("over", [None, "selection", "vocabulary"])
IGNORED = {"some ignored": 0.4, "none ignored": 0.0, "all ignored": 1.0}


@pytest.mark.parametrize("ignored", IGNORED)
@overs
def test_targets(over: str | None, ignored: str) -> None:
    p = rounded(ignored=IGNORED[ignored])
    got = run(p, over)
    assert_near(got, run(p, over, exact=True))
    assert int(got.num_rows) == int((p.target != -100).sum())
    assert not got.grad_hidden[p.target == -100].any()
    assert (ignored == "all ignored") != bool(got.term.any())


@pytest.mark.parametrize("term", ["logsumexp", "none"])
@overs
def test_without_targets_every_position_is_a_row(over: str | None, term: str) -> None:
    p = rounded(ignored=0.0)
    options: dict[str, Any] = {"options": LossOptions(term=term), "target": False}
    got = run(p, over, **options)
    assert_near(got, run(p, over, exact=True, **options))
    assert int(got.num_rows) == ROWS


@overs
def test_rows_that_the_host_knows_the_number_of(over: str | None) -> None:
    p = rounded()
    known = run(p, over, num_rows=p.step.numel())
    for a, b in zip(known, run(p, over), strict=True):
        assert torch.equal(a, b)


@overs
def test_rows_that_stay_where_they_are(over: str | None) -> None:
    """N = R: ignored rows are computed with. Their references are NaN, and nothing of it shows."""
    p = rounded()
    static = run(p, over, by_position=True, num_rows=ROWS)
    assert_near(static, run(p, over, exact=True, by_position=True))
    ignored = p.target == -100
    for name in ("term", "kl", "gate", "grad_hidden"):
        assert not getattr(static, name)[ignored].any(), name
    assert int(static.num_rows) == int((~ignored).sum())


def test_another_number_of_rows_is_refused_on_a_cpu() -> None:
    p = rounded()
    with pytest.raises(ValueError, match="one entry per row"):
        run(p, None, num_rows=p.step.numel() + 1)


def test_row_tensors_of_another_length_are_refused() -> None:
    p = rounded()
    p.step = p.step[1:]
    with pytest.raises(ValueError, match=f"one per position, {ROWS}"):
        run(p, "selection")


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_row_tensors_with_an_entry_per_position(over: str) -> None:
    """Equal bits: the same rows, and no others, are in the same products."""
    p = rounded()
    for a, b in zip(run(p, over, by_position=True), run(p, over), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "needs_grad", [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
)
def test_gradients_that_are_wanted_alone(needs_grad: tuple[bool, bool, bool]) -> None:
    """One that is not is empty, and the others are the same bits."""
    p = rounded(rows=9)
    got, whole = run(p, None, needs_grad=needs_grad), run(p, None)
    for name, want in zip(("grad_hidden", "grad_weight", "grad_bias"), needs_grad, strict=True):
        gradient = getattr(got, name)
        assert torch.equal(gradient, getattr(whole, name)) if want else gradient.numel() == 0
    assert torch.equal(got.term, whole.term)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_a_kl_without_gradients(over: str) -> None:
    p = rounded()
    got, whole = run(p, over, needs_grad=NONE), run(p, over)
    for name in ("term", "kl", "gate"):
        assert torch.equal(getattr(got, name), getattr(whole, name))


@overs
def test_more_selected_tokens_than_fit_in_registers(over: str | None) -> None:
    """In fp32 past 128: logits and KL in launches of their own, in three chunks."""
    p = rounded(rows=9, selected=150, ignored=0.0)
    # The softmax's factor is a difference of two sums of 150 terms: off by either.
    assert_near(run(p, over, limit_bytes=14_000), run(p, over, exact=True), 2 * TOLERANCE)


@overs
def test_poisoned_buffers(over: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    p = rounded(rows=9)
    clean = run(p, over, limit_bytes=10_000), run(p, over, by_position=True, num_rows=9)
    poison(monkeypatch)
    dirty = run(p, over, limit_bytes=10_000), run(p, over, by_position=True, num_rows=9)
    for a, b in zip([*clean[0], *clean[1]], [*dirty[0], *dirty[1]], strict=True):
        assert torch.equal(a, b)


def test_strides() -> None:
    """Every second entry of vectors, a row_grad of one number expanded, a head column by column."""
    p = rounded(rows=9, ignored=0.0)
    options: dict[str, Any] = {"options": LossOptions(), "row_grad": torch.ones(9)}
    expected = run(p, "selection", **options), run(p, None, needs_grad=NONE, **options)
    for name in ("target", "step", "bias", "row_weight"):
        vector = getattr(p, name)
        vector = vector.float() if vector.is_floating_point() else vector
        setattr(p, name, torch.stack((vector, vector + 1), 1).reshape(-1)[::2])
    p.weight, p.hidden = (t.float().T.contiguous().T for t in (p.weight, p.hidden))
    options["row_grad"] = torch.ones(1).expand(9)
    strided = run(p, "selection", **options), run(p, None, needs_grad=NONE, **options)
    for got, same in zip(strided, expected, strict=True):
        assert_near(got, same, 2 * TOLERANCE)  # each may be that far from the exact


def test_a_plain_loss_is_what_is_left_without_the_kl() -> None:
    """kl_weight 0: the value is reported, the gradient is the cross-entropy's."""
    p = rounded()
    kl = kl_spec(p, "vocabulary", torch.float32)
    head = LossOptions().head(p.bias.float(), p.weight.float())
    args = (p.hidden.float(), head, p.target)
    options: dict[str, Any] = {
        "term": LossOptions().request,
        "row_grad": None,
        "needs_grad": ALL,
        "limit_bytes": PLENTY,
    }
    off = kernels.head_loss(*args, p.token_ids, kl=replace(kl, kl_weight=0.0), **options)
    without = kernels.head_loss(*args, None, kl=None, **options)
    assert bool(off.kl.any())
    for name in ("term", "grad_hidden", "grad_weight", "grad_bias"):
        one, other = getattr(off, name), getattr(without, name)
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)
