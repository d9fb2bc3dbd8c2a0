"""What torch asks of an operator: opcheck, gradcheck, fake tensors, autograd's rules, autocast.

What does not depend on the implementation is asked of the pure torch one alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._pytree import tree_map_only

import pact_kernels as pk
from tests.implementations import KERNELS
from tests.ops.calls import Calls
from tests.ops.compare import relative_error
from tests.ops.every_op import NAMES, every_op, leaves_of, small, value_of
from tests.ops.problem import problem
from tests.rounding import SUMS

all_ops = pytest.mark.parametrize("name", NAMES)


@all_ops
def test_gradcheck(name: str) -> None:
    p = small()

    def call(*leaves: Tensor) -> Tensor:
        return value_of(every_op(p, torch.float64)[name](*leaves))

    with pk.workspace(1e-4):  # chunks of one row
        assert torch.autograd.gradcheck(call, leaves_of(p, torch.float64), atol=1e-7)


# By row a trained head calls the operators of a frozen one, with fewer empty gradients. What an
# operator returns to autograd does not depend on who computes it: the kernels do once for each.
OPCHECKS = [
    *(("chunked", name, True) for name in NAMES),
    *(
        ("chunked", name, False)
        for name in ("linear_cross_entropy", "pact_kl", "pact_loss over the vocabulary")
    ),
    *(
        (kernels, name, True)
        for kernels in KERNELS
        for name in (
            "linear_cross_entropy by row",
            "linear_logsumexp",
            "selected_logits",
            "selected_confidences",
            "pact_kl",
            "pact_loss over the vocabulary",
        )
    ),
]


@pytest.mark.parametrize("implementation, name, trained", OPCHECKS, indirect=["implementation"])
@pytest.mark.usefixtures("implementation")
def test_opcheck(name: str, trained: bool) -> None:
    """Every operator that a forward and a backward call, on the arguments that they give it."""
    p = small()
    with Calls() as calls:
        value_of(every_op(p)[name](*leaves_of(p, trained=trained))).sum().backward()
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


@pytest.mark.usefixtures("implementation")
def test_opcheck_of_token_scores() -> None:
    p = small()
    hidden, weight = p.hidden.float(), p.weight.float()
    with Calls() as calls:
        pk.token_scores(hidden, weight, hidden.flip(0), weight, torch.arange(6) // 2)
    (call,) = calls.seen
    opcheck(*call)


@all_ops
def test_fake_tensors_have_the_real_ones_shapes(name: str) -> None:
    p = small()
    op, given = every_op(p)[name], leaves_of(p)
    real = value_of(op(*given))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = value_of(op(*(mode.from_tensor(leaf) for leaf in given)))
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
    assert fake.requires_grad


@all_ops
@pytest.mark.usefixtures("implementation")
def test_backward_twice_gives_the_gradient_twice(name: str) -> None:
    p = small()
    given = leaves_of(p)
    loss = value_of(every_op(p)[name](*given)).sum()
    loss.backward(retain_graph=True)
    first = [leaf.grad.clone() for leaf in given]
    (2.0 * loss).backward()
    for leaf, gradient in zip(given, first, strict=True):
        torch.testing.assert_close(leaf.grad, 3.0 * gradient, rtol=SUMS, atol=1e-7)


@all_ops
@pytest.mark.usefixtures("implementation")
def test_what_a_kept_graph_gave_out_may_be_changed(name: str) -> None:
    """Zeroed behind autograd's back, after an incoming 0, a third time: each pass is like new."""
    p = small()
    given = leaves_of(p)
    loss = value_of(every_op(p)[name](*given)).sum()
    first = torch.autograd.grad(loss, given, retain_graph=True)
    expected = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.data.zero_()
    (0.0 * loss).backward(retain_graph=True)
    for leaf in given:
        assert not leaf.grad.any()
        leaf.grad = None
    for _ in range(2):
        again = torch.autograd.grad(loss, given, retain_graph=True)
        for gradient, once in zip(again, expected, strict=True):
            torch.testing.assert_close(gradient, once, rtol=SUMS, atol=1e-7)
            gradient.data.zero_()
    for gradient, once in zip(torch.autograd.grad(2.0 * loss, given), expected, strict=True):
        torch.testing.assert_close(gradient, 2.0 * once, rtol=SUMS, atol=1e-7)


@all_ops
@pytest.mark.usefixtures("implementation")
def test_a_second_derivative_is_refused(name: str) -> None:
    p = small()
    given = leaves_of(p)
    loss = value_of(every_op(p)[name](*given)).sum()
    with pytest.raises(RuntimeError, match="no second derivative: drop create_graph=True"):
        torch.autograd.grad(loss, given[0], create_graph=True)


@all_ops
def test_naive_has_second_derivatives(name: str) -> None:
    p = small()
    given = leaves_of(p)
    with pk.implementation("naive"):
        loss = value_of(every_op(p)[name](*given)).sum()
    (gradient,) = torch.autograd.grad(loss, given[0], create_graph=True)
    gradient.square().sum().backward()
    assert given[0].grad.any()


@all_ops
def test_gradients_of_some_inputs_alone(name: str) -> None:
    p = small()
    op, full = every_op(p)[name], leaves_of(p)
    value_of(op(*full)).sum().backward()
    for needs_grad in ((True, False, False), (False, True, False), (False, False, True)):
        part = [
            leaf.requires_grad_(want) for leaf, want in zip(leaves_of(p), needs_grad, strict=True)
        ]
        value_of(op(*part)).sum().backward()
        for leaf, whole, want in zip(part, full, needs_grad, strict=True):
            assert (leaf.grad is not None) == want
            if want:
                torch.testing.assert_close(leaf.grad, whole.grad, rtol=SUMS, atol=1e-7)


@all_ops
def test_without_grad_nothing_is_saved(name: str) -> None:
    p = small()
    op = every_op(p)[name]
    with torch.no_grad():
        assert value_of(op(*leaves_of(p))).grad_fn is None
    with torch.inference_mode():
        assert not value_of(op(*leaves_of(p))).requires_grad


@all_ops
def test_autocast_multiplies_in_16_bits_and_sums_in_fp32(name: str) -> None:
    """An fp32 model gives there what its 16-bit copy gives outside, but gradients in fp32."""
    p = small(torch.bfloat16)
    wide = leaves_of(p)
    with torch.autocast("cpu", torch.bfloat16):
        value = value_of(every_op(p)[name](*wide))
        value.sum().backward()  # a backward inside the region is not cast either
    narrow = leaves_of(p, torch.bfloat16)
    expected = value_of(every_op(p, torch.bfloat16)[name](*narrow))
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


@all_ops
def test_autocast_leaves_fp64_alone(name: str) -> None:
    p = small()
    op = every_op(p, torch.float64)[name]
    outside = value_of(op(*leaves_of(p, torch.float64)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(value_of(op(*leaves_of(p, torch.float64))), outside)
