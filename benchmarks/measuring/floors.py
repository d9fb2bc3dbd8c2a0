"""Yardsticks that are timed beside an op: its products alone, and its cross-entropy alone.

They offer what a peer offers, but their result is another one, so it is not compared.

Legend: N rows, D hidden size, V vocabulary, K selected tokens, C columns, V or K, M slab rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases.case import IGNORE, Case, Inputs
from benchmarks.cases.products import Products, minimal_products
from benchmarks.peers.peer import Call, Outputs, Peer, Setting

GEMMS = "GEMMs alone"
CROSS_ENTROPY_ALONE = "cross-entropy alone"
SLAB_ROWS = {"cpu": (256, 1024), "cuda": (2048, 8192)}
"""Tried by device; the fastest is the floor."""
MOST_SLAB_BYTES = {"cpu": 2**30, "cuda": 4 * 2**30}


class Gemms:
    """The minimal products of a case by the vendor's GEMM in the case's dtype, and nothing else.

    In slabs of M rows whose logits are overwritten, so that the floor is of products and not of
    the memory that (N, V) logits would take. The head's gradient is summed in the case's dtype,
    which is less work than a sum in fp32.
    """

    name = GEMMS

    def version(self) -> str | None:
        return torch.__version__

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        return None

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        itemsize = getattr(torch, case.dtype).itemsize
        most = MOST_SLAB_BYTES[device.type] // (case.vocabulary * itemsize)
        rows = {min(tried, case.rows, most) for tried in SLAB_ROWS[device.type]}
        return [{"slab_rows": max(1, count)} for count in sorted(rows)]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        hidden = inputs.hidden.detach()[inputs.target != IGNORE]  # (N, D)
        weight = inputs.weight.detach()
        heads = [
            (weight if each.columns == case.vocabulary else weight[inputs.token_ids], each)
            for each in minimal_products(case)
        ]  # (C, D) each
        parts = [_Part(hidden, head, products, setting["slab_rows"]) for head, products in heads]

        def call() -> Outputs:
            for part in parts:
                part.run()
            return Outputs({}, {})

        return call


class _Part:
    """The products with one width of the head, in buffers of their own."""

    def __init__(self, hidden: Tensor, head: Tensor, products: Products, slab_rows: int) -> None:
        self.hidden, self.head, self.products = hidden, head, products
        self.slab = hidden.new_empty((min(slab_rows, hidden.shape[0]), head.shape[0]))  # (M, C)
        self.grad_hidden = torch.empty_like(hidden) if products.states else None  # (N, D)
        self.grad_head = torch.empty_like(head) if products.weights else None  # (C, D)

    def run(self) -> None:
        for start in range(0, self.hidden.shape[0], self.slab.shape[0]):
            rows = self.hidden[start : start + self.slab.shape[0]]  # (M, D)
            slab = self.slab[: rows.shape[0]]  # (M, C)
            for _ in range(self.products.logits):
                torch.mm(rows, self.head.T, out=slab)
            if self.grad_hidden is not None:
                torch.mm(slab, self.head, out=self.grad_hidden[start : start + rows.shape[0]])
            if self.grad_head is not None:
                self.grad_head.addmm_(slab.T, rows, beta=1.0 if start else 0.0)


class CrossEntropyAlone:
    """One implementation's cross-entropy on the tensors of a case that adds a KL to it."""

    name = CROSS_ENTROPY_ALONE

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def version(self) -> str | None:
        return self.peer.version()

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        return self.peer.unavailable(_without_kl(case), device)

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        return self.peer.settings(_without_kl(case), device)

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return self.peer.prepare(_without_kl(case), inputs, setting)


def _without_kl(case: Case) -> Case:
    return replace(case, op="linear_cross_entropy")
