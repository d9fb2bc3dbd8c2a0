"""The files of a cache: one Arrow file per shard of examples, and its checksum beside it.

    shard-00000.arrow    memory-mapped: one line per example of the shard
    shard-00000.json     size and checksum of that file, and what it is of; written after it
    shard-00000.lock     while one filler is at work on the shard, see `pact.reference.locks`
    shard-00000.*.partial    what a killed run leaves; the next one removes it

A line holds `example`, the index in the data set, and per context (`full`, `post`) the values of
the example's rows in their order, n * K numbers. Which examples a shard holds follows from their
lengths alone.

Legend: E examples, n rows of an example, K safety tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, Features, LargeList, Value
from datasets.arrow_writer import ArrowWriter

from pact.common.disk import PARTIAL, digest, replacing

FORMAT_VERSION = 2
"""Raised whenever the files, the rows of `pact.data.spans` or the kept values change."""

SHARD_EXAMPLES = 256
"""Examples in a shard: what a kill loses at most, per process."""

NOTE_BYTES = 4096
"""Most bytes of a shard's .json; a larger one is not ours."""

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

    def offsets(self, shard: int) -> np.ndarray:
        """(E + 1,) int64: where each line of a shard begins in a column of values, and the end."""
        sizes = self.row_counts[self.examples(shard)] * self.num_tokens
        return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))

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
    schema = layout.features.arrow_schema
    columns: list[pa.Array] = [pa.array(layout.examples(shard), pa.int64())]
    for context in layout.contexts:
        offsets = pa.array(layout.offsets(shard), pa.int64())
        flat = np.concatenate([part.reshape(-1) for part in values[context]])
        columns.append(pa.LargeListArray.from_arrays(offsets, pa.array(flat)))
    with replacing(path) as partial:
        writer = ArrowWriter(path=str(partial), features=layout.features)
        writer.write_table(pa.Table.from_arrays(columns, schema=schema), writer_batch_size=None)
        writer.finalize()
        facts = {"bytes": partial.stat().st_size, "xxh3_128": digest(partial)}
    write_json(path.with_suffix(".json"), _facts(shard, layout) | facts)


def is_valid(folder: Path, shard: int, layout: Layout) -> bool:
    """Whether a shard is there, whole, unchanged, and of the examples that it should hold."""
    try:
        open_shard(folder, shard, layout)
    except ValueError:
        return False
    return True


def open_shard(folder: Path, shard: int, layout: Layout) -> Dataset:
    """Memory-map a shard.

    Raises:
        ValueError: it is not there, or damaged, or of other examples.
    """
    path = layout.path(folder, shard)
    if _is_as_written(path, _facts(shard, layout)):
        try:
            table = Dataset.from_file(str(path))
            if _is_laid_out(table.data.table, shard, layout):
                return table
        except Exception:  # Arrow's readers raise errors of many kinds
            pass
    raise ValueError(
        f"every shard of a reference cache must be whole, and {path} is missing or damaged: run "
        "fill_cache again, on all processes, before the cache is read"
    )


def remove_partial(path: Path) -> None:
    """Remove what killed runs left of a file and its .json; hold its lock."""
    for left in path.parent.glob(f"{path.stem}.*{PARTIAL}"):
        left.unlink(missing_ok=True)


def write_json(path: Path, facts: Mapping[str, object]) -> None:
    """Write under another name, then rename."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors into a line with the way out.

    Raises:
        ValueError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the reference cache must be written to {folder}, got {error}: set cache_dir to a "
            "folder that can be written and has room; shards that are whole are kept"
        ) from error


def _facts(shard: int, layout: Layout) -> dict[str, object]:
    """What a shard's .json says beside size and checksum: of what it is."""
    examples = layout.examples(shard)
    made_of = np.concatenate((examples, layout.row_counts[examples])).astype("<i8")
    return {
        "format": FORMAT_VERSION,
        "shard": shard,
        "examples": xxhash.xxh3_128(made_of.tobytes()).hexdigest(),
        "safety_tokens": layout.num_tokens,
        "contexts": list(layout.contexts),
        "dtype": layout.dtype,
    }


def _is_as_written(path: Path, facts: Mapping[str, object]) -> bool:
    """Whether a file's .json has these facts, and the file the size and checksum that it says."""
    note = path.with_suffix(".json")
    try:
        if note.stat().st_size > NOTE_BYTES:
            return False
        said = json.loads(note.read_text(encoding="utf-8"))
        known = {**facts, "bytes": path.stat().st_size}
        if not isinstance(said, dict) or any(said.get(name) != known[name] for name in known):
            return False
        return said.get("xxh3_128") == digest(path)
    except (OSError, ValueError, RecursionError):
        return False


def _is_laid_out(table: pa.Table, shard: int, layout: Layout) -> bool:
    """Whether a shard's table has the lines and sizes of its layout, without a look at values."""
    table.validate(full=True)
    examples, offsets = layout.examples(shard), layout.offsets(shard)
    if not table.schema.equals(layout.features.arrow_schema):
        return False
    if any(column.num_chunks != 1 or column.null_count for column in table.columns):
        return False
    lists = [table.column(context).chunk(0) for context in layout.contexts]
    return np.array_equal(table.column("example").to_numpy(), examples) and all(
        np.array_equal(part.offsets.to_numpy(), offsets)
        and len(part.values) == offsets[-1]
        and not part.values.null_count
        for part in lists
    )
