"""What every test of training shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.training import run


@pytest.fixture(autouse=True)
def reference_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where caches go by default: never to the home of who runs the tests."""
    folder = tmp_path / "reference"
    monkeypatch.setattr(run, "CACHE_DIR", str(folder))
    return folder
