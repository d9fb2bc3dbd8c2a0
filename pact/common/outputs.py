"""Where a command writes: looked at before the work begins, and filled whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def check_new_file(
    path: Path,
    name: str = "output",
    *,
    overwrite: bool | None = None,
    inputs: Mapping[str, str | Path | None] | None = None,
) -> None:
    """Refuse a place for a file that is taken or cannot be written to.

    Args:
        path: the file to be written.
        name: what the setting is called.
        overwrite: whether a file that is there is replaced; None where the command has no such
            setting, and replaces none.
        inputs: what is read, by the names of the settings; none of it is replaced in any case.

    Raises:
        ValueError: a file or a folder is there, it is one of the inputs, or no file can be made
            there.
    """
    if path.is_dir():
        raise ValueError(f"{name} {path} must be a new file, got a folder: name a file in it")
    for setting, source in (inputs or {}).items():
        if source is not None and path.exists() and _is_same(path, Path(source)):
            raise ValueError(
                f"{name} must be apart from what is read, got {path}, which is {setting}: name "
                "another file"
            )
    if path.exists() and not overwrite:
        way = "delete it" if overwrite is None else "set overwrite"
        raise ValueError(f"{name} {path} must be a new file: name another, or {way}")
    _check_writable(path, name)


def check_new_folder(path: Path, name: str = "output_dir") -> None:
    """Refuse a place for a folder that is taken or cannot be written to.

    Raises:
        ValueError: a file is there, or a folder that is not empty, or none can be made there.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{name} must be absent or an empty folder, got {path}: name another, or delete it"
        )
    _check_writable(path, name)


def check_folder(path: Path, name: str) -> None:
    """Refuse a folder that is a file, or that cannot be written to or made.

    Raises:
        ValueError: it is.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name} must be a folder, got the file {path}: name another")
    _check_writable(path / "file", name)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; the file becomes `path` only if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        partial = Path(folder) / path.name
        yield partial
        os.replace(partial, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `path`, absent or empty, only if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        partial = Path(folder) / path.name
        partial.mkdir()
        yield partial
        if path.exists():  # POSIX alone renames over an empty folder
            path.rmdir()
        partial.rename(path)


def _check_writable(path: Path, name: str) -> None:
    """Make a file without a name where `path` is to be, or the first folder on the way to it."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # a file on the way, a folder that is only read, a full disk
        raise ValueError(
            f"{name} must be a place that can be written to, got {path} ({there}: "
            f"{error.strerror}): name another"
        ) from error


def _is_same(path: Path, source: Path) -> bool:
    try:
        return path.samefile(source.expanduser())
    except (OSError, RuntimeError):  # the source is not there: a hub name, or a mistake
        return False
