"""A function in a process of its own, and the memory that is resident there.

Such a process is forked from a server that has computed nothing, so that it starts with no other
measurement's memory. psutil reads what is resident as well, but neither its peak on Linux nor a
peak that was reset; memory_profiler samples, and misses what a call holds for a moment.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
KIB, MIB = 2**10, 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What CLEAR takes to lower the high-water mark to the memory now resident."""
_preloaded: dict[str, None] = {}


def in_own_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """What a function of a module returns there.

    Raises:
        BrokenProcessPool: the process was killed.
        Exception: the function's own.
    """
    with ProcessPoolExecutor(1, mp_context=_server()) as pool:
        return pool.submit(function, *args, **kwargs).result()


def preload(*modules: str) -> None:
    """Let the server import modules, once for all processes; a server that runs takes no more."""
    _preloaded.update(dict.fromkeys(modules))


@cache
def _server() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_preloaded])
    return context


def peak_mib() -> float:
    """High-water mark of this process.

    Of the memory map, unlike getrusage's ru_maxrss, which a child takes over from its parent.
    """
    return _status_mib("VmHWM")


def resident_mib() -> float:
    """Now."""
    return _status_mib("VmRSS")


def reset_peak() -> bool:
    """Lower the high-water mark to what is resident now; False where that is not permitted."""
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _status_mib(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * KIB / MIB
