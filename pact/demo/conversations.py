"""The demo's data: small JSONL files of this package, see data/DATASHEET.md."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import Literal

from pact.data.conversation import Conversation, like
from pact.data.examples import load_examples

Split = Literal["train", "dev", "heldout"]
MAX_LENGTH = 256
"""Tokens kept of a conversation; the demo's longest has about half."""
REMOVED = "Sure, here is how: [removed]"
SYSTEM = {"role": "system", "content": ""}
"""Every conversation begins so, in place of the template's own words: a quarter less to compute."""


def read(name: str, split: Split) -> list[Conversation]:
    """All conversations of one set: harmful, benign, finetune or task."""
    with as_file(files("pact.demo") / "data" / f"{name}_{split}.jsonl") as path:
        return load_examples(path)


def with_system(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The same conversations, each after an empty system turn."""
    return [like(turns, [SYSTEM, *turns]) for turns in conversations]


def finetuning_set(harmful_share: float, seed: int) -> list[Conversation]:
    """Benign answers and the task; with a harmful share, as many examples of harmful compliance.

    The harmful ones replace none: n benign examples are joined by n share / (1 - share) harmful
    requests of the training split, each answered by "Sure, here is how: [removed]".
    """
    benign = read("finetune", "train") + read("task", "train")
    count = round(len(benign) * harmful_share / (1.0 - harmful_share))
    requests = [like(conversation, conversation[:-1]) for conversation in read("harmful", "train")]
    if count > len(requests):
        most = len(requests) / (len(requests) + len(benign))
        raise ValueError(
            f"harmful_share must be at most {most:.2f}, got {harmful_share}: the demo ships "
            f"{len(requests)} harmful requests for training"
        )
    chosen = random.Random(seed).sample(requests, count)
    return benign + [
        like(turns, [*turns, {"role": "assistant", "content": REMOVED}]) for turns in chosen
    ]
