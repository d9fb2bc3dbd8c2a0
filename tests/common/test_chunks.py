"""The cut into chunks: within the limit, of equal lengths, without a gap."""

from __future__ import annotations

import pytest
import torch

from pact_kernels.common.chunks import (
    MAX_CHUNK_ROWS,
    balanced_rows,
    bytes_left,
    chunks,
)
from pact_kernels.types import Head


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


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_the_slope_is_the_derivative_of_the_finished_logits(
    softcap: float | None, scale: float
) -> None:
    bias = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    head = Head(torch.eye(3), bias, softcap, scale)

    def finished(raw: torch.Tensor) -> torch.Tensor:
        return head.finish_(raw.clone())

    raw = torch.tensor([[-9.0, 0.1, 4.0]], dtype=torch.float64)
    step = 1e-6
    numerical = (finished(raw + step) - finished(raw - step)) / (2 * step)
    slope = head.slope(finished(raw))
    torch.testing.assert_close(torch.as_tensor(slope).expand(1, 3).double(), numerical)
