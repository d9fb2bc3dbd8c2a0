"""One run after another that is ended at given moments and gone on with, each to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.soak.victim import (
    NEVER,
    Moment,
    Settings,
    Victim,
    left_behind,
    prepare,
    start_server,
)

STOPPED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a run that was told to end; SIGTERM before the first step ends it by itself."""


class Alone(NamedTuple):
    """A run that nobody ends."""

    folder: Path
    """Its files, which the others read too."""
    processes: int
    left: dict[str, str]
    changes: int
    duration_s: float


def left_alone(folder: Path, settings: Settings, processes: int = 1) -> Alone:
    """Prepare a run's files, and let it end."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, settings)
    start_server()  # or the duration would have its imports in it
    begin_s = time.perf_counter()
    victim = Victim(folder, folder / "alone" / "run", NEVER, processes)
    assert victim.ended() == 0, victim.log.read_text()
    duration_s = time.perf_counter() - begin_s
    left = left_behind(folder / "alone" / "run")
    return Alone(folder, processes, left, victim.changes, duration_s)


class Ended(NamedTuple):
    """One chain."""

    codes: list[int]
    """How each process that was started ended; the last is 0."""
    differs: list[str]
    """Files that are not as those of the run that was left alone, more of them or less."""
    log: str


def chain(alone: Alone, place: Path, moments: Iterator[Moment]) -> Ended:
    """One run, gone on with after each of the moments that end it, until it has ended by itself.

    Args:
        alone: the run that it has to equal.
        place: a folder for it.
        moments: when a process is ended; after the last one, none is.

    Raises:
        AssertionError: a process ended in another way than it was told to.
    """
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        victim = Victim(alone.folder, place / "run", next(moments, NEVER), alone.processes)
        codes.append(victim.ended())
        log = victim.log.read_text()
        told = f"exit code {codes[-1]} after {victim.end}, of the others {victim.others}"
        assert codes[-1] in (0, *STOPPED), f"{told}: {log[-6000:]}"
    left = left_behind(place / "run")
    changed = {name for name, _ in left.items() ^ alone.left.items()}
    if {*codes} & {*STOPPED[1:]}:  # these save, so the last but one checkpoint is another
        changed = {name for name in changed if not name.startswith("run/checkpoints/")}
    return Ended(codes, sorted(changed), log)
