"""JSON lines: one value a line, and the number of the line that holds it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DEEPEST = 100
"""Lists and objects within each other that are read; whoever prints or renders a value goes as
deep."""

_TOO_DEEP = f"JSON must not be nested deeper than {DEEPEST} levels, got more: flatten it"


class Line(NamedTuple):
    """One line of a file that is not blank."""

    number: int
    """Its place in the file, from 1, blank lines counted."""
    text: str
    """As it stands, without the newline."""


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a text file that are not blank.

    A newline alone ends a line: JSON strings may hold U+2028, U+0085 and their kin as they are.

    Raises:
        ValueError: the file is not UTF-8.
    """
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            yield Line(number, text)


def parse_line(line: Line, path: Path) -> Any:
    """The value that a line holds.

    Raises:
        ValueError: it is not JSON; the message has the file, the line and the column.
    """
    try:
        return parse_json(line.text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line.number}: every line must be one JSON object, got invalid JSON "
            f"({error.msg} at column {error.colno})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}, line {line.number}: {error}") from error


def parse_json(text: str) -> Any:
    """A JSON text as Python values.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: it is nested too deeply, has a name twice in one object, or holds half of a
            surrogate pair, which is no text.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "text must be Unicode characters, got half of a surrogate pair, such as \\ud800: "
                "write the character itself"
            ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are different: of two, one would be left out."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, times in counts.items() if times > 1)
        raise ValueError(f"an object must have each name once, got {twice!r:.80} twice")
    return made


def _check_depth(value: Any) -> None:
    """Refuse a value that is nested too deeply, level by level."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [entry for entry in level if isinstance(entry, (dict, list))]
        if not inner:
            return
        level = []
        for entry in inner:
            level += entry.values() if isinstance(entry, dict) else entry
    raise ValueError(_TOO_DEEP)


def read_text(path: Path) -> str:
    """A text file without its byte-order mark.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, got other bytes ({error})") from error
