"""A peer's cross-entropy with a KL beside it: what a user had before `pact_loss` fused the two.

The KL is dense, on answer rows. As the released implementation forms it, all columns of three
products are formed and K of them taken; or K columns alone, which the formula over the selection
permits. Cached values are used where the case has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import make_call
from benchmarks.peers.compiling import compile_now
from benchmarks.peers.cross_entropy import CrossEntropyPeer
from benchmarks.peers.peer import Call, Setting
from benchmarks.peers.references import cached_logits, gate_of, reference_states
from benchmarks.peers.rows import answer_rows, take


class Composed:
    """Rows: answer rows alone, which the KL needs in any case.

    The setting `cross_entropy` names the peer; the others are that peer's.
    """

    ops = ("pact_loss",)

    def __init__(self, name: str, peers: Sequence[CrossEntropyPeer], every_column: bool) -> None:
        self.name = name
        self.peers = {peer.name: peer for peer in peers}
        self.every_column = every_column

    def version(self) -> str | None:
        parts = [f"{name} {peer.version()}" for name, peer in self.peers.items() if peer.version()]
        return ", ".join([f"torch {torch.__version__}", *parts])

    def other_objective(self, case: Case) -> str | None:
        return None

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        if case.op not in self.ops:
            return f"it has no {case.op}"
        if case.over == "vocabulary" and not self.every_column:
            return "over the vocabulary a KL needs all columns"
        return None if self.settings(case, device) else "no peer's cross-entropy runs here"

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        alone = replace(case, op="linear_cross_entropy")
        return [
            {"cross_entropy": name, **setting}
            for name, peer in self.peers.items()
            if peer.unavailable(alone, device) is None
            for setting in peer.settings(alone, device)
            if setting["rows"] == "answers" and setting.get("chunk", 0) not in (None, "auto")
        ]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        peer = self.peers[setting["cross_entropy"]]
        own = {name: value for name, value in setting.items() if name != "cross_entropy"}
        loss, rows = peer.load(own), answer_rows(case, inputs)
        target = take(inputs.target, rows)
        known = cached_logits(case, inputs) if case.cached else None

        def forward() -> dict[str, Tensor]:
            hidden = take(inputs.hidden, rows)
            kl = dense.pact_kl(
                hidden,
                inputs.weight,
                inputs.token_ids,
                inputs.token_weights,
                inputs.step,
                reference_states(case, inputs, rows) if known is None else known,
                case.over,
                gate_of(case),
                every_column=self.every_column,
            )
            return {"loss": loss(hidden, inputs.weight, target) + kl}

        call = make_call(case, inputs, forward)
        return compile_now(call) if peer.compiles(own) else call
