"""The objective hands its settings and the head's to the op, and plain is cross-entropy alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pact_kernels as pk
from pact.objective import CrossEntropy, PactConfig, PactObjective
from pact_kernels.types import Head
from tests.objectives import matching
from tests.ops.problem import problem
from tests.rounding import NO_KL, STATES


def head_of(p, **changes):
    return Head(p.weight, changes.get("bias"), changes.get("softcap"), changes.get("scale", 1.0))


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
@pytest.mark.parametrize("gate", [True, False])
def test_objective_is_pact_loss_with_its_settings(over, gate):
    p = problem(ignored=0.0)
    config = matching(
        over,
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
    config = matching("vocabulary", kl_step_tau=4.0)
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


def test_cross_entropy_alone_needs_nothing():
    p = problem(ignored=0.0)
    hidden = p.hidden.requires_grad_()
    objective = CrossEntropy()
    assert isinstance(PactObjective.plain(), CrossEntropy)
    out = objective(hidden, head_of(p), p.target, p.step, None, num_items=torch.tensor(40))
    rows = torch.nn.functional.cross_entropy(hidden @ p.weight.T, p.target, reduction="sum")
    torch.testing.assert_close(out.loss, rows / 40)
    assert out.kl == 0 and out.mean_gate == 0 and out.num_rows == len(p.target)
    assert not objective.needs_reference and not objective.needs_post_only
    out.loss.backward()
    assert hidden.grad is not None


def test_positive_only_leaves_the_other_tokens_out():
    """It is the objective of the tokens of positive weight, in their order; 0 is not positive."""
    p = problem(ignored=0.0)
    weights = p.token_weights.clone()
    weights[3] = 0.0
    positive = weights > 0
    assert 1 < positive.sum() < len(weights) - 1
    for config in (PactConfig(kl_margin=1.5), PactConfig(over="selection", positive_only=True)):
        objective = PactObjective(p.token_ids, weights, config)
        assert torch.equal(objective.token_ids, p.token_ids[positive])
        assert torch.equal(objective.token_weights, weights[positive])
        every = replace(config, positive_only=False)
        chosen = PactObjective(p.token_ids[positive], weights[positive], every)
        whole = PactObjective(p.token_ids, weights, every)
        assert torch.equal(whole.token_ids, p.token_ids)
        ours, same, other = (
            each(p.hidden, head_of(p), p.target, p.step, p.states)
            for each in (objective, chosen, whole)
        )
        torch.testing.assert_close(tuple(ours), tuple(same), rtol=0, atol=0)
        assert abs(ours.kl - other.kl) > 1e-4
    with pytest.raises(ValueError, match="positive weight, got none of 11: run `pact discover`"):
        PactObjective(p.token_ids, -weights.abs(), PactConfig())


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
        (
            {"over": "selection", "kl_temperature": 0.0},
            "kl_temperature must be at least 0.001",
        ),
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


def raised(log_confidence, margin):
    """The formula of the margin on K + 1 classes, the rest written out."""
    rest = 1 - log_confidence.exp().sum(-1, keepdim=True)
    classes = torch.cat((log_confidence + margin, rest.log()), -1)
    return torch.log_softmax(classes, -1)[:, :-1]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_margin_multiplies_the_references_odds(gate, cached):
    """Against a reference whose K + 1 classes were shifted by hand; a margin of 1.5 nats."""
    p = problem(ignored=0.0)
    config = matching("vocabulary", gate=gate, kl_margin=1.5, kl_weight=0.7)
    objective = PactObjective(p.token_ids, p.token_weights, config)
    head = head_of(p)

    def logits(states):
        z = (states @ p.states.weight.T).double()
        return z[:, p.token_ids], z.logsumexp(-1)

    full, full_lse = logits(p.states.full_hidden)
    post, post_lse = logits(p.states.post_hidden)
    zero = torch.zeros_like(full_lse)
    by_hand = pk.ReferenceLogits(
        raised(full - full_lse[:, None], 1.5), raised(post - post_lse[:, None], 1.5), zero, zero
    )
    given = pk.ReferenceLogits(full, post, full_lse, post_lse) if cached else p.states
    out = objective(p.hidden, head, p.target, p.step, given)
    want = pk.pact_loss(
        p.hidden,
        p.weight,
        p.target,
        p.token_ids,
        p.token_weights,
        p.step,
        by_hand,
        kl_weight=0.7,
        over="vocabulary",
        gate=pk.GateConfig() if gate else None,
    )
    plain = PactObjective(p.token_ids, p.token_weights, replace(config, kl_margin=0.0))
    without = plain(p.hidden, head, p.target, p.step, given)
    torch.testing.assert_close(out.kl, want.kl, rtol=STATES, atol=NO_KL)
    assert abs(out.kl - without.kl) > 1e-3
    if gate:  # counts of tokens do not see a shift of all K logits
        torch.testing.assert_close(out.mean_gate, without.mean_gate)


def test_margin_at_full_confidence_stays_finite():
    """A reference that is all safety tokens has nothing to gain; the rest stays at least 1e-6."""
    p = problem(ignored=0.0)
    config = matching("vocabulary", gate=False, kl_margin=30.0)
    objective = PactObjective(p.token_ids, p.token_weights, config)
    full = torch.randn(len(p.target), len(p.token_ids)).log_softmax(-1)
    hidden = p.hidden.requires_grad_()
    known = pk.ReferenceLogits(full, full_lse=torch.zeros(len(p.target)))
    loss = objective(hidden, head_of(p), p.target, p.step, known).loss
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all()


def test_margin_is_refused_where_it_means_nothing():
    with pytest.raises(ValueError, match="kl_margin=1.0 with over='selection': set over=vocab"):
        PactConfig(over="selection", kl_margin=1.0)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="kl_margin must be (at least 0|finite), or unset"):
            PactConfig(over="vocabulary", kl_margin=wrong)


def test_with_anchors_only_other_rows_have_the_cross_entropy_alone():
    p = problem(ignored=0.0)
    objective = PactObjective(
        p.token_ids, p.token_weights, PactConfig(kl_weight=0.3, anchors_only=True)
    )
    head = head_of(p)
    held = torch.arange(1, len(p.target), 3)
    learnt = torch.tensor([n for n in range(len(p.target)) if n % 3 != 1])
    target = p.target.index_fill(0, held, -100)
    theirs = p.states._replace(full_hidden=p.states.full_hidden[held], post_hidden=None)
    out = objective(p.hidden, head, target, p.step, theirs, learnt=learnt, held=held)
    every = PactObjective(p.token_ids, p.token_weights, PactConfig(kl_weight=0.3))
    both = every(p.hidden, head, target, p.step, p.states, learnt=learnt, held=held)
    rows = learnt, p.target[learnt]
    entropy = pk.linear_cross_entropy(p.hidden[rows[0]], p.weight, rows[1])
    torch.testing.assert_close(out.cross_entropy, entropy)
    torch.testing.assert_close(out.cross_entropy, both.cross_entropy)
    torch.testing.assert_close(out.loss, out.cross_entropy + 0.3 * out.kl)
    assert 0 < float(out.kl) < float(both.kl)
    alone = objective(p.hidden, head, p.target, p.step, None)  # a batch without anchors
    assert float(alone.kl) == 0.0 and torch.equal(alone.loss, alone.cross_entropy)
    with pytest.raises(ValueError, match="needs the reference"):
        objective(p.hidden, head, target, p.step, None, learnt=learnt, held=held)


@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_rows_of_anchors_have_the_kl_alone(over, source):
    """At every step alike, without a margin, and over the same denominator."""
    p = problem(ignored=0.0)
    margin = {"kl_margin": 1.0} if over == "vocabulary" else {}
    config = matching(over, kl_weight=0.3, kl_step_tau=2.0, gate=True, **margin)
    objective = PactObjective(p.token_ids, p.token_weights, config)
    reference = p.states if source == "states" else p.logits()
    held = torch.arange(1, len(p.target), 3)
    learnt = torch.tensor([n for n in range(len(p.target)) if n % 3 != 1])
    target = p.target.index_fill(0, held, -100)
    rows = {"learnt": learnt, "held": held}
    head = head_of(p, bias=p.bias)
    out = objective(p.hidden, head, target, p.step, reference, num_items=11, **rows)

    def some(rows):
        taken = {"full_hidden", "post_hidden"} if source == "states" else set(reference._fields)
        return reference._replace(**{name: getattr(reference, name)[rows] for name in taken})

    part = p.hidden[learnt], head, p.target[learnt], p.step[learnt], some(learnt)
    first = objective(*part, num_items=11)
    kl = pk.pact_kl(
        p.hidden[held],
        p.weight,
        p.token_ids,
        p.token_weights,
        p.step[held],
        some(held),
        over=over,
        bias=p.bias,
        num_items=11,
    )
    torch.testing.assert_close(out.loss, first.loss + 0.3 * kl)
    torch.testing.assert_close(out.kl, first.kl + kl)
    torch.testing.assert_close(out.cross_entropy, first.cross_entropy, rtol=0, atol=0)
    assert int(out.num_rows) == len(learnt)
