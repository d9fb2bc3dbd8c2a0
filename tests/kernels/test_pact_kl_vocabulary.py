"""The fused KL over the vocabulary: its gradient is a factor on the softmax, and sparse entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.common.requests import KlRequest, TermRequest
from pact_kernels.kernels._device.operands import Softmax
from pact_kernels.kernels._kernels.chunk_loss import VocabularyKl, launch_chunk_loss
from pact_kernels.kernels._kl_rows import KlRows
from pact_kernels.naive.pact_kl import pact_kl_rows
from pact_kernels.types import Head
from tests.kernels.kl_case import Case, case
from tests.ops.precision import near_a_jump

VOCABULARY = 60  # the states are the logits themselves, by a head of the identity


def vocabulary_rows(
    c: Case, source: str, gate: pk.GateConfig | None, ignored: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the kernel fills over the vocabulary, by its launcher."""
    full, post = (t.to(dtype) for t in c.states[:2])
    ids, states = c.token_ids, source == "states"
    kl = KlRequest(
        token_weights=c.token_weights,
        step=c.step,
        reference_full=full if states else full[:, ids],
        reference_post=post if states else post[:, ids],
        reference_head=Head(c.weight[ids].to(dtype)) if states else None,
        full_lse=c.states.full_hidden.logsumexp(-1).float(),
        post_lse=c.states.post_hidden.logsumexp(-1).float(),
        row_weight=c.row_weight,
        gate=gate,
        over="vocabulary",
        temperature=1.0,
        kl_weight=1.7,
    )
    num_rows = c.hidden.shape[0]
    rows = KlRows(kl, Head(c.weight[ids].to(dtype)), None, None, num_rows)
    kl_out, gate_out, softmax_factor, unused, row_max, sum_exp = torch.full(
        (6, num_rows), torch.nan
    )
    target = torch.where(ignored, -1, 0)
    mixed = rows.mixed(c.hidden.to(dtype), slice(0, num_rows), gate_out, target, -1)
    sparse = torch.full((num_rows, ids.numel()), torch.nan)
    launch_chunk_loss(
        c.hidden.to(dtype),  # the logits
        Head(c.weight.to(dtype)),
        target,
        unused,
        Softmax(row_max, sum_exp),
        VocabularyKl(mixed, c.row_weight, kl.kl_weight, kl_out, sparse, softmax_factor),
        request=TermRequest(kind="none", ignore_index=-1),
    )
    # Their sum is the gradient by all logits: softmax_factor * P, and the K sparse entries.
    gradient = softmax_factor.double()[:, None] * c.hidden.softmax(-1)
    gradient[:, ids] += sparse
    gradient[ignored] = 0.0  # `chunk_gradient` reads nothing of such a row
    return {"kl": kl_out, "gate": gate_out, "gradient": gradient}


# A rest of 49 tokens, and of one.
@pytest.mark.parametrize(
    "gate, selected",
    [(pk.GateConfig(), 11), (pk.GateConfig(), 59), (None, 11)],
    ids=["gate", "gate, all but one token", "no gate"],
)
@pytest.mark.parametrize("source", ["states", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_over_the_vocabulary(
    dtype: torch.dtype, source: str, gate: pk.GateConfig | None, selected: int
) -> None:
    """Logits that the dtype holds: the products are exact, and errors those of fp32."""
    c = case(dtype, width=VOCABULARY, reference_width=VOCABULARY, selected=selected)
    full, post, *_ = c.states
    c.weight = torch.eye(VOCABULARY, dtype=torch.float64)
    c.token_ids = c.token_ids.argsort()  # a permutation of the first K
    at = ~(
        near_a_jump(c.hidden[:, c.token_ids], pk.GateConfig())
        | near_a_jump(post[:, c.token_ids], pk.GateConfig())
    )
    c.hidden, c.step, c.row_weight = c.hidden[at], c.step[at], c.row_weight[at]
    c.states = pk.ReferenceStates(full[at], post[at], c.weight)
    ignored = torch.arange(c.step.numel()) % 5 == 2
    got = vocabulary_rows(c, source, gate, ignored, dtype)
    z = c.hidden.clone().requires_grad_()
    kl, c_gate = pact_kl_rows(
        z,
        c.weight,
        c.token_ids,
        c.token_weights,
        c.step,
        c.states,
        gate=gate,
        temperature=1.0,
        over="vocabulary",
        row_weight=c.row_weight.double(),
    )
    (1.7 * kl).sum().backward()
    # Nothing is left of a row that is ignored.
    keep = (~ignored).double()
    expected = {"kl": kl.detach() * keep, "gate": c_gate * keep, "gradient": z.grad * keep[:, None]}
    # The rest of one token is 0.001 here and there: a difference from 1, it keeps 4 digits.
    atol = 4e-6 if selected == 11 else 2e-5
    for name, value in expected.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=atol)


def test_little_mass_on_the_tokens() -> None:
    """As 50 of many thousands have: the factor is a small difference, right to its digits."""
    c = case(torch.float32, width=VOCABULARY, reference_width=VOCABULARY, selected=11)
    c.weight = torch.eye(VOCABULARY, dtype=torch.float64)
    c.token_ids = torch.arange(11)
    for states in (c.hidden, *c.states[:2]):
        states[:, :11] = states[:, :11].float().sub(12.0).double()
    c.states = pk.ReferenceStates(*c.states[:2], c.weight)
    nothing = torch.zeros(c.step.numel(), dtype=torch.bool)
    got = vocabulary_rows(c, "logits", None, nothing, torch.float32)["gradient"]
    z = c.hidden.clone().requires_grad_()
    settings = {"gate": None, "temperature": 1.0, "over": "vocabulary"}
    tokens = (c.token_ids, c.token_weights, c.step, c.states)
    kl, _ = pact_kl_rows(z, c.weight, *tokens, row_weight=c.row_weight.double(), **settings)
    (1.7 * kl).sum().backward()
    assert z.grad is not None
    elsewhere = (z.grad[:, 11:] / c.hidden.softmax(-1)[:, 11:])[:, 0]
    assert float(elsewhere.abs().max()) < 1e-4
    torch.testing.assert_close(got[:, 11:], z.grad[:, 11:], rtol=1e-3, atol=1e-12)
