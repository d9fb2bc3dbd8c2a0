"""What carries the tests of this folder to a GPU."""

from __future__ import annotations

import torch

from tests.kernels.gpu import Copies


def test_copies_keep_strides_and_bring_back_what_was_written() -> None:
    """Here from CPU to CPU."""
    whole = torch.arange(12.0).reshape(3, 4)
    view, vector = whole[1:, ::2], whole[0]  # one storage
    copies = Copies(torch.device("cpu"))
    moved, other = copies.of(view), copies.of(vector)
    assert torch.equal(moved, view)
    assert moved.stride() == view.stride()
    assert moved.data_ptr() != view.data_ptr()
    assert copies.of(3.5) == 3.5
    moved.fill_(-1.0)
    other[1] = 7.0
    assert whole[1, 0] == 4.0  # nothing yet
    copies.bring_back()
    assert whole.tolist() == [[0, 7, 2, 3], [-1, 5, -1, 7], [-1, 9, -1, 11]]
