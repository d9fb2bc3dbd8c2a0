"""How far the work is: a bar on a terminal, elsewhere a line every so often."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

INTERVAL_S = 30.0
"""Between two lines where there is no terminal."""

_Item = TypeVar("_Item")


def progress_bar(
    total: int, title: str, unit: str, *, initial: int = 0, show: bool = True
) -> tqdm[Any] | Lines:
    """A bar, or lines in the log where stderr is no terminal; both are context managers.

    Args:
        total: of the work, in units.
        title: what the work is called.
        unit: a unit's name, in the singular.
        initial: units that were done before.
        show: whether anything is shown.
    """
    if not show or sys.stderr.isatty():
        return tqdm(total=total, initial=initial, desc=title, unit=unit, disable=not show)
    return Lines(total, title, unit, initial)


def counted(
    items: Iterable[_Item], total: int, title: str, unit: str, show: bool
) -> Iterator[_Item]:
    """The items, counted as they are taken."""
    with progress_bar(total, title, unit, show=show) as bar:
        for item in items:
            yield item
            bar.update(1)


class Lines:
    """A line in the log every INTERVAL_S, and one at the end.

    Args:
        total, title, unit, initial: as of `progress_bar`.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str,
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.title, self.unit = total, title, unit
        self.initial = self.done = self.said = initial
        self.clock = clock
        self.start_s = self.said_s = clock()
        self.note = ""

    def update(self, count: int = 1) -> None:
        """Count units as done."""
        self.done += count
        if self.clock() - self.said_s >= INTERVAL_S:
            self._say()

    def set_postfix_str(self, note: str) -> None:
        """What the next line says besides."""
        self.note = note

    def close(self) -> None:
        """Say the last line, if anything was done since the one before."""
        if self.done != self.said:
            self._say()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def _say(self) -> None:
        now_s = self.clock()
        spent_s = now_s - self.start_s
        left = ""
        if self.initial < self.done < self.total:
            left_s = spent_s * (self.total - self.done) / (self.done - self.initial)
            left = f", {_duration(left_s)} left"
        logger.info(
            "%s: %d of %d %ss in %s%s%s",
            self.title,
            self.done,
            self.total,
            self.unit,
            _duration(spent_s),
            left,
            f"; {self.note}" if self.note else "",
        )
        self.said, self.said_s = self.done, now_s


def _duration(seconds: float) -> str:
    """As seconds below two minutes, then as minutes, then as hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
