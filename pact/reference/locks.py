"""One filler at a time for a file of a cache, over all launches that fill it at once.

The lock is the system's, on a file beside the one that is written: a filler that dies lets go of
it, and it holds over the hosts of a file system that has locks. Whoever holds it knows that every
partial file of that name is what a killed filler left.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import BaseFileLock, FileLock, Timeout

from pact.reference.shards import writing

logger = logging.getLogger(__name__)

State = Literal["held", "busy", "none"]
"""Whether a lock is ours, another's, or the file system has none."""

SUFFIX = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[State]:
    """Hold the lock of a file until the block ends.

    Args:
        path: the file that is to be written.
        wait: until another filler lets go; else the block runs at once, as "busy".

    Yields:
        Whether it is held.

    Raises:
        ValueError: the folder cannot be written.
    """
    lock = FileLock(lock_path(path))
    with writing(path.parent):
        state = acquired(lock, wait)
    try:
        yield state
    finally:
        lock.release()


def acquired(lock: BaseFileLock, wait: bool) -> State:
    """Take a lock, if it can be had.

    Args:
        lock: of a file.
        wait: until whoever holds it lets go.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return "busy"
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        path = Path(lock.lock_file).parent
        logger.warning(
            "%s cannot be locked (%s): start no other run that writes there", path, error
        )
        return "none"
    return "held"


def lock_path(path: Path) -> Path:
    """The file that is locked in place of a file. It may be removed by its holder once that one is
    whole: who takes a new one then finds nothing to write."""
    return path.with_suffix(SUFFIX)
