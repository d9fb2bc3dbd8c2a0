"""Cuts of the rows into chunks, and the dtype that sums are formed in.

Legend: N rows, M chunk rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

MAX_CHUNK_ROWS = 1024
"""Longer chunks gain nothing: the head is read once a chunk, and at 1024 rows that is a small part
of a chunk's time (2 cores, fp32, 576 x 49152)."""


def ceil_div(count: int, size: int) -> int:
    """Pieces of at most `size`; triton.cdiv counts the same, in microseconds."""
    return -(-count // size)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def balanced_rows(num_rows: int, bytes_per_row: int, limit_bytes: int) -> int:
    """Rows per chunk so that it stays within the limit and all chunks are about equally long."""
    most = max(1, min(limit_bytes // max(bytes_per_row, 1), MAX_CHUNK_ROWS))
    count = max(1, -(-num_rows // most))
    return max(1, -(-num_rows // count))


def bytes_left(limit_bytes: int, taken_bytes: int) -> int:
    """The limit less what a whole call takes; at least half, or chunks would be of one row."""
    return max(limit_bytes - taken_bytes, limit_bytes // 2)


def chunks(num_rows: int, rows_per_chunk: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of every chunk."""
    for start in range(0, num_rows, rows_per_chunk):
        yield start, min(start + rows_per_chunk, num_rows)
