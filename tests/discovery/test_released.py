"""Conversion of the authors' `.pt` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pact.discovery.released import convert_released
from pact.discovery.tokens import SafetyTokens
from tests.tiny import tiny_tokenizer

VECTOR = torch.zeros(10)
VECTOR[[2, 7]] = torch.tensor([0.6, -0.8])


@pytest.mark.parametrize(
    "content",
    [VECTOR, VECTOR[None], VECTOR.double(), {"v_dir": VECTOR, "step": 3}, {"direction": VECTOR}],
)
def test_non_zero_entries_become_tokens(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "v.pt")
    tokens = convert_released(tmp_path / "v.pt", tmp_path / "out.safetensors")
    loaded = SafetyTokens.load(tmp_path / "out.safetensors")
    for result in (tokens, loaded):
        assert result.ids.tolist() == [2, 7]
        assert torch.equal(result.weights, torch.tensor([0.6, -0.8]))
        assert result.metadata["vocab_size"] == "10"
    loaded.check_tokenizer(tiny_tokenizer())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(10), "must have a non-zero entry, got 10 zeros"),
        (torch.ones(2, 3), r"must be \(V,\) floats, got \(2, 3\)"),
        (torch.ones(3, dtype=torch.int64), r"must be \(V,\) floats, got \(3,\) torch.int64"),
        ({"other": VECTOR}, r"one under the keys .*got \['other'\]"),
        ({"v_dir": VECTOR, "direction": VECTOR}, r"got \['direction', 'v_dir'\]"),
        ([VECTOR], "got list"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=message):
        convert_released(tmp_path / "v.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_is_there_is_replaced_only_if_it_is_asked_for(tmp_path: Path) -> None:
    torch.save(VECTOR, tmp_path / "v.pt")
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(ValueError, match="must be a new file: name another, or set overwrite"):
        convert_released(tmp_path / "v.pt", out)
    assert out.read_text() == "mine"
    convert_released(tmp_path / "v.pt", out, overwrite=True)
    assert SafetyTokens.load(out).ids.tolist() == [2, 7]
    with pytest.raises(ValueError, match="apart from what is read, got .*v.pt, which is input"):
        convert_released(tmp_path / "v.pt", tmp_path / "v.pt", overwrite=True)


def test_a_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    torch.save(VECTOR * torch.nan, tmp_path / "v.pt")
    with pytest.raises(ValueError, match="finite"):
        convert_released(tmp_path / "v.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        convert_released(tmp_path / "gone.pt", tmp_path / "out.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"v_dir": Path("code")}, tmp_path / "code.pt")  # an object, which could run code
    for name in ("text.pt", "code.pt"):
        with pytest.raises(ValueError, match=r"torch.load\(weights_only=True\) refuses"):
            convert_released(tmp_path / name, tmp_path / "out.safetensors")
