"""The processes that a launcher started: joined on any device, or refused where they are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

LAUNCHED = (
    "WORLD_SIZE",  # torchrun, accelerate launch
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",  # of one srun; an allocation may be larger than what runs in it
)
"""Where launchers say how many processes they started."""

_Value = TypeVar("_Value")


def join_processes() -> PartialState:
    """The state of all processes of this launch, which meet here; on a CPU by gloo.

    Raises:
        ValueError: more were started than could be joined.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_joined(state.num_processes)
    return state


def check_joined(num_processes: int) -> None:
    """Refuse to run as one of several processes that do not know of each other.

    Raises:
        ValueError: a launcher says that it started more than `num_processes`.
    """
    for name in LAUNCHED:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > num_processes:
            what = "this runs in one process" if num_processes == 1 else f"{num_processes} joined"
            raise ValueError(
                f"every process that was started must be joined, got {name}={value} where {what}: "
                "each would write the same files; start it with torchrun or accelerate launch if "
                "it takes several, else without a launcher"
            )


def main_first(state: PartialState, act: Callable[[], _Value]) -> _Value | None:
    """Run `act` in the main process, while the others wait; its ValueError is raised in all.

    Returns:
        What it returned; None in the other processes.
    """
    value, failure = None, [""]
    if state.is_main_process:
        try:
            value = act()
        except ValueError as error:
            if state.num_processes == 1:
                raise
            failure = [str(error) or type(error).__name__]
    if state.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0]:
        raise ValueError(failure[0])
    return value
