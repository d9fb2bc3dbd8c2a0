"""The oracle itself, against loops over the formulas and against torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch

import pact_kernels as pk
from pact_kernels.naive.linear_cross_entropy import linear_cross_entropy
from pact_kernels.naive.pact_kl import gate_value, pact_kl, top_p_count
from pact_kernels.naive.selected_confidences import selected_confidences
from pact_kernels.naive.token_scores import token_scores
from tests.ops.problem import problem
from tests.rounding import EXACT


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def count(values: list[float], top_p: float) -> int:
    mass = 0.0
    for k, p in enumerate(sorted(softmax(values), reverse=True), start=1):
        mass += p
        if mass >= top_p:
            return k
    return len(values)


def looped_kl(over: str, gate: pk.GateConfig | None, temperature: float) -> list[float]:
    """Every row's KL, number by number, from the design's mathematics."""
    p = problem(rows=12, ignored=0.0)
    ids = p.token_ids.tolist()
    full_states, post_states, head, _ = p.states
    student = (p.hidden @ p.weight.T).tolist()
    full = (full_states @ head.T).tolist()
    post = (post_states @ head.T).tolist()
    weights = [max(w, 0.0) for w in p.token_weights.tolist()]
    rows = []
    for z, zf, zp, step in zip(student, full, post, p.step.tolist(), strict=True):
        u, f, q_post = ([values[s] for s in ids] for values in (z, zf, zp))
        c = 0.0
        if gate is not None:
            apart = count(u, gate.top_p) - count(q_post, gate.top_p)
            decay = math.exp(-max(step - gate.prefix_length, 0) / gate.decay_tau)
            c = decay / (1 + math.exp(-gate.alpha * apart / len(ids)))
        if over == "selection":
            mixed = [(1 - c) * a + c * b for a, b in zip(f, q_post, strict=True)]
            weighted = [
                q * w
                for q, w in zip(softmax([m / temperature for m in mixed]), weights, strict=True)
            ]
            target = [q / math.fsum(weighted) for q in weighted]
            own = softmax([value / temperature for value in u])
            terms = (
                q * (math.log(max(q, 1e-12)) - math.log(p_))
                for q, p_ in zip(target, own, strict=True)
            )
            rows.append(temperature**2 * math.fsum(terms))
        else:
            masses = []
            for values in (z, zf, zp):
                confidence = [softmax(values)[s] for s in ids]
                masses.append([*confidence, max(1 - math.fsum(confidence), 1e-6)])
            own, first, second = masses
            target = softmax(
                [
                    (1 - c) * math.log(a) + c * math.log(b)
                    for a, b in zip(first, second, strict=True)
                ]
            )
            rows.append(math.fsum(q * math.log(q / p_) for q, p_ in zip(target, own, strict=True)))
    return rows


@pytest.mark.parametrize("gate", [pk.GateConfig(), None], ids=["gate", "no gate"])
@pytest.mark.parametrize("over, temperature", [("selection", 2.0), ("vocabulary", 1.0)])
def test_the_kl_number_by_number(over: str, temperature: float, gate: pk.GateConfig | None) -> None:
    p = problem(rows=12, ignored=0.0)
    got = pact_kl(
        p.hidden,
        p.weight,
        p.token_ids,
        p.token_weights,
        p.step,
        p.states,
        gate=gate,
        temperature=temperature,
        over=over,
        reduction="none",
    )
    expected = torch.tensor(looped_kl(over, gate, temperature), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_cross_entropy_is_torchs() -> None:
    p = problem()
    logits = p.hidden @ p.weight.T + p.bias
    for reduction in ("mean", "sum", "none"):
        got = linear_cross_entropy(
            p.hidden, p.weight, p.target, bias=p.bias, reduction=reduction, label_smoothing=0.1
        )
        expected = torch.nn.functional.cross_entropy(
            logits, p.target, reduction=reduction, label_smoothing=0.1
        )
        torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)
    with_z = linear_cross_entropy(
        p.hidden, p.weight, p.target, bias=p.bias, reduction="none", z_loss=0.3
    )
    plain = torch.nn.functional.cross_entropy(logits, p.target, reduction="none")
    extra = torch.where(p.target == -100, 0.0, 0.3 * logits.logsumexp(-1).square())
    torch.testing.assert_close(with_z, plain + extra, rtol=EXACT, atol=EXACT)


def test_the_softcap_and_the_scale() -> None:
    p = problem(rows=1, hidden=1, vocabulary=4, selected=4)
    with pk.implementation("naive"):
        got = pk.selected_logits(
            p.hidden, p.weight, p.token_ids, bias=p.bias, softcap=3.0, logit_scale=0.5
        )
    raw = [
        p.hidden.item() * w + b
        for w, b in zip(p.weight[:, 0].tolist(), p.bias.tolist(), strict=True)
    ]
    expected = [3.0 * math.tanh(0.5 * raw[s] / 3.0) for s in p.token_ids.tolist()]
    assert got.tolist()[0] == pytest.approx(expected, rel=EXACT)


def test_confidences_are_columns_of_the_softmax() -> None:
    p = problem()
    logits = p.hidden @ p.weight.T
    full = selected_confidences(p.hidden, p.weight, p.token_ids, temperature=1.5)
    torch.testing.assert_close(full, (logits / 1.5).softmax(-1)[:, p.token_ids])
    own = selected_confidences(p.hidden, p.weight, p.token_ids, over="selection")
    torch.testing.assert_close(own, logits[:, p.token_ids].softmax(-1))


def test_scores_by_hand() -> None:
    """Two samples, of one and of two rows, in a vocabulary of two: sigmoids."""
    aligned = torch.tensor([[0.0], [math.log(3.0)], [math.log(4.0)]], dtype=torch.float64)
    base = torch.zeros(3, 1, dtype=torch.float64)
    head = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    difference, confidence = token_scores(aligned, head, base, head, torch.tensor([8, 2, 2]))
    expected = (0.5 + (0.75 + 0.8) / 2) / 2  # the mean of the samples' means
    assert confidence.tolist() == pytest.approx([expected, 1 - expected])
    assert difference.tolist() == pytest.approx([expected - 0.5, 0.5 - expected])
    ratio, _ = token_scores(
        aligned[:1], head, aligned[1:2], head, torch.tensor([0]), mode="pref_logratio"
    )
    assert ratio.tolist() == pytest.approx([0.5 * math.log(1.5), 0.5 * math.log(0.5)])


def test_counts_and_gates_at_their_edges() -> None:
    flat = torch.zeros(1, 8, dtype=torch.float64)
    assert top_p_count(flat, 0.5, 1.0).tolist() == [4]
    assert top_p_count(flat, 1.0, 1.0).tolist() == [8]
    hard = pk.GateConfig(decay_tau=0.0, prefix_length=3)
    cut = gate_value(flat.expand(4, 8), flat.expand(4, 8), torch.tensor([-1, 2, 3, 9]), hard)
    assert cut.tolist() == [0.5, 0.5, 0.0, 0.0]
    soft = pk.GateConfig(decay_tau=2.0, prefix_length=3)
    decay = gate_value(flat.expand(2, 8), flat.expand(2, 8), torch.tensor([3, 5]), soft)
    assert decay.tolist() == pytest.approx([0.5, 0.5 * math.exp(-1.0)])
