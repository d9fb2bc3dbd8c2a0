"""What every test of training shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.training import metrics, run


@pytest.fixture(autouse=True)
def reference_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where caches go by default: never to the home of who runs the tests."""
    folder = tmp_path / "reference"
    monkeypatch.setattr(run, "CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave an empty file for the picture of their metrics: half a second each.

    What is in it is for `tests/training/test_metrics.py`.
    """
    monkeypatch.setattr(metrics, "plot_metrics", lambda records, path: path.touch())
