"""One small case of each op under pytest-benchmark, ours beside eager torch.

    python -m pytest benchmarks/test_ops.py

For a look while an op is changed; `python -m benchmarks` takes turns and knows more peers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.cases.case import OPS, Case, make_inputs
from benchmarks.measuring.equality import Checker
from benchmarks.peers.every_op import Eager, Ours
from benchmarks.peers.peer import Peer

BASE = Case(
    op=OPS[0], sequences=1, length=128, hidden=64, vocabulary=8192, prompt_share=0.5, cached=True
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("peer", [Ours(), Eager()], ids=lambda peer: str(peer.name))
def test_op(benchmark: Any, op: str, peer: Peer) -> None:
    case = replace(BASE, op=op)
    inputs = make_inputs(case, DEVICE)
    call = peer.prepare(case, inputs, peer.settings(case, DEVICE)[0])

    def until_done() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = op
    benchmark(until_done)
    assert Checker(case, inputs).judge(call()).right
