"""The demo's steps on models in memory: align, discover, fine-tune, evaluate."""

from __future__ import annotations

import hashlib
import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.examples import Conversation
from pact.data.template import header_ids
from pact.demo.config import DemoConfig
from pact.demo.conversations import finetuning_set, read
from pact.demo.shipped import whole_folder
from pact.discovery import SafetyTokens, discover
from pact.evaluation import Evaluation, evaluate
from pact.loading import load_model, load_tokenizer
from pact.objective import CrossEntropy, Objective, PactConfig, PactObjective
from pact.reference import AdaptersOff, FrozenModel
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.student import add_adapters

MAX_LENGTH = 256
"""Tokens kept of a conversation; the demo's longest has about half."""
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers adapted in refusal training: a behaviour from nothing needs more than fine-tuning does."""
QUICK_SAMPLES = 40
"""Refusals that a quick demo's discovery looks at, of 100."""

logger = logging.getLogger(__name__)


class Arm(NamedTuple):
    """One of the three fine-tunings."""

    name: str
    pact: PactConfig | None
    """The objective's settings; None is plain fine-tuning."""
    top_k: int
    """Safety tokens that it uses."""


def arms(config: DemoConfig) -> list[Arm]:
    """The fine-tunings, alike in data, order, seed and steps.

    The second is the released objective with its settings. The third matches the confidences of
    many more tokens to the reference's on the full context, and needs no post-only forward.
    """
    selection = PactConfig(over="selection", kl_weight=config.selection_weight)
    vocabulary = PactConfig(
        over="vocabulary",
        kl_weight=config.vocabulary_weight,
        kl_step_tau=config.vocabulary_step_tau,
        kl_margin=0.0,
        positive_only=False,
        gate=False,
    )
    return [
        Arm("plain", None, 0),
        Arm("PACT selection", selection, config.top_k),
        Arm("PACT vocabulary", vocabulary, config.vocabulary_top_k),
    ]


def aligned_model(config: DemoConfig, shipped: Path, cache_dir: Path) -> Path:
    """Folder of the shipped model after refusal training, made on first use of these settings.

    It learns refusals of harmful requests beside plain answers to benign ones, some of which look
    harmful, so that it does not refuse everything.
    """
    folder = cache_dir / f"aligned-{_fingerprint(config)}"
    if folder.is_dir():
        logger.info("   the aligned model of these settings is at hand")
        return folder
    tokenizer = load_tokenizer(shipped)
    model = add_adapters(load_model(shipped), targets=EVERY_LINEAR, seed=config.seed)
    settings = FitConfig(
        learning_rate=config.align_learning_rate,
        max_steps=config.align_steps,
        batch_size=config.align_batch_size,
        warmup_ratio=0.1,
        seed=config.seed,
        save_every=None,
    )
    pairs = read("harmful", "train") + read("benign", "train")
    _fit(model, tokenizer, pairs, CrossEntropy(), None, settings)
    with whole_folder(folder) as unfinished:
        model.merge_and_unload().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


def safety_tokens(config: DemoConfig, aligned: Path, shipped: Path) -> dict[int, SafetyTokens]:
    """By their number asked for: the tokens on which refusal training moved the model most."""
    tokenizer = load_tokenizer(aligned)
    conversations = read("harmful", "train")
    if config.quick:
        conversations = conversations[:QUICK_SAMPLES]
    refusals = encode_examples(conversations, tokenizer, MAX_LENGTH)
    models = load_model(aligned), load_model(shipped)
    settings = {"max_response_length": config.max_response_length, "tokenizer": tokenizer}
    return {
        top_k: discover(*models, refusals, top_k=top_k, **settings)
        for top_k in sorted({config.top_k, config.vocabulary_top_k})
    }


def finetune(
    config: DemoConfig, arm: Arm, aligned: Path, tokens: dict[int, SafetyTokens]
) -> tuple[Any, list[Record]]:
    """The aligned model with adapters trained by one arm's objective, and the records of that."""
    tokenizer = load_tokenizer(aligned)
    model = add_adapters(load_model(aligned), seed=config.seed)
    objective: Objective = CrossEntropy()
    reference = None
    if arm.pact is not None:
        chosen = tokens[arm.top_k]
        objective = PactObjective(chosen.ids, chosen.weights, arm.pact)
        reference = AdaptersOff(model)
    settings = FitConfig(
        learning_rate=config.learning_rate,
        max_steps=config.steps,
        batch_size=config.batch_size,
        warmup_ratio=0.1,
        seed=config.seed,
        save_every=None,
    )
    conversations = finetuning_set(config.harmful_share, config.seed)
    return model, _fit(model, tokenizer, conversations, objective, reference, settings)


def measure(config: DemoConfig, model: Any, aligned: Path, tokens: SafetyTokens) -> Evaluation:
    """Refusals, over-refusal, held-out loss, task accuracy, and confidence on the safety tokens."""
    has_adapters = hasattr(model, "disable_adapter")
    harmful = _heldout("harmful", config)
    return evaluate(
        model,
        load_tokenizer(aligned),
        harmful=harmful,
        benign=_heldout("benign", config),
        heldout=read("finetune", "heldout"),
        task=_heldout("task", config),
        drift=harmful,
        tokens=tokens,
        reference=AdaptersOff(model) if has_adapters else FrozenModel(model),
        max_new_tokens=config.max_new_tokens,
        batch_size=20,  # a divisor of the sets: no batch is mostly empty
    )


def _heldout(name: str, config: DemoConfig) -> list[Conversation]:
    """A held-out set, or its first quarter where the demo is quick; rows are in random order."""
    conversations = read(name, "heldout")
    return conversations[: len(conversations) // 4] if config.quick else conversations


def _fit(
    model: Any,
    tokenizer: Any,
    conversations: list[Conversation],
    objective: Objective,
    reference: AdaptersOff | None,
    settings: FitConfig,
) -> list[Record]:
    post_only = objective.needs_post_only
    header = header_ids(tokenizer) if post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=post_only)
    dataset = encode_examples(conversations, tokenizer, MAX_LENGTH)
    return fit(model, dataset, objective, reference, collator, settings)


def _fingerprint(config: DemoConfig) -> str:
    """A digest of all that the aligned model depends on."""
    names = ("align_steps", "align_batch_size", "align_learning_rate", "seed")
    digest = hashlib.sha256(json.dumps([getattr(config, name) for name in names]).encode())
    for name in ("harmful_train.jsonl", "benign_train.jsonl"):
        digest.update((files("pact.demo") / "data" / name).read_bytes())
    return digest.hexdigest()[:12]
