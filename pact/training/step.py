"""One optimiser step: its micro-batches are read, their gradients summed and clipped, one update.

A step has `batch_size` examples, cut over processes and micro-batches; M are a process's
micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pact.data.collate import count_rows, denominator, has_anchors
from pact.data.spans import IGNORE
from pact.models import head_weight
from pact.objective import Objective
from pact.reference import Reference, check_at_start
from pact.training.checks import check_rows, check_tokens
from pact.training.config import FitConfig
from pact.training.metrics import Meter, parts_of
from pact.training.schedule import Plan

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]


class Parts(NamedTuple):
    """What a step works with."""

    accelerator: Accelerator
    config: FitConfig
    model: Any
    student: nn.Module  # the model with its loss, as accelerate wraps it
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer


class Step(NamedTuple):
    """What a step came to."""

    losses: Tensor
    """(M, 5) of this process's micro-batches, see `pact.training.metrics.parts_of`."""
    grad_norm: Tensor
    """() of all processes, before it was clipped."""
    is_taken: bool
    """Whether parameters and optimiser have moved; else they are as before the step."""


def optimizer_step(
    parts: Parts, batches: Sequence[dict[str, Tensor]], learning_rate: float, meter: Meter
) -> Step:
    """Gradients of all micro-batches, clipped together, then one update.

    With `skip_bad_steps` there is no update where any process's loss, or the gradient, is not
    finite, which waits for the device.
    """
    accelerator = parts.accelerator
    device = accelerator.device
    rows = accelerator.reduce(count_rows(batches, device), reduction="sum")  # (2,)
    num_items = denominator(rows)  # () of all processes
    seen = []
    for place, batch in enumerate(batches):
        meter.tokens += int(batch["attention_mask"].sum())
        batch = placed(batch, device)
        is_last = place == len(batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(parts.student):
            with autocast(parts):
                loss = parts.student(batch, num_items)
            # DDP averages over the processes what num_items makes a sum over them.
            (loss.loss * accelerator.num_processes).backward()
        seen.append(parts_of(loss, num_items))
    losses = torch.stack(seen)  # (M, 5)
    parameters = list(parts.parameters.values())
    grad_norm = accelerator.clip_grad_norm_(parameters, parts.config.max_grad_norm)
    is_taken = not parts.config.skip_bad_steps or _is_finite(accelerator, losses, grad_norm)
    if is_taken:
        meter.add(losses)
        for group in parts.optimizer.param_groups:
            group["lr"] = learning_rate
        parts.optimizer.step()
    parts.optimizer.zero_grad()
    return Step(losses, grad_norm, is_taken)


def _is_finite(accelerator: Accelerator, losses: Tensor, grad_norm: Tensor) -> bool:
    """Whether loss and gradient are finite in all processes."""
    finite = losses[:, 0].isfinite().all() & grad_norm.isfinite()
    return bool(accelerator.gather(finite[None].int()).all())


def check_first(
    parts: Parts,
    objective: Objective,
    reference: Reference | None,
    batches: Sequence[dict[str, Tensor]],
) -> None:
    """Stop before the first step if it has no row, or the student is not what it is held to."""
    device = parts.accelerator.device
    rows = parts.accelerator.reduce(count_rows(batches, device), reduction="sum")
    check_rows(int(rows.sum()))
    # A cache of anchors alone knows nothing of a micro-batch without them.
    first = next((batch for batch in batches if has_anchors(batch)), batches[0])
    batch = placed(first, device)
    with autocast(parts):
        check_at_start(parts.model, reference, batch, objective)


def placed(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device, but for the examples' indices, which are looked up on the host."""
    return {
        name: value if name == "example" else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


def autocast(parts: Parts) -> torch.autocast:
    """bfloat16 products where the settings ask for them."""
    enabled = parts.config.dtype == "bf16"
    return torch.autocast(parts.accelerator.device.type, torch.bfloat16, enabled)


def read_step(
    plan: Plan, step: int, dataset: Any, collator: Collate, parts: Parts
) -> list[dict[str, Tensor]]:
    """This process's micro-batches of a step, on the CPU.

    A process without a share takes an example without its labels, since all must join the
    backward pass.
    """
    process, num_processes = parts.accelerator.process_index, parts.accelerator.num_processes
    shares = plan.micro_batches(step, process, num_processes)
    micro_batches = [[dataset[index] for index in share] for share in shares]
    if not micro_batches:
        example = dataset[0]
        micro_batches = [[{**example, "labels": [IGNORE] * len(example["labels"])}]]
    for examples in micro_batches:
        check_tokens(examples)
    batches = [collator(examples) for examples in micro_batches]
    vocabulary = head_weight(parts.model).shape[0]
    for batch in batches:
        largest = max(int(batch["input_ids"].max()), int(batch["labels"].max()))
        if largest >= vocabulary:
            raise ValueError(
                f"every token id must be below the model's vocabulary of {vocabulary}, got "
                f"{largest} in step {step}: encode the data with the tokenizer of this model"
            )
    return batches
