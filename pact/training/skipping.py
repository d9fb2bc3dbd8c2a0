"""Steps that a run leaves out since their loss or gradient was not finite, and how many it may."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pact.training.finite import Fault, Watch
from pact.training.metrics import Record

logger = logging.getLogger(__name__)

SKIPPED = "skipped_steps"
"""The count in the records: in all so far."""


class Skips:
    """The steps left out so far, over all stops and resumptions.

    Args:
        most: how many a run may leave out.
        records: of the run so far, which have the count.
    """

    def __init__(self, most: int, records: Sequence[Record]) -> None:
        self.most = most
        self.count = int(max((record.get(SKIPPED, 0) for record in records), default=0))

    def record(self) -> Record:
        """The count as a part of a record; nothing where no step may be left out."""
        return {SKIPPED: self.count} if self.most else {}

    def leave_out(
        self,
        watch: Watch,
        accelerator: Any,
        newest: Path | None,
        examples: Callable[[Fault], str],
    ) -> None:
        """Count the step that `watch` has just seen and say what it was, in all processes.

        Raises:
            ValueError: as many as may be were left out before it.
        """
        if self.count >= self.most:  # a resumed run may allow fewer
            try:
                watch.check(accelerator, newest, examples)
            except ValueError as error:
                raise ValueError(
                    f"{error}; {self.count} steps were left out before it, as many as "
                    "skip_bad_steps allows"
                ) from None
        fault = watch.fault(accelerator)
        assert fault is not None
        watch.forget()
        self.count += 1
        if accelerator.is_main_process:
            logger.warning(
                "left out a step, %d of at most %d: its %s was %s, %s",
                self.count,
                self.most,
                fault.name,
                fault,
                examples(fault),
            )
