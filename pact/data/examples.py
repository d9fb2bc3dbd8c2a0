"""Conversations from where users keep them: JSON files, saved datasets, hub names, lists.

A conversation is a list of messages, each {"role": ..., "content": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

Conversation: TypeAlias = list[dict[str, str]]

ROLES = ("system", "user", "assistant")


def load_examples(source: Any, *, split: str = "train") -> list[Conversation]:
    """Load conversations; every row holds `messages`, or `prompt` and `completion`.

    Args:
        source: a path to a .jsonl file (one row a line) or a .json file (one array of rows), a
            folder written by `Dataset.save_to_disk`, a name that `datasets.load_dataset` knows, a
            `Dataset`, or a list of dicts. `prompt` and `completion` are strings or lists of
            messages, as TRL has them; assistant turns inside a prompt are answers too.
        split: which part of a folder or hub data set with several parts.

    Returns:
        One conversation per row, in order; other keys of rows and messages are left out.

    Raises:
        ValueError: the source is missing, empty or malformed, or no row has an assistant turn.
    """
    name, rows = _read(source, split)
    conversations = [_conversation(row, f"row {n} of {name}") for n, row in enumerate(rows)]
    if not conversations:
        raise ValueError(f"the data must hold at least one row, got none in {name}")
    if not any(message["role"] == "assistant" for turns in conversations for message in turns):
        raise ValueError(
            f"no assistant turn in the data: none of the {len(conversations)} rows of {name} has a "
            "message with role 'assistant' or a completion, so there is nothing to learn from"
        )
    return conversations


def _read(source: Any, split: str) -> tuple[str, Iterable[Any]]:
    """What to call the source in errors, and its raw rows."""
    if isinstance(source, (str, Path)):
        return str(source), _read_path(source, split)
    if isinstance(source, DatasetDict):
        return "the given DatasetDict", _part(source, split, "the given DatasetDict")
    if isinstance(source, Dataset):
        return "the given Dataset", source
    if isinstance(source, (list, tuple)):
        return "the given list", source
    raise ValueError(
        f"the data must be a path, a data set's name, a Dataset or a list of dicts, got "
        f"{type(source).__name__}"
    )


def _read_path(source: str | Path, split: str) -> Iterable[Any]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split)
    if path.suffix in (".jsonl", ".json"):
        if not path.is_file():
            raise ValueError(f"data file {source} does not exist")
        return _read_jsonl(path) if path.suffix == ".jsonl" else _read_json(path)
    if path.is_file():
        raise ValueError(
            f"a data file must end in .jsonl or .json, got {source}: rename it, or load it with "
            "`datasets` and give the Dataset"
        )
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ValueError(f"data {source} does not exist: neither a file nor a folder is there")
    try:
        return load_dataset(source, split=split)
    except Exception as error:  # the hub client raises errors of many kinds
        raise ValueError(
            f"{source} is neither a file, nor a folder, nor a data set with a split {split!r} that "
            f"`datasets` can load ({type(error).__name__}: {error})"
        ) from error


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # JSON may hold other breaks
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: every line must be one JSON object, got invalid JSON "
                    f"({error.msg} at column {error.colno})"
                ) from error
    return rows


def _read_json(path: Path) -> list[Any]:
    try:
        rows = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: a .json file must be one array of rows, got invalid "
            f"JSON ({error.msg}); a file with one object a line must be named .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} must hold one array of rows, got a {type(rows).__name__}: wrap it in [...]"
        )
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, got other bytes ({error})") from error


def _read_folder(path: Path, split: str) -> Iterable[Any]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"a data folder must be written by Dataset.save_to_disk, got {path} without a "
            "state.json or dataset_dict.json: give one of its files instead"
        )
    loaded = load_from_disk(str(path))
    return _part(loaded, split, str(path)) if isinstance(loaded, DatasetDict) else loaded


def _part(parts: DatasetDict, split: str, name: str) -> Dataset:
    if split not in parts:
        raise ValueError(f"{name} has the splits {sorted(parts)}, got split={split!r}: name one")
    return parts[split]


def _conversation(row: Any, where: str) -> Conversation:
    """One row in either form as a conversation; `where` names it in errors."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object, got {type(row).__name__}")
    if row.get("messages") is not None:
        return _messages(row["messages"], where)
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt = _turns(row["prompt"], "user", where)
        return prompt + _turns(row["completion"], "assistant", where)
    raise ValueError(
        f"{where} must hold 'messages', or 'prompt' and 'completion', got the keys {sorted(row)}"
    )


def _turns(value: Any, role: str, where: str) -> Conversation:
    """A string as one message of `role`, or a list of messages as it is."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, where)


def _messages(value: Any, where: str) -> Conversation:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{where} must hold a list of messages, got {value!r:.80}")
    return [_message(message, f"{where}, message {n}") for n, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{where} must have a role and a content, got {message!r:.80}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"{where}: role must be one of {ROLES}, got {role!r}")
    if not isinstance(content, str):
        raise ValueError(f"{where}: content must be a string, got {content!r:.80}")
    return {"role": role, "content": content}
