"""What a run needs to go on after a stop: the trained weights and the optimiser's state at a step.

The order of the data, the learning rate and the dropout are functions of the step (`schedule`), so
nothing else is state. A checkpoint is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

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
    keep: int = 1,
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
    folder = output_dir / CHECKPOINTS
    partial = folder / f"partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
    save_file(weights, partial / "weights.safetensors")
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, partial / "state.pt")
    if identity is not None:
        (partial / RUN_FILE).write_text(json.dumps(identity, indent=1), encoding="utf-8")
    complete = folder / f"step-{step:08d}"
    shutil.rmtree(complete, ignore_errors=True)
    partial.rename(complete)
    whole = sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and _step(p) <= step)
    for other in folder.iterdir():
        if other not in whole[-keep:]:
            shutil.rmtree(other)
    return complete


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint with the most steps, if there is one."""
    found = [p for p in (output_dir / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(p.name)]
    return max(found, key=_step, default=None)


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
