"""The loop: read `fit` from top to bottom, then `_optimizer_step`.

A step has `batch_size` examples, cut over processes and micro-batches; N are a micro-batch's rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from pact.data.spans import IGNORE
from pact.models import head_weight
from pact.objective import Objective
from pact.processes import join_processes
from pact.progress import progress_bar
from pact.reference import FrozenModel, Reference, check_at_start
from pact.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    whole_checkpoint,
)
from pact.training.checks import check_training
from pact.training.config import FitConfig
from pact.training.evaluating import LOSS, BestWeights, Evaluation
from pact.training.finite import Watch, check_parameters
from pact.training.identity import Identity, check_same_run
from pact.training.interrupt import SignalWatch
from pact.training.metrics import Meter, MetricsLog, Record
from pact.training.optimizer import make_optimizer, optimizer_kind
from pact.training.schedule import Plan
from pact.training.student import Student
from pact.training.trackers import started_trackers

logger = logging.getLogger(__name__)

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]


def fit(
    model: Any,
    dataset: Sequence[Mapping[str, Any]] | Any,
    objective: Objective,
    reference: Reference | None,
    collator: Collate,
    config: FitConfig,
    *,
    output_dir: Path | None = None,
    identity: Identity | None = None,
    evaluation: Evaluation | None = None,
    after_step: Callable[[int], None] | None = None,
) -> list[Record]:
    """Train what is trainable in `model`, in place.

    A step's loss is a mean over the answer rows of all its examples, so neither micro_batch_size
    nor the number of processes changes it. Torch's generator is seeded anew at every step.

    Args:
        model: a causal language model, with or without PEFT adapters; it ends on the accelerator's
            device, in evaluation mode.
        dataset: examples with `input_ids` and `labels`, by index.
        objective: what to minimise.
        reference: the frozen model; None where the objective needs none.
        collator: examples -> one batch on the CPU, as `pact.data.collate.Collator` or
            `pact.data.packing.PackedCollator`.
        config: the settings.
        output_dir: an existing folder for metrics and checkpoints; None writes nothing.
        identity: what the run is of, kept in its checkpoints and compared on resuming, see
            `pact.training.identity`; None compares nothing.
        evaluation: called every `config.eval_every` steps and at the end; its records have the step
            and their own names. The run ends with the weights whose loss was the best, and stops
            after `config.patience` evaluations without a better one.
        after_step: called with the number of steps done, after each, in every process: to look at
            the model on its way, whose modules' modes it leaves as they are.

    Returns:
        The records: step, epoch, loss, cross_entropy and kl in nats, gate, rows of a step,
        tokens_per_s, learning_rate, and grad_norm before clipping.

    Raises:
        ValueError: there are no data; the objective needs a reference and has none; a token is not
            in the model's vocabulary; nothing is trainable; batches are packed, and the model
            looks across sequences; a student with fresh adapters is not its reference; a checkpoint
            is of another run; or a loss, gradient or parameter is not finite, which is noticed
            before a record or a checkpoint is written.
        StoppedBySignal: SIGINT or SIGTERM came; the step was finished, and saved where the settings
            have checkpoints. Several processes end at the next step that is logged or saved.
    """
    if len(dataset) == 0:
        raise ValueError("the data must hold at least one example, got none")
    plan = Plan(config, len(dataset), _lengths(dataset) if config.group_by_length else None)
    parts = _prepare(model, objective, reference, collator, config)
    accelerator, is_main = parts.accelerator, parts.accelerator.is_main_process
    first = _resume(output_dir, parts, identity) if config.resume else 0
    log = MetricsLog(output_dir if is_main else None, resume_step=first)
    best = BestWeights(output_dir, _shared(log.records, accelerator), config.patience)
    eval_every = config.eval_every or plan.steps_per_epoch
    track = started_trackers(accelerator, config, output_dir)
    meter, watch = Meter(accelerator), Watch(accelerator.device, first + 1)
    bar = progress_bar(plan.num_steps, "train", "step", initial=first, show=is_main)
    stops = False
    with SignalWatch() as told:
        for step in range(first, plan.num_steps):
            if evaluation is not None and best.exhausted():
                break
            torch.manual_seed(plan.noise_seed(step, accelerator.process_index))
            batches = _read_step(plan, step, dataset, collator, parts)
            if step == 0:
                _check_first(parts, objective, reference, batches[0])
            loss, grad_norm = _optimizer_step(parts, batches, plan.learning_rate(step), meter)
            done = step + 1
            watch.see(done, loss, grad_norm)
            is_last = done == plan.num_steps
            logs = is_last or done % config.log_every == 0
            saves = bool(config.save_every) and (is_last or done % (config.save_every or 1) == 0)
            stops = not is_last and told.agreed(accelerator, joined=logs or saves)
            logs, saves = logs or stops, saves or (stops and bool(config.save_every))
            if logs or saves:
                newest = newest_checkpoint(output_dir) if output_dir else None
                watch.check(accelerator, newest)
                if saves or is_last:
                    check_parameters(parts.parameters.items(), newest)
            if logs:
                record = {"step": done, "epoch": done / plan.steps_per_epoch, **meter.read()}
                record |= {"learning_rate": plan.learning_rate(step), "grad_norm": float(grad_norm)}
                log.append(record)
                track(record)
                bar.set_postfix_str(_summary(record))
            if evaluation is not None and (is_last or done % eval_every == 0):
                found = {"step": done, "epoch": done / plan.steps_per_epoch}
                found |= evaluation(parts.model, accelerator, config.dtype)
                log.append(found)
                track(found)
                writes = is_main and config.keep_best
                best.see(done, found[LOSS], parts.parameters, writes=writes)
            bar.update()
            if output_dir and saves:
                if is_main:
                    save_checkpoint(
                        output_dir,
                        done,
                        parts.parameters,
                        parts.optimizer,
                        identity,
                        config.save_total_limit,
                    )
                    if not is_last:
                        log.plot()
                accelerator.wait_for_everyone()
            if after_step is not None:
                after_step(done)
            if stops:
                break
    bar.close()
    log.plot()
    for tracker in accelerator.trackers:  # its end_training would part the processes, too
        tracker.finish()
    if stops:
        told.leave(done, newest_checkpoint(output_dir) if output_dir else None)
    if evaluation is not None and config.keep_best and best.losses:
        accelerator.wait_for_everyone()
        logger.info("the best weights are those of step %d", best.restore(parts.parameters))
    model.eval()
    return log.records


def _shared(records: list[Record], accelerator: Accelerator) -> list[Record]:
    """The main process's records, in every process."""
    if accelerator.num_processes == 1:
        return records
    return list(broadcast_object_list([records])[0])


