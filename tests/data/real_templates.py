"""The chat templates of published models, as TRL ships them, on a tiny tokenizer with their
control tokens."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AddedToken

from pact.data.template import Encoded
from tests.tiny import tiny_tokenizer

CONTROL = re.compile(
    r"<[|｜][^<>{}]{1,40}[|｜]>|</?think>|</?tool_call>|<(?:start|end)_of_turn>|<\|\w+>|<\w+\|>|<eos>"
)


def folder() -> Path:
    spec = find_spec("trl")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


NAMES = sorted(path.stem for path in folder().glob("*.jinja"))


def tokenizer_of(name: str) -> Any:
    """A tokenizer with the template `name` and its control tokens."""
    return with_control_tokens((folder() / f"{name}.jinja").read_text(encoding="utf-8"))


def with_control_tokens(template: str) -> Any:
    tokenizer = tiny_tokenizer(template)
    tokens = sorted(set(CONTROL.findall(template)))
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


def runs(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The text of every maximal run of labelled tokens."""
    found: list[list[int]] = []
    previous = False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, -100)
        if label != -100:
            found = [*found[:-1], [*found[-1], token]] if previous else [*found, [token]]
        previous = label != -100
    return [tokenizer.decode(run) for run in found]
