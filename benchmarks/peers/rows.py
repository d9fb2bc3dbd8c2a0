"""The rows of a case among its positions: what reaches the head.

Which positions are answer rows is known where a batch is collated, on the host. So a peer is given
their indices ahead of the call, and only the gathering of their states is timed: nobody pays for
finding them, or for a device that waits while they are counted.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.cases.case import IGNORE, Case, Inputs


def answer_rows(case: Case, inputs: Inputs) -> Tensor | None:
    """(N,) int64 positions of the answer rows; None where every position is one."""
    if not case.prompt_length:
        return None
    return (inputs.target != IGNORE).nonzero().squeeze(1)


def take(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """(B L, ...) -> (N, ...), as it is where every position is a row."""
    return tensor if rows is None else tensor.index_select(0, rows)
