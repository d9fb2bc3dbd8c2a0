"""The forms in which people keep conversations, all as `messages` or `prompt` and `completion`.

    messages                                    [{role, content}, ...]
    conversations                               ShareGPT's [{from, value}, ...], or messages
    prompt, completion                          as TRL has them
    instruction, input, output                  Alpaca's; `history` holds earlier pairs
    system                                      beside any of them: a system turn before the others

A row is read by the first of these that it has; its other columns are left out.

A mapping of columns gives a row's columns these names first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pact.data.conversation import Message
from pact.data.jsonl import parse_json

NAMES = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "chat_template_kwargs",
    "input_ids",
    "labels",
    "completion_mask",
    "assistant_masks",
    "attention_mask",
)
"""What a column may be called by a mapping."""
FORMS = (
    (("messages",), ("messages",)),
    (("conversations",), ("conversations",)),
    (("prompt", "completion"), ("prompt", "completion")),
    (("instruction",), ("instruction", "input", "output", "history")),
    (("prompt",), ("prompt",)),  # to be answered
)
"""The columns that a row of each form must have, and those that are read; the first form counts."""
BESIDE = ("system", "tools", "chat_template_kwargs")
"""What is read beside any form."""
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
}
"""ShareGPT's `from`, as roles."""


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Refuse a mapping to names that nothing reads.

    Raises:
        ValueError: there is one.
    """
    unknown = sorted(set(columns or {}) - set(NAMES))
    if unknown:
        raise ValueError(
            f"columns maps names of {', '.join(NAMES)} to those of the data, got {unknown[0]!r}"
        )


def renamed(row: Any, columns: Mapping[str, str] | None, where: str) -> Any:
    """A row with its columns under the names that are read here.

    Raises:
        ValueError: a column of the mapping is not there.
    """
    if not columns or not isinstance(row, Mapping):
        return row
    missing = [source for source in columns.values() if source not in row]
    if missing:
        raise ValueError(
            f"{where} lacks the column {missing[0]!r} of `columns`, got {sorted(map(str, row))}"
        )
    rest = {name: value for name, value in row.items() if name not in columns.values()}
    return rest | {name: row[source] for name, source in columns.items()}


def other_columns(
    row: Mapping[str, Any], columns: Mapping[str, str] | None, where: str
) -> set[str]:
    """The names of a row's columns that its form leaves out.

    Raises:
        ValueError: the mapping gave one of them its name.
    """
    form = _form(row)
    if not form:
        return set()  # malformed, which is said where it is read
    names = {str(name) for name, value in row.items() if value is not None} - {*form, *BESIDE}
    mapped = sorted(names & set(columns or {}))
    if mapped:
        raise ValueError(
            f"{where} is read by its {form[0]!r}, got `columns` that map {mapped[0]!r}, which "
            f"nothing reads then: take {form[0]!r} out of the data, or {mapped[0]!r} out of columns"
        )
    return names


def _form(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a row is read by; none where it has no form."""
    for needed, read in FORMS:
        if all(row.get(name) is not None for name in needed):
            return read
    return ()


def as_messages(row: Mapping[str, Any], where: str, is_text: bool = False) -> Mapping[str, Any]:
    """A row of any form with `messages`, or `prompt` and `completion`; of none, as it is.

    Args:
        row: the row; an Alpaca row without an output gets a `prompt` alone.
        where: what errors call it.
        is_text: its values are texts alone, so that lists of turns are there as their JSON.

    Raises:
        ValueError: a form is there and malformed.
    """
    made = dict(row)
    for name in ("messages", "conversations") if is_text else ():
        if isinstance(made.get(name), str):
            made[name] = _listed(made[name])
    form = _form(made)
    if "conversations" in form:
        made["messages"] = [
            _spoken(turn, f"{where}, message {n}")
            for n, turn in enumerate(_turns(made["conversations"], where))
        ]
    if "instruction" in form:
        name = "prompt" if made.get("output") is None else "messages"
        made[name] = _alpaca(made, where)
    system = made.get("system")
    if system:
        if not isinstance(system, str):
            raise ValueError(f"{where}: system must be a string, got {system!r:.80}")
        name = "messages" if made.get("messages") is not None else "prompt"
        made[name] = _with_system(made.get(name), system, where)
    return made


def _with_system(turns: Any, system: str, where: str) -> Any:
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, (list, tuple)) or not turns:
        return turns  # malformed, which is said where it is read
    if isinstance(turns[0], Mapping) and turns[0].get("role") in ("system", "developer"):
        raise ValueError(f"{where} has a system turn and a column `system`: leave one of them out")
    return [{"role": "system", "content": system}, *turns]


def _turns(value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{where} must hold a list of conversations' turns, got {value!r:.80}")
    return value


def _spoken(turn: Any, where: str) -> Message:
    """A turn of ShareGPT's as a message."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} must be an object, got {turn!r:.80}")
    if "role" in turn:
        return dict(turn)
    if "from" not in turn or "value" not in turn:
        raise ValueError(f"{where} must have `from` and `value`, got {sorted(map(str, turn))}")
    role = SPEAKERS.get(str(turn["from"]).lower())
    if role is None:
        raise ValueError(
            f"{where}: `from` must be one of {', '.join(SPEAKERS)}, got {turn['from']!r}"
        )
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {"role": role, "content": turn["value"], **rest}


def _alpaca(row: Mapping[str, Any], where: str) -> list[Message]:
    asked, given, answer = (row.get(name) for name in ("instruction", "input", "output"))
    for name, value in (
        ("instruction", asked),
        ("input", given or ""),
        ("output", "" if answer is None else answer),
    ):
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name} must be a string, got {value!r:.80}")
    messages: list[Message] = []
    for pair in row.get("history") or ():
        if not isinstance(pair, (list, tuple)) or [type(text) for text in pair] != [str, str]:
            raise ValueError(f"{where}: history must hold pairs of strings, got {pair!r:.80}")
        messages += _pair(*pair)
    pair = _pair(f"{asked}\n\n{given}" if given else str(asked), str(answer))
    return messages + (pair if answer is not None else pair[:1])


def _pair(asked: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _listed(text: str) -> Any:
    """The turns that a text is the JSON of; any other text as it is."""
    if not text.lstrip().startswith("[{"):
        return text
    try:
        value = parse_json(text)
    except ValueError:
        return text
    are_turns = all(isinstance(turn, Mapping) and {"role", "from"} & set(turn) for turn in value)
    return value if are_turns else text
