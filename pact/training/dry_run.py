"""What a run would do, without doing it: its plan, its memory, and the first batch as it is learnt.

Everything is loaded and checked as for the run, but for what takes a forward pass; nothing is
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pact.common.printable import printable
from pact.data.collate import Collator
from pact.data.spans import IGNORE
from pact.objective import PactConfig, PactObjective
from pact.training.checkpoint import whole_checkpoint
from pact.training.checks import check_training
from pact.training.config import TrainConfig
from pact.training.evaluating import Evaluation
from pact.training.folder import check_contents
from pact.training.identity import check_same_run, check_settings, identity_of, read_identity
from pact.training.inputs import Inputs, loaded_inputs
from pact.training.optimizer import optimizer_kind
from pact.training.run import checked_output, step_collator
from pact.training.schedule import Plan

LEARNT, RESET = "\x1b[32m", "\x1b[0m"
MARKS = ("[[", "]]")
"""Around what is learnt, where there are no colours."""
MIB = 2**20


def describe(config: TrainConfig, pact: PactConfig, *, colour: bool = False) -> str:
    """The plan of a run, as text.

    Args:
        config: what is trained, on what, and how; `output_dir` is not touched.
        pact: the objective's settings.
        colour: show what is learnt in green, instead of in [[brackets]].

    Raises:
        ValueError: whatever the run itself would refuse before its first forward pass.
    """
    given, collator = _checked(config, pact)
    lengths = [len(row) for row in given.dataset["input_ids"]]
    answers = [sum(label != IGNORE for label in row[1:]) for row in given.dataset["labels"]]
    plan = Plan.over(given.dataset, config)
    shares = plan.micro_batches(0, process=0, num_processes=1)
    batches = [collator([given.dataset[index] for index in share]) for share in shares]
    batched = "examples"
    if config.packing:
        batched += f" in {sum(len(batch['input_ids']) for batch in batches)} packed lines"
    objective = "cross-entropy"
    if isinstance(given.objective, PactObjective):
        objective += (
            f" + {pact.kl_weight:g} KL over the {pact.over}, "
            f"{given.objective.token_ids.numel()} safety tokens"
        )
    lines = [
        f"data        {len(lengths)} examples, {sum(lengths)} tokens, of which {sum(answers)} are "
        f"learnt; the longest has {max(lengths)}",
        f"steps       {plan.num_steps} of {config.batch_size} examples, {plan.steps_per_epoch} an "
        f"epoch; {config.schedule} from {config.learning_rate:g}, {plan.num_warmup_steps} to "
        "warm up",
        f"objective   {objective}",
        *_looks(config, given.evaluation, plan),
        *_memory(given.model),
        "",
        f"the first step's {batched}, {'green' if colour else 'in brackets'} is learnt:",
    ]
    shown = [line for batch in batches for line in _shown(batch, given.tokenizer, colour)]
    return "\n".join([*lines, *shown])


def _checked(config: TrainConfig, pact: PactConfig) -> tuple[Inputs, Collator]:
    """What the run would work with, and make its batches with, if it would begin."""
    output_dir = checked_output(config)
    check_contents(output_dir, config.resume)
    checkpoint = None
    if config.resume:
        check_settings(output_dir, (config, pact))
        checkpoint = whole_checkpoint(output_dir)
    optimizer_kind(config)
    given = loaded_inputs(config, pact)
    collator = step_collator(config, given.collator)
    check_training(given.model, given.objective, given.reference, collator)
    saved = None if checkpoint is None else read_identity(checkpoint)
    if checkpoint is not None and saved is not None:
        # How many processes there will be is not known here.
        check_same_run(checkpoint, identity_of((config, pact), given.contents, saved["processes"]))
    return given, collator


def _looks(config: TrainConfig, evaluation: Evaluation | None, plan: Plan) -> list[str]:
    """What is evaluated on the way."""
    if evaluation is None:
        return []
    every = config.eval_every or plan.steps_per_epoch
    return [
        f"evaluation  {len(evaluation.dataset)} examples, {len(evaluation.prompts)} requests, "
        f"every {every} steps and after the last"
    ]


def _memory(model: Any) -> list[str]:
    """Bytes of weights, gradients and AdamW's state; activations come on top."""
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.nbytes for p in parameters)
    extra = 3 * sum(4 * p.numel() for p in trained)  # gradient, and two moments in fp32
    count, own = sum(p.numel() for p in parameters), sum(p.numel() for p in trained)
    return [
        f"model       {count:,} parameters, {own:,} of them trained ({own / count:.2%})",
        f"memory      {weights / MIB:,.0f} MiB of weights, {extra / MIB:,.0f} MiB of gradients and "
        "AdamW's state; activations beside them",
    ]


def _shown(batch: Mapping[str, Tensor], tokenizer: Any, colour: bool) -> list[str]:
    """Every line of a batch as text, with what is learnt marked."""
    opening, closing = (LEARNT, RESET) if colour else MARKS
    shown = []
    for ids, labels, mask in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        learnt = labels != IGNORE
        edges = torch.nonzero(learnt[1:] != learnt[:-1]).flatten() + 1
        text = []
        for part in torch.tensor_split(torch.arange(len(ids)), edges.tolist()):
            if not len(part):
                continue
            words = printable(tokenizer.decode(ids[part]))  # of data from anywhere
            text.append(f"{opening}{words}{closing}" if bool(learnt[part[0]]) else words)
        shown.append("".join(text))
    return shown
