"""Who takes part in a plan: the peers of its case, and the floors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.cases.case import Case
from benchmarks.cases.plan import OURS, Plan
from benchmarks.measuring.floors import CrossEntropyAlone, Gemms
from benchmarks.peers.peer import Peer

GIB = 2**30
MEMORY_FRACTION = 0.6
"""The part of the machine's or the card's memory that an implementation may need at most."""
NEEDS_A_GPU = "needs a GPU"
BYTES_PER_LOGIT = {
    "eager": 16,
    "torch.compile": 16,
    "peer CE + released KL": 32,
    "released": 20,
}
"""Copies of all logits that are held: fp32 and the states' dtype, softmax, gradient; with those of
the KL's three forwards more. In fp32 the released algorithm was seen to take 16."""
OF_ALL_POSITIONS = ("released",)
"""Those that form logits of prompts too."""


def entries(plan: Plan, peers: Sequence[Peer]) -> list[Peer]:
    """Those of a plan, the package's own first, the floors last."""
    found = [peer for peer in peers if not plan.only or peer.name in plan.only]
    found.sort(key=lambda peer: peer.name != OURS)
    floors: list[Peer] = [Gemms()]
    if plan.case.op == "pact_loss":
        floors += [CrossEntropyAlone(peer) for peer in found if peer.name == OURS]
    return [*found, *floors]


def needed_bytes(name: str, case: Case) -> int:
    """Roughly what an implementation takes that forms all logits; 0 of the others."""
    rows = case.positions if name in OF_ALL_POSITIONS else case.rows
    return BYTES_PER_LOGIT.get(name, 0) * rows * case.vocabulary


def willing(
    candidates: Sequence[Peer], case: Case, device: torch.device, limit_bytes: int
) -> tuple[list[Peer], dict[str, str]]:
    """Who takes part, and by name why the others do not."""
    answers = [(each, refusal(each, case, device, limit_bytes)) for each in candidates]
    reasons = {each.name: reason for each, reason in answers if reason is not None}
    return [each for each, reason in answers if reason is None], reasons


def refusal(peer: Peer, case: Case, device: torch.device, limit_bytes: int) -> str | None:
    """Why it does not take part, before anything is tried; None where it does."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return NEEDS_A_GPU
    reason = peer.unavailable(case, device)
    if reason is not None or peer.is_floor:
        return reason
    needed = needed_bytes(peer.name, case)
    if needed > limit_bytes:
        return f"would need {needed / GIB:.1f} GiB, more than {limit_bytes / GIB:.1f}"
    return None
