"""What torch asks of an operator: opcheck, gradcheck, fake tensors, autograd's rules, autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._pytree import tree_map_only

import pact_kernels as pk
from tests.ops.calls import Calls
from tests.ops.compare import relative_error
from tests.ops.problem import problem
from tests.rounding import EXACT

Op = Callable[..., Tensor]


def ops(reduction: str = "mean", dtype: torch.dtype = torch.float64) -> dict[str, Op]:
    """Every differentiable op as a function of hidden, weight and bias, on 6 small rows.

    `dtype` is that of the reference's states.
    """
    p = problem(6, 3, 13, 4, ignored=0.3)
    kept = (p.target != -100).nonzero().squeeze(1)
    # A bias of its own: that of the op would move with the student's, though no gradient says so.
    states = pk.ReferenceStates(*(t.to(dtype) for t in (*p.states[:3], p.bias.flip(0))))
    kl = (p.token_ids, p.token_weights, p.step, states)
    logits = p.logits()

    def cross_entropy(h, w, b):
        return pk.linear_cross_entropy(
            h, w, p.target, bias=b, reduction=reduction, label_smoothing=0.1, z_loss=0.01
        )

    def pact_loss(over):
        def call(h, w, b):
            options = {"over": over, "reduction": reduction, "row_weight": p.row_weight}
            return pk.pact_loss(h, w, p.target, *kl, bias=b, softcap=4.0, **options).loss

        return call

    def pact_kl(over):
        def call(h, w, b):
            options = {"over": over, "reduction": reduction, "bias": b, "softcap": 4.0}
            return pk.pact_kl(h[kept], w, *kl[:3], logits, **options)

        return call

    return {
        "linear_cross_entropy": cross_entropy,
        "pact_loss over the selection": pact_loss("selection"),
        "pact_loss over the vocabulary": pact_loss("vocabulary"),
        "pact_kl over the selection": pact_kl("selection"),
        "pact_kl over the vocabulary": pact_kl("vocabulary"),
        "linear_logsumexp": lambda h, w, b: pk.linear_logsumexp(h, w, bias=b, logit_scale=0.7),
        "selected_logits": lambda h, w, b: pk.selected_logits(
            h, w, p.token_ids, bias=b, softcap=4.0
        ),
        "selected_confidences": lambda h, w, b: pk.selected_confidences(
            h, w, p.token_ids, bias=b, temperature=1.5
        ),
    }


def leaves(dtype: torch.dtype = torch.float64, trained: bool = True) -> tuple[Tensor, ...]:
    p = problem(6, 3, 13, 4, ignored=0.3)
    return (
        p.hidden.to(dtype, copy=True).requires_grad_(),
        p.weight.to(dtype, copy=True).requires_grad_(trained),
        p.bias.to(dtype, copy=True).requires_grad_(trained),
    )


REDUCED = [name for name in ops() if name.startswith(("linear_cross", "pact"))]
CASES = [(name, reduction) for name in REDUCED for reduction in ("mean", "none")] + [
    (name, "mean") for name in ops() if name not in REDUCED
]


@pytest.mark.parametrize("name, reduction", CASES)
def test_gradcheck(name: str, reduction: str) -> None:
    with pk.workspace(1e-4):  # chunks of one row
        assert torch.autograd.gradcheck(ops(reduction)[name], leaves(), atol=1e-7)


# By row a trained head calls the operators of a frozen one, with fewer empty gradients.
OPCHECKS = [(*case, False) for case in CASES] + [(*case, True) for case in CASES if "mean" in case]


@pytest.mark.parametrize("name, reduction, trained", OPCHECKS)
def test_opcheck(name: str, reduction: str, trained: bool) -> None:
    """Every operator that a forward and a backward call, on the arguments that they give it."""
    h, w, b = leaves(torch.float32, trained)
    with Calls() as calls:
        ops(reduction, torch.float32)[name](h, w, b).sum().backward()
    names = {func.name() for func, _ in calls.seen}
    assert len(names) >= 2  # forward and backward, or the scaling of a gradient
    for func in {func for func, _ in calls.seen}:
        args = next(args for other, args in calls.seen if other is func)
        args = tree_map_only(Tensor, lambda t: t.detach().clone(), args)
        if "needs_grad" in str(func._schema) and "backward" not in func.name():
            args[0].requires_grad_()
        opcheck(func, args)


def test_opcheck_of_confidences_without_a_gradient() -> None:
    p = problem(6, 3, 13, 4)
    calls = Calls()
    with torch.no_grad(), calls:
        pk.selected_confidences(p.hidden, p.weight, p.token_ids, bias=p.bias, softcap=4.0)
    (call,) = [c for c in calls.seen if "log_confidences" in str(c[0])]
    opcheck(*call)


def test_opcheck_of_token_scores() -> None:
    p = problem(6, 3, 13)
    with Calls() as calls:
        pk.token_scores(p.hidden, p.weight, p.hidden.flip(0), p.weight, torch.arange(6) // 2)
    (call,) = calls.seen
    opcheck(*call)


def test_fake_tensors_have_the_real_ones_shapes() -> None:
    for name, op in ops("none").items():
        given = leaves()
        real = op(*given)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = op(*(mode.from_tensor(leaf) for leaf in given))
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype), name
        assert fake.requires_grad, name


@pytest.mark.parametrize("name, reduction", CASES)
def test_backward_twice_gives_the_gradient_twice(name: str, reduction: str) -> None:
    given = leaves()
    loss = ops(reduction)[name](*given).sum()
    loss.backward(retain_graph=True)
    first = [leaf.grad.clone() for leaf in given]
    (2.0 * loss).backward()
    for leaf, gradient in zip(given, first, strict=True):
        torch.testing.assert_close(leaf.grad, 3.0 * gradient, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name, reduction", CASES)
def test_a_second_derivative_is_refused(name: str, reduction: str) -> None:
    given = leaves()
    loss = ops(reduction)[name](*given).sum()
    with pytest.raises(RuntimeError, match="no second derivative: drop create_graph=True"):
        torch.autograd.grad(loss, given[0], create_graph=True)


@pytest.mark.parametrize("name", list(ops()))
def test_naive_has_second_derivatives(name: str) -> None:
    given = leaves()
    with pk.implementation("naive"):
        loss = ops()[name](*given).sum()
    (gradient,) = torch.autograd.grad(loss, given[0], create_graph=True)
    gradient.square().sum().backward()
    assert given[0].grad.any()


@pytest.mark.parametrize("name, reduction", CASES)
def test_gradients_of_some_inputs_alone(name: str, reduction: str) -> None:
    full = leaves()
    ops(reduction)[name](*full).sum().backward()
    for needs_grad in ((True, False, False), (False, True, False), (False, False, True)):
        part = [leaf.requires_grad_(want) for leaf, want in zip(leaves(), needs_grad, strict=True)]
        ops(reduction)[name](*part).sum().backward()
        for leaf, whole, want in zip(part, full, needs_grad, strict=True):
            assert (leaf.grad is not None) == want
            if want:
                torch.testing.assert_close(leaf.grad, whole.grad, rtol=EXACT, atol=1e-14)


def test_without_grad_nothing_is_saved() -> None:
    for name, op in ops().items():
        with torch.no_grad():
            assert op(*leaves()).grad_fn is None, name
        with torch.inference_mode():
            assert not op(*leaves()).requires_grad, name


@pytest.mark.parametrize("name, reduction", CASES)
def test_autocast_multiplies_in_16_bits_and_sums_in_fp32(name: str, reduction: str) -> None:
    """An fp32 model gives there what its 16-bit copy gives outside, but gradients in fp32."""
    op = ops(reduction, torch.float32)[name]
    wide = leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = op(*wide)
        value.sum().backward()  # a backward inside the region is not cast either
    narrow = leaves(torch.bfloat16)
    expected = ops(reduction, torch.bfloat16)[name](*narrow)
    expected.sum().backward()
    assert value.dtype == expected.dtype == torch.float32
    assert torch.equal(value, expected)
    for a, b in zip(wide, narrow, strict=True):
        assert a.grad.dtype == torch.float32
        assert torch.equal(a.grad, b.grad.float())


def test_autocast_takes_a_16_bit_state_and_an_fp32_head() -> None:
    p = problem()
    hidden, weight = p.hidden.bfloat16(), p.weight.float()
    for op in (
        lambda h, w: pk.linear_cross_entropy(h, w, p.target),
        lambda h, w: pk.linear_logsumexp(h, w),
        lambda h, w: pk.selected_logits(h, w, p.token_ids),
        lambda h, w: pk.selected_confidences(h, w, p.token_ids),
        lambda h, w: pk.token_scores(h, w, h.flip(0), w, torch.arange(37) // 5)[0],
        lambda h, w: (
            pk.pact_loss(
                h,
                w,
                p.target,
                p.token_ids,
                p.token_weights.float(),
                p.step,
                pk.ReferenceStates(
                    p.states.full_hidden.bfloat16(), p.states.post_hidden.float(), w
                ),
                over="vocabulary",
            ).loss
        ),
    ):
        with pytest.raises(ValueError, match="one floating dtype"):
            op(hidden, weight)
        with torch.autocast("cpu", torch.bfloat16):
            value = op(hidden, weight)
            with pk.implementation("naive"):
                dense = op(hidden, weight)
        assert value.dtype == torch.float32
        assert relative_error(value, dense) < 0.05  # 16-bit logits, rounded in other places


def test_autocast_leaves_fp64_alone() -> None:
    for name, op in ops().items():
        outside = op(*leaves())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(op(*leaves()), outside), name
