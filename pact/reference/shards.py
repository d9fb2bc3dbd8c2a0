"""The files of a cache: one Arrow file per shard of examples, and its checksum beside it.

    shard-00000.arrow    memory-mapped: one line per example of the shard
    shard-00000.json     the checksum of that file, written after it
    shard-00000.*.partial    what a killed run leaves; the next one removes it

A line holds `example`, the index in the data set, and per context (`full`, `post`) the values of
the example's rows in their order, n * K numbers. Which examples a shard holds follows from their
lengths alone.

Legend: E examples, n rows of an example, K safety tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, Features, LargeList, Value
from datasets.arrow_writer import ArrowWriter

SHARD_EXAMPLES = 256
"""Examples in a shard: what a kill loses at most, per process."""

CACHE_DTYPES: dict[str, np.dtype] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What is where in a cache."""

    lengths: np.ndarray
    """(E,) int64: tokens of each example."""
    row_counts: np.ndarray
    """(E,) int64: answer rows of each example."""
    num_tokens: int
    """K."""
    contexts: Sequence[str]
    """("full",), or ("full", "post") with a gate."""
    dtype: str
    """What the values are kept in, "fp16" or "fp32"."""

    def __post_init__(self) -> None:
        if self.dtype not in CACHE_DTYPES:
            raise ValueError(f"dtype must be one of {sorted(CACHE_DTYPES)}, got {self.dtype!r}")

    @cached_property
    def order(self) -> np.ndarray:
        """(E,) the examples as the shards hold them, the longest first."""
        return np.argsort(-self.lengths, kind="stable")

    @property
    def num_shards(self) -> int:
        return -(-len(self.lengths) // SHARD_EXAMPLES)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a row's values; the files add 8 per example and context, and a header."""
        return self.num_tokens * len(self.contexts) * CACHE_DTYPES[self.dtype].itemsize

    @property
    def features(self) -> Features:
        values = LargeList(Value({"fp16": "float16", "fp32": "float32"}[self.dtype]))
        return Features({"example": Value("int64"), **dict.fromkeys(self.contexts, values)})

    def examples(self, shard: int) -> np.ndarray:
        """Indices of the shard's examples, in the order of its lines."""
        return self.order[shard * SHARD_EXAMPLES : (shard + 1) * SHARD_EXAMPLES]

    def place(self, example: int) -> tuple[int, int]:
        """Shard and line of an example."""
        return divmod(int(self._rank[example]), SHARD_EXAMPLES)

    @cached_property
    def _rank(self) -> np.ndarray:
        """(E,) the place of each example in `order`."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(rank))
        return rank

    def path(self, folder: Path, shard: int) -> Path:
        return folder / f"shard-{shard:05d}.arrow"


def write_shard(
    folder: Path, shard: int, layout: Layout, values: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Write a shard under other names, then rename the file, then its checksum.

    Args:
        folder: an existing folder.
        shard: its number.
        layout: the cache's.
        values: per context, an (n, K) array for every example of the shard.
    """
    path = layout.path(folder, shard)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    schema = layout.features.arrow_schema
    columns: list[pa.Array] = [pa.array(layout.examples(shard), pa.int64())]
    for context in layout.contexts:
        offsets = np.cumsum([0, *(part.size for part in values[context])])
        flat = np.concatenate([part.reshape(-1) for part in values[context]])
        columns.append(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat)))
    writer = ArrowWriter(path=str(partial), features=layout.features)
    writer.write_table(pa.Table.from_arrays(columns, schema=schema), writer_batch_size=None)
    writer.finalize()
    facts = {"xxh3_128": _checksum(partial), "bytes": partial.stat().st_size}
    partial.replace(path)
    write_json(path.with_suffix(".json"), facts)


def is_valid(path: Path) -> bool:
    """Whether a shard's file is there, whole and unchanged."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return path.stat().st_size == facts["bytes"] and _checksum(path) == facts["xxh3_128"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_shard(folder: Path, shard: int, layout: Layout) -> Dataset:
    """Memory-map a shard.

    Raises:
        ValueError: it is not there, or damaged, or of other examples.
    """
    path = layout.path(folder, shard)
    if is_valid(path):
        table = Dataset.from_file(str(path))
        if np.array_equal(table.data.column("example").to_numpy(), layout.examples(shard)):
            return table
    raise ValueError(
        f"every shard of a reference cache must be whole, and {path} is missing or damaged: run "
        "fill_cache again, on all processes, before the cache is read"
    )


def remove_partial(folder: Path, shard: int) -> None:
    """Remove what killed runs left of a shard."""
    for path in folder.glob(f"shard-{shard:05d}.*partial"):
        path.unlink(missing_ok=True)


def write_json(path: Path, facts: Mapping[str, object]) -> None:
    """Write under another name, then rename."""
    partial = path.with_suffix(f".json.{os.getpid()}.partial")
    partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
