"""Floors that are timed beside an op: its products alone, and its cross-entropy alone.

They offer what a peer offers, but their result is another one, so it is not compared.

Legend: N rows, D hidden size, V vocabulary, K selected tokens, C columns, V or K, M chunk rows,
T columns of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases.case import IGNORE, OPS, Case, Inputs
from benchmarks.cases.products import Products, minimal_products
from benchmarks.peers.peer import Call, Outputs, Peer, Setting

GEMMS = "GEMMs alone"
CROSS_ENTROPY_ALONE = "cross-entropy alone"
CHUNK_ROWS = {"cpu": (256, 1024), "cuda": (1024, 2048, 4096, 8192)}
"""Tried by device with all columns at once; the fastest is the floor."""
TILE_COLUMNS = {"cpu": 1024}
"""Tried beside it with the most rows: both products of a tile while its part of the head is in the
cache."""
MOST_CHUNK_BYTES = {"cpu": 2**30, "cuda": 4 * 2**30}


class Gemms(Peer):
    """The minimal products of a case by the vendor's GEMM in the case's dtype, and nothing else.

    In chunks of M rows whose logits are overwritten, so that the floor is of products and not of
    the memory that (N, V) logits would take, or in tiles of such a chunk. The head's gradient is
    summed in fp32 where the vendor's product of 16-bit operands can (on a GPU), as ours is; else in
    the case's dtype, which is less work.
    """

    name = GEMMS
    ops = OPS
    is_floor = True

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        itemsize = getattr(torch, case.dtype).itemsize
        most = MOST_CHUNK_BYTES[device.type] // (case.vocabulary * itemsize)
        rows = {min(tried, case.rows, most) for tried in CHUNK_ROWS[device.type]}
        settings = [{"chunk_rows": max(1, count)} for count in sorted(rows)]
        columns = TILE_COLUMNS.get(device.type)
        if columns is not None and columns < case.vocabulary:
            most = min(max(CHUNK_ROWS[device.type]), case.rows)
            settings.append({"chunk_rows": most, "tile_columns": columns})
        return settings

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        hidden = inputs.hidden.detach()[inputs.target != IGNORE]  # (N, D)
        weight = inputs.weight.detach()
        heads = [
            (weight if each.columns == case.vocabulary else weight[inputs.token_ids], each)
            for each in minimal_products(case)
        ]  # (C, D) each
        rows, columns = setting["chunk_rows"], setting.get("tile_columns")
        parts = [_Part(hidden, head, products, rows, columns) for head, products in heads]

        def call() -> Outputs:
            for part in parts:
                part.run()
            return {}

        return call


class _Part:
    """The products with one width of the head, in buffers of their own."""

    def __init__(
        self,
        hidden: Tensor,
        head: Tensor,
        products: Products,
        chunk_rows: int,
        tile_columns: int | None,
    ) -> None:
        self.hidden, self.head, self.products = hidden, head, products
        self.rows = min(chunk_rows, hidden.shape[0])
        self.columns = min(tile_columns or head.shape[0], head.shape[0])
        self.tile = hidden.new_empty(self.rows * self.columns)  # (M, C) at most
        self.grad_hidden = torch.empty_like(hidden) if products.states else None  # (N, D)
        self.grad_head = None  # (C, D)
        if products.weights:
            dtype = torch.float32 if head.is_cuda else head.dtype
            self.grad_head = torch.empty_like(head, dtype=dtype)

    def run(self) -> None:
        for start in range(0, self.hidden.shape[0], self.rows):
            for low in range(0, self.head.shape[0], self.columns):
                self._tile(slice(start, start + self.rows), slice(low, low + self.columns))

    def _tile(self, rows: slice, columns: slice) -> None:
        hidden, head = self.hidden[rows], self.head[columns]  # (M, D), (T, D)
        tile = self.tile[: hidden.shape[0] * head.shape[0]].view(-1, head.shape[0])  # (M, T)
        for _ in range(self.products.logits):
            torch.mm(hidden, head.T, out=tile)
        if self.grad_hidden is not None:
            self.grad_hidden[rows].addmm_(tile, head, beta=1.0 if columns.start else 0.0)
        if self.grad_head is not None:
            into, beta = self.grad_head[columns], 1.0 if rows.start else 0.0
            if into.dtype == tile.dtype:
                into.addmm_(tile.T, hidden, beta=beta)
            else:
                torch.addmm(into, tile.T, hidden, beta=beta, out_dtype=into.dtype, out=into)


class CrossEntropyAlone(Peer):
    """The cross-entropy of one without settings on the tensors of a case that adds a KL to it."""

    name = CROSS_ENTROPY_ALONE
    ops = ("pact_loss",)
    is_floor = True

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def version(self) -> str | None:
        return self.peer.version()

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return self.peer.prepare(replace(case, op="linear_cross_entropy"), inputs, setting)
