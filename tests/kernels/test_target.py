"""The device functions of the KL on one tile, against their formulas in float64.

A top-p count jumps where a cumulative sum of the sorted softmax crosses top_p, and rounding decides
there. So rows where no sum lies within NEAR of top_p must count exactly as float64 does, and any
other row may differ by as many entries as it has such sums.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.common.constants import LEAST_REST
from pact_kernels.naive import pact_kl as naive
from tests.kernels import device
from tests.ops.precision import NEAR, near_a_jump

ROWS = 100  # no power of two: the last rows of the tile are padding


def randn(*shape: int, seed: int = 0) -> Tensor:
    """fp32 values held in float64: both sides get equal inputs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).double()


def assert_counts(logits: Tensor, top_p: float, temperature: float = 1.0) -> Tensor:
    """The counts, once they are found right; returns which rows had to be exact."""
    got = device.top_p_count(logits, top_p, temperature)
    mass = (logits / temperature).softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    expected = naive.top_p_count(logits, top_p, temperature)
    near = ((mass - top_p).abs() < NEAR).sum(-1)  # (N,)
    assert bool(((got - expected).abs() <= near).all())
    assert bool(((got >= 1) & (got <= logits.shape[-1])).all())
    return near == 0


# 16 fills the least tile and 17 leaves most of the next one padded; 300 is padded to 512.
@pytest.mark.parametrize("selected", [1, 2, 11, 16, 17, 64, 300])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999, 1.0])
def test_counts(top_p: float, selected: int) -> None:
    """All but a few rows are clear of a jump, except at 1, where the last sums always round."""
    logits = 2.0 * randn(ROWS, selected, seed=selected)
    exact = assert_counts(logits, top_p, {0.5: 0.7, 0.9: 1.0, 0.999: 1.6, 1.0: 1.0}[top_p])
    assert float(exact.double().mean()) > 0.8 or top_p == 1.0


def test_ties_count_singly() -> None:
    logits = (randn(ROWS, 50) * 2).round() / 2  # about nine values among 50 entries
    for top_p in (0.3, 0.5, 0.9):
        exact = assert_counts(logits, top_p)
        assert float(exact.double().mean()) > 0.9


def test_counts_known_by_hand() -> None:
    inf = torch.inf
    cases = [
        ([0.0] * 8, 0.5, 4),  # reached exactly by the fourth
        ([0.0] * 8, 0.9, 8),
        ([0.0] * 8, 1.0, 8),
        ([100.0, *[0.0] * 7], 0.9, 1),  # one dominates
        ([0.0] * 7 + [100.0], 0.999, 1),
        ([1e4, 1e4, *[-1e4] * 6], 0.9, 2),
        ([-1e4] * 8, 0.5, 4),
        ([1e4] * 8, 0.6, 5),
        ([2.0, *[-inf] * 7], 0.9, 1),
        ([*[-inf] * 4, 1.0, 1.0, 1.0, 1.0], 0.7, 3),
        ([3.0, 3.0, 3.0, *[-inf] * 5], 1.0, 3),  # -inf adds nothing, even to reach the whole
    ]
    for top_p in {top_p for _, top_p, _ in cases}:
        chosen = [(row, count) for row, p, count in cases if p == top_p]
        logits = torch.tensor([row for row, _ in chosen], dtype=torch.float64)
        got = device.top_p_count(logits, top_p, 1.0)
        assert got.tolist() == [count for _, count in chosen], top_p


def test_a_shift_leaves_the_counts() -> None:
    """A shift of a power of two, which fp32 adds to these eighths without rounding."""
    logits = (randn(ROWS, 40) * 8).round() / 8
    expected = device.top_p_count(logits, 0.9, 1.0)
    for shift in (64.0, -1024.0):
        assert torch.equal(device.top_p_count(logits + shift, 0.9, 1.0), expected)


