"""A peer's cross-entropy with a KL beside it: what a user had before `pact_loss` fused the two.

The KL is dense, on answer rows. As the released implementation forms it, all columns of three
products are formed and K of them taken; or K columns alone, which the formula over the selection
permits. Cached values are used where the case has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import Operands, make_call
from benchmarks.peers.cross_entropies import CrossEntropyPeer
from benchmarks.peers.peer import Call, Peer, Setting, compile_now


class Composed(Peer):
    """Rows: answer rows alone, which the KL needs in any case.

    The setting `cross_entropy` names the peer; the others are that peer's.
    """

    ops = ("pact_loss",)

    def __init__(self, name: str, peers: Sequence[CrossEntropyPeer], every_column: bool) -> None:
        self.name = name
        self.peers = {peer.name: peer for peer in peers}
        self.every_column = every_column
        self.logit_bytes = 32 if every_column else 0  # with those of the KL's three forwards

    def version(self) -> str | None:
        parts = [f"{name} {peer.version()}" for name, peer in self.peers.items() if peer.version()]
        return ", ".join([f"torch {torch.__version__}", *parts])

    def unsuited(self, case: Case, device: torch.device) -> str | None:
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
        cross_entropy, operands = peer.load(own), Operands(replace(case, op="pact_kl"), inputs)
        pact_kl = partial(dense.pact_kl, every_column=self.every_column)

        def loss() -> Tensor:
            found = hidden, weight, *_ = operands.positional()
            kl = pact_kl(*found, **operands.options)
            return cross_entropy(hidden, weight, operands.target) + kl

        call = make_call(case, inputs, loss)
        return compile_now(call) if peer.compiles else call
