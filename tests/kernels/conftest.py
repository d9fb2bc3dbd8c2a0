"""What the tests of kernels share: they need triton, and may ask for poisoned buffers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.kernels.poison import poison

# Without triton (it is there for Linux alone) no kernel can even be imported.
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fresh buffer holds NaN."""
    poison(monkeypatch)
