"""The oracle: `pact_kernels.naive` in float64 on upcast inputs, which no peer is timed against.

It forms all logits of all rows in float64, with what autograd keeps of them: some 100 bytes a row
and token of the vocabulary. `fewer_rows` cuts a case down to what that permits; D, V, K and the
objective stay, and so do prompts and, where there is room, the second sequence.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

from torch import Tensor

from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers.calls import op_call
from benchmarks.peers.peer import Outputs

NAIVE = SimpleNamespace(
    **{
        op: getattr(import_module(f"pact_kernels.naive.{op}"), op)
        for op in (*OPS, "selected_logits")
    }
)
"""Every op's formula."""


def oracle(case: Case, inputs: Inputs) -> Outputs:
    """The truth of a case: values and gradients in float64."""
    exact = Inputs(*(_upcast(tensor) for tensor in inputs))
    return op_call(case, exact, getattr(NAIVE, case.op), ops=NAIVE)()


def fewer_rows(case: Case, limit: int) -> Case:
    """The case with at most `limit` answer rows, one or more, itself where it has no more."""
    assert limit >= 1
    if case.rows <= limit:
        return case
    sequences = min(case.sequences, 2, limit)
    length = case.length
    while (smaller := replace(case, sequences=sequences, length=length)).rows > limit:
        length -= 1
    return smaller


def _upcast(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)
