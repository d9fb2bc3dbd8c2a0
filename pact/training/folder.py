"""The folder of a run: empty or its own, and held by one run at a time."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pact.training.checkpoint import CHECKPOINTS
from pact.training.config import CONFIG_FILE

logger = logging.getLogger(__name__)

LOCK_FILE, HOLDER_FILE = ".lock", ".holder"


@contextmanager
def held_folder(folder: Path, resume: bool) -> Iterator[Path]:
    """Hold a run's folder, which is made if it is not there, until the block ends.

    A holder that dies lets go of it. A folder in which nothing was written is taken away again.

    Args:
        folder: the run's.
        resume: whether a run may be in it already.

    Raises:
        ValueError: it is a file, another run holds it, it has files that are no run's, or it has a
            run and `resume` is off.
    """
    check_contents(folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"output_dir must be of one run at a time, and {folder} is held by {_holder(folder)}: "
            "wait for it, stop it, or name another folder"
        ) from error
    except (NotImplementedError, OSError) as error:
        logger.warning("%s cannot be locked (%s): start no other run in it", folder, error)
    try:
        check_contents(folder, resume)  # another run may have been here before the lock was ours
        (folder / HOLDER_FILE).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield folder
    finally:
        (folder / HOLDER_FILE).unlink(missing_ok=True)
        _tidy(folder)
        lock.release()


def check_output(folder: Path, taken: Mapping[str, str | None]) -> None:
    """Refuse an output folder that is one of the run's inputs.

    Args:
        folder: the output.
        taken: setting -> path, name or None.

    Raises:
        ValueError: it is one of them.
    """
    here = folder.resolve()
    for name, value in taken.items():
        if value is not None and Path(value).expanduser().resolve() == here:
            raise ValueError(
                f"output_dir must be apart from what the run reads, got {folder}, which is its "
                f"{name}: name another folder"
            )


def check_contents(folder: Path, resume: bool) -> None:
    """Refuse a folder that a run cannot begin in, or be resumed in; see `held_folder`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {folder}")
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()} - {LOCK_FILE, HOLDER_FILE}
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


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER_FILE).read_text() or "another process"
    except OSError:
        return "another process"


def _tidy(folder: Path) -> None:
    """Take the folder away if nothing but the lock's file is in it."""
    if {path.name for path in folder.iterdir()} <= {LOCK_FILE}:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()
