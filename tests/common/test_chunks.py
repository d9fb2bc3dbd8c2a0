"""The cut into chunks: within the limit, of equal lengths, without a gap."""

from __future__ import annotations

import pytest

from pact_kernels.common.chunks import (
    MAX_CHUNK_ROWS,
    balanced_rows,
    bytes_left,
    chunks,
)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000, 12_345])
@pytest.mark.parametrize("limit", [0, 99, 1000, 10**9])
def test_chunks_cover_the_rows_within_the_limit(rows: int, limit: int) -> None:
    size = balanced_rows(rows, 100, limit)
    cut = list(chunks(rows, size))
    assert [row for start, stop in cut for row in range(start, stop)] == list(range(rows))
    assert size == 1 or size * 100 <= limit
    assert size <= MAX_CHUNK_ROWS
    least = -(-rows // max(1, min(limit // 100, MAX_CHUNK_ROWS)))
    assert len(cut) == least  # no more of them than the limit asks for
    lengths = [stop - start for start, stop in cut]
    assert max(lengths, default=0) - min(lengths, default=0) < max(len(cut), 1)


def test_what_a_call_takes_leaves_half_of_the_limit() -> None:
    assert bytes_left(1000, 300) == 700
    assert bytes_left(1000, 900) == 500
