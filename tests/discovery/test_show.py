"""The table by hand, and a chart that is an image."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from pact.discovery.show import plot_tokens, token_table
from pact.discovery.tokens import SafetyTokens
from tests.tiny import tiny_tokenizer


def shown_tokens() -> SafetyTokens:
    tokenizer = tiny_tokenizer()
    names = ["$", "Ċ", "Ġthat", "ł"]  # mathtext's mark, a newline, a blank, half a character
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(names)).sort()
    confidence = torch.tensor([0.5, 0.25, 0.125, 1e-7])
    weights = torch.tensor([0.1, 0.7, -0.3, 0.6])
    return SafetyTokens(ids.values, weights, confidence, metadata={"aligned": "a/b", "base": "c"})


def test_table_by_hand() -> None:
    tokens = shown_tokens()
    assert token_table(tokens, tiny_tokenizer()).splitlines() == [
        "rank   id  token     weight  P aligned  P base",
        "   1  201  '\\n'     +0.7000   2.50e-01       -",
        "   2  282  ' that'  +0.6000   1.00e-07       -",
        "   3    6  '$'      +0.1000   5.00e-01       -",
        "   4  257  'ł'      -0.3000   1.25e-01       -",
    ]


def test_plot_writes_a_png_of_every_token(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks would warn
        plot_tokens(shown_tokens(), tiny_tokenizer(), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    assert pixels.std() > 0.05  # not an empty page


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    tokens = SafetyTokens(torch.tensor([5, 900]), torch.ones(2))
    with pytest.raises(ValueError, match="token id 900 against 320"):
        token_table(tokens, tiny_tokenizer())
    with pytest.raises(ValueError, match="token id 900 against 320"):
        plot_tokens(tokens, tiny_tokenizer(), tmp_path / "t.png")


def test_a_picture_takes_the_place_of_no_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    path.write_text("tokens")
    with pytest.raises(ValueError, match="plot .* must be a new file: name another, or delete it"):
        plot_tokens(shown_tokens(), tiny_tokenizer(), path)
    assert path.read_text() == "tokens"
