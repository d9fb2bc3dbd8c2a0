"""Distillation over the whole vocabulary: what others fuse, in the place of `pact_kl`.

No peer has a KL of selected tokens. What two of them have is the KL of all V probabilities to a
teacher's, from both models' states and heads. It is another objective, without gate, weights or
selection, and is compared with nothing: it says what a KL costs that is fused, but not selected.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import answer_rows, make_call, take
from benchmarks.peers.cross_entropies import CrossEntropyPeer, Liger, Trl, trl_function
from benchmarks.peers.peer import Call, Peer, Setting

StatesLoss = Callable[[Tensor, Tensor], Tensor]
"""The student's states and the reference's, (N, D) each -> the mean over rows."""


class FullKl(Peer):
    """Rows: answer rows alone."""

    ops = ("pact_kl",)

    def __init__(self, peer: CrossEntropyPeer, load: Callable[[Inputs], StatesLoss]) -> None:
        self.name = f"{peer.name} full-vocabulary KL"
        self.distribution, self.gpu_kernels = peer.distribution, peer.gpu_kernels
        self.load = load
        """Imports what it needs; the heads are those of the inputs."""

    def other_objective(self, case: Case) -> str:
        return "matches all V probabilities of the full-context reference; the op matches K of them"

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        cached = "it takes the reference's states, and the case has its cached values"
        return cached if case.cached else None

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        loss, rows = self.load(inputs), answer_rows(case, inputs)
        states = inputs.hidden, inputs.reference_hidden
        return make_call(case, inputs, lambda: loss(*(take(each, rows) for each in states)))


def liger_divergence(inputs: Inputs) -> StatesLoss:
    """Its Jensen-Shannon divergence at beta 0, which is the KL to the teacher."""
    fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_jsd
    student, teacher = inputs.weight, inputs.reference_weight
    return lambda hidden, reference: fused(hidden, student, reference, teacher, jsd_beta=0.0)


def trl_divergence(inputs: Inputs) -> StatesLoss:
    """Its generalised divergence at beta 0, which is the KL to the teacher."""
    function = trl_function("chunked_divergence", "ChunkedDivergenceFunction")
    student, teacher = (inputs.weight, None), (inputs.reference_weight, None)
    return lambda hidden, reference: function(hidden, *student, reference, *teacher, 0.0)[0].mean()


LIGER_KL, TRL_KL = FullKl(Liger(), liger_divergence), FullKl(Trl(), trl_divergence)
