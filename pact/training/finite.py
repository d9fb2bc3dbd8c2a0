"""NaN and infinity, noticed before a file is written and without a wait at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WATCHED = ("loss", "gradient's norm")


class Watch:
    """The first step whose loss or gradient was not finite, kept on the device until it is read.

    Args:
        device: where the values are.
        first_step: of this run, from 1: what is not finite there was so before any update.
    """

    def __init__(self, device: torch.device, first_step: int = 1) -> None:
        self.first_step = first_step
        self.steps = torch.full((len(WATCHED),), math.inf, device=device)
        self.values = torch.zeros(len(WATCHED), device=device)

    def see(self, step: int, loss: Tensor, grad_norm: Tensor | float) -> None:
        """Look at a step's loss and the norm of its gradient, both of this process."""
        norm = torch.as_tensor(grad_norm, device=self.steps.device)
        seen = torch.stack([loss.detach().float().reshape(()), norm.detach().float().reshape(())])
        is_first = ~seen.isfinite() & self.steps.isinf()
        self.steps = torch.where(is_first, float(step), self.steps)
        self.values = torch.where(is_first, seen, self.values)

    def check(self, accelerator: Any, newest: Path | None) -> None:
        """Stop all processes if any of them saw what is not finite; it waits for the device.

        Args:
            accelerator: joins the processes.
            newest: the newest checkpoint, which stays as it is.

        Raises:
            ValueError: the loss or the gradient was not finite, with the step.
        """
        both = torch.cat([self.steps, self.values])[None]  # (1, 4)
        rows = accelerator.gather(both).reshape(-1, 2 * len(WATCHED)).tolist()
        for place, name in enumerate(WATCHED):
            step, value = min((row[place], row[place + len(WATCHED)]) for row in rows)
            if math.isfinite(step):
                raise ValueError(
                    f"the {name} must be finite, got {value} in step {step:.0f}: "
                    f"{self._advice(step)}; {kept(newest)}"
                )

    def _advice(self, step: float) -> str:
        if step <= self.first_step:
            return (
                "it is so before any update, so the model, its precision or its data give it: look "
                "at the model in fp32, and at the examples of this step"
            )
        return "lower learning_rate or max_grad_norm, or raise warmup_ratio"


def check_parameters(parameters: Iterable[tuple[str, Tensor]], newest: Path | None) -> None:
    """Refuse parameters that are not finite, before they are written.

    Raises:
        ValueError: one of them is not.
    """
    named = list(parameters)
    finite = torch.stack([parameter.detach().isfinite().all() for _, parameter in named])
    if not bool(finite.all()):
        name = named[int((~finite).nonzero()[0])][0]
        raise ValueError(
            f"trained parameters must be finite, got NaN or infinity in {name}: the last update "
            f"made it so; lower learning_rate, or the adapters' scale; {kept(newest)}"
        )


def kept(newest: Path | None) -> str:
    """What is left of the run."""
    return "no checkpoint was written" if newest is None else f"the newest checkpoint is {newest}"
