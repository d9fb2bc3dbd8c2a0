"""The reference, computed once: per answer row its centred logits on disk, read by memory map.

`pact.reference.fill` runs the frozen model over the data set, `CachedReference` then stands in for
it. A row takes 2 K bytes per context in 16 bits: 200 at K = 50 with a gate, 100 without.

Legend: B sequences, E examples, N answer rows, n rows of an example, K safety tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

import pact_kernels as pk
from pact.reference.centred import CentredLogits
from pact.reference.shards import CACHE_DTYPES, Layout, open_shard


class ReferenceCache:
    """The files of a filled cache. They are checked and mapped on first use, which all processes
    must have filled them before.

    Args:
        folder: where `fill_cache` wrote them.
        layout: what is where.
        over: what the values are centred for, "selection" or "vocabulary".
    """

    def __init__(self, folder: Path, layout: Layout, over: str) -> None:
        self.folder = folder
        self.layout = layout
        self.over = over

    @property
    def num_rows(self) -> int:
        return int(self.layout.row_counts.sum())

    @property
    def bytes_per_row(self) -> int:
        return self.layout.bytes_per_row

    @cached_property
    def shards(self) -> list[Dataset]:
        """The memory-mapped shards.

        Raises:
            ValueError: one is missing or damaged.
        """
        numbers = range(self.layout.num_shards)
        return [open_shard(self.folder, number, self.layout) for number in numbers]

    @cached_property
    def table(self) -> Dataset:
        """All lines: `example`, `full` and, with a gate, `post`; the longest example first."""
        return concatenate_datasets(self.shards)

    def read(self, examples: Sequence[int]) -> CentredLogits:
        """Copy the rows of some examples, in their order, as the cache's dtype.

        Args:
            examples: indices in the data set.
        """
        places = [self.layout.place(index) for index in examples]
        read = {context: self._join(context, places) for context in self.layout.contexts}
        return CentredLogits(read["full"], read.get("post"))

    def _join(self, context: str, places: Sequence[tuple[int, int]]) -> Tensor:
        """(N, K)"""
        views = self._views[context]
        parts = [np.empty(0, CACHE_DTYPES[self.layout.dtype])]
        for shard, line in places:
            offsets, values = views[shard]
            parts.append(values[offsets[line] : offsets[line + 1]])
        return torch.from_numpy(np.concatenate(parts)).reshape(-1, self.layout.num_tokens)

    @cached_property
    def _views(self) -> dict[str, list[tuple[list[int], np.ndarray]]]:
        """Per context and shard: where every line begins, and the mapped values."""
        views: dict[str, list[tuple[list[int], np.ndarray]]] = {}
        for context in self.layout.contexts:
            columns = [shard.data.column(context) for shard in self.shards]
            assert all(column.num_chunks == 1 for column in columns)
            chunks = [column.chunk(0) for column in columns]
            views[context] = [
                (chunk.offsets.to_pylist(), chunk.values.to_numpy(zero_copy_only=True))
                for chunk in chunks
            ]
        return views


class CachedReference:
    """A `Reference` that looks the rows of a batch up; no model runs.

    Args:
        cache: filled by all processes.
        is_student: it was filled by the student without its adapters.

    Raises:
        ValueError: a file of the cache is missing or damaged.
    """

    def __init__(self, cache: ReferenceCache, is_student: bool = False) -> None:
        self.cache = cache
        self.is_student = is_student
        assert len(cache.shards) == cache.layout.num_shards  # checks and maps them now

    def __call__(self, batch: Mapping[str, Tensor]) -> pk.ReferenceLogits:
        """Centred logits (N, K), fp32, on the device of the batch.

        Args:
            batch: with `example` (B,) int64, indices in the data set in the order of the batch's
                rows. It may stay on the CPU: reading it from a GPU waits for the device.

        Raises:
            ValueError: the batch does not name its examples, or has other rows than they have.
        """
        if "example" not in batch:
            raise ValueError(
                "a cached reference looks examples up by batch['example'], and the batch has none: "
                "give the data set a column `example` with each example's index"
            )
        rows = batch["row_step"]  # (N,)
        # A batch of ignored labels has no rows, whatever its examples are.
        examples = batch["example"].tolist() if rows.numel() else []
        self._check(examples, rows.numel())
        full, post = (_placed(kept, rows.device) for kept in self.cache.read(examples))
        assert full is not None
        lse = None
        if self.cache.over == "vocabulary":
            lse = torch.zeros(rows.numel(), device=rows.device)  # (N,), of log-confidences
        return pk.ReferenceLogits(full, post, lse, None if post is None else lse)

    def _check(self, examples: Sequence[int], num_rows: int) -> None:
        counts = self.cache.layout.row_counts
        known = all(0 <= index < len(counts) for index in examples)
        if not known or sum(counts[index] for index in examples) != num_rows:
            found = [int(counts[index]) for index in examples] if known else "unknown examples"
            raise ValueError(
                f"batch['example'] must be indices in the data set of the cache ({len(counts)} "
                f"examples), whose rows are the batch's {num_rows}, got {examples} with {found}: "
                "the data set was cut, filtered or reordered after the cache was filled, or it was "
                "filled for an objective that holds other rows (anchors_only)"
            )


def _placed(kept: Tensor | None, device: torch.device) -> Tensor | None:
    if kept is None:
        return None
    if device.type == "cuda":
        kept = kept.pin_memory()
    return kept.to(device, non_blocking=True).float()
