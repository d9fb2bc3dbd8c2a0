"""Fresh buffers that hold NaN: what a kernel leaves unwritten, or reads too early, then shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

ALLOCATORS = ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like"))


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, every floating buffer that is not filled by its maker is of NaN."""
    for owner, name in ALLOCATORS:
        monkeypatch.setattr(owner, name, _filled(getattr(owner, name)))
    assert torch.isnan(torch.empty(2)).all()


def _filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        buffer = allocate(*args, **kwargs)
        return buffer.fill_(torch.nan) if buffer.is_floating_point() else buffer

    return poisoned
