"""Rows of data from where users keep them: files, folders, saved data sets, hub names, lists."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    config,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from huggingface_hub import metadata_load

from pact.common.hub import check_on_hub
from pact.common.settings import user_path
from pact.data.jsonl import parse_json, parse_line, read_lines, read_text


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
    are_texts: bool = False
    """Whether values are texts alone, as in CSV: lists are there as their JSON."""


FILES = (".jsonl", ".json", ".csv", ".parquet")
"""What data files end in."""
SNAPSHOT = {
    ".parquet": "Parquet",
    ".jsonl": "JSON",
    ".json": "JSON",
    ".csv": "CSV",
    ".arrow": "Arrow",
}
"""What the files of a folder of a hub's data set end in, and their kinds."""
NO_DATA = (
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
)
"""Files beside the data, which describe them."""


def open_source(source: Any, split: str | None, subset: str | None = None) -> Source:
    """Find the rows of a source; they are read as they are asked for.

    Args:
        source: a path to a .jsonl file (one row a line), a .json file (one array of rows), a .csv
            file (with a header) or a .parquet file; a folder written by `Dataset.save_to_disk` or
            one with a data set's files, as a snapshot of the hub's; a name that
            `datasets.load_dataset` knows; a `Dataset`, a `DatasetDict`, or a list.
        split: which part of a source of several; None takes the only one there is.
        subset: which configuration of a data set of the hub's, or of such a folder.

    Raises:
        ValueError: the source is missing or malformed, or has no such part.
    """
    if isinstance(source, (str, Path)):
        return _open_path(source, split, subset)
    if subset is not None:
        raise ValueError(f"a subset is of a data set's name or folder, got subset={subset!r}")
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


def _open_path(source: str | Path, split: str | None, subset: str | None) -> Source:
    path = user_path(source)
    if path.is_dir():
        return _open_folder(path, split, subset)
    if path.suffix in FILES:
        if not path.is_file():
            raise ValueError(f"data file {source} does not exist")
        if subset is not None:
            raise ValueError(f"a file has no subsets, got subset={subset!r} for {source}")
        return _open_file(path, str(source))
    if path.is_file():
        raise ValueError(
            f"a data file must end in {', '.join(FILES)}, got {source}: rename it, or load it with "
            "`datasets` and give the Dataset"
        )
    name = str(source)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"data {source} does not exist: neither a file nor a folder is there")
    return _from_hub(name, split, subset)


def _open_file(path: Path, name: str) -> Source:
    if path.suffix == ".jsonl":
        return Source(name, _json_lines(path))
    if path.suffix == ".csv":
        return Source(name, _csv_rows(path), are_texts=True)
    if path.suffix == ".parquet":
        return _numbered(name, _without_fill(_parquet_rows(path)))
    return _numbered(name, _json_array(path))


def _csv_rows(path: Path) -> Iterator[Row]:
    """Rows by the header's names: texts, None in empty cells; quoted ones may hold line breaks."""
    text = read_text(path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # of the process: never lowered
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, None)
        if not header or len(set(header)) < len(header):
            raise ValueError(f"{path} must begin with a line of different names, got {header}")
        for values in reader:
            if not values:
                continue
            where = f"line {reader.line_num} of {path}"
            if len(values) != len(header):
                fault = ValueError(
                    f"{where} must have {len(header)} values, as the header has, got {len(values)}"
                )
                yield Row(where, fault)
                continue
            yield Row(
                where, {name: value or None for name, value in zip(header, values, strict=True)}
            )
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except Exception as error:  # pyarrow raises errors of many kinds
        raise ValueError(f"{path} is not a whole Parquet file ({error})") from error


def _from_hub(name: str, split: str | None, subset: str | None) -> Source:
    if not (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        check_on_hub(name, "dataset", "README.md")
    try:
        loaded = load_dataset(name, subset, split=split)
    except Exception as error:  # the hub client raises errors of many kinds
        wanted = "" if split is None else f" with a split {split!r}"
        wanted += "" if subset is None else f" and a subset {subset!r}"
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


def _open_folder(path: Path, split: str | None, subset: str | None) -> Source:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _open_snapshot(path, split, subset)
    if subset is not None:
        raise ValueError(f"a saved data set has no subsets, got subset={subset!r} for {path}")
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # its readers raise errors of many kinds
        raise ValueError(f"{path} cannot be read as a saved data set: {_cause(error)}") from error
    if isinstance(loaded, DatasetDict):
        part = _part(loaded, split, str(path))
        return _numbered(str(path), _without_fill(loaded[part]), part)
    return _numbered(str(path), _without_fill(loaded))


def _open_snapshot(path: Path, split: str | None, subset: str | None) -> Source:
    """A folder as the hub has a data set: files, with a card or without."""
    files = _data_files(path)
    found = {suffix for file in files for suffix in _suffixes(file)}
    if not found:
        raise ValueError(
            f"a data folder must hold a data set: one written by Dataset.save_to_disk, or files "
            f"that end in {', '.join(SNAPSHOT)}, got none in {path}"
        )
    kinds = {SNAPSHOT[suffix] for suffix in found}
    if len(kinds) > 1 and not _has_card(path):
        raise ValueError(
            f"a data folder must hold files of one kind, got {' and '.join(sorted(found))} in "
            f"{path}: give one file, or a folder of one kind"
        )
    try:
        builder = load_dataset_builder(str(path), subset)
        loaded = load_dataset(str(path), subset)
    except Exception as error:  # its readers raise errors of many kinds
        raise ValueError(f"{path} cannot be read as a data set: {_cause(error)}") from error
    named = (builder.config.data_files or {}).values()
    read = {Path(name).resolve() for names in named for name in names}
    left = sorted(str(file) for file in files if file.resolve() not in read)
    if left and not _has_card(path):
        raise ValueError(
            f"in {path} the names of some files say their splits, so {left[0]} and "
            f"{len(left) - 1} more would be left out: name its split too, or give one file"
        )
    part = _part(loaded, split, str(path))
    source = _numbered(str(path), _without_fill(loaded[part]), part)
    return source._replace(are_texts=kinds == {"CSV"})


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _data_files(path: Path) -> list[Path]:
    """The data files of a folder, itself or below; hidden ones are none."""
    return [
        file
        for file in path.rglob("*")
        if file.name not in NO_DATA
        and not any(part.startswith((".", "__")) for part in file.relative_to(path).parts)
        and file.is_file()
        and _suffixes(file)
    ]


def _suffixes(file: Path) -> set[str]:
    """Those of data that a file's name ends in."""
    return {suffix for suffix in map(str.lower, file.suffixes) if suffix in SNAPSHOT}


def _has_card(path: Path) -> bool:
    """Whether a card says which files are the data; what is wrong with one, its reader says."""
    card = path / "README.md"
    try:
        configs = (metadata_load(card) or {}).get("configs") if card.is_file() else None
        return any({"data_files", "data_dir"} & set(config) for config in configs or ())
    except Exception:  # YAML's errors are of many kinds
        return True


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
