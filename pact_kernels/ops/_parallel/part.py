"""A process's own part of a sharded head: what its rows alone give, by any implementation.

Legend: N rows, D hidden size, V_r tokens of this process.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.dispatch import is_naive
from pact_kernels.ops._checks.arguments import autocast_inputs, num_rows_hint
from pact_kernels.ops._operators.head_loss import HeadLossArguments, head_loss, streamed_logsumexp
from pact_kernels.types import Head


def part_logsumexp(hidden: Tensor, head: Head) -> Tensor:
    """(N, D), (V_r, D) -> (N,)"""
    hidden, head = autocast_inputs(hidden, head)
    if is_naive():
        from pact_kernels.naive.linear_logsumexp import linear_logsumexp

        return linear_logsumexp(hidden, head.weight, **head.options)
    return streamed_logsumexp(hidden, head)


def part_cross_entropy(hidden: Tensor, head: Head, target: Tensor, ignore_index: int) -> Tensor:
    """(N, D), (V_r, D), (N,) rows of this part -> (N,), 0 where the target is ignored."""
    hidden, head = autocast_inputs(hidden, head)
    if is_naive():
        from pact_kernels.naive.linear_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(
            hidden,
            head.weight,
            target,
            ignore_index=ignore_index,
            reduction="none",
            **head.options,
        )
    return head_loss(
        HeadLossArguments(
            hidden,
            head,
            target,
            kind="cross_entropy",
            ignore_index=ignore_index,
            num_rows=num_rows_hint(hidden, target, ignore_index),
        )
    ).loss
