"""torch.nn.functional.linear_cross_entropy, the op that torch itself has since 2.13.

Without options it forms all logits; with them it goes over chunks of rows and forms its gradients
in the forward pass. Its own choice of a chunk follows V / D, to as few as 6 rows for 512 of the
demo's model, and is slow on a CPU. So sizes are tried, the largest being all rows in one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional

from benchmarks.cases.case import Case
from benchmarks.peers.cross_entropy import CrossEntropyPeer, Loss
from benchmarks.peers.peer import Setting

CHUNKS = {"cpu": (128, 256, 512, 1024), "cuda": (1024, 2048, 4096, 8192)}
"""Rows, by device."""
MOST_AUTO_LOGITS = 128 * 65536
"""On a CPU its own choice is tried up to here: it does not depend on the rows, and is the slowest
of all by several times."""


class TorchLinearCrossEntropy(CrossEntropyPeer):
    """The setting `chunk` is None (no options), "auto" (its own choice) or a number of rows."""

    name = "torch linear_cross_entropy"

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return None
        return f"torch {torch.__version__} has no chunked linear_cross_entropy; 2.13 has"

    def ways(self, case: Case, device: torch.device) -> Sequence[Setting]:
        sizes = sorted({min(size, case.rows) for size in CHUNKS[device.type]})
        few = case.rows * case.vocabulary <= MOST_AUTO_LOGITS
        auto = ["auto"] if few or device.type == "cuda" else []
        return [{"chunk": chunk} for chunk in (None, *auto, *sizes)]

    def load(self, setting: Setting, softcap: float | None = None) -> Loss:
        options, chunk = None, setting["chunk"]
        if chunk == "auto":
            options = torch.nn.LinearCrossEntropyOptions()
        elif chunk is not None:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        return partial(functional.linear_cross_entropy, options=options)
