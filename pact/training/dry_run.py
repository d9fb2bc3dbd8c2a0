"""What a run would do, without doing it: its plan, its memory, and the first batch as it is learnt.

Everything is loaded and checked as for the run; nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pact.data.spans import IGNORE
from pact.objective import PactConfig, PactObjective
from pact.training.config import TrainConfig
from pact.training.run import loaded_inputs
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
        ValueError: whatever the run itself would refuse before its first step.
    """
    given = loaded_inputs(config, pact)
    lengths = [len(row) for row in given.dataset["input_ids"]]
    answers = [sum(label != IGNORE for label in row[1:]) for row in given.dataset["labels"]]
    plan = Plan(config, len(lengths), lengths if config.group_by_length else None)
    examples = [given.dataset[index] for index in plan.indices(0)]
    batch = given.collator(examples)
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
        *_memory(given.model),
        "",
        f"the first step's examples, {'green' if colour else 'in brackets'} is learnt:",
    ]
    return "\n".join([*lines, *_shown(batch, given.tokenizer, colour)])


def _memory(model: Any) -> list[str]:
    """Of weights, gradients and AdamW's state; activations come on top."""
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
            words = tokenizer.decode(ids[part])
            text.append(f"{opening}{words}{closing}" if bool(learnt[part[0]]) else words)
        shown.append("".join(text))
    return shown
