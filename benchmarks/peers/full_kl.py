"""Distillation over the whole vocabulary: what others fuse, in the place of `pact_kl`.

No peer has a KL of selected tokens. What two of them have is the KL of all V probabilities to a
teacher's, from both models' states and heads. It is another objective, without gate, weights or
selection, and is compared with nothing: it says what a KL costs that is fused, but not selected.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import answer_rows, make_call, take
from benchmarks.peers.cross_entropies import Liger, Trl, trl_function
from benchmarks.peers.peer import Call, Peer, Setting

StatesLoss = Callable[[Tensor, Tensor], Tensor]
"""The student's states and the reference's, (N, D) each -> the mean over rows."""


class FullKlPeer(Peer):
    """Rows: answer rows alone."""

    ops = ("pact_kl",)

    @abstractmethod
    def load(self, inputs: Inputs) -> StatesLoss:
        """Imports what it needs; the heads are those of the inputs."""

    def other_objective(self, case: Case) -> str:
        return "matches all V probabilities of the full-context reference; the op matches K of them"

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        cached = "it takes the reference's states, and the case has its cached values"
        return cached if case.cached else None

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        loss, rows = self.load(inputs), answer_rows(case, inputs)

        def forward() -> dict[str, Tensor]:
            return {"loss": loss(take(inputs.hidden, rows), take(inputs.reference_hidden, rows))}

        return make_call(case, inputs, forward)


class LigerFullKl(FullKlPeer):
    """Its Jensen-Shannon divergence at beta 0, which is the KL to the teacher."""

    name = "Liger full-vocabulary KL"
    distribution = Liger.distribution
    gpu_kernels = Liger.gpu_kernels

    def load(self, inputs: Inputs) -> StatesLoss:
        fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_jsd

        def loss(hidden: Tensor, reference: Tensor) -> Tensor:
            made: Tensor = fused(
                hidden, inputs.weight, reference, inputs.reference_weight, jsd_beta=0.0
            )
            return made

        return loss


class TrlFullKl(FullKlPeer):
    """Its generalised divergence at beta 0, which is the KL to the teacher."""

    name = "TRL full-vocabulary KL"
    distribution = Trl.distribution

    def load(self, inputs: Inputs) -> StatesLoss:
        function = trl_function("chunked_divergence", "ChunkedDivergenceFunction")

        def loss(hidden: Tensor, reference: Tensor) -> Tensor:
            teacher = reference, inputs.reference_weight, None
            return function(hidden, inputs.weight, None, *teacher, 0.0)[0].mean()

        return loss
