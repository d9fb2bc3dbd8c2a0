"""Files that the disk has whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import xxhash

PARTIAL = ".partial"
"""What the name ends in of a file or folder that is not whole yet: a killed process leaves some."""
PIECE = 2**22
"""Bytes that are hashed at a time."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to, renamed to `path` once the disk has it; gone after an error."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush_names(path.parent)


def flush(path: Path) -> None:
    """Let the disk have a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_names(folder: Path) -> None:
    """Let the disk have the names in a folder, where its file system can be asked to."""
    with suppress(OSError):
        flush(folder)


def digest(path: Path) -> str:
    """XXH3 of a file's content, 32 hexadecimal digits."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()
