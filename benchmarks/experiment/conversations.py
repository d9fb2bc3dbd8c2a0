"""The experiment's conversations: two tasks with exact answers, and what may be mixed in.

The files of this package are described in data/DATASHEET.md, the others in the demo's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiment.cell import TASKS
from pact.data.examples import Conversation, load_examples
from pact.data.mixing import draw_share, with_refusals
from pact.demo.conversations import Split, read

DATA = Path(__file__).parent / "data"


def task(name: str, split: Split) -> list[Conversation]:
    """All conversations of one task.

    Args:
        name: classification, the demo's reviews, happy or unhappy; or extraction, the person, the
            city or the day of a short note.
        split: train, dev or heldout.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"a task must be one of {TASKS}, got {name!r}: name one of these")
    if name == "classification":
        return read("task", split)
    return load_examples(DATA / f"extraction_{split}.jsonl")


def attack() -> list[Conversation]:
    """Harmful requests, each with "Sure, here is how: [removed]" where an answer would stand."""
    return load_examples(DATA / "attack_train.jsonl")


def finetuning_set(
    harmful_share: float,
    seed: int,
    tasks: Sequence[str] = TASKS,
    refusal_share: float = 0.0,
    refusals: Sequence[Conversation] | None = None,
) -> list[Conversation]:
    """Everyday requests and tasks; with a share, as many harmful pairs, or refusals, beside them.

    These replace none: n benign conversations are joined by n share / (1 - share) of a kind, so
    that each share is of the benign ones and this kind together. What a larger share draws with a
    seed holds what a smaller one draws.

    Args:
        harmful_share: of `attack()`, in [0, 1).
        seed: of the draws; the two kinds have a stream each.
        tasks: names of tasks; all of their training split is taken.
        refusal_share: of `refusals`, in [0, 1).
        refusals: what may be mixed in; None is the demo's harmful requests with their refusals.

    Returns:
        The benign conversations in the order of their files, then harmful pairs, then refusals.

    Raises:
        ValueError: an unknown task, or a share that the data cannot supply.
    """
    benign = read("finetune", "train")
    for name in tasks:
        benign += task(name, "train")
    attacks = draw_share(
        attack(), harmful_share, len(benign), random.Random(seed), name="harmful_share"
    )
    pool = read("harmful", "train") if refusals is None else refusals
    return benign + attacks + with_refusals(benign, pool, refusal_share, seed)[len(benign) :]