GATES = {
    "default": pk.GateConfig(),
    "hard cut": pk.GateConfig(decay_tau=0.0, prefix_length=4),
    "hard cut at once": pk.GateConfig(decay_tau=0.0, prefix_length=0),
    "no prefix": pk.GateConfig(prefix_length=0, decay_tau=3.0),
    "no decay": pk.GateConfig(prefix_length=2, decay_tau=math.inf),
    "boost": pk.GateConfig(prefix_boost=1.7),
    "bias": pk.GateConfig(bias=-0.3),
    "negative alpha": pk.GateConfig(alpha=-5.0, bias=0.1),
    "saturated": pk.GateConfig(alpha=1e4),  # exp overflows on one side and vanishes on the other
    "everything": pk.GateConfig(
        top_p=0.6,
        alpha=-3.0,
        bias=0.1,
        temperature=0.5,
        prefix_length=2,
        decay_tau=5.0,
        prefix_boost=1.7,
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str) -> None:
    gate = GATES[name]
    student, post = 2.0 * randn(2, ROWS, 19)  # prime: 1 / K is rounded
    near = near_a_jump(student, gate) | near_a_jump(post, gate)
    assert float(near.double().mean()) < 0.1
    # Steps from before the answer to far past any decay, in both integer dtypes.
    step = torch.arange(-4, ROWS - 4, dtype=torch.int32 if name == "default" else torch.int64)
    got = device.gate_value(student, post, step, gate)
    expected = naive.gate_value(student, post, step, gate)
    torch.testing.assert_close(got[~near], expected[~near].float(), rtol=2e-6, atol=1e-7)


WEIGHTS = {
    "positive": torch.rand(19, generator=torch.Generator().manual_seed(0)) + 0.1,
    "some not positive": torch.arange(19) % 4 - 1.0,  # -1, 0, 1, 2, ...
    "one token": (torch.arange(19) == 7).float(),
}


def assert_selection_kl(
    student: Tensor, mixed: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """KL and gradient against autograd through the formula; returns the gradient."""
    student, mixed = student.float().double().requires_grad_(), mixed.float().double()
    got, gradient = device.selection_kl(student.detach(), mixed, weights, temperature)
    q = naive.selection_target(mixed, weights.double(), temperature)
    log_p = (student / temperature).log_softmax(-1)
    expected = temperature**2 * (q * (q.clamp(min=1e-12).log() - log_p)).sum(-1)
    expected.sum().backward()
    torch.testing.assert_close(got, expected.detach().float(), rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(gradient, student.grad.float(), rtol=1e-5, atol=1e-6)
    return gradient


@pytest.mark.parametrize("temperature", [2.0, 0.7])
@pytest.mark.parametrize("name", WEIGHTS)
def test_selection_kl(name: str, temperature: float) -> None:
    student, mixed = 2.0 * randn(2, ROWS, 19, seed=1)
    student[0], mixed[0] = 0.0, 0.0
    mixed[1, 3] = -torch.inf
    gradient = assert_selection_kl(student, mixed, WEIGHTS[name], temperature)
    assert bool((gradient[:, WEIGHTS[name] <= 0] >= 0).all())  # pushed down alone


def test_selection_kl_of_extreme_logits() -> None:
    """Weights of 1 and a power of two for T, or fp32 would round what it adds and divides."""
    student, mixed = 2.0 * randn(2, ROWS, 19, seed=1)
    student[:30] += 1e4
    mixed[20:50] -= 1e4
    student[60:, 5] = mixed[60:, 5] = 1e4  # all of the mass, on both sides
    student[70:, 6] = -1e4
    assert_selection_kl(student, mixed, torch.ones(19), temperature=2.0)


def test_selection_kl_where_a_product_of_probability_and_weight_underflows() -> None:
    """A weight on a token 400 nats below the others: fp32 knows no e^-200 to normalise by."""
    mixed = torch.tensor([[200.0, 0.0, -200.0]])
    kl, gradient = device.selection_kl(
        torch.zeros(1, 3), mixed, torch.tensor([0.0, 0.0, 1.0]), temperature=1.0
    )
    third = torch.tensor(3.0)
    torch.testing.assert_close(kl, third.log()[None])
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 1.0, -2.0]]) / 3)


def with_rest(log_confidence: Tensor) -> Tensor:
    """(N, K) -> (N, K + 1): the log of the rest of the mass appended."""
    rest = 1.0 - log_confidence.exp().sum(-1, keepdim=True)
    return torch.cat((log_confidence, rest.clamp(min=LEAST_REST).log()), -1)


SELECTED = 11
VOCABULARY = 40


