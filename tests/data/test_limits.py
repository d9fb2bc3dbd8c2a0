"""Rows that would take minutes are read in linear time, or refused before they are read."""

from __future__ import annotations

from typing import Any

import pytest

from pact.data import dataset, template
from pact.data.dataset import encode_examples
from pact.data.rendering import Tokens, render
from pact.data.template import Encoder, _is_marked
from pact.data.turns import _Marks, find_turns
from tests.tiny import tiny_tokenizer

LENGTH = 4096
LOOKS = 64  # of two binary searches among LENGTH places, and a few places behind them


class Counted(list[Any]):
    """A list that counts how often an entry is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Any:
        for n in range(len(self)):
            yield self[n]


def chat(count: int, asked: str = "Hello?") -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": "No."}] * count


def test_a_place_is_found_among_tokens_without_a_look_at_all_of_them():
    offsets = Counted((n, n + 1) for n in range(LENGTH))
    tokens = Tokens(list(range(LENGTH)), offsets)
    text = "  a" + "b" * (LENGTH - 3)
    assert tokens.first_word(0, text) == 2
    assert tokens.first_word(LENGTH, text) is None
    assert not tokens.reaches_across(100)
    assert offsets.looks <= LOOKS
    wide = Tokens([1, 2, 3], [(0, 2), (2, 2), (2, 5)])  # one without characters
    assert [wide.reaches_across(place) for place in range(6)] == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert wide.first_word(1, "a    ") == 0  # it holds a character behind the place
    assert wide.first_word(2, "ab   ") is None


def test_a_run_of_marked_characters_is_found_without_a_look_at_all_of_them():
    marked = Counted((2 * n, 2 * n + 1) for n in range(LENGTH))
    assert _is_marked(100, 101, marked) and _is_marked(99, 101, marked)
    assert not _is_marked(101, 102, marked) and not _is_marked(3 * LENGTH, 4 * LENGTH, marked)
    assert marked.looks <= LOOKS


def test_marks_in_the_text_are_passed_over_at_once():
    """A text of many marks, each of which would have been tried against the whole text."""
    text = " ".join(f"Zmark{n}z" for n in range(50)) + " Zmark" + "z" * 10_000
    assert _Marks(text).prefix == "Zmark50z"
    assert _Marks("plain").prefix == "Zmark0z"
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    rendered = render(turns, tokenizer)
    (turn,) = find_turns(rendered, turns, tokenizer)  # type: ignore[arg-type]
    assert rendered[turn.start : turn.end] == text


def test_a_row_far_longer_than_what_is_kept_is_refused_before_it_is_rendered(monkeypatch):
    monkeypatch.setattr(dataset, "MOST_CHARACTERS", 100)
    monkeypatch.setattr(dataset, "MOST_PER_TOKEN", 10)
    tokenizer = tiny_tokenizer()
    rows = [chat(1), chat(1, asked="Hello? " * 100)]
    assert len(encode_examples(rows, tokenizer, None)) == 2
    assert len(encode_examples(rows, tokenizer, 800)) == 2  # 8000 characters may be
    with pytest.raises(ValueError, match="conversation 1: .* at most 300 characters for max_leng"):
        encode_examples(rows, tokenizer, 30)
    assert len(encode_examples(rows, tokenizer, 30, skip_bad_rows=True)) == 1


def test_more_answers_than_are_rendered_in_time_are_refused(monkeypatch):
    monkeypatch.setattr(template, "MOST_RENDERED", 8)  # 2 answers of 4 messages
    encoder = Encoder(tiny_tokenizer())
    encoder(chat(2))
    with pytest.raises(ValueError, match="3 times 6: split it, or mark answers by train: false"):
        encoder(chat(3))
    shown = [turn | {"train": False} if turn["role"] == "assistant" else turn for turn in chat(2)]
    encoder([*shown, *chat(1)])
