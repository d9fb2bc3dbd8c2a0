"""Prompts to answer, with or without the answers that their file has for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pact.data.examples import Conversation, load_examples


def load_prompts(path: str | Path) -> list[Conversation]:
    """Load what comes before the answer in each row of a .jsonl file.

    Args:
        path: one object a line with `prompt`, a string or a list of messages, or with `messages`. A
            completion, and the assistant's turns at the end, are left out.

    Returns:
        Conversations that wait for an answer, in order.

    Raises:
        ValueError: the file is missing, empty or malformed, or a row leaves nothing to answer.
    """
    file = Path(path).expanduser()
    if file.suffix != ".jsonl":
        raise ValueError(f"prompts must be in a .jsonl file, one object a line, got {path}")
    if not file.is_file():
        raise ValueError(f"prompt file {path} does not exist")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        rows = [_unanswered(json.loads(line)) for line in lines if line.strip()]
        return [waiting(conversation) for conversation in load_examples(rows)]
    except ValueError as error:
        raise ValueError(f"{path} must hold prompts as JSON lines in UTF-8: {error}") from error


def waiting(prompt: str | Conversation) -> Conversation:
    """A user's words, or what comes before the assistant's last turns, as a conversation.

    Raises:
        ValueError: nothing is left.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise ValueError(
            "a prompt must have a turn to answer, got the assistant's alone: put the user's first"
        )
    return turns


def readable(turns: Conversation) -> str:
    """A prompt as text: a lone user's words, or all turns with their roles."""
    if [turn["role"] for turn in turns] == ["user"]:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _unanswered(row: Any) -> Any:
    """A row in the form that `load_examples` reads, its completion empty."""
    if not isinstance(row, dict):
        return row
    prompt = row.get("prompt") if row.get("messages") is None else row["messages"]
    return row if prompt is None else {"prompt": prompt, "completion": ""}
