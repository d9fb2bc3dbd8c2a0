"""From the formula of a loss or of values to the call that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.cases.case import TRAINED, Case, Inputs
from benchmarks.peers.peer import Call, Outputs

Forward = Callable[[], Mapping[str, Tensor]]
"""Values by name; an op with a backward pass has one, `loss`."""


def make_call(case: Case, inputs: Inputs, forward: Forward) -> Call:
    """Forward, and backward where the op has one, with nothing left in the inputs' `.grad`.

    An input that the loss does not depend on is an error, no gradient of zeros.
    """
    if case.op not in TRAINED:
        return lambda: _values(forward)
    wanted = {"hidden": inputs.hidden}
    if case.trainable_head:
        wanted["weight"] = inputs.weight

    def call() -> Outputs:
        loss = forward()["loss"]
        gradients = torch.autograd.grad(loss, tuple(wanted.values()))
        return Outputs({"loss": loss.detach()}, dict(zip(wanted, gradients, strict=True)))

    return call


@torch.no_grad()
def _values(forward: Forward) -> Outputs:
    return Outputs({name: value.detach() for name, value in forward().items()}, {})
