"""What a folder of files held when it was written, so that damage is noticed before it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pact.common.disk import PARTIAL, digest, flush, flush_names

MANIFEST = "manifest.json"
VERSION = 1


@contextmanager
def closed_folder(folder: Path, step: int) -> Iterator[Path]:
    """A folder to write files into, closed by a manifest; then it takes the place of `folder`.

    After a crash the old folder is there, or the new one, or none and a partial one.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    write_manifest(partial, step)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    flush_names(folder.parent)


def write_manifest(folder: Path, step: int) -> None:
    """Name every file of a folder with its size and digest, and flush all of them to the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        flush(path)
        files[path.name] = [path.stat().st_size, digest(path)]
    manifest = {"version": VERSION, "step": step, "files": files}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, separators=(",", ":")), encoding="utf-8")
    flush(path)
    flush_names(folder)


def damage(folder: Path, step: int, only: Collection[str] | None = None) -> str | None:
    """What is wrong with a folder that `write_manifest` closed, or None.

    Args:
        folder: the folder.
        step: the one that it should be of.
        only: the names of the files that are read; None reads all.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, RecursionError):
        return f"{MANIFEST} cannot be read"
    if not _is_manifest(manifest):
        return f"{MANIFEST} is not as it was written"
    if manifest["step"] != step:
        return f"it is of step {manifest['step']}"
    for name, (size, written) in manifest["files"].items():
        path = folder / name
        if only is not None and name not in only:
            continue
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes of {size}"
            if digest(path) != written:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _is_manifest(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"version", "step", "files"}:
        return False
    files = value["files"]
    return (
        value["version"] == VERSION
        and isinstance(files, dict)
        and all(Path(name).name == name for name in files)
        and all(isinstance(entry, list) and len(entry) == 2 for entry in files.values())
    )
