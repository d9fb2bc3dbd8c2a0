"""What a tokenizer's own library says of a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact.training.saving import save_tokenizer


class Full:
    """As tokenizers in Rust fail, and as a mistake does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def save_pretrained(self, folder: Path) -> None:
        raise self.error


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        save_tokenizer(Full(Exception("No space left on device (os error 28)")), tmp_path)


def test_any_other_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="vocab"):
        save_tokenizer(Full(KeyError("vocab")), tmp_path)
