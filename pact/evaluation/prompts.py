"""Prompts to answer, with or without the answers that their source has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pact.data.conversation import Conversation, Message, like
from pact.data.examples import read_rows
from pact.data.forms import check_columns
from pact.data.sources import open_source


def load_prompts(
    source: Any,
    *,
    split: str | None = None,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
) -> list[Conversation]:
    """Load what comes before the answer in each row of a source.

    Args:
        source: what `pact.data.examples.load_examples` takes; a row has `prompt`, a string or a
            list of messages, or `messages`. A completion, and the assistant's turns at the end, are
            left out.
        split: which part of a data set with several parts; None takes the only one there is.
        subset: which configuration of a data set that has several.
        columns: names that rows are read by, such as `prompt`, to those that the data have.
        skip_bad_rows: leave out rows that are malformed, and count them in the log.

    Returns:
        Conversations that wait for an answer, in order.

    Raises:
        ValueError: the source is missing, empty or malformed, or a row leaves nothing to answer.
    """
    check_columns(columns)
    found = open_source(source, split, subset)
    conversations = read_rows(found, skip_bad_rows, _unanswered, columns)
    prompts = []
    for conversation in conversations:
        try:
            prompts.append(waiting(conversation))
        except ValueError as error:
            if not skip_bad_rows:
                raise ValueError(f"{conversation.where}: {error}") from error
    if not prompts:
        raise ValueError(f"the prompts must hold a turn to answer, got none in {source}")
    return prompts


def waiting(prompt: str | Sequence[Message]) -> Conversation:
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
    return Conversation(turns) if isinstance(prompt, str) else like(prompt, turns)


def readable(turns: Sequence[Message]) -> str:
    """A prompt as text: a lone user's words, or all turns with their roles.

    An empty system turn, which keeps a template's own words out, is nothing to read.
    """
    turns = [turn for turn in turns if turn["role"] != "system" or turn["content"]]
    if [turn["role"] for turn in turns] == ["user"]:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _unanswered(row: Any) -> Any:
    """A row in a form that needs no answer."""
    if not isinstance(row, Mapping) or row.get("messages") is not None:
        return row
    return row if row.get("prompt") is None else {**row, "completion": ""}
