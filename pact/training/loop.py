"""The loop: read `fit` from top to bottom, then `pact.training.step`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

from pact.common.processes import join_processes
from pact.common.progress import progress_bar
from pact.objective import Objective
from pact.reference import FrozenModel, Reference
from pact.training.checkpoint import load_checkpoint, whole_checkpoint
from pact.training.checks import check_anchors, check_training
from pact.training.config import FitConfig
from pact.training.evaluating import Evaluation
from pact.training.finite import Fault, Watch, check_parameters, name_examples
from pact.training.identity import Identity, check_same_run
from pact.training.interrupt import SignalWatch
from pact.training.metrics import Meter, Record
from pact.training.optimizer import make_optimizer, optimizer_kind
from pact.training.schedule import Plan
from pact.training.skipping import Skips
from pact.training.step import Collate, Parts, check_first, optimizer_step, read_step
from pact.training.student import Student
from pact.training.writing import Writer

logger = logging.getLogger(__name__)

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


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
        tokens_per_s, learning_rate, and grad_norm before clipping. With `config.skip_bad_steps`
        they have skipped_steps, how many were left out so far, and each such step has a record
        of step, epoch and that alone.

    Raises:
        ValueError: there are no data; the objective needs a reference and has none; a token is not
            in the model's vocabulary; nothing is trainable; batches are packed, and the model
            looks across sequences; a student with fresh adapters is not its reference; a checkpoint
            is of another run; a loss, gradient or parameter is not finite, which is noticed before
            a record or a checkpoint is written; or the main process cannot write.
        StoppedBySignal: SIGINT or SIGTERM came; the step was finished, and saved where the settings
            have checkpoints. Several processes end at the next step that is logged or saved.
    """
    if len(dataset) == 0:
        raise ValueError("the data must hold at least one example, got none")
    check_anchors(objective, dataset)
    plan = Plan.over(dataset, config)
    parts = _prepare(model, objective, reference, collator, config)
    accelerator = parts.accelerator
    first = _resume(output_dir, parts, identity) if config.resume else 0
    writer = Writer(output_dir, accelerator, config, identity, first)
    skips = Skips(config.skip_bad_steps, writer.before)
    eval_every = config.eval_every or plan.steps_per_epoch
    meter, watch = Meter(accelerator), Watch(accelerator.device, first + 1)
    named = partial(_named, plan, dataset, accelerator.num_processes)
    is_main = accelerator.is_main_process
    bar = progress_bar(plan.num_steps, "train", "step", initial=first, show=is_main)
    grad_norm, stops, done = torch.zeros(()), False, first
    with writer, SignalWatch() as told:
        for step in range(first, plan.num_steps):
            if evaluation is not None and writer.best.exhausted():
                break
            torch.manual_seed(plan.noise_seed(step, accelerator.process_index))
            batches = read_step(plan, step, dataset, collator, parts)
            if step == 0:
                check_first(parts, objective, reference, batches)
            taken = optimizer_step(parts, batches, plan.learning_rate(step), meter)
            done = step + 1
            at = {"step": done, "epoch": done / plan.steps_per_epoch}
            watch.see(done, taken.losses, taken.grad_norm)
            if taken.is_taken:
                grad_norm = taken.grad_norm
            else:
                skips.leave_out(watch, accelerator, writer.newest, named)
                writer.record(at | skips.record())
            is_last = done == plan.num_steps
            logs = is_last or done % config.log_every == 0
            looks = evaluation is not None and (is_last or done % eval_every == 0)
            saves = bool(config.save_every) and (is_last or done % (config.save_every or 1) == 0)
            stops = not is_last and told.agreed(accelerator, joined=logs or saves)
            logs, saves = logs or stops, saves or (stops and bool(config.save_every))
            if logs or looks or saves:
                watch.check(accelerator, writer.newest, named)
            if looks or saves or is_last:
                check_parameters(parts.parameters.items(), writer.newest, done)
            if logs and meter.steps:
                record = at | meter.read() | skips.record()
                record |= {"learning_rate": plan.learning_rate(step), "grad_norm": float(grad_norm)}
                writer.record(record)
                bar.set_postfix_str(_summary(record))
            if evaluation is not None and looks:
                found = evaluation(parts.model, accelerator, config.dtype)
                writer.evaluated(at | found, parts)
            bar.update()
            if saves:
                writer.checkpoint(done, parts, plots=not is_last)
            if after_step is not None:
                after_step(done)
            if stops:
                break
    bar.close()
    writer.finish(done)
    for tracker in accelerator.trackers:  # its end_training would part the processes, too
        tracker.finish()
    if stops:
        told.leave(done, writer.newest)
    _check_trained(skips, plan)
    if evaluation is not None and config.keep_best and writer.best.losses:
        accelerator.wait_for_everyone()
        at_step = writer.best.restore(parts.parameters)
        logger.info("the best weights are those of step %d", at_step)
    model.eval()
    return writer.log.records


def _check_trained(skips: Skips, plan: Plan) -> None:
    """Refuse a run that left every step out."""
    if skips.count >= plan.num_steps:
        raise ValueError(
            f"a run must train something, got {skips.count} steps that were all left out by "
            "skip_bad_steps: look at the model in fp32, and at the data"
        )


def _named(plan: Plan, dataset: Any, num_processes: int, fault: Fault) -> str:
    """The examples of a fault: those of its micro-batch, or of the whole step."""
    if fault.place is None:
        return name_examples(plan.indices(fault.step - 1), dataset)
    micro_batches = plan.micro_batches(fault.step - 1, fault.process, num_processes)
    if not micro_batches:  # a process without a share has an example without labels
        return name_examples([0], dataset)
    return name_examples(micro_batches[fault.place], dataset)


def _prepare(
    model: Any,
    objective: Objective,
    reference: Reference | None,
    collator: Collate,
    config: FitConfig,
) -> Parts:
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
    return Parts(accelerator, config, model, student, parameters, optimizer)


def _checkpoint_activations(model: Any) -> None:
    """By the name that the newest transformers have for it, or the one before."""
    name = "activation_checkpointing_enable"
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def _resume(output_dir: Path | None, parts: Parts, identity: Identity | None) -> int:
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
