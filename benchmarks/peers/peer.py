"""What every implementation that is timed offers to the harness: ours, the oracle and the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs

Setting = Mapping[str, Any]
"""One way to run a peer: plain values alone, so that it can be written down."""


class Outputs(NamedTuple):
    """Results of one call, compared with naive before anything is timed."""

    values: Mapping[str, Tensor]
    """By name, detached: loss; or what the op returns."""
    gradients: Mapping[str, Tensor]
    """By the name of the input, `hidden` and, with a trainable head, `weight`; none for ops without
    a backward pass."""


Call = Callable[[], Outputs]
"""One forward and, where the op has one, backward pass, from the inputs on. It leaves no gradient
in the inputs' `.grad`, so that the next call does not add to it."""


class Peer(Protocol):
    """One implementation. A module of this folder holds one and registers it in `registry`."""

    name: str
    """As the tables call it."""

    def version(self) -> str | None:
        """The version of its package; None where that is not installed."""
        ...

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        """Why it cannot run this case here, in words for the table; None where it can."""
        ...

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        """The ways to run it that are worth a try; the fastest is the one that is compared."""
        ...

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        """What is timed. All that a user does once, such as compiling, is done here."""
        ...
