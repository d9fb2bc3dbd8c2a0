"""What a training loop asks of an objective.

Legend: N rows, D hidden size.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

import pact_kernels as pk
from pact_kernels.types import Head


class Objective(Protocol):
    """The loss of a batch of answer rows, a mean over the rows of the whole optimiser step."""

    @property
    def needs_reference(self) -> bool:
        """Whether the frozen model's states or cached logits of the rows must be given."""
        ...

    @property
    def needs_post_only(self) -> bool:
        """Whether the reference must hold the post-only context, too."""
        ...

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor,
        step: Tensor,
        reference: pk.ReferenceLogits | pk.ReferenceStates | None,
        *,
        num_items: int | Tensor | None = None,
    ) -> pk.PactLoss:
        """Loss of N answer rows.

        Args:
            hidden: (N, D) the student's states that predict the rows' tokens.
            head: the student's output head.
            target: (N,) int64, the tokens to predict.
            step: (N,) int64, each row's step within its answer.
            reference: the frozen model's states or cached logits of the same rows; no gradient
                reaches them. None where `needs_reference` is False.
            num_items: denominator of the means, the rows of the whole optimiser step; None is N.
        """
        ...
