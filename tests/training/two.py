"""Two processes that train together, forked from one that has imported what they need.

Launchers are `test_loop`'s: each starts a process of its own, and two that import all anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.soak.victim import launched, server


def in_two_processes(act: Callable[[Path], None], folder: Path) -> None:
    """Run a function of a module in both, with a folder.

    Raises:
        AssertionError: it did not return in one of them; with what they said.
    """
    log = folder / "log"
    log.touch()
    processes = [
        server().Process(target=_run, args=(act, folder, log, own), daemon=True)
        for own in launched(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], log.read_text()[-3000:]


def _run(act: Callable[[Path], None], folder: Path, log: Path, own: dict[str, str]) -> None:
    os.environ.update(own)
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    act(folder)
