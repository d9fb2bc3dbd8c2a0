"""Every peer that runs on a CPU, in each of its settings, has the oracle's values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.cases.case import IGNORE, Case, make_inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.every_op import Compiled, Eager
from benchmarks.peers.peer import OF_HIDDEN, OF_WEIGHT, Peer
from benchmarks.peers.registry import PEERS, peers_for
from tests.benchmarks.peers.judging import BASE, CASES, CPU, assert_equal, label, run

PAIRS = [
    pytest.param(peer, case, id=f"{peer.name}-{label(case)}")
    for peer in PEERS
    for case in CASES
    if peer in peers_for(case) and peer.other_objective(case) is None
]
TRAINED = replace(BASE, trainable_head=True)


def quick(peer: Peer) -> Peer:
    """Traced, but not compiled to machine code, which takes 10 seconds a case."""
    return Compiled(backend="eager") if isinstance(peer, Compiled) else peer


@pytest.fixture(autouse=True)
def nothing_is_compiled_by_others(request: pytest.FixtureRequest) -> None:
    """What a peer itself gives to torch.compile runs as it stands, for the same reason."""
    peer = request.node.callspec.params.get("peer") if hasattr(request.node, "callspec") else None
    if not isinstance(peer, Compiled):
        torch.compiler.set_stance("force_eager")
        request.addfinalizer(lambda: torch.compiler.set_stance("default"))


@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_a_peer_computes_the_op(peer: Peer, case: Case) -> None:
    reason = peer.unavailable(case, CPU)
    if reason is not None:
        pytest.skip(reason)
    settings = peer.settings(case, CPU)
    assert settings
    for setting in settings:
        assert_equal(run(quick(peer), case, setting), case)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_call_leaves_nothing_behind(peer: Peer) -> None:
    case = replace(TRAINED, op=peer.ops[0], over="selection")
    reason = peer.unavailable(case, CPU)
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(case)
    before = [tensor.detach().clone() for tensor in inputs]
    call = quick(peer).prepare(case, inputs, peer.settings(case, CPU)[0])
    first, second = call(), call()
    assert inputs.hidden.grad is None and inputs.weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    assert {OF_HIDDEN, OF_WEIGHT} < set(first)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0)


def test_a_head_without_its_gradient_is_found() -> None:
    right = run(Eager(), TRAINED, {})
    assert_equal(right, TRAINED)
    silent = {**right, OF_WEIGHT: torch.zeros_like(right[OF_WEIGHT])}
    absent = {name: right[name] for name in ("loss", OF_HIDDEN)}
    for wrong in (silent, absent):
        with pytest.raises(AssertionError):
            assert_equal(wrong, TRAINED)


def test_a_gradient_of_the_rows_alone_is_found() -> None:
    right = run(Eager(), TRAINED, {})
    rows = right[OF_HIDDEN][make_inputs(TRAINED).target != IGNORE]
    with pytest.raises(AssertionError):
        assert_equal({**right, OF_HIDDEN: rows}, TRAINED)


def test_prompts_that_are_counted_are_found() -> None:
    inputs, everywhere = make_inputs(TRAINED), replace(TRAINED, prompt_share=0.0)
    counted = inputs._replace(target=inputs.target.clamp(min=0))
    with pytest.raises(AssertionError):
        assert_equal(Eager().prepare(everywhere, counted, {})(), TRAINED)


def test_a_denominator_with_prompts_in_it_is_found() -> None:
    right = run(Eager(), TRAINED, {})
    share = TRAINED.rows / TRAINED.positions
    diluted = {name: share * tensor for name, tensor in right.items()}
    with pytest.raises(AssertionError):
        assert_equal(diluted, TRAINED)


def test_a_loss_without_the_head_in_it_is_an_error() -> None:
    inputs = make_inputs(TRAINED)
    call = make_call(TRAINED, inputs, lambda: inputs.hidden.sum())
    with pytest.raises(RuntimeError, match="not have been used"):
        call()
