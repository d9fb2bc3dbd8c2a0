"""What a run needs to go on after a stop: the trained weights and the optimiser's state at a step.

The order of the data, the learning rate and the dropout are functions of the step (`schedule`), so
nothing else is state. A checkpoint is written under another name, flushed, closed by a manifest and
renamed; what is no longer as its manifest says is passed over.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pact.training.manifest import closed_folder, damage

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
RUN_FILE = "run.json"
"""What the run is of, in each checkpoint."""
_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(
    output_dir: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write the state after `step` steps, then delete the older checkpoints but the newest ones.

    Args:
        output_dir: the run's folder; the checkpoint is `checkpoints/step-<step>` in it.
        step: optimiser steps done.
        parameters: what is trained, by name.
        optimizer: its state is kept whole.
        identity: what the run is of, JSON values; see `pact.training.identity`.
        keep: how many are kept, this one among them.
    """
    complete = output_dir / CHECKPOINTS / f"step-{step:08d}"
    with closed_folder(complete, step) as partial:
        weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        save_file(weights, partial / "weights.safetensors")
        torch.save({"step": step, "optimizer": optimizer.state_dict()}, partial / "state.pt")
        if identity is not None:
            (partial / RUN_FILE).write_text(json.dumps(identity, indent=1), encoding="utf-8")
    prune_checkpoints(output_dir, step, keep)
    return complete


def prune_checkpoints(output_dir: Path, step: int, keep: int) -> None:
    """Delete all but the newest checkpoints up to a step: older, later and partial ones.

    Args:
        output_dir: the run's folder.
        step: of the newest one that stays.
        keep: how many stay.
    """
    older = [p for p in _complete(output_dir) if _step(p) <= step]
    for other in (output_dir / CHECKPOINTS).iterdir():
        if other not in older[-keep:]:
            shutil.rmtree(other)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _complete(output_dir: Path) -> list[Path]:
    """By their steps."""
    found = (output_dir / CHECKPOINTS).glob("step-*")
    return sorted((p for p in found if _NAME.fullmatch(p.name)), key=_step)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint with the most steps, if there is one; it is not looked into."""
    return next(reversed(_complete(output_dir)), None)


def whole_checkpoint(output_dir: Path, only: Collection[str] | None = None) -> Path | None:
    """The newest checkpoint that is as it was written, if there is any; says what it passes over.

    Args:
        output_dir: the run's folder.
        only: the files of it that are going to be read; None is all.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged.
    """
    passed: list[str] = []
    for checkpoint in reversed(_complete(output_dir)):
        found = damage(checkpoint, _step(checkpoint), only)
        if found is None:
            for line in passed:
                logger.warning("passed over the checkpoint %s; going on from %s", line, checkpoint)
            return checkpoint
        passed.append(f"{checkpoint} ({found})")
    if passed:
        raise ValueError(
            f"a run is resumed from a whole checkpoint, got damaged ones alone: "
            f"{', '.join(passed)}: restore one, or delete {output_dir / CHECKPOINTS} to start anew"
        )
    return None


@torch.no_grad()
def load_checkpoint(
    checkpoint: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Put a checkpoint's state into the parameters and the optimiser, in place.

    Returns:
        The number of optimiser steps that it has seen.

    Raises:
        ValueError: it is of other parameters.
    """
    weights = load_file(checkpoint / "weights.safetensors")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    wanted = {name: tuple(p.shape) for name, p in parameters.items()}
    if shapes != wanted:
        names = sorted(name for name, _ in shapes.items() ^ wanted.items())
        raise ValueError(
            f"checkpoint {checkpoint} must hold the parameters that this run trains, got others "
            f"({names[0]} and {len(names) - 1} more): resume with the model and adapters of before"
        )
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
    state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