class _Parts(NamedTuple):
    """What a step works with."""

    accelerator: Accelerator
    config: FitConfig
    model: Any
    student: nn.Module  # the model with its loss, as accelerate wraps it
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer


def _prepare(
    model: Any,
    objective: Objective,
    reference: Reference | None,
    collator: Collate,
    config: FitConfig,
) -> _Parts:
    """Place the model, wrap it for several processes, and make its optimiser."""
    parameters = check_training(model, objective, reference, collator)
    kind, options = optimizer_kind(config)
    join_processes()
    # Autocast is ours, since it covers the reference and the loss too.
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"the loop runs in one process or in several with DDP, got "
            f"{accelerator.distributed_type.value}: launch it without sharding"
        )
    if config.gradient_checkpointing:
        _checkpoint_activations(model)
    student = accelerator.prepare(Student(model.train(), objective, reference))
    if isinstance(reference, FrozenModel):
        reference.model.to(accelerator.device)
    optimizer = make_optimizer(parameters, config, kind, options)
    return _Parts(accelerator, config, model, student, parameters, optimizer)


def _checkpoint_activations(model: Any) -> None:
    """By the name that the newest transformers have for it, or the one before."""
    name = "activation_checkpointing_enable"
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def _optimizer_step(
    parts: _Parts, batches: Sequence[dict[str, Tensor]], learning_rate: float, meter: Meter
) -> tuple[Tensor, Tensor]:
    """Gradients of all micro-batches, clipped together, then one update.

    Returns:
        The loss, this process's share of it, and the norm of the gradient before it was clipped.
    """
    accelerator = parts.accelerator
    device = accelerator.device
    rows = torch.tensor(sum(batch["row_target"].numel() for batch in batches), device=device)
    num_items = accelerator.reduce(rows, reduction="sum").clamp(min=1)  # () of all processes
    total = torch.zeros((), device=device)
    for place, batch in enumerate(batches):
        meter.tokens += int(batch["attention_mask"].sum())
        batch = _placed(batch, device)
        is_last = place == len(batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(parts.student):
            with _autocast(parts):
                loss = parts.student(batch, num_items)
            # DDP averages over the processes what num_items makes a sum over them.
            (loss.loss * accelerator.num_processes).backward()
        meter.add(loss, num_items)
        total += loss.loss.detach()
    meter.steps += 1
    parameters = list(parts.parameters.values())
    grad_norm = accelerator.clip_grad_norm_(parameters, parts.config.max_grad_norm)
    for group in parts.optimizer.param_groups:
        group["lr"] = learning_rate
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    return total, grad_norm


def _check_first(
    parts: _Parts, objective: Objective, reference: Reference | None, batch: dict[str, Tensor]
) -> None:
    """Stop before the first step if the student is not what it is held to."""
    batch = _placed(batch, parts.accelerator.device)
    with _autocast(parts):
        check_at_start(parts.model, reference, batch, objective)


def _placed(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device, but for the examples' indices, which are looked up on the host."""
    return {
        name: value if name == "example" else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


def _autocast(parts: _Parts) -> torch.autocast:
    """bfloat16 products where the settings ask for them."""
    enabled = parts.config.dtype == "bf16"
    return torch.autocast(parts.accelerator.device.type, torch.bfloat16, enabled)


def _lengths(dataset: Any) -> list[int]:
    """Tokens of each example."""
    return [len(dataset[index]["input_ids"]) for index in range(len(dataset))]


def _read_step(
    plan: Plan, step: int, dataset: Any, collator: Collate, parts: _Parts
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


def _resume(output_dir: Path | None, parts: _Parts, identity: Identity | None) -> int:
    """Take up the newest whole checkpoint, if it is of this run; returns the steps done."""
    checkpoint = whole_checkpoint(output_dir) if output_dir else None
    if checkpoint is None:
        return 0
    if identity is not None:
        check_same_run(checkpoint, identity)
    return load_checkpoint(checkpoint, parts.parameters, parts.optimizer)


def _summary(record: Record) -> str:
    return (
        f"loss {record['loss']:.4f}  ce {record['cross_entropy']:.4f}  kl {record['kl']:z.4f}  "
        f"gate {record['gate']:.3f}  {record['tokens_per_s']:,.0f} tokens/s"
    )
