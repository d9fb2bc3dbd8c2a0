"""The demo on a tiny random model, which is its own alignment's base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pact.demo import DemoConfig, alignment
from pact.demo.alignment import aligned_adapters
from pact.demo.conversations import read
from tests.tiny import save_tiny


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the place of the demo's, and the first four rows of every data set."""
    folder = save_tiny(tmp_path / "shipped")
    monkeypatch.setattr("pact.demo.run.shipped_model", lambda cache: folder)
    for module in ("stages", "alignment"):
        monkeypatch.setattr(f"pact.demo.{module}.read", lambda name, split: read(name, split)[:4])
    return folder


@pytest.fixture
def small_demo(shipped: Path, tmp_path: Path) -> Callable[..., DemoConfig]:
    """Settings of two steps, from scratch since the demo's adapters are another model's."""

    def make(**settings: object) -> DemoConfig:
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
            "from_scratch": True,
            "harmful_share": 0.1,
            "align_steps": 2,
            "steps": 2,
            "batch_size": 4,
            "top_k": 20,
            "max_new_tokens": 4,
        }
        return DemoConfig(**defaults | settings)

    return make


@pytest.fixture
def trained(
    shipped: Path,
    small_demo: Callable[..., DemoConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder of adapters from scratch, which then are those that the demo ships."""
    folder = aligned_adapters(small_demo(), shipped, tmp_path / "trained")
    monkeypatch.setattr(alignment, "SHIPPED", folder / alignment.WEIGHTS)
    monkeypatch.setattr(alignment, "_train", _never)
    return folder


def _never(*_: object) -> None:
    raise AssertionError("the adapters were trained")
