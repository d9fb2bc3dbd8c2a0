"""All that is timed, in the order of the tables. The oracle is none of it: see `naive`."""

from __future__ import annotations

from benchmarks.cases.case import Case
from benchmarks.peers import cross_entropies, every_op, full_kl
from benchmarks.peers.composed import Composed
from benchmarks.peers.peer import Peer
from benchmarks.peers.released import Released

CROSS_ENTROPIES: tuple[cross_entropies.CrossEntropyPeer, ...] = (
    cross_entropies.TorchLinearCrossEntropy(),
    cross_entropies.Liger(),
    cross_entropies.CutCrossEntropy(),
    cross_entropies.Quack(),
    cross_entropies.Trl(),
)
PEERS: tuple[Peer, ...] = (
    every_op.Ours(),
    every_op.Eager(),
    every_op.Compiled(),
    *CROSS_ENTROPIES,
    Released(),
    Composed("peer CE + released KL", CROSS_ENTROPIES, every_column=True),
    Composed("peer CE + KL of K columns", CROSS_ENTROPIES, every_column=False),
    full_kl.LIGER_KL,
    full_kl.TRL_KL,
)


def peers_for(case: Case) -> tuple[Peer, ...]:
    """Those with the case's op, in order; `unavailable` says which of them do not run here."""
    return tuple(peer for peer in PEERS if case.op in peer.ops)
