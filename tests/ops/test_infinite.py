"""Logits of -inf, probabilities of 0 and 1, gates of 0 and 1: what the formula says of them.

A token whose probability is 0 in the target counts nothing, and a reference that the gate leaves
out is not looked at: 0 times anything is 0. What has no answer, a target over no token, is NaN in
every implementation, never a number.

Legend: N rows, K selected tokens.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import pact_kernels as pk
from tests.implementations import KERNELS, on_gpu
from tests.ops.compare import outcome
from tests.ops.every_op import NAMES, every_op
from tests.ops.problem import Problem, problem
from tests.ops.rounded_problem import rounded

INF = math.inf
OVERS = ("selection", "vocabulary")
IMPLEMENTATIONS = ["naive", "chunked", *KERNELS]
GATES = {
    "none": None,
    "default": pk.GateConfig(),
    "0": pk.GateConfig(decay_tau=0.0, prefix_length=0),
    "1": pk.GateConfig(alpha=0.0, decay_tau=INF, prefix_boost=2.0),
    "over 1": pk.GateConfig(decay_tau=INF, prefix_boost=3.0),
}


def case() -> Problem:
    """Seven rows, one for each of `reference`'s kinds."""
    p = problem(rows=7, hidden=4, vocabulary=17, selected=4, ignored=0.0)
    p.token_weights = torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64)
    p.step = torch.arange(7) % 3
    return p


def reference(p: Problem, dtype: torch.dtype = torch.float64) -> pk.ReferenceLogits:
    """By row: full, post, both and all of full and of post -inf, all mass on a token, post +inf."""
    full, post, full_lse, post_lse = (t.clone() for t in p.logits() if t is not None)
    full[0, 1] = post[1, 1] = full[2, 1] = post[2, 1] = -INF
    full[3] = post[4] = -INF
    full[5], full[5, 1], full_lse[5] = -60.0, 0.0, 0.0
    post[6, 1] = INF
    return pk.ReferenceLogits(*(t.to(dtype) for t in (full, post, full_lse, post_lse)))


def rows_of(
    p: Problem,
    implementation: str,
    known: pk.ReferenceLogits,
    *,
    over: str,
    gate: pk.GateConfig | None,
    token_weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """KL (N,) and its gradient by the states (N, D)."""
    weights = (p.token_weights if token_weights is None else token_weights).to(dtype)

    def call(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        kl = {"over": over, "gate": gate, "reduction": "none", "bias": b}
        return pk.pact_kl(h, w, p.token_ids, weights, p.step, known, **kl)

    leaves = [t.to(dtype) for t in (p.hidden, p.weight, p.bias)]
    found = outcome(call, *leaves, implementation=implementation)
    return found["value"], found["by_hidden"]


@pytest.mark.parametrize("student", ["finite", "-inf", "all -inf"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("implementation", ["chunked", *KERNELS], indirect=True)
def test_rows_are_those_of_the_formula_in_float64(
    implementation: str, over: str, gate: str, student: str
) -> None:
    p = case()
    p.bias[p.token_ids[{"finite": [], "-inf": [1], "all -inf": [0, 1, 2, 3]}[student]]] = -INF
    options = {"over": over, "gate": GATES[gate]}
    exact = rows_of(p, "naive", reference(p), dtype=torch.float64, **options)
    if student == "finite":
        assert bool(torch.isfinite(exact[0][[0, 1, 2]]).all())
    got = rows_of(p, implementation, reference(p, torch.float32), **options)
    for found, value in zip(got, exact, strict=True):
        assert_close(found.double(), value, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_a_reference_that_the_gate_leaves_out_is_not_looked_at(
    implementation: str, over: str
) -> None:
    p = case()
    known = reference(p, torch.float32)
    alone = rows_of(p, implementation, known, over=over, gate=None)
    closed = rows_of(p, implementation, known, over=over, gate=GATES["0"])
    only_post = known._replace(full=known.post, full_lse=known.post_lse)
    of_post = rows_of(p, implementation, only_post, over=over, gate=None)
    opened = rows_of(p, implementation, known, over=over, gate=GATES["1"])
    # The compiler of a GPU contracts products and sums of another kernel in another way.
    tolerance = 1e-6 if implementation == "triton" and on_gpu() else 0.0
    for one, other in zip((*alone, *of_post), (*closed, *opened), strict=True):
        assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_a_token_that_a_reference_rules_out_is_one_without_a_weight(implementation: str) -> None:
    """Over the selection, whichever of the references it is."""
    p = case()
    options = {"over": "selection", "gate": GATES["default"]}
    got = rows_of(p, implementation, reference(p, torch.float32), **options)
    plain = pk.ReferenceLogits(*(None if t is None else t.float() for t in p.logits()))
    weights = p.token_weights.index_fill(0, torch.tensor([1]), 0.0)
    left_out = rows_of(p, implementation, plain, token_weights=weights, **options)
    # The gate counts the post-only logits themselves: in row 0 alone they are the same.
    assert_close(got[0][0], left_out[0][0], rtol=1e-5, atol=1e-6)
    assert_close(got[1][0], left_out[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_no_number_is_made_of_nan(implementation: str, over: str) -> None:
    """Not a KL of 0: what it stands for would pass as a perfect student."""
    p = case()
    plain = pk.ReferenceLogits(*(None if t is None else t.float() for t in p.logits()))
    full, lse = plain.full.clone(), plain.full_lse.clone()
    full[2, 3] = torch.nan
    kl, _ = rows_of(p, implementation, plain._replace(full=full), over=over, gate=None)
    assert kl.isnan().tolist() == [row == 2 for row in range(7)]
    if over == "vocabulary":
        lse[4] = torch.nan
        kl, _ = rows_of(p, implementation, plain._replace(full_lse=lse), over=over, gate=None)
        assert kl.isnan().tolist() == [row == 4 for row in range(7)]


def masked(what: str) -> Problem:
    """150 tokens, more than two tiles, of which a bias of -inf rules some out."""
    p = rounded(rows=7, hidden=5, vocabulary=150, selected=4, ignored=0.3)
    used = {*p.token_ids.tolist(), *p.target.tolist()}
    unused = [token for token in range(150) if token not in used]
    ruled_out = {
        "some": unused[:20],
        "a tile": [token for token in unused if token < 64],
        "the targets": p.target[p.target >= 0].tolist(),
        "the selected": p.token_ids.tolist(),
    }
    p.bias[ruled_out[what]] = -INF
    return p


@pytest.mark.parametrize("what", ["some", "a tile", "the targets", "the selected"])
@pytest.mark.parametrize("implementation", ["chunked", *KERNELS], indirect=True)
def test_a_bias_that_rules_tokens_out(implementation: str, what: str) -> None:
    """The tokens that pad a vocabulary, or a target: infinite losses where the formula has them."""
    p = masked(what)
    # The kernels are slow here: of each kind one that smooths labels, and one over the vocabulary.
    names = NAMES if implementation == "chunked" else ["pact_loss", "selected_confidences"]
    for name in names:
        leaves = [t.float() for t in (p.hidden, p.weight, p.bias)]
        exact = outcome(
            every_op(p, torch.float64)[name], p.hidden, p.weight, p.bias, implementation="naive"
        )
        got = outcome(every_op(p)[name], *leaves, implementation=implementation)
        for key, value in exact.items():
            near = {"rtol": 1e-3, "atol": 1e-3, "equal_nan": True}
            assert_close(got[key].double(), value.double(), **near, msg=f"{name} {key}")
