"""Distillation over the whole vocabulary: what others fuse, in the place of `pact_kl`.

No peer has a KL of selected tokens. What two of them have is the KL of all V probabilities to a
teacher's, from both models' states and heads. It is another objective, without gate, weights or
selection, and is compared with nothing: it says what a KL costs that is fused, but not selected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.packages import installed_version
from benchmarks.peers.peer import Call, Setting
from benchmarks.peers.rows import answer_rows, take

StatesLoss = Callable[[Tensor, Tensor], Tensor]
"""The student's states and the reference's, (N, D) each -> the mean over rows."""


class FullKlPeer(ABC):
    """Rows: answer rows alone."""

    name: str
    distribution: str
    ops: tuple[str, ...] = ("pact_kl",)

    @abstractmethod
    def unsuited(self, case: Case, device: torch.device) -> str | None:
        """Why this device is not for it, though it is installed."""

    @abstractmethod
    def load(self, case: Case, inputs: Inputs, setting: Setting) -> StatesLoss:
        """Imports what it needs."""

    def version(self) -> str | None:
        return installed_version(self.distribution)

    def other_objective(self, case: Case) -> str | None:
        return "matches all V probabilities of the full-context reference; the op matches K of them"

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        if case.op not in self.ops:
            return f"it has no {case.op}"
        if self.version() is None:
            return f"{self.distribution} is not installed"
        if case.cached:
            return "it takes the reference's states, and the case has its cached values"
        return self.unsuited(case, device)

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return [{}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        loss = self.load(case, inputs, setting)
        rows = answer_rows(case, inputs)

        def forward() -> dict[str, Tensor]:
            return {"loss": loss(take(inputs.hidden, rows), take(inputs.reference_hidden, rows))}

        return make_call(case, inputs, forward)
