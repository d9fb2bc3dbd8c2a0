"""The compared objectives mean their formulas, however a step is cut, and train on the loop."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

import pact_kernels as pk
from benchmarks.experiment import baselines
from benchmarks.experiment.baselines import (
    REFUSAL_TEMPLATES,
    Held,
    first_tokens,
    full_vocabulary_kl,
    template_tokens,
    token_logits,
)
from pact.data.collate import Collator
from pact.objective import Objective, PactObjective
from pact.reference import AdaptersOff
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.student import add_adapters
from pact_kernels.types import Head
from tests.ops.problem import Problem, problem
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.training.problem import problem as training_problem
from tests.training.problem import summed_gradients

PLAIN: dict[str, Any] = {}
FULL: dict[str, Any] = {"softcap": 6.0, "logit_scale": 0.7}  # the cap bends logits of a few units
HELD = torch.tensor([2, 3, 11])
FULL_KL = Held(full_vocabulary_kl, 0.7)
TOKENS = Held(partial(token_logits, token_ids=HELD), 0.4)


def constrained(strength: float = 1.0) -> Held:
    return Held(partial(first_tokens, strength=strength))


OBJECTIVES = {"full_kl": FULL_KL, "first_tokens": constrained(1.5), "token_logits": TOKENS}
SHARED_BIAS = {**FULL, "reference_bias": False}  # the student's bias is the reference's too
HEADS = pytest.mark.parametrize(
    "head", [PLAIN, FULL, SHARED_BIAS], ids=["matrix", "bias, cap and scale", "shared bias"]
)
BOTH = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


class Case:
    """A problem in float64 whose rows stand at the steps 0 to 6, on both sides of the prefix."""

    def __init__(self, *, reference_bias: bool = True, **head: Any) -> None:
        p: Problem = problem(ignored=0.0)
        bias = p.bias if head else None
        self.head = Head(p.weight, bias, head.get("softcap"), head.get("logit_scale", 1.0))
        own = p.bias.flip(0) if head and reference_bias else None
        self.hidden, self.target = p.hidden, p.target
        self.step = torch.arange(len(p.target)) % 7
        self.reference = p.states._replace(post_hidden=None, bias=own)
        for tensor in (self.hidden, self.head.weight, *([] if bias is None else [bias])):
            tensor.requires_grad_()

    def as_its_reference(self) -> Case:
        """The same student, held to itself."""
        weight, bias = self.head.weight.detach(), self.head.bias
        own = None if bias is None else bias.detach()
        self.reference = pk.ReferenceStates(self.hidden.detach(), None, weight, own)
        return self

    @property
    def leaves(self) -> list[Tensor]:
        bias = self.head.bias
        return [self.hidden, self.head.weight, *([] if bias is None else [bias])]

    def loss(self, objective: Objective, **options: Any) -> pk.PactLoss:
        return objective(self.hidden, self.head, self.target, self.step, self.reference, **options)

    def logits(self) -> tuple[Tensor, Tensor]:
        """The student's and the reference's, (N, V) each, by hand."""
        own = self.head.bias if self.reference.bias is None else self.reference.bias
        both = []
        for h, w, b in (
            (self.hidden, self.head.weight, self.head.bias),
            (self.reference.full_hidden, self.reference.weight, own),
        ):
            z = (h @ w.T + (0 if b is None else b)) * self.head.logit_scale
            cap = self.head.softcap
            both.append(z if cap is None else cap * torch.tanh(z / cap))
        return both[0], both[1]

    def log_ratio(self) -> Tensor:
        """(N,) log P(y) - log P_ref(y)."""
        student, reference = (
            -functional.cross_entropy(z, self.target, reduction="none") for z in self.logits()
        )
        return student - reference.detach()


def betas_of(step: Tensor, strength: float = 1.0) -> Tensor:
    """The paper's, written out."""
    table = {0: 0.5 * strength, 1: 2 * strength, 2: 2 * strength, 3: 2 * strength, 4: 2 * strength}
    return torch.tensor([table.get(int(t), 0.1) for t in step], dtype=torch.float64)


