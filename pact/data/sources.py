"""Rows of data from where users keep them: JSON files, saved data sets, hub names, lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, config, load_dataset, load_from_disk

from pact.data.jsonl import parse_json, parse_line, read_lines, read_text
from pact.hub import check_on_hub


class Row(NamedTuple):
    """One row as its source has it."""

    where: str
    """What errors call it."""
    value: Any
    """An object, if all is well; a ValueError where the row cannot be read."""


class Source(NamedTuple):
    """A named source and its rows."""

    name: str
    rows: Iterable[Row]
    split: str | None = None
    """Which part of several it is, or the only one; None for a source without parts."""


def open_source(source: Any, split: str | None) -> Source:
    """Find the rows of a source; they are read as they are asked for.

    Args:
        source: a path to a .jsonl file (one row a line) or a .json file (one array of rows), a
            folder written by `Dataset.save_to_disk`, a name that `datasets.load_dataset` knows, a
            `Dataset`, a `DatasetDict`, or a list.
        split: which part of a source of several; None takes the only one there is.

    Raises:
        ValueError: the source is missing or malformed, or has no such part.
    """
    if isinstance(source, (str, Path)):
        return _open_path(source, split)
    if isinstance(source, DatasetDict):
        name = "the given DatasetDict"
        part = _part(source, split, name)
        return _numbered(name, _without_fill(source[part]), part)
    if isinstance(source, Dataset):
        return _numbered("the given Dataset", _without_fill(source))
    if isinstance(source, (list, tuple)):
        return _numbered("the given list", source)
    raise ValueError(
        f"the data must be a path, a data set's name, a Dataset or a list of dicts, got "
        f"{type(source).__name__}"
    )


def _numbered(name: str, values: Iterable[Any], split: str | None = None) -> Source:
    rows = (Row(f"row {n} of {name}", value) for n, value in enumerate(values))
    return Source(name, rows, split)


def _open_path(source: str | Path, split: str | None) -> Source:
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise ValueError(f"data {source} does not exist: {error}") from error
    if path.is_dir():
        return _open_folder(path, split)
    if path.suffix in (".jsonl", ".json"):
        if not path.is_file():
            raise ValueError(f"data file {source} does not exist")
        if path.suffix == ".jsonl":
            return Source(str(source), _json_lines(path))
        return _numbered(str(source), _json_array(path))
    if path.is_file():
        raise ValueError(
            f"a data file must end in .jsonl or .json, got {source}: rename it, or load it with "
            "`datasets` and give the Dataset"
        )
    name = str(source)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"data {source} does not exist: neither a file nor a folder is there")
    return _from_hub(name, split)


def _from_hub(name: str, split: str | None) -> Source:
    if not (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        check_on_hub(name, "dataset", "README.md")
    try:
        loaded = load_dataset(name, split=split)
    except Exception as error:  # the hub client raises errors of many kinds
        wanted = "" if split is None else f" with a split {split!r}"
        raise ValueError(
            f"{name} is neither a file, nor a folder, nor a data set{wanted} that `datasets` can "
            f"load ({type(error).__name__}: {error})"
        ) from error
    if isinstance(loaded, DatasetDict):
        split = _part(loaded, split, name)
        loaded = loaded[split]
    return _numbered(name, _without_fill(loaded), split)


def _json_lines(path: Path) -> Iterator[Row]:
    for line in read_lines(path):
        where = f"line {line.number} of {path}"
        try:
            yield Row(where, parse_line(line, path))
        except ValueError as error:
            yield Row(where, error)


def _json_array(path: Path) -> list[Any]:
    try:
        rows = parse_json(read_text(path))
    except ValueError as error:
        line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        raise ValueError(
            f"{path}{line}: a .json file must be one array of rows, got invalid JSON "
            f"({getattr(error, 'msg', error)}); a file with one object a line must be named .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} must hold one array of rows, got a {type(rows).__name__}: wrap it in [...]"
        )
    return rows


def _open_folder(path: Path, split: str | None) -> Source:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"a data folder must be written by Dataset.save_to_disk, got {path} without a "
            "state.json or dataset_dict.json: give one of its files instead"
        )
    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        part = _part(loaded, split, str(path))
        return _numbered(str(path), _without_fill(loaded[part]), part)
    return _numbered(str(path), _without_fill(loaded))


def _part(parts: DatasetDict, split: str | None, name: str) -> str:
    """The name of the part that is meant."""
    if split is None and len(parts) == 1:
        return next(iter(parts))
    if split is None or split not in parts:
        raise ValueError(f"{name} has the splits {sorted(parts)}, got split={split!r}: name one")
    return split


def _without_fill(rows: Iterable[Any]) -> Iterator[Any]:
    """Rows without the None that Arrow puts where one row lacks a field that another has."""
    for row in rows:
        yield _bare(row)


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _bare(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_bare(entry) for entry in value]
    return value
