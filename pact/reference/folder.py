"""The folder of a cache: where it may be, and what killed runs left in it."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pact.reference.locks import SUFFIX, held, lock_path
from pact.reference.shards import Layout, remove_partial


def check_cache_dir(folder: Path) -> None:
    """Refuse a place where no cache can be written, before a model is loaded to fill it.

    A folder that holds caches may be read-only: one that is whole is only read.

    Args:
        folder: the setting `cache_dir`, below which every cache has a folder.

    Raises:
        ValueError: it, or what it would be made in, is a file or cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    is_folder = there.is_dir()
    if is_folder and os.access(there, os.W_OK | os.X_OK):
        return
    if is_folder and there == folder and any(folder.iterdir()):
        return
    raise ValueError(
        f"the reference cache must be in a folder that can be written, got {folder}, and {there} "
        f"{'cannot be written' if is_folder else 'is a file'}: set cache_dir"
    )


def tidy(folder: Path, layout: Layout, whole: Collection[int]) -> None:
    """Remove what killed runs left beside shards that are whole."""
    left = {path.name.partition(".")[0] for path in folder.glob("shard-*") if _is_left(path)}
    for shard in whole:
        path = layout.path(folder, shard)
        if path.stem in left:
            remove_left(path)


def has_left(path: Path) -> bool:
    """Whether files of fillers are beside a file, live ones or not."""
    return any(_is_left(other) for other in path.parent.glob(f"{path.stem}.*"))


def remove_left(path: Path) -> None:
    """Remove what killed runs left of a file that is whole, unless a filler is at work on it; what
    cannot be removed stays, since it does no harm."""
    with suppress(ValueError, OSError), held(path, wait=False) as state:
        if state == "held":
            remove_partial(path)
            lock_path(path).unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    return path.suffix == SUFFIX or path.name.endswith("partial")
