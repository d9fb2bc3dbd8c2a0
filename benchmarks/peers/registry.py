"""All that is timed, in the order of the tables. The oracle is none of it: see `naive`."""

from __future__ import annotations

from benchmarks.cases.case import Case
from benchmarks.peers.compiled import Compiled
from benchmarks.peers.composed import Composed
from benchmarks.peers.cross_entropy import CrossEntropyPeer
from benchmarks.peers.cut_cross_entropy import CutCrossEntropy
from benchmarks.peers.eager import Eager
from benchmarks.peers.liger import Liger, LigerFullKl
from benchmarks.peers.ours import Ours
from benchmarks.peers.peer import Peer
from benchmarks.peers.quack import Quack
from benchmarks.peers.released import Released
from benchmarks.peers.torch_linear_cross_entropy import TorchLinearCrossEntropy
from benchmarks.peers.trl import Trl, TrlFullKl

CROSS_ENTROPIES: tuple[CrossEntropyPeer, ...] = (
    TorchLinearCrossEntropy(),
    Liger(),
    CutCrossEntropy(),
    Quack(),
    Trl(),
)
PEERS: tuple[Peer, ...] = (
    Ours(),
    Eager(),
    Compiled(),
    *CROSS_ENTROPIES,
    Released(),
    Composed("peer CE + released KL", CROSS_ENTROPIES, every_column=True),
    Composed("peer CE + KL of K columns", CROSS_ENTROPIES, every_column=False),
    LigerFullKl(),
    TrlFullKl(),
)


def peers_for(case: Case) -> tuple[Peer, ...]:
    """Those with the case's op, in order; `unavailable` says which of them do not run here."""
    return tuple(peer for peer in PEERS if case.op in peer.ops)
