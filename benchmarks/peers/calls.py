"""From the tensors of a case to what an implementation is given, and to the call that is timed.

Which positions are answer rows is known where a batch is collated, on the host. So a peer is given
their indices ahead of the call, and only the gathering of their states is timed: nobody pays for
finding them, or for a device that waits while they are counted.

By hand, since what the implementations share is this package's case, which no library knows.

Legend: B sequences, L positions of each, N answer rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pact_kernels as pk
from benchmarks.cases.case import CAPPED, IGNORE, TRAINED, Case, Inputs
from benchmarks.peers.peer import OF_HIDDEN, OF_WEIGHT, Call, Outputs

WITH_TARGET = ("linear_cross_entropy", "pact_loss")
WITH_KL = ("pact_kl", "pact_loss")
VALUES = {
    "linear_logsumexp": ("logsumexp",),
    "selected_confidences": ("confidences",),
    "token_scores": ("difference", "confidence"),
}
"""Names of the values of ops that are forward alone."""


def make_call(case: Case, inputs: Inputs, loss: Callable[[], Tensor]) -> Call:
    """Forward and backward, with nothing left in the inputs' `.grad`.

    An input that the loss does not depend on is an error, no gradient of zeros.
    """
    wanted = {OF_HIDDEN: inputs.hidden}
    if case.trainable_head:
        wanted[OF_WEIGHT] = inputs.weight

    def call() -> Outputs:
        formed = loss()
        gradients = torch.autograd.grad(formed, tuple(wanted.values()))
        return {"loss": formed.detach(), **dict(zip(wanted, gradients, strict=True))}

    return call


def op_call(case: Case, inputs: Inputs, function: Callable[..., Any], **options: Any) -> Call:
    """The call of a function that has the op's public signature; options are of `Operands`."""
    operands = Operands(case, inputs, **options)

    def formed() -> Any:
        found = function(*operands.positional(), **operands.options)
        return getattr(found, "loss", found)

    def call() -> Outputs:
        with torch.no_grad():
            found = formed()
        names = VALUES[case.op]
        values = found if len(names) > 1 else (found,)
        return dict(zip(names, values, strict=True))

    return make_call(case, inputs, formed) if case.op in TRAINED else call


def answer_rows(case: Case, inputs: Inputs) -> Tensor | None:
    """(N,) int64 positions of the answer rows; None where every position is one."""
    if not case.prompt_length:
        return None
    return (inputs.target != IGNORE).nonzero().squeeze(1)


def take(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """(B L, ...) -> (N, ...), as it is where every position is a row."""
    return tensor if rows is None else tensor.index_select(0, rows)


def samples(case: Case, inputs: Inputs) -> Tensor:
    """(N,) int64, the sample of each row of token_scores: each sequence of a case is one."""
    each = case.length - case.prompt_length
    return torch.arange(case.sequences, device=inputs.target.device).repeat_interleave(each)


def reference_states(case: Case, inputs: Inputs, rows: Tensor | None) -> pk.ReferenceStates:
    """The states of the answer rows, gathered in the call as they come out of a model's forward."""
    post = inputs.reference_post if case.gated else None
    return pk.ReferenceStates(take(inputs.reference_hidden, rows), post, inputs.reference_weight)


@torch.no_grad()
def cached_logits(case: Case, inputs: Inputs, ops: Any = pk) -> pk.ReferenceLogits:
    """K logits and, over the vocabulary, a log-sum-exp for each row, formed by `ops` ahead of the
    call.
    """
    full, post, weight, _ = reference_states(case, inputs, answer_rows(case, inputs))

    def formed(states: Tensor) -> tuple[Tensor, Tensor | None]:
        lse = ops.linear_logsumexp(states, weight) if case.over == "vocabulary" else None
        return ops.selected_logits(states, weight, inputs.token_ids), lse

    selected, lse = formed(full)
    post_selected, post_lse = (None, None) if post is None else formed(post)
    return pk.ReferenceLogits(selected, post_selected, lse, post_lse)


class Operands:
    """What a case's op is called with. The package, its oracle and `dense` agree in it.

    Every op is given answer rows. `batched`, losses with a target take all positions, (B, L, D) as
    a backbone returns them, and drop prompts themselves. What a cache holds is formed by `ops`.
    """

    def __init__(self, case: Case, inputs: Inputs, *, ops: Any = pk, batched: bool = False) -> None:
        self.case, self.inputs = case, inputs
        self.rows, self.samples = answer_rows(case, inputs), samples(case, inputs)
        self.target = take(inputs.target, self.rows)
        self.batched = batched and case.op in WITH_TARGET
        self.known: pk.ReferenceLogits | None = None
        self.options: dict[str, Any] = {"softcap": case.softcap} if case.op in CAPPED else {}
        if case.op == "selected_confidences":
            self.options = {"over": case.over}
        if case.op in WITH_KL:
            temperature = 2.0 if case.over == "selection" else 1.0  # each objective's default
            gate = pk.GateConfig() if case.gated else None  # as released
            self.options = {"over": case.over, "gate": gate, "temperature": temperature}
            self.known = cached_logits(case, inputs, ops) if case.cached else None

    def positional(self) -> tuple[Any, ...]:
        """Gathered anew for each call."""
        inputs, op = self.inputs, self.case.op
        hidden, target = inputs.hidden, self.target
        if self.batched:
            shape = self.case.sequences, self.case.length
            hidden, target = hidden.view(*shape, -1), inputs.target.view(shape)
        else:
            hidden = take(hidden, self.rows)
        found: tuple[Any, ...] = (hidden, inputs.weight)
        if op in WITH_TARGET:
            found += (target,)
        if op in WITH_KL:
            reference = self.known or reference_states(self.case, inputs, self.rows)
            found += inputs.token_ids, inputs.token_weights, inputs.step, reference
        elif op == "selected_confidences":
            found += (inputs.token_ids,)
        elif op == "token_scores":
            base = take(inputs.reference_hidden, self.rows), inputs.reference_weight
            found += *base, self.samples
        return found
