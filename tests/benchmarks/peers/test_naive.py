"""The oracle is the dense formula in float64; a smaller case keeps what matters of a large one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.cases.case import IGNORE, Case, make_inputs
from benchmarks.peers.naive import fewer_rows, oracle
from pact_kernels import GateConfig, ReferenceStates
from pact_kernels.naive.pact_loss import pact_loss
from tests.benchmarks.peers.judging import BASE


@pytest.mark.parametrize("over", ["selection", "vocabulary"])
def test_the_oracle_drops_prompts_as_naive_does(over: str) -> None:
    """Which is given all positions here, and ignores by itself."""
    case = replace(BASE, op="pact_loss", over=over, trainable_head=True)
    inputs = make_inputs(case)
    hidden, weight = (t.detach().double().requires_grad_() for t in (inputs.hidden, inputs.weight))
    full, post, head = (
        tensor.double()
        for tensor in (
            inputs.reference_hidden[inputs.target != IGNORE],
            inputs.reference_post,
            inputs.reference_weight,
        )
    )
    loss = pact_loss(
        hidden,
        weight,
        inputs.target,
        inputs.token_ids,
        inputs.token_weights.double(),
        inputs.step,
        ReferenceStates(full, post, head),
        gate=GateConfig(),
        temperature=2.0 if over == "selection" else 1.0,  # what the ops take without one
        over=over,
    ).loss
    loss.backward()
    found = oracle(case, inputs)
    torch.testing.assert_close(found["loss"], loss.detach())
    torch.testing.assert_close(found["gradient of hidden"], hidden.grad)
    torch.testing.assert_close(found["gradient of weight"], weight.grad)
    assert found["loss"].dtype == torch.float64


def test_cached_values_are_those_of_the_states() -> None:
    states, cached = (
        oracle(case, make_inputs(case))
        for case in (replace(BASE, op="pact_kl", cached=cached) for cached in (False, True))
    )
    torch.testing.assert_close(states["loss"], cached["loss"], rtol=1e-12, atol=0)


LARGE = Case(op="pact_loss", sequences=8, length=2048, hidden=64, vocabulary=1031, tokens=200)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("limit", [63, 64])  # an odd number for two sequences, an even one
def test_a_smaller_case_keeps_all_but_its_rows(share: float, limit: int) -> None:
    case = replace(LARGE, prompt_share=share, over="selection", trainable_head=True)
    smaller = fewer_rows(case, limit)
    assert limit - 2 < smaller.rows <= limit
    assert smaller.sequences == 2
    assert (smaller.prompt_length > 0) == (share > 0)
    assert replace(smaller, sequences=case.sequences, length=case.length) == case


def test_one_row_is_of_one_sequence() -> None:
    smaller = fewer_rows(LARGE, 1)
    assert (smaller.rows, smaller.sequences) == (1, 1)


def test_a_small_case_stays_as_it_is() -> None:
    assert fewer_rows(BASE, BASE.rows) is BASE


def test_no_row_is_no_case() -> None:
    with pytest.raises(AssertionError):
        fewer_rows(LARGE, 0)
