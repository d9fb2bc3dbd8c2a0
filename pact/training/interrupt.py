"""Ctrl-C and SIGTERM: the step at hand is finished and saved, then the run ends."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch

logger = logging.getLogger(__name__)

TAKEN = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""The signals that are listened to, where nobody else does: with these handlers."""


class StoppedBySignal(KeyboardInterrupt):
    """A run that ended at a step's end because it was told to."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class SignalWatch:
    """Notes a first SIGINT or SIGTERM for the end of the step; a second one ends the run at once.

    A context. Outside the main thread, and where a program has its own handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for number, usual in TAKEN.items():
                if signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.number:
            raise StoppedBySignal(number, f"stopped by a second {name}, within a step")
        self.number = number
        logger.warning("%s: stopping at the end of this step; once more stops at once", name)

    def agreed(self, accelerator: Any, *, joined: bool) -> bool:
        """Whether to stop now: any process was told to.

        Args:
            accelerator: joins the processes.
            joined: whether they wait for each other at this step anyway; without, several processes
                go on until they do.
        """
        if accelerator.num_processes == 1:
            return self.number > 0
        if not joined:
            return False
        told = torch.tensor(self.number, device=accelerator.device)
        self.number = int(accelerator.gather(told).max())
        return self.number > 0

    def leave(self, step: int, checkpoint: Path | None) -> None:
        """End the run.

        Raises:
            StoppedBySignal: always.
        """
        kept = f"{checkpoint} is kept: go on by resume=True (--resume)"
        raise StoppedBySignal(
            self.number,
            f"stopped by {signal.Signals(self.number).name} after step {step}; "
            + (kept if checkpoint is not None else "no checkpoint is kept"),
        )
