"""The processes that a launcher started: joined on any device, or refused where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from pact.common.launched import check_joined

_Value = TypeVar("_Value")


def join_processes() -> PartialState:
    """The state of all processes of this launch, which meet here; on a CPU by gloo.

    Raises:
        ValueError: more were started than could be joined.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_joined(state.num_processes)
    return state


def main_first(state: PartialState, act: Callable[[], _Value]) -> _Value | None:
    """Run `act` in the main process, while the others wait; its ValueError or OSError is
    raised in all, as a ValueError in the others.

    Returns:
        What it returned; None in the other processes.
    """
    value, failure = None, [""]
    if state.is_main_process:
        try:
            value = act()
        except (ValueError, OSError) as error:
            if state.num_processes == 1:
                raise
            failure = [str(error) or type(error).__name__]
    if state.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0]:
        raise ValueError(failure[0])
    return value


def all_together(state: PartialState, act: Callable[[], _Value]) -> _Value:
    """Run `act` in every process, which meet after it; a ValueError of one is raised in all.

    So is an OSError.

    Returns:
        What it returned here.
    """
    if state.num_processes == 1:
        return act()
    failure: list[str] = []
    try:
        value = act()
    except (ValueError, OSError) as error:
        failure = [str(error) or type(error).__name__]
    failures = gather_object(failure)
    if failures:
        raise ValueError(failures[0])
    return value
