"""`pact_kl` against its formula, over its options and at its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pact_kernels as pk
from tests.ops.compare import Call, assert_matches_naive, outcome
from tests.ops.problem import Problem, problem
from tests.rounding import EXACT

GATES = {
    "gate": pk.GateConfig(),
    "hard cut": pk.GateConfig(decay_tau=0.0, prefix_length=3),
    "no gate": None,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "num_items": {"num_items": 96},
    "num_items tensor": {"num_items": torch.tensor(96)},
    "head": {"softcap": 5.0, "logit_scale": 0.7},
    "head, by row": {"softcap": 5.0, "logit_scale": 0.7, "reduction": "none"},
}


def kl_call(p: Problem, reference: Any, **options: Any) -> Call:
    def call(hidden, weight, bias):
        return pk.pact_kl(
            hidden,
            weight,
            p.token_ids,
            p.token_weights,
            p.step,
            reference,
            bias=bias,
            **options,
        )

    return call


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_gates_and_references_match_naive(over: str, name: str, source: str, trained: bool) -> None:
    p = problem(ignored=0.0)
    reference = p.states if source == "states" else p.logits()
    call = kl_call(p, reference, over=over, gate=GATES[name])
    assert_matches_naive(call, p.hidden, p.weight, trained=trained)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "row_weight"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_options_match_naive(over: str, name: str, weighted: bool) -> None:
    p = problem(ignored=0.0)
    options = dict(OPTIONS[name], row_weight=p.row_weight if weighted else None)
    head = {key: options[key] for key in ("softcap", "logit_scale") if key in options}
    reference = p.states if weighted else p.logits(bias=p.bias, **head)
    assert_matches_naive(kl_call(p, reference, over=over, **options), p.hidden, p.weight, p.bias)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_sequences_are_rows(over: str) -> None:
    p = problem(rows=36, ignored=0.0)
    full, post, weight, _ = p.states
    p.step = p.step.reshape(4, 9)
    states = pk.ReferenceStates(full.reshape(4, 9, -1), post.reshape(4, 9, -1), weight)
    call = kl_call(p, states, over=over, reduction="none", row_weight=p.row_weight.reshape(4, 9))
    got = assert_matches_naive(call, p.hidden.reshape(4, 9, -1), p.weight)
    assert got["value"].shape == (4, 9)


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_no_row_is_zero(over: str) -> None:
    p = problem(rows=0)
    got = assert_matches_naive(kl_call(p, p.states, over=over), p.hidden, p.weight, p.bias)
    assert all(not value.any() for value in got.values())


def test_a_common_shift_of_the_selected_logits_is_not_penalised() -> None:
    p = problem(ignored=0.0)
    value = kl_call(p, p.logits())(p.hidden, p.weight, p.bias)
    shifted = p.bias.clone()
    shifted[p.token_ids] += 3.0
    torch.testing.assert_close(
        kl_call(p, p.logits())(p.hidden, p.weight, shifted), value, rtol=EXACT, atol=0
    )
    vocabulary = kl_call(p, p.logits(), over="vocabulary")
    apart = vocabulary(p.hidden, p.weight, shifted) - vocabulary(p.hidden, p.weight, p.bias)
    assert abs(float(apart)) > 0.1


def test_equal_models_cost_nothing_over_the_vocabulary_alone() -> None:
    """The weights make the selection's loss positive even there."""
    p = problem(ignored=0.0)
    same = pk.ReferenceStates(p.hidden, p.hidden, p.weight)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        hidden = p.hidden.to(dtype, copy=True).requires_grad_()
        weight = p.weight.to(dtype)
        states = pk.ReferenceStates(hidden, hidden, weight)
        kl = kl_call(p, states, over="vocabulary", reduction="none")(hidden, weight, None)
        kl.sum().backward()
        assert float(kl.detach().abs().max()) < 1e-6
        assert float(hidden.grad.abs().max()) < 1e-2  # P read from a chunk in the dtype, minus q
    assert float(kl_call(p, same)(p.hidden, p.weight, None)) > 0.1


def test_the_gradient_over_the_vocabulary_is_the_stated_one() -> None:
    """P_v - q_v on the selected tokens, P_v (1 - q_rest / P_rest) on the others."""
    p = problem(rows=5, ignored=0.0)
    logits = torch.randn(5, 301, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(301, dtype=torch.float64)  # the states are the logits
    reference = p.logits()
    hidden = logits.clone().requires_grad_()
    kl_call(p, reference, over="vocabulary", gate=None, reduction="sum")(
        hidden, eye, None
    ).backward()
    confidence = logits.softmax(-1)
    q = (reference.full - reference.full_lse[:, None]).exp()
    rest, q_rest = 1 - confidence[:, p.token_ids].sum(-1), 1 - q.sum(-1)
    expected = confidence * (1 - q_rest / rest)[:, None]
    expected[:, p.token_ids] = confidence[:, p.token_ids] - q
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [16.0, 30.0], ids=["rest around 1e-6", "rest clamped"])
def test_next_to_no_mass_on_the_rest(shift: float) -> None:
    p = problem(ignored=0.0)
    bias = p.bias.clone()
    bias[p.token_ids] += shift
    for reference in (p.states, p.logits(bias=bias)):  # the first with the bias, too
        call = kl_call(p, reference, over="vocabulary", reduction="none")
        got = assert_matches_naive(call, p.hidden, p.weight, bias)
        single = outcome(call, p.hidden.float(), p.weight.float(), bias.float())
        # fp32 leaves 1 - sum an error of some 1e-7: up to a tenth of a rest of 1e-6.
        torch.testing.assert_close(single["value"].double(), got["value"], rtol=1e-4, atol=3e-6)


def test_no_tensor_of_the_weights_size_for_a_frozen_head() -> None:
    p = problem(ignored=0.0)
    hidden = p.hidden.clone().requires_grad_()
    for over in ("selection", "vocabulary"):
        loss = kl_call(p, p.states, over=over)(hidden, p.weight, None)
        queue, sizes = [loss.grad_fn], []
        while queue:
            node = queue.pop()
            sizes += [t.numel() for t in getattr(node, "saved_tensors", ()) if t is not None]
            queue += [parent for parent, _ in node.next_functions if parent is not None]
        assert max(sizes) < p.weight.numel()