@pytest.mark.parametrize("reference_rest", ["some", "clamped"])
@pytest.mark.parametrize("student_rest", ["some", "clamped"])
def test_vocabulary_kl(student_rest: str, reference_rest: str) -> None:
    """KL, and its gradient by all V logits: softmax_factor * P plus the sparse entries."""
    z, reference = 1.5 * randn(2, ROWS, VOCABULARY, seed=2)
    for logits, rest in ((z, student_rest), (reference, reference_rest)):
        # A confidence of 1 - e^-18 or so: the rest is 1e-8, below its least value and fp32's reach.
        logits[:, :SELECTED] += 22.0 if rest == "clamped" else 1.0
    z.requires_grad_()
    log_p = z.log_softmax(-1)[:, :SELECTED]
    log_r = reference.log_softmax(-1)[:, :SELECTED]
    for log_confidence, rest in ((log_p, student_rest), (log_r, reference_rest)):
        mass = 1.0 - log_confidence.detach().exp().sum(-1)
        assert bool((mass < LEAST_REST).all()) == (rest == "clamped")
        assert bool((mass > 0.01).all()) == (rest == "some")
    log_q = with_rest(log_r).log_softmax(-1)
    expected = (log_q.exp() * (log_q - with_rest(log_p).log_softmax(-1))).sum(-1)
    expected.sum().backward()
    kl, softmax_factor, sparse = device.vocabulary_kl(log_p.detach(), log_r)
    gradient = softmax_factor.double()[:, None] * z.detach().softmax(-1)
    gradient[:, :SELECTED] += sparse
    # The rest is a difference of 1 and a sum that is off by three roundings or so, 2e-7: by 2e-5 of
    # 0.01, and a ratio of rests with it.
    torch.testing.assert_close(kl, expected.detach().float(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(gradient, z.grad, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(
        softmax_factor + sparse.sum(-1), torch.zeros(ROWS), rtol=0, atol=1e-5
    )


def test_confidences_that_sum_to_one_less_1e_8() -> None:
    """The student's rest is clamped to 1e-6 and passes no gradient; all classes sum to 1 again."""
    p = torch.tensor([[0.25, 0.5, 0.25 - 1e-8]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.25]], dtype=torch.float64)  # and a rest of 0.25
    kl, softmax_factor, sparse = device.vocabulary_kl(p.log(), q.log())
    expected = 0.25 * (torch.tensor(0.5).log() + torch.tensor(0.25 / LEAST_REST).log())
    torch.testing.assert_close(kl, expected[None])
    torch.testing.assert_close(softmax_factor, torch.tensor([-0.25]))
    torch.testing.assert_close(sparse, (p - q).float())


@pytest.mark.parametrize("little", [-200.0, -torch.inf])
def test_a_confidence_of_zero(little: float) -> None:
    """In both, it adds nothing; in the reference alone, the student is only pushed down there."""
    log_p = torch.tensor([[0.5, 0.2, 0.1], [0.5, 0.2, 0.1]]).log()
    log_q = torch.tensor([[0.3, 0.3, 0.1], [0.3, 0.3, 0.1]]).log()
    log_q[:, 2] = little
    log_p[1, 2] = little
    kl, softmax_factor, sparse = device.vocabulary_kl(log_p, log_q)
    rest = torch.tensor([0.2, 0.3])  # of the student
    three = 0.3 * torch.tensor(0.3 / 0.5).log() + 0.3 * torch.tensor(0.3 / 0.2).log()
    torch.testing.assert_close(kl, three + 0.4 * (0.4 / rest).log())
    torch.testing.assert_close(softmax_factor, 1.0 - 0.4 / rest)
    torch.testing.assert_close(sparse[:, 2], (0.4 / rest) * torch.tensor([0.1, 0.0]))


def test_equal_confidences_have_no_kl_and_no_gradient() -> None:
    log_p = randn(ROWS, VOCABULARY, seed=3).log_softmax(-1)[:, :SELECTED]
    kl, softmax_factor, sparse = device.vocabulary_kl(log_p, log_p)
    for value in (kl, softmax_factor, sparse):
        assert float(value.abs().max()) < 2e-6


@pytest.mark.parametrize("lead", [22.0, 60.0])
def test_equal_confidences_that_take_all_of_the_mass(lead: float) -> None:
    """The rest is clamped on both sides, and the classes of neither sum to more than 1: 1e-6 shows.

    Eight roundings of the K + 1 terms, whose weights sum to 1, and as many of the gradient's.
    """
    z = randn(ROWS, VOCABULARY, seed=3)
    z[:, :SELECTED] += lead
    log_p = z.log_softmax(-1)[:, :SELECTED].float()
    for value in device.vocabulary_kl(log_p, log_p):
        assert float(value.abs().max()) <= 2.0**-21
