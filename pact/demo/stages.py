"""The demo's steps on models in memory: discover, fine-tune, evaluate."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

from pact.data.collate import Collator
from pact.data.dataset import encode_examples
from pact.data.examples import Conversation
from pact.data.template import header_ids
from pact.demo.config import DemoConfig
from pact.demo.conversations import MAX_LENGTH, finetuning_set, read, with_system
from pact.discovery import SafetyTokens, discover
from pact.evaluation import Evaluation, evaluate
from pact.objective import CrossEntropy, Objective, PactConfig, PactObjective
from pact.reference import AdaptersOff, FrozenModel
from pact.training.config import FitConfig
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.student import add_adapters

QUICK_SAMPLES = 40
"""Refusals that a quick demo's discovery looks at, of 100."""


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


def safety_tokens(
    config: DemoConfig, aligned: Any, shipped: Any, tokenizer: Any
) -> dict[int, SafetyTokens]:
    """By their number asked for: the tokens on which refusal training moved the model most."""
    conversations = read("harmful", "train")
    if config.quick:
        conversations = conversations[:QUICK_SAMPLES]
    refusals = encode_examples(with_system(conversations), tokenizer, MAX_LENGTH)
    counts = config.top_k, config.vocabulary_top_k
    found = discover(
        aligned,
        shipped,
        refusals,
        top_k=max(counts),
        max_response_length=config.max_response_length,
        tokenizer=tokenizer,
    )
    return {top_k: fewer(found, top_k) for top_k in counts}


def fewer(tokens: SafetyTokens, top_k: int) -> SafetyTokens:
    """What discovery finds for a top_k up to that of `tokens`, without running the models again."""
    assert tokens.aligned_confidence is not None and tokens.base_confidence is not None
    difference = tokens.aligned_confidence - tokens.base_confidence
    size = min(top_k, tokens.ids.numel())
    found = SafetyTokens.from_scores(difference, tokens.aligned_confidence, size)
    return replace(
        found,
        ids=tokens.ids[found.ids],
        base_confidence=tokens.base_confidence[found.ids],
        metadata={**tokens.metadata, "top_k": str(top_k)},
    )


def finetune(
    config: DemoConfig, arm: Arm, aligned: Any, tokenizer: Any, tokens: dict[int, SafetyTokens]
) -> tuple[Any, list[Record]]:
    """A copy of the aligned model with adapters trained by one arm's objective, and its records."""
    model = add_adapters(copy.deepcopy(aligned), seed=config.seed)
    objective: Objective = CrossEntropy()
    reference = None
    if arm.pact is not None:
        chosen = tokens[arm.top_k]
        objective = PactObjective(chosen.ids, chosen.weights, arm.pact)
        reference = AdaptersOff(model)
    post_only = objective.needs_post_only
    header = header_ids(tokenizer) if post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=post_only)
    conversations = with_system(finetuning_set(config.harmful_share, config.seed))
    dataset = encode_examples(conversations, tokenizer, MAX_LENGTH)
    settings = FitConfig(
        learning_rate=config.learning_rate,
        max_steps=config.steps,
        batch_size=config.batch_size,
        warmup_ratio=0.1,
        seed=config.seed,
        save_every=None,
    )
    return model, fit(model, dataset, objective, reference, collator, settings)


def measure(config: DemoConfig, model: Any, tokenizer: Any, tokens: SafetyTokens) -> Evaluation:
    """Refusals, over-refusal, held-out loss, task accuracy, and confidence on the safety tokens."""
    has_adapters = hasattr(model, "disable_adapter")
    harmful = _heldout("harmful", config)
    return evaluate(
        model,
        tokenizer,
        harmful=harmful,
        benign=_heldout("benign", config),
        heldout=_heldout("finetune", config),
        task=_heldout("task", config),
        drift=harmful,
        tokens=tokens,
        reference=AdaptersOff(model) if has_adapters else FrozenModel(model),
        max_new_tokens=config.max_new_tokens,
        batch_size=40,  # the size of most sets: no batch is mostly empty
    )


def _heldout(name: str, config: DemoConfig) -> list[Conversation]:
    """A held-out set, or its first quarter where the demo is quick; rows are in random order."""
    conversations = with_system(read(name, "heldout"))
    return conversations[: len(conversations) // 4] if config.quick else conversations
