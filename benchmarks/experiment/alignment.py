"""The aligned model: SmolLM2-135M-Instruct, which as shipped refuses nothing, taught to refuse.

It learns the demo's refusals beside the demo's plain answers and, so that it does not refuse what
it has not seen, its own answers of before to requests of the kinds that the fine-tuning asks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiment.cell import TASKS
from benchmarks.experiment.conversations import task
from benchmarks.experiment.training import train
from pact.common.outputs import whole_folder
from pact.data.conversation import Conversation, like
from pact.data.dataset import encode_examples
from pact.demo.alignment import ADAPTERS
from pact.demo.conversations import SYSTEM, read, with_system
from pact.evaluation.generate import generate_answers
from pact.models.loading import load_model, load_tokenizer
from pact.objective import CrossEntropy
from pact.training.student import add_adapters

REPEATS = 2
"""Times that a refusal is in the data, so that a quarter of it or more are refusals."""
OWN_ANSWERS = 60
"""Requests of each kind that the shipped model answers in its own words."""
FIRST_SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Settings of the refusal training."""

    steps: int = 160
    batch_size: int = 8
    learning_rate: float = 2e-3
    seed: int = 0


def aligned_folder(settings: Alignment, cache: Path) -> Path:
    """Where the aligned model of these settings and these data is, or will be."""
    text = json.dumps([asdict(settings), SYSTEM, _pairs(), _requests()], sort_keys=True)
    return cache / f"experiment-aligned-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def aligned_model(settings: Alignment, shipped: Path, cache: Path) -> Path:
    """Folder of the model after refusal training, made on first use of these settings.

    Args:
        settings: of the training.
        shipped: folder of the model as shipped.
        cache: an existing folder, kept between runs.
    """
    folder = aligned_folder(settings, cache)
    if folder.is_dir():
        return folder
    logger.info("refusal training, once: %d steps", settings.steps)
    tokenizer = load_tokenizer(shipped)
    model = load_model(shipped)
    pairs = with_system(_pairs()) + own_answers(model, tokenizer, with_system(_requests()))
    model = add_adapters(model, targets=ADAPTERS["targets"], seed=settings.seed)
    train(
        model,
        tokenizer,
        encode_examples(pairs, tokenizer, None),
        CrossEntropy(),
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    with whole_folder(folder) as unfinished:
        model.merge_and_unload().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


def own_answers(model: Any, tokenizer: Any, requests: Sequence[Conversation]) -> list[Conversation]:
    """Requests with the first sentence of the model's answer; those without one are left out."""
    answers = generate_answers(model, tokenizer, requests, max_new_tokens=32, batch_size=30)
    found = [FIRST_SENTENCE.match(answer.strip()) for answer in answers]
    return [
        like(turns, [*turns, {"role": "assistant", "content": sentence[0]}])
        for turns, sentence in zip(requests, found, strict=True)
        if sentence is not None
    ]


def _pairs() -> list[Conversation]:
    return read("harmful", "train") * REPEATS + read("benign", "train")


def _requests() -> list[Conversation]:
    """What the shipped model answers itself, without the answers that are there."""
    kinds = [read("finetune", "train"), *(task(name, "train") for name in TASKS)]
    return [like(turns, turns[:-1]) for kind in kinds for turns in kind[:OWN_ANSWERS]]
