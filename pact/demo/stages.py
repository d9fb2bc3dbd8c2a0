"""The demo's steps on models in memory: align, discover, fine-tune, evaluate."""

from __future__ import annotations

import hashlib
import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pact.config import PactConfig
from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.examples import Conversation
from pact.data.template import header_ids
from pact.demo.config import DemoConfig
from pact.demo.conversations import finetuning_set, read
from pact.demo.shipped import whole_folder
from pact.discovery import SafetyTokens, discover
from pact.evaluation import Evaluation, evaluate
from pact.models import load_model, load_tokenizer
from pact.objective import PactObjective
from pact.reference import AdaptersOff, FrozenModel
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.student import add_adapters

MAX_LENGTH = 256
"""Tokens kept of a conversation; the demo's longest has about half."""

logger = logging.getLogger(__name__)


class Arm(NamedTuple):
    """One of the models that the table compares."""

    name: str
    pact: PactConfig | None
    """The objective's settings; None is plain fine-tuning."""


def arms(config: DemoConfig) -> list[Arm]:
    """The three fine-tunings, alike in all but their objective."""
    return [
        Arm("plain", None),
        Arm("PACT selection", PactConfig(over="selection", kl_weight=config.selection_weight)),
        Arm("PACT vocabulary", PactConfig(over="vocabulary", kl_weight=config.vocabulary_weight)),
    ]


def aligned_model(config: DemoConfig, shipped: Path, cache_dir: Path) -> Path:
    """Folder of the shipped model after refusal training, made on first use of these settings.

    Half of the training pairs are refusals and half plain answers, so that it does not refuse all.
    """
    folder = cache_dir / f"aligned-{_fingerprint(config)}"
    if folder.is_dir():
        logger.info("aligned model: taken from %s", folder)
        return folder
    tokenizer = load_tokenizer(shipped)
    model = add_adapters(load_model(shipped, dtype="fp32"), seed=config.seed)
    pairs = read("harmful", "train") + read("benign", "train")
    _fit(model, tokenizer, pairs, PactObjective.plain(), None, config, config.align_steps)
    with whole_folder(folder) as unfinished:
        model.merge_and_unload().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


def safety_tokens(config: DemoConfig, aligned: Path, shipped: Path) -> SafetyTokens:
    """Tokens on which refusal training moved the model most, on its own refusals."""
    tokenizer = load_tokenizer(aligned)
    refusals = encode_examples(read("harmful", "train"), tokenizer, MAX_LENGTH)
    return discover(
        load_model(aligned, dtype="fp32"),
        load_model(shipped, dtype="fp32"),
        refusals,
        top_k=config.top_k,
        tokenizer=tokenizer,
    )


def finetune(
    config: DemoConfig, arm: Arm, aligned: Path, tokens: SafetyTokens
) -> tuple[Any, list[Record]]:
    """The aligned model with adapters trained by one arm's objective, and the training's records.
    """
    tokenizer = load_tokenizer(aligned)
    model = add_adapters(load_model(aligned, dtype="fp32"), seed=config.seed)
    conversations = finetuning_set(config.harmful_share, config.seed)
    if arm.pact is None:
        objective, reference = PactObjective.plain(), None
    else:
        objective = PactObjective(tokens.ids, tokens.weights, arm.pact)
        reference = AdaptersOff(model)
    records = _fit(model, tokenizer, conversations, objective, reference, config, config.steps)
    return model, records


def measure(config: DemoConfig, model: Any, aligned: Path, tokens: SafetyTokens) -> Evaluation:
    """Refusals, over-refusal, held-out loss, task accuracy, and confidence on the safety tokens."""
    tokenizer = load_tokenizer(aligned)
    harmful = _heldout("harmful", config)
    has_adapters = hasattr(model, "disable_adapter")
    return evaluate(
        model,
        tokenizer,
        harmful=harmful,
        benign=_heldout("benign", config),
        heldout=read("finetune", "heldout"),
        task=_heldout("task", config),
        drift=harmful,
        tokens=tokens,
        reference=AdaptersOff(model) if has_adapters else FrozenModel(model),
        max_new_tokens=config.max_new_tokens,
    )


def _heldout(name: str, config: DemoConfig) -> list[Conversation]:
    """A held-out set, or its first half where the demo is quick (its rows are in random order)."""
    conversations = read(name, "heldout")
    return conversations[: len(conversations) // 2] if config.quick else conversations


def _fit(
    model: Any,
    tokenizer: Any,
    conversations: list[Conversation],
    objective: PactObjective,
    reference: AdaptersOff | None,
    config: DemoConfig,
    steps: int,
) -> list[Record]:
    settings = FitConfig(
        learning_rate=config.learning_rate,
        max_steps=steps,
        batch_size=config.batch_size,
        warmup_ratio=0.1,
        dtype="fp32",
        seed=config.seed,
        save_every=None,
    )
    post_only = objective.needs_post_only
    header = header_ids(tokenizer) if post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=post_only)
    dataset = encode_examples(conversations, tokenizer, MAX_LENGTH)
    return fit(model, dataset, objective, reference, collator, settings)


def _fingerprint(config: DemoConfig) -> str:
    """Of all that the aligned model depends on."""
    digest = hashlib.sha256()
    names = ("align_steps", "batch_size", "learning_rate", "seed")
    digest.update(json.dumps([getattr(config, name) for name in names]).encode())
    for name in ("harmful_train.jsonl", "benign_train.jsonl"):
        digest.update((files("pact.demo") / "data" / name).read_bytes())
    return digest.hexdigest()[:12]
