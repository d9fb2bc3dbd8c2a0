"""pact_kernels' public ops with their defaults: Triton on a GPU, chunked on a CPU.

No setting is searched. The workspace is a documented knob, but what a user gets is what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import pact_kernels as pk
from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.packages import installed_version
from benchmarks.peers.peer import Call, Setting
from benchmarks.peers.references import Reference, cached_logits, gate_of, reference_states
from benchmarks.peers.rows import answer_rows, take
from benchmarks.peers.samples import samples


class Ours:
    """Rows: losses with a target take all positions and drop prompts themselves; the other ops are
    given answer rows.
    """

    name = "pact-kernels"
    ops = OPS

    def version(self) -> str | None:
        return installed_version("pact-kernels") or "not installed, from its source"

    def other_objective(self, case: Case) -> str | None:
        return None

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        return None

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return make_call(case, inputs, Forwards(case, inputs).of_op())


class Forwards:
    """The forward of each op, on one case's inputs."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case, self.inputs = case, inputs
        self.rows = answer_rows(case, inputs)
        self.known: pk.ReferenceLogits | None = None
        if case.cached and case.op.startswith("pact"):
            self.known = cached_logits(case, inputs)

    def of_op(self) -> Callable[[], Mapping[str, Tensor]]:
        forward: Callable[[], Mapping[str, Tensor]] = getattr(self, self.case.op)
        return forward

    def linear_cross_entropy(self) -> Mapping[str, Tensor]:
        weight, softcap = self.inputs.weight, self.case.softcap
        loss = pk.linear_cross_entropy(self._batched(), weight, self._targets(), softcap=softcap)
        return {"loss": loss}

    def pact_loss(self) -> Mapping[str, Tensor]:
        out = pk.pact_loss(
            self._batched(),
            self.inputs.weight,
            self._targets(),
            self.inputs.token_ids,
            self.inputs.token_weights,
            self.inputs.step,
            self._reference(),
            over=self.case.over,
            gate=gate_of(self.case),
        )
        return {"loss": out.loss}

    def pact_kl(self) -> Mapping[str, Tensor]:
        loss = pk.pact_kl(
            take(self.inputs.hidden, self.rows),
            self.inputs.weight,
            self.inputs.token_ids,
            self.inputs.token_weights,
            self.inputs.step,
            self._reference(),
            over=self.case.over,
            gate=gate_of(self.case),
        )
        return {"loss": loss}

    def linear_logsumexp(self) -> Mapping[str, Tensor]:
        hidden = take(self.inputs.hidden, self.rows)
        softcap = self.case.softcap
        return {"logsumexp": pk.linear_logsumexp(hidden, self.inputs.weight, softcap=softcap)}

    def selected_confidences(self) -> Mapping[str, Tensor]:
        hidden = take(self.inputs.hidden, self.rows)
        ids, over = self.inputs.token_ids, self.case.over
        values = pk.selected_confidences(hidden, self.inputs.weight, ids, over=over)
        return {"confidences": values}

    def token_scores(self) -> Mapping[str, Tensor]:
        difference, confidence = pk.token_scores(
            take(self.inputs.hidden, self.rows),
            self.inputs.weight,
            take(self.inputs.reference_hidden, self.rows),
            self.inputs.reference_weight,
            samples(self.case, self.inputs),
        )
        return {"difference": difference, "confidence": confidence}

    def _batched(self) -> Tensor:
        """(B, L, D), as a model's backbone returns them."""
        return self.inputs.hidden.view(self.case.sequences, self.case.length, -1)

    def _targets(self) -> Tensor:
        return self.inputs.target.view(self.case.sequences, self.case.length)

    def _reference(self) -> Reference:
        if self.known is not None:
            return self.known
        return reference_states(self.case, self.inputs, self.rows)
