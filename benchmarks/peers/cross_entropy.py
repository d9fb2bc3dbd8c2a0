"""What peers have in common that offer one thing: the cross-entropy of hidden states and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.compiling import compile_now
from benchmarks.peers.packages import installed_version
from benchmarks.peers.peer import Call, Setting
from benchmarks.peers.rows import answer_rows, take

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden (N, D), weight (V, D), target (N,) -> the mean over targets that are not IGNORE."""


class CrossEntropyPeer(ABC):
    """Rows: answer rows alone or, where it knows targets to ignore, all positions: both are tried.

    The setting `rows` says which, "answers" or "all".
    """

    name: str
    distribution: str
    """As a package index calls it."""
    ops: tuple[str, ...] = ("linear_cross_entropy",)
    ignores_targets: bool = True
    """Whether prompts may be given to it."""
    caps_logits: bool = False
    """Whether it takes a soft cap."""

    @abstractmethod
    def unsuited(self, case: Case, device: torch.device) -> str | None:
        """Why this device or these sizes are not for it, though it is installed."""

    @abstractmethod
    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        """Its own settings, beside the rows."""

    @abstractmethod
    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        """Imports what it needs; a soft cap is given where `caps_logits`."""

    def compiles(self, setting: Setting) -> bool:
        """Whether torch.compile is at work, which has to be done ahead of what is timed."""
        return False

    def version(self) -> str | None:
        return installed_version(self.distribution)

    def other_objective(self, case: Case) -> str | None:
        return None

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        if case.op not in self.ops:
            return f"it has no {case.op}"
        if self.version() is None:
            return f"{self.distribution} is not installed"
        if case.softcap is not None and not self.caps_logits:
            return "it takes no soft cap"
        return self.unsuited(case, device)

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        rows = ["answers"]
        if self.ignores_targets and case.prompt_length:
            rows.append("all")
        return [{"rows": each, **way} for each in rows for way in self.ways(case, device)]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        loss = self.load(setting, case.softcap)
        rows = answer_rows(case, inputs) if setting["rows"] == "answers" else None
        target = take(inputs.target, rows)

        def forward() -> dict[str, Tensor]:
            return {"loss": loss(take(inputs.hidden, rows), inputs.weight, target)}

        call = make_call(case, inputs, forward)
        return compile_now(call) if self.compiles(setting) else call