def everywhere(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One beta for all steps."""
    monkeypatch.setattr(baselines, "PAPER_BETAS", (beta,) * 5)
    monkeypatch.setattr(baselines, "PAPER_LATER_BETA", beta)


def assert_same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    for gradients in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(*gradients)


@HEADS
def test_full_vocabulary_kl_is_its_formula(head: dict[str, Any]) -> None:
    case = Case(**head)
    out = case.loss(FULL_KL)
    u, f = case.logits()
    rows = kl_divergence(Categorical(logits=f.detach()), Categorical(logits=u))
    ce, kl = functional.cross_entropy(u, case.target), rows.mean()
    torch.testing.assert_close((out.cross_entropy, out.kl), (ce.detach(), kl.detach()))
    assert not out.cross_entropy.requires_grad and not out.kl.requires_grad
    assert (out.num_rows, out.mean_gate) == (len(case.target), 0)
    assert_same(out.loss, ce + 0.7 * kl, case.leaves)


def test_full_vocabulary_kl_pulls_by_the_difference_of_the_distributions() -> None:
    """(P - onehot + kl_weight (P - P_ref)) W / N, without autograd."""
    case = Case()
    (gradient,) = torch.autograd.grad(case.loss(FULL_KL).loss, case.hidden)
    with torch.no_grad():
        p, q = (z.softmax(-1) for z in case.logits())
        onehot = functional.one_hot(case.target, p.shape[1])
        by_hand = (p - onehot + 0.7 * (p - q)) @ case.head.weight / len(p)
    torch.testing.assert_close(gradient, by_hand)


@HEADS
@BOTH
def test_a_student_that_is_its_reference_learns_what_plain_fine_tuning_does(
    objective: Held, head: dict[str, Any]
) -> None:
    """No KL, no gradient of it, and a factor of 1 at every beta."""
    case = Case(**head).as_its_reference()
    out, plain = case.loss(objective), case.loss(PactObjective.plain())
    assert out.kl.abs() < 1e-14
    torch.testing.assert_close(out.cross_entropy, plain.loss.detach())
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, case.leaves), torch.autograd.grad(plain.loss, case.leaves)
    )


@pytest.mark.parametrize("strength", [1.0, 2.5])
@HEADS
def test_first_tokens_is_its_formula(head: dict[str, Any], strength: float) -> None:
    case = Case(**head)
    out = case.loss(constrained(strength))
    beta, delta = betas_of(case.step, strength), case.log_ratio()
    by_hand = (-2 / beta * torch.log(1 / (1 + torch.exp(-beta * delta)))).mean()
    plain = functional.cross_entropy(case.logits()[0], case.target).detach()
    torch.testing.assert_close(out.cross_entropy, plain)
    assert not out.cross_entropy.requires_grad
    assert (out.kl, out.num_rows, out.mean_gate) == (0, len(case.target), 0)
    assert_same(out.loss, by_hand, case.leaves)


def test_first_tokens_scales_the_gradient_of_each_row() -> None:
    """By 2 sigmoid(-beta Delta), which is on both sides of 1 here."""
    case = Case()
    (ours,) = torch.autograd.grad(case.loss(constrained()).loss, case.hidden)
    (plain,) = torch.autograd.grad(case.loss(PactObjective.plain()).loss, case.hidden)
    factor = 2 * torch.sigmoid(-betas_of(case.step) * case.log_ratio().detach())
    assert factor.min() < 0.5 and factor.max() > 1.5
    torch.testing.assert_close(ours, factor[:, None] * plain)


def test_small_betas_are_plain_fine_tuning_up_to_a_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, beta = Case(), 1e-7
    everywhere(beta, monkeypatch)
    out = case.loss(constrained())
    plain = case.loss(PactObjective.plain())
    ours = torch.autograd.grad(out.loss, case.hidden)
    torch.testing.assert_close(
        ours, torch.autograd.grad(plain.loss, case.hidden), rtol=1e-5, atol=1e-9
    )
    frozen = functional.cross_entropy(case.logits()[1], case.target)
    constant = 2 / beta * math.log(2) - frozen
    torch.testing.assert_close(out.loss - constant, plain.loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", [1e-6, 2.0, 1e3])
def test_first_tokens_is_stable_at_extreme_ratios(
    beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios of hundreds of nats either way, in float32: losses and factors are the limits."""
    weight = torch.tensor([[0.0], [1.0]])  # the logits of a state h are 0 and h
    hidden = torch.tensor([[400.0], [-400.0], [1e-3]], requires_grad=True)
    target, step = torch.ones(3, dtype=torch.int64), torch.tensor([0, 4, 9])
    reference = pk.ReferenceStates(-hidden.detach(), None, weight)
    everywhere(beta, monkeypatch)
    out = constrained()(hidden, Head(weight, None, None, 1.0), target, step, reference)
    out.loss.backward()
    x = hidden.detach().double()[:, 0]
    delta = functional.logsigmoid(x) - functional.logsigmoid(-x)  # 400, -400, 0.001
    rows = 2 / beta * torch.logaddexp(torch.zeros(3).double(), -beta * delta)
    factor = 2 * torch.sigmoid(-beta * delta)
    torch.testing.assert_close(out.loss.double(), rows.mean(), rtol=1e-6, atol=0)
    by_hand = factor * -torch.sigmoid(-x) / 3
    torch.testing.assert_close(hidden.grad[:, 0].double(), by_hand, rtol=1e-4, atol=1e-7)


@HEADS
def test_token_logits_is_its_formula(head: dict[str, Any]) -> None:
    case = Case(**head)
    out = case.loss(TOKENS)
    u, f = case.logits()
    change = (u[:, HELD] - f[:, HELD].detach()).square().mean()
    ce = functional.cross_entropy(u, case.target)
    torch.testing.assert_close((out.cross_entropy, out.kl), (ce.detach(), change.detach()))
    assert (out.num_rows, out.mean_gate) == (len(case.target), 0)
    assert_same(out.loss, ce + 0.4 * change, case.leaves)


def test_template_tokens_are_those_of_the_words_of_a_refusal() -> None:
    tokenizer = tiny_tokenizer()
    ids = template_tokens(tokenizer).tolist()
    assert ids == sorted(set(ids))
    for template in REFUSAL_TEMPLATES:
        assert set(tokenizer(template, add_special_tokens=False)["input_ids"]) <= set(ids)
    assert not set(ids) & set(tokenizer.all_special_ids)


@BOTH
def test_micro_batches_sum_to_the_whole_step(objective: Held) -> None:
    case = Case(**FULL)
    whole = case.loss(objective)
    places = torch.arange(len(case.target))
    parts = []
    for part in (places[:11], places[11:11], places[11:]):  # the one in the middle has no row
        cut = case.reference._replace(full_hidden=case.reference.full_hidden[part])
        rows = case.hidden[part], case.head, case.target[part], case.step[part]
        count = torch.tensor(len(places))  # as the loop gives it
        parts.append(objective(*rows, cut, num_items=count))
    for name in ("cross_entropy", "kl", "num_rows"):
        torch.testing.assert_close(sum(getattr(p, name) for p in parts), getattr(whole, name))
    assert_same(sum(p.loss for p in parts), whole.loss, case.leaves)
    torch.testing.assert_close(
        case.loss(objective, num_items=10).loss, whole.loss * len(places) / 10
    )


@BOTH
def test_no_gradient_reaches_the_reference(objective: Held) -> None:
    case = Case()
    frozen = [case.reference.full_hidden, case.reference.weight]
    for tensor in frozen:
        tensor.requires_grad_()
    case.loss(objective).loss.backward()
    assert all(tensor.grad is None for tensor in frozen)
    assert all(tensor.grad is not None for tensor in case.leaves)


@BOTH
def test_only_live_states_are_taken(objective: Held) -> None:
    case = Case()
    rows = case.hidden, case.head, case.target, case.step
    with pytest.raises(AssertionError):
        objective(*rows, None)
    with pytest.raises(AssertionError):
        objective(*rows, problem(ignored=0.0).logits())


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(AssertionError):
        Held(full_vocabulary_kl, weight)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@BOTH
def test_the_loop_trains_adapters_with_it(objective: Held, dtype: str) -> None:
    given = training_problem(None)
    assert objective.needs_reference and not objective.needs_post_only
    pad = given.tokenizer.pad_token_id
    collator = Collator((), pad, post_only=objective.needs_post_only)
    seen: list[dict[str, Tensor]] = []

    def collate(examples: list[Any]) -> dict[str, Tensor]:
        seen.append(collator(examples))
        return seen[-1]

    model = add_adapters(tiny_llama())
    gradients = summed_gradients(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = FitConfig(max_steps=4, micro_batch_size=3, learning_rate=1e-2, dtype=dtype)
    records = fit(model, given.dataset, objective, AdaptersOff(model), collate, config)
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert not any(name.startswith("post_") for batch in seen for name in batch)

    first, last = records[0], records[-1]
    assert abs(first["kl"]) < 1e-6  # fresh adapters are the identity
    assert last["cross_entropy"] < first["cross_entropy"]
    if objective.weight is None:  # first_tokens
        steps = torch.cat([batch["row_step"] for batch in seen[:3]])  # 8 examples: 3, 3, 2
        assert len(steps) == first["rows"]
        level = (2 * math.log(2) / betas_of(steps, strength=1.5)).mean().item()
        assert first["loss"] == pytest.approx(level, rel=1e-5)
    else:
        assert first["loss"] == pytest.approx(first["cross_entropy"], rel=1e-6)
        assert last["kl"] > 1e-4
    after = dict(model.named_parameters())
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(gradients)


@BOTH
def test_the_loop_refuses_a_reference_that_is_not_the_student(objective: Held) -> None:
    given, model = training_problem(None), add_adapters(tiny_llama())
    other = AdaptersOff(add_adapters(tiny_llama(seed=1)))
    with pytest.raises(ValueError, match="the student must be its reference"):
        fit(model, given.dataset, objective, other, given.collator, FitConfig(max_steps=1))
