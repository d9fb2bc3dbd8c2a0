"""The folder of a run: empty or its own, and held by one run at a time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from pact.common.disk import PARTIAL
from pact.common.outputs import check_folder
from pact.common.settings import user_path
from pact.models.loading import ADAPTERS_FILE, OWN_BASE
from pact.reference.locks import acquired
from pact.training.checkpoint import CHECKPOINTS
from pact.training.config import CONFIG_FILE
from pact.training.metrics import METRICS_FILE
from pact.training.trackers import TRACKERS

logger = logging.getLogger(__name__)

LOCK_FILE, HOLDER_FILE = ".lock", ".holder"


@contextmanager
def held_folder(folder: Path, resume: bool) -> Iterator[Path]:
    """Hold a run's folder, which is made if it is not there, until the block ends.

    A holder that dies lets go of it. A folder in which nothing was written is taken away again, and
    so are the settings of a run that failed before its first record, and what its trackers began:
    the same call, mended, can begin there.

    Args:
        folder: the run's.
        resume: whether a run may be in it already.

    Raises:
        ValueError: it is a file, another run holds it, it has files that are no run's, or it has a
            run and `resume` is off.
    """
    before = check_contents(folder, resume)
    check_folder(folder, "output_dir")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    if acquired(lock, wait=False) == "busy":
        raise ValueError(
            f"output_dir must be of one run at a time, and {folder} is held by {_holder(folder)}: "
            "wait for it, stop it, or name another folder"
        )
    try:
        check_contents(folder, resume)  # another run may have been here before the lock was ours
        _remove_partial(folder)
        (folder / HOLDER_FILE).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield folder
    except Exception:
        _forget(folder, before)
        raise
    finally:
        with suppress(OSError):  # a folder that turned read-only: what went wrong before is said
            (folder / HOLDER_FILE).unlink(missing_ok=True)
            _tidy(folder, made)
        lock.release()


def check_output(folder: Path, taken: Mapping[str, str | None]) -> None:
    """Refuse an output folder that is one of the run's inputs, or in one of its folders of data.

    A folder within a model's is none of its files, but for those where a run keeps its own.

    Args:
        folder: the output.
        taken: setting -> path, name or None.

    Raises:
        ValueError: it is one of them, or cannot be written to.
    """
    here = folder.resolve()
    for name, place in _places(taken):
        there = place.resolve()
        of_a_model = (there / "config.json").is_file() or (there / ADAPTERS_FILE).is_file()
        own = [there / inner for inner in (OWN_BASE, CHECKPOINTS)] if of_a_model else [there]
        own = [] if name == "cache_dir" else own  # its caches have folders of their own
        if here == there or any(here.is_relative_to(path) for path in own):
            where = "is" if here == there else f"is in {there}, which is of"
            raise ValueError(
                f"output_dir must be apart from what the run reads, got {folder}, which {where} "
                f"its {name}: name another folder"
            )
    check_folder(folder, "output_dir")


def _places(taken: Mapping[str, str | None]) -> Iterator[tuple[str, Path]]:
    """Each setting's path, and the base of adapters that one of them leads to."""
    for name, value in taken.items():
        if value is None:
            continue
        path = user_path(value)
        yield name, path
        try:
            adapters = json.loads((path / ADAPTERS_FILE).read_text(encoding="utf-8"))
            base = adapters["base_model_name_or_path"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # no adapters, or such as their loader refuses
        if isinstance(base, str) and Path(base).is_dir():
            yield f"{name}'s base", Path(base)


def check_contents(folder: Path, resume: bool) -> set[str]:
    """Refuse a folder that a run cannot begin in, or be resumed in; see `held_folder`.

    Returns:
        The names of what is in it, but for the lock's.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {folder}: name another")
    if not folder.is_dir():
        return set()
    names = _names(folder)
    if names and not resume:
        raise ValueError(
            f"output_dir must be empty, got {folder} with files in it: name another folder, or go "
            "on with its run by resume=True (--resume)"
        )
    if names and not names & {CONFIG_FILE, CHECKPOINTS}:
        raise ValueError(
            f"a run can be resumed in its own folder alone, got {folder} with files of no run in "
            f"it ({sorted(names)[0]}): name the folder of the run, or an empty one"
        )
    return names


def _names(folder: Path) -> set[str]:
    found = {path.name for path in folder.iterdir()} - {LOCK_FILE, HOLDER_FILE}
    return {name for name in found if not name.endswith(PARTIAL)}


def _remove_partial(folder: Path) -> None:
    """Take away what a killed run was writing; the lock is held."""
    for path in folder.glob(f"*{PARTIAL}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER_FILE).read_text(errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


def _forget(folder: Path, before: set[str]) -> None:
    """Take away what a run wrote that failed before its first record."""
    with suppress(OSError):
        new = _names(folder) - before
        ours = {CONFIG_FILE, METRICS_FILE, TRACKERS}
        if new <= ours and not _size(folder / METRICS_FILE):
            for name in new:
                _remove(folder / name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tidy(folder: Path, made: Sequence[Path]) -> None:
    """Take away the lock's file where nothing else is there, and what was made to hold it."""
    with suppress(OSError):  # another run may begin in it now
        if not _names(folder):
            (folder / LOCK_FILE).unlink(missing_ok=True)
            for path in made:
                path.rmdir()
