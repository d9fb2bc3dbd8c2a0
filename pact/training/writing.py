"""What a run writes on its way: records, evaluations' best weights, checkpoints, the picture.

The main process writes. What it cannot write ends all processes alike, so that none waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from pact.common.processes import main_first
from pact.training.checkpoint import (
    CHECKPOINTS,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from pact.training.config import FitConfig
from pact.training.evaluating import LOSS, BestWeights
from pact.training.finite import kept
from pact.training.identity import Identity
from pact.training.metrics import MetricsLog, Record
from pact.training.step import Parts
from pact.training.trackers import started_trackers


class Writer:
    """The files of a run; as a context, its picture is drawn when an error or a signal ends it.

    Args:
        output_dir: an existing folder; None keeps records and best weights in memory.
        accelerator: knows the processes.
        config: the settings.
        identity: what the run is of, kept in its checkpoints.
        first: steps done before; later records are dropped, since they are made again.
    """

    def __init__(
        self,
        output_dir: Path | None,
        accelerator: Accelerator,
        config: FitConfig,
        identity: Identity | None,
        first: int,
    ) -> None:
        self.folder, self.config, self.identity = output_dir, config, identity
        self.is_main = accelerator.is_main_process
        self.log = MetricsLog(None)

        def open_log() -> None:
            self.log = MetricsLog(output_dir, resume_step=first)

        self._write("the metrics", open_log)
        before = self.log.records
        if accelerator.num_processes > 1:
            before = list(broadcast_object_list([before])[0])
        self.before: list[Record] = before
        """The main process's records of the steps before `first`, in every process."""
        self.best = BestWeights(output_dir, before, config.patience)
        self._track = started_trackers(accelerator, config, output_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            with suppress(Exception):  # a full disk, for one: what went wrong before is said
                self.log.plot()

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, if there is any."""
        return None if self.folder is None else newest_checkpoint(self.folder)

    def record(self, record: Record) -> None:
        """Add a record to the metrics, and give it to the trackers."""
        self._write("the metrics", lambda: self.log.append(record))
        if not self.is_main:
            self.log.append(record)  # in memory
        self._track(record)

    def evaluated(self, record: Record, parts: Parts) -> None:
        """Add an evaluation's record, and keep the weights if they are the best so far."""
        self.record(record)
        step, loss = int(record["step"]), record[LOSS]

        def see(writes: bool) -> None:
            self.best.see(step, loss, parts.parameters, writes=writes)

        self._write("the best weights", lambda: see(self.config.keep_best))
        if not self.is_main:
            see(writes=False)

    def checkpoint(self, step: int, parts: Parts, *, plots: bool) -> None:
        """Keep the state after `step` steps where there is a folder for it; plot if that is due."""
        folder, keep = self.folder, self.config.save_total_limit
        if folder is None:
            return

        def save() -> None:
            save_checkpoint(folder, step, parts.parameters, parts.optimizer, self.identity, keep)
            if plots:
                self.log.plot_if_due()

        self._write(f"the checkpoint of step {step}", save)

    def finish(self, step: int) -> None:
        """Draw the records, and take away what a killed process left beside the checkpoints."""
        folder = self.folder

        def act() -> None:
            self.log.plot()
            if folder is not None and (folder / CHECKPOINTS).is_dir():
                prune_checkpoints(folder, step, self.config.save_total_limit)

        self._write("the picture of the metrics", act)

    def _write(self, what: str, act: Callable[[], None]) -> None:
        """Let the main process write, while the others wait.

        Raises:
            ValueError: it could not, in all processes.
        """

        write_first(what, self.folder, act)


def write_first(what: str, folder: Path | None, act: Callable[[], None]) -> None:
    """Let the main process write into a run's folder, while the others wait.

    Args:
        what: it is called that in the error.
        folder: the run's, if it has one.
        act: writes.

    Raises:
        ValueError: it could not be written, in all processes.
    """

    def guarded() -> None:
        try:
            act()
        except (OSError, SafetensorError, RuntimeError) as error:  # safetensors', torch.save's
            newest = None if folder is None else newest_checkpoint(folder)
            raise ValueError(
                f"{what} could not be written: {error}; {kept(newest)}: make room in {folder}, "
                "or write elsewhere, and go on by resume=True (--resume)"
            ) from error

    main_first(PartialState(), guarded)
