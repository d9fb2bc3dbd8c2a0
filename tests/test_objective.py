"""The objective hands its settings and the head's to the op, and plain is cross-entropy alone."""

from __future__ import annotations

import pytest
import torch

import pact_kernels as pk
from pact.config import PactConfig
from pact.models import Head
from pact.objective import PactObjective
from tests.ops.problem import problem


def head_of(p, **changes):
    return Head(p.weight, changes.get("bias"), changes.get("softcap"), changes.get("scale", 1.0))


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
@pytest.mark.parametrize("gate", [True, False])
def test_objective_is_pact_loss_with_its_settings(over, gate):
    p = problem(ignored=0.0)
    config = PactConfig(
        over=over,
        gate=gate,
        kl_weight=0.3,
        gate_alpha=5.0,
        gate_prefix_length=2,
        gate_decay_tau=3.0,
    )
    head = head_of(p, bias=p.bias, softcap=6.0, scale=0.7)
    objective = PactObjective(p.token_ids, p.token_weights, config)
    out = objective(p.hidden, head, p.target, p.step, p.states, num_items=11)
    want = pk.pact_loss(
        p.hidden,
        p.weight,
        p.target,
        p.token_ids,
        p.token_weights,
        p.step,
        p.states,
        kl_weight=0.3,
        over=over,
        gate=pk.GateConfig(alpha=5.0, prefix_length=2, decay_tau=3.0) if gate else None,
        num_items=11,
        bias=p.bias,
        softcap=6.0,
        logit_scale=0.7,
    )
    torch.testing.assert_close(tuple(out), tuple(want), rtol=0, atol=0)
    assert objective.needs_reference
    assert objective.needs_post_only is gate


def test_step_weights_fall_off_exponentially():
    p = problem(ignored=0.0)
    config = PactConfig(over="vocabulary", kl_step_tau=4.0)
    objective = PactObjective(p.token_ids, p.token_weights, config)
    out = objective(p.hidden, head_of(p), p.target, p.step, p.states)
    rows = pk.pact_kl(
        p.hidden,
        p.weight,
        p.token_ids,
        p.token_weights,
        p.step,
        p.states,
        over="vocabulary",
        reduction="none",
    )
    torch.testing.assert_close(out.kl, (rows * torch.exp(-p.step.double() / 4.0)).mean())


def test_plain_is_cross_entropy_alone():
    p = problem(ignored=0.0)
    hidden = p.hidden.requires_grad_()
    objective = PactObjective.plain()
    out = objective(hidden, head_of(p), p.target, p.step, None, num_items=torch.tensor(40))
    rows = torch.nn.functional.cross_entropy(hidden @ p.weight.T, p.target, reduction="sum")
    torch.testing.assert_close(out.loss, rows / 40)
    assert out.kl == 0 and out.mean_gate == 0 and out.num_rows == len(p.target)
    assert not objective.needs_reference and not objective.needs_post_only
    out.loss.backward()
    assert hidden.grad is not None


def test_no_token_and_no_reference_are_refused():
    p = problem(ignored=0.0)
    with pytest.raises(ValueError, match="at least one safety token"):
        PactObjective(p.token_ids[:0], p.token_weights[:0], PactConfig())
    objective = PactObjective(p.token_ids, p.token_weights, PactConfig())
    with pytest.raises(ValueError, match="needs the reference"):
        objective(p.hidden, head_of(p), p.target, p.step, None)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"over": "all"}, "over must be"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"kl_temperature": 0.0}, "kl_temperature"),
        ({"over": "vocabulary", "kl_temperature": 2.0}, "temperature 1"),
        ({"kl_step_tau": 0.0}, "kl_step_tau"),
        ({"gate_top_p": 1.5}, "top_p"),
        ({"gate_temperature": 0.0}, "temperature"),
        ({"gate_prefix_length": -1}, "prefix_length"),
        ({"gate_decay_tau": -1.0}, "decay_tau"),
        ({"gate_prefix_boost": -1.0}, "prefix_boost"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PactConfig(**wrong)
