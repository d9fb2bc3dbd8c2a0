"""The KL of the whole vocabulary that others fuse is that, of answer rows, with both gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.cases.case import IGNORE, make_inputs
from benchmarks.peers.full_kl import TRL_KL
from tests.benchmarks.peers.judging import BASE, CPU, relative

CASE = replace(BASE, op="pact_kl", trainable_head=True)


def test_trl_has_the_kl_to_the_full_context_reference() -> None:
    peer = TRL_KL
    reason = peer.unavailable(CASE, CPU)
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(CASE)
    found = peer.prepare(CASE, inputs, {})()
    keep = inputs.target != IGNORE
    hidden, weight = (t.detach().double().requires_grad_() for t in (inputs.hidden, inputs.weight))
    student = (hidden[keep] @ weight.T).log_softmax(-1)
    reference = inputs.reference_hidden[keep].double() @ inputs.reference_weight.double().T
    log_q = reference.log_softmax(-1)
    loss = (log_q.exp() * (log_q - student)).sum(-1).mean()
    gradients = torch.autograd.grad(loss, (hidden, weight))
    # 16 roundings of fp32; a KL of 0.5 is left of logarithms of size 7.
    assert relative(found["loss"], loss.detach()) < 2e-6
    assert relative(found["gradient of hidden"], gradients[0]) < 2e-6
    assert relative(found["gradient of weight"], gradients[1]) < 2e-6


def test_it_cannot_take_a_cache() -> None:
    if TRL_KL.version() is not None:
        reason = TRL_KL.unavailable(replace(CASE, cached=True), CPU)
        assert reason is not None and "states" in reason
