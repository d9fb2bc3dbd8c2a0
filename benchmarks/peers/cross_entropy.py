"""What peers have in common that offer one thing: the cross-entropy of hidden states and a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import answer_rows, make_call, take
from benchmarks.peers.compiled import compile_now
from benchmarks.peers.peer import Call, Peer, Setting

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden (N, D), weight (V, D), target (N,) -> the mean over targets that are not IGNORE."""


class CrossEntropyPeer(Peer):
    """Rows: answer rows alone or, where it knows targets to ignore, all positions: both are tried.

    The setting `rows` says which, "answers" or "all".
    """

    ops = ("linear_cross_entropy",)
    ignores_targets: bool = True
    """Whether prompts may be given to it."""
    caps_logits: bool = False
    """Whether it takes a soft cap."""
    compiles: bool = False
    """Whether torch.compile is at work, which has to be done ahead of what is timed."""

    @abstractmethod
    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        """Its own settings, beside the rows."""

    @abstractmethod
    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        """Imports what it needs; a soft cap is given where `caps_logits`."""

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        reason = super().unavailable(case, device)
        uncapped = case.softcap is not None and not self.caps_logits
        return reason or ("it takes no soft cap" if uncapped else None)

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
        return compile_now(call) if self.compiles else call
