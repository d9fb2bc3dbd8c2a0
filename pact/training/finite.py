"""NaN and infinity, noticed before a file is written and without a wait at every step.

Legend: M micro-batches of a step in one process, P processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PARTS = ("loss", "cross-entropy", "kl")
ID = "id"
"""Column that names an example, where rows have it."""
SHOWN = 8
"""Examples that an error names."""


class Fault(NamedTuple):
    """A step whose loss or gradient was not finite, as all processes saw it."""

    step: int
    """From 1."""
    values: dict[str, float]
    """The loss and its parts, summed over the processes, and the gradient's norm, by name."""
    process: int
    """The first that saw it."""
    place: int | None
    """Its first micro-batch whose loss was not finite; None where the gradient alone was not."""

    @property
    def name(self) -> str:
        """What was not finite: the loss, or else the gradient's norm."""
        return "loss" if not math.isfinite(self.values["loss"]) else "gradient's norm"

    def __str__(self) -> str:
        others = (f"{name} {value:.4g}" for name, value in self.values.items() if name != self.name)
        return f"{self.values[self.name]} in step {self.step} ({', '.join(others)})"


class Watch:
    """The first step whose loss or gradient was not finite, kept on the device until it is read.

    Args:
        device: where the values are.
        first_step: of this run, from 1: what is not finite there was so before any update.
    """

    def __init__(self, device: torch.device, first_step: int = 1) -> None:
        self.first_step = first_step
        # The step, the micro-batch or -1, then loss, cross-entropy, KL and the gradient's norm.
        self.seen = torch.tensor([math.inf, -1.0] + [0.0] * (len(PARTS) + 1), device=device)

    def forget(self) -> None:
        """Look anew: nothing was seen."""
        self.seen[0] = math.inf

    def see(self, step: int, parts: Tensor, grad_norm: Tensor | float) -> None:
        """Look at a step's losses and the norm of its gradient, all of this process.

        Args:
            step: from 1.
            parts: (M, 3 or more) loss, cross-entropy and KL of each micro-batch.
            grad_norm: () before it was clipped.
        """
        parts = parts[:, : len(PARTS)].detach().float()
        norm = torch.as_tensor(grad_norm, device=parts.device).detach().float().reshape(1)
        is_bad = ~parts[:, 0].isfinite()  # (M,)
        place = torch.where(is_bad.any(), is_bad.int().argmax(), -1).float().reshape(1)
        now = torch.cat([torch.full_like(norm, step), place, parts.sum(0), norm])
        is_first = self.seen[0].isinf() & ~(now[2].isfinite() & norm.isfinite())
        self.seen = torch.where(is_first, now, self.seen)

    def fault(self, accelerator: Any) -> Fault | None:
        """The first step that any process saw, in all of them alike; it waits for the device.

        Args:
            accelerator: joins the processes; None asks this one alone.
        """
        seen = self.seen[None]
        rows = (seen if accelerator is None else accelerator.gather(seen)).tolist()  # P lists
        step = min(row[0] for row in rows)
        if math.isinf(step):
            return None
        saw = [process for process, row in enumerate(rows) if row[0] == step]
        sums = [sum(rows[process][2 + part] for process in saw) for part in range(len(PARTS))]
        norm = rows[saw[0]][-1]
        of_loss = [process for process in saw if rows[process][1] >= 0]
        return Fault(
            int(step),
            dict(zip(PARTS, sums, strict=True)) | {"gradient's norm": norm},
            (of_loss or saw)[0],
            int(rows[of_loss[0]][1]) if of_loss else None,
        )

    def check(
        self, accelerator: Any, newest: Path | None, examples: Callable[[Fault], str] | None = None
    ) -> None:
        """Stop all processes if any of them saw what is not finite; it waits for the device.

        Args:
            accelerator: joins the processes; None asks this one alone.
            newest: the newest checkpoint, which stays as it is.
            examples: names what the step was made of.

        Raises:
            ValueError: the loss or the gradient was not finite, with the step.
        """
        fault = self.fault(accelerator)
        if fault is not None:
            of = "" if examples is None else f", {examples(fault)}"
            raise ValueError(
                f"the {fault.name} must be finite, got {fault}{of}: {self._advice(fault)}; "
                f"{kept(newest)}"
            )

    def _advice(self, fault: Fault) -> str:
        if fault.step <= self.first_step:
            return (
                "it is so before any update, so the model, its precision or its data give it: look "
                "at the model in fp32, and at the examples of this step"
            )
        return "lower learning_rate or max_grad_norm, or raise warmup_ratio"


def name_examples(indices: Sequence[int], dataset: Sequence[Mapping[str, Any]] | Any) -> str:
    """The examples of a step, by their place in the data and their ids where they have them."""
    shown = list(indices[:SHOWN])
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    text = f"examples {', '.join(map(str, shown))}{more}, counted from 0"
    ids = [example[ID] for example in (dataset[index] for index in shown) if ID in example]
    return text + (f" (ids {', '.join(map(repr, ids))})" if ids else "")


def check_parameters(
    parameters: Iterable[tuple[str, Tensor]],
    newest: Path | None,
    step: int,
    accelerator: Any = None,
) -> None:
    """Refuse parameters that are not finite, before they are written.

    Args:
        parameters: what is trained, by name; of a sharded one this process's part is looked at.
        newest: the newest checkpoint, which stays as it is.
        step: steps done.
        accelerator: joins processes whose parameters differ; None looks at this one's alone.

    Raises:
        ValueError: one of them is not.
    """
    named = [(name, getattr(p, "to_local", lambda p=p: p)().detach()) for name, p in parameters]
    device = named[0][1].device
    finite = torch.stack([part.isfinite().all().to(device) for _, part in named])
    is_own = bool(finite.all())
    is_whole = is_own  # of all processes, which meet here whatever each of them saw
    if accelerator is not None:
        is_whole = bool(accelerator.gather(finite.all()[None].int()).all())
    if is_whole:
        return
    where = "another process's part" if is_own else named[int((~finite).nonzero()[0])][0]
    raise ValueError(
        f"trained parameters must be finite, got NaN or infinity in {where} after step {step}: the "
        f"last update made it so; lower learning_rate, or the adapters' scale; {kept(newest)}"
    )


def kept(newest: Path | None) -> str:
    """What is left of the run."""
    return "no checkpoint was written" if newest is None else f"the newest checkpoint is {newest}"
