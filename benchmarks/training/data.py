"""The demo's own data: time of an example as each side pads it, and of filling the cache.

Legend: B examples, L positions of the longest, A answers, P positions of a post-only line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measuring.clock import take_turns
from benchmarks.training import sides
from benchmarks.training.sides import Setting, Task
from pact.data.batches import length_batches
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.packing import PackedCollator
from pact.data.spans import IGNORE
from pact.data.template import header_ids
from pact.demo.conversations import finetuning_set
from pact.demo.stages import MAX_LENGTH
from pact.models import hidden_states
from pact.reference import adapters_off

BATCH_SIZE = 8
RELEASED_LENGTH = 512
"""Positions that the released code pads every example to."""
FILLING_TOKENS = 2048
"""Most positions of a batch where the cache is filled."""
PADDED, PACKED = f"{sides.CACHED}, padded to the longest", f"{sides.CACHED}, packed"
PADDED_TO_512 = f"{sides.RELEASED}, padded to {RELEASED_LENGTH}"
BACKBONE, FILLING = "bare backbone", "filling the cache"


@dataclass(frozen=True)
class PaddedCollator(Collator):
    """Lines of `RELEASED_LENGTH` positions; the post-only ones end with the longest answer."""

    def __call__(self, examples: Any) -> dict[str, Tensor]:
        batch = super().__call__(examples)
        missing = RELEASED_LENGTH - batch["input_ids"].shape[1]
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORE}
        return batch | {
            name: functional.pad(batch[name], (0, missing), value=fill)
            for name, fill in fills.items()
        }


class DemoData:
    """The demo's fine-tuning set, encoded and in the order of a shuffled epoch."""

    def __init__(self, tokenizer: Any) -> None:
        encoded = encode_examples(finetuning_set(0.0, 0), tokenizer, MAX_LENGTH)
        self.examples = encoded.shuffle(seed=0)
        self.layout = header_ids(tokenizer), tokenizer.pad_token_id

    def task(self, first: int, count: int, kind: type[Collator] = Collator) -> Task:
        """Some examples, laid out by a collator."""
        chosen = self.examples.select(range(first, min(first + count, len(self.examples))))
        examples = [{**example, "example": place} for place, example in enumerate(chosen)]
        return Task(examples, kind(*self.layout))


def example_times_ms(setting: Setting, data: DemoData, runs: int) -> dict[str, list[float]]:
    """Time per example of a step: every run is another batch, the same for all sides."""
    laid_out = {
        PADDED_TO_512: (sides.RELEASED, PaddedCollator),
        PADDED: (sides.CACHED, Collator),
        PACKED: (sides.CACHED, PackedCollator),
    }

    def steps(number: int) -> dict[str, Callable[[], None]]:
        first = number * BATCH_SIZE
        return {
            name: partial(
                sides.take_step,
                setting,
                sides.SIDES[side](setting, data.task(first, BATCH_SIZE, kind)),
            )
            for name, (side, kind) in laid_out.items()
        }

    times_ms = take_turns(steps(number) for number in range(runs + 1))
    return {name: [time / BATCH_SIZE for time in times] for name, times in times_ms.items()}


def filling_times_ms(
    setting: Setting, data: DemoData, examples: int, runs: int
) -> dict[str, list[float]]:
    """Time of the bare backbone on collated examples and their post-only inputs, and of filling a
    cache from these examples, files and all.
    """
    task = data.task(0, examples)
    lengths = [len(example["input_ids"]) for example in task.examples]
    batches = [
        task.collate([task.examples[index] for index in lines])
        for lines in length_batches(lengths, max_tokens=FILLING_TOKENS)
    ]

    def backbone() -> None:
        with torch.no_grad(), adapters_off(setting.student):
            for batch in batches:
                for kind in ("", "post_"):
                    ids, mask = batch[f"{kind}input_ids"], batch[f"{kind}attention_mask"]
                    hidden_states(setting.student, ids, mask)

    def filling() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sides.fill(
                setting, task, folder, over="selection", gate=True, max_tokens=FILLING_TOKENS
            )

    calls: Mapping[str, Callable[[], object]] = {BACKBONE: backbone, FILLING: filling}
    return take_turns(calls for _ in range(runs + 1))
