"""The demo's steps on models in memory: discover, fine-tune, evaluate."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from pact.data.anchors import with_anchors
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
from pact.training.config import FitConfig, TrainConfig
from pact.training.loop import fit
from pact.training.metrics import Record
from pact.training.student import add_adapters

SAMPLES = 50
"""Refusals that discovery looks at, of 100: enough for 50 tokens."""
HELDOUT = 40
"""Prompts that are asked of a held-out set: all of them, but for the task's."""
DRIFT = 20
"""Held-out refusals on which the confidence is taken: a mean, steadier than the counts."""


class Arm(NamedTuple):
    """One of the three fine-tunings."""

    name: str
    pact: PactConfig | None
    """The objective's settings; None is plain fine-tuning."""
    anchor_share: float = 0.0
    """Anchors among its examples."""


def arms(config: DemoConfig) -> list[Arm]:
    """The fine-tunings, alike in data, seed and rate.

    The second is the released objective with its settings. The third is what is recommended: the
    confidences over the vocabulary at the first answer tokens of anchors, and these alone.
    """
    selection = PactConfig(over="selection", kl_weight=config.selection_weight)
    anchored = PactConfig(over="vocabulary", kl_weight=config.anchor_weight, anchors_only=True)
    return [
        Arm("plain", None),
        Arm("PACT selection", selection),
        Arm("PACT anchors", anchored, TrainConfig.anchor_share),
    ]


def safety_tokens(config: DemoConfig, aligned: Any, shipped: Any, tokenizer: Any) -> SafetyTokens:
    """The tokens on which refusal training moved the model most."""
    conversations = with_system(read("harmful", "train")[:SAMPLES])
    refusals = encode_examples(conversations, tokenizer, MAX_LENGTH)
    return discover(
        aligned,
        shipped,
        refusals,
        top_k=config.top_k,
        max_response_length=config.max_response_length,
        tokenizer=tokenizer,
    )


def finetune(
    config: DemoConfig, arm: Arm, aligned: Any, tokenizer: Any, tokens: SafetyTokens
) -> tuple[Any, list[Record]]:
    """A copy of the aligned model with adapters trained by one arm's objective, and its records."""
    model = add_adapters(copy.deepcopy(aligned), seed=config.seed)
    objective: Objective = CrossEntropy()
    reference = None
    if arm.pact is not None:
        objective = PactObjective(tokens.ids, tokens.weights, arm.pact)
        reference = AdaptersOff(model)
    post_only = objective.needs_post_only
    header = header_ids(tokenizer) if post_only else ()
    collator = Collator(header, tokenizer.pad_token_id, post_only=post_only)
    conversations = with_system(finetuning_set(config.harmful_share, config.seed))
    dataset = encode_examples(conversations, tokenizer, MAX_LENGTH)
    if arm.anchor_share:
        held = encode_examples(_anchors(), tokenizer, MAX_LENGTH)
        share, steps = arm.anchor_share, TrainConfig.anchor_steps
        dataset = with_anchors(dataset, held, share, steps, config.seed)
    settings = FitConfig(
        learning_rate=config.learning_rate,
        max_steps=round(config.steps / (1 - arm.anchor_share)),
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
        drift=harmful[:DRIFT],
        tokens=tokens,
        reference=AdaptersOff(model) if has_adapters else FrozenModel(model),
        max_new_tokens=config.max_new_tokens,
        batch_size=HELDOUT,
    )


def _anchors() -> list[Conversation]:
    """Pairs that the aligned model was taught, as many refusals as plain answers.

    They stand for its own answers, which take as long to write as a fine-tuning's evaluation.
    """
    harmful = read("harmful", "train")
    return with_system(harmful + read("benign", "train")[: len(harmful)])


def _heldout(name: str, config: DemoConfig) -> list[Conversation]:
    """A held-out set, or its first quarter where the demo is quick; rows are in random order."""
    conversations = with_system(read(name, "heldout"))[:HELDOUT]
    return conversations[: len(conversations) // 4] if config.quick else conversations
