"""Rows of data as conversations: every source, every form of a row, checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pact.data.conversation import Conversation, Message, read_message
from pact.data.forms import as_messages, check_columns, other_columns, renamed
from pact.data.jsonl import parse_json
from pact.data.sources import Source, open_source

__all__ = ["Conversation", "load_examples"]

logger = logging.getLogger(__name__)

MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def load_examples(
    source: Any,
    *,
    split: str | None = "train",
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
) -> list[Conversation]:
    """Load conversations, whose rows have one of the forms of `pact.data.forms`.

    The assistant's turns are what is learnt, but for those of a `prompt`, which TRL does not learn
    either, and those that say `weight: 0`, `train: false` or `training: false`. Thoughts and tool
    calls of a message, and a row's `tools` and `chat_template_kwargs`, go to the chat template.
    Other fields are left out, which the log says.

    Args:
        source: what `pact.data.sources.open_source` takes: files, folders, names, data sets, lists.
        split: which part of a data set with several parts; None takes the only one there is.
        subset: which configuration of a data set that has several.
        columns: names that rows are read by, such as `instruction`, to those that the data have.
        skip_bad_rows: leave out rows that are malformed, and count them in the log.

    Returns:
        One conversation per row, in order.

    Raises:
        ValueError: the source is missing, empty or malformed, or no row has an assistant turn to
            learn.
    """
    check_columns(columns)
    found = open_source(source, split, subset)
    conversations = read_rows(found, skip_bad_rows, columns=columns)
    roles = {message["role"] for turns in conversations for message in turns}
    if "assistant" not in roles:
        raise ValueError(
            f"no assistant turn in the data: none of the {len(conversations)} rows of {found.name} "
            "has a message with role 'assistant' or a completion, so there is nothing to learn from"
        )
    return conversations


def left_out(faults: list[str], num_rows: int, name: str) -> None:
    """Say how many rows were left out and why the first few were, if any was."""
    if faults:
        logger.warning(
            "left out %d of %d rows of %s: %s%s",
            len(faults),
            num_rows,
            name,
            "; ".join(faults[:3]),
            "; and more" if len(faults) > 3 else "",
        )


def say_unread(names: set[str], whose: str, source: str) -> None:
    """Name what nothing reads, if anything is."""
    if names:
        logger.info("%s: nothing reads the %s %s", source, whose, ", ".join(sorted(names)))


def read_rows(
    source: Source,
    skip_bad_rows: bool,
    change: Callable[[Any], Any] = lambda value: value,
    columns: Mapping[str, str] | None = None,
) -> list[Conversation]:
    """Every row as a conversation, after `change`; the log names what is left out.

    Raises:
        ValueError: a row is malformed and is not to be left out; or none is left.
    """
    conversations: list[Conversation] = []
    faults: list[str] = []
    unread_fields: set[str] = set()
    unread_columns: set[str] = set()
    for row in source.rows:
        try:
            if isinstance(row.value, ValueError):
                raise row.value
            value = renamed(row.value, columns, row.where)
            others: set[str] = set()
            if isinstance(value, Mapping):
                others = other_columns(value, columns, row.where)
                value = as_messages(value, row.where, source.are_texts)
            conversation, names = _conversation(row.where, change(value))
        except ValueError as error:
            if not skip_bad_rows:
                raise
            faults.append(str(error))
            continue
        conversations.append(conversation)
        unread_fields |= names
        unread_columns |= others
    left_out(faults, len(faults) + len(conversations), source.name)
    if faults and not conversations:
        raise ValueError(f"every row of {source.name} is bad; the first: {faults[0]}")
    if not conversations:
        raise ValueError(f"the data must hold at least one row, got none in {source.name}")
    say_unread(unread_columns, "columns", source.name)
    say_unread(unread_fields, "messages'", source.name)
    return conversations


def _conversation(where: str, value: Any) -> tuple[Conversation, set[str]]:
    """One row in either form as a conversation, and the names of what nothing reads."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {type(value).__name__}")
    for name in MEDIA:
        if value.get(name):
            raise ValueError(f"{where}: {name!r} cannot be followed: text alone is read")
    messages, unread = _row_messages(value, where)
    conversation = Conversation(
        messages,
        tools=_tools(value.get("tools"), where),
        template_kwargs=_template_kwargs(value.get("chat_template_kwargs"), where),
        where=where,
    )
    return conversation, unread


def _row_messages(row: Mapping[str, Any], where: str) -> tuple[list[Message], set[str]]:
    if row.get("messages") is not None:
        return _messages(row["messages"], where)
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt, unread = _turns(row["prompt"], "user", where)
        completion, more = _turns(row["completion"], "assistant", where)
        shown = [m | {"train": False} if m["role"] == "assistant" else m for m in prompt]
        return shown + completion, unread | more
    if row.get("instruction") is not None:
        raise ValueError(f"{where}: output must be a string, got {row.get('output')!r:.80}")
    null = [name for name in ("messages", "prompt", "completion") if name in row]
    null = [name for name in null if row[name] is None]
    raise ValueError(
        f"{where} must hold 'messages', 'conversations', 'prompt' and 'completion', or "
        "'instruction' and 'output' (--columns gives others these names), got the keys "
        f"{sorted(map(str, row))}"
        + (f", where {' and '.join(map(repr, null))} is null" if null else "")
    )


def _turns(value: Any, role: str, where: str) -> tuple[list[Message], set[str]]:
    """A string as one message of `role`, or a list of messages as it is."""
    if isinstance(value, str):
        return [{"role": role, "content": value}], set()
    return _messages(value, where)


def _messages(value: Any, where: str) -> tuple[list[Message], set[str]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{where} must hold a list of messages, got {value!r:.80}")
    messages: list[Message] = []
    unread: set[str] = set()
    for n, given in enumerate(value):
        follows_call = any("tool_calls" in message for message in messages)
        message, names = read_message(given, f"{where}, message {n}", follows_call)
        messages.append(message)
        unread |= names
    return messages, unread


def _tools(value: Any, where: str) -> list[Any] | None:
    """The row's tools, a list or the JSON of one."""
    tools = _parsed(value, where, "tools")
    if not isinstance(tools, (list, tuple, type(None))):
        raise ValueError(f"{where}: tools must be a list, got {value!r:.80}")
    return list(tools) if tools else None


def _template_kwargs(value: Any, where: str) -> Mapping[str, Any] | None:
    given = _parsed(value, where, "chat_template_kwargs")
    if not isinstance(given, (Mapping, type(None))):
        raise ValueError(f"{where}: chat_template_kwargs must be an object, got {value!r:.80}")
    return given


def _parsed(value: Any, where: str, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise ValueError(f"{where}: {name} must be JSON, got {value!r:.80}") from error
