"""What is compiled is compiled ahead of the call that is timed, and once for each case."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.cases.case import make_inputs
from benchmarks.peers.every_op import Compiled
from benchmarks.peers.peer import cannot_compile
from tests.benchmarks.peers.judging import BASE, CPU, assert_equal, run

SETTING = {"mode": "default"}


def test_one_graph_a_case_and_none_in_a_call() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    peer = Compiled(backend=counter)
    # More cases than the 8 that torch compiles of one function before it gives up.
    for number in range(1, 11):
        case = replace(BASE, op="linear_logsumexp", vocabulary=BASE.vocabulary + number)
        call = peer.prepare(case, make_inputs(case), SETTING)
        assert counter.frame_count == number
        call()
        assert counter.frame_count == number


def test_torch_compiles_an_op_to_machine_code() -> None:
    reason = cannot_compile(CPU)
    if reason is not None:
        pytest.skip(reason)
    case = replace(BASE, op="linear_logsumexp")  # the quickest one to compile
    assert_equal(run(Compiled(), case, SETTING), case)


def test_autotuning_is_tried_nowhere() -> None:
    """On its first card it took more than a minute before the first case was timed."""
    for device in ("cpu", "cuda"):
        assert Compiled().settings(BASE, torch.device(device)) == [{"mode": "default"}]
