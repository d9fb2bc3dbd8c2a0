"""What fine-tuning is for: the loss on held-out pairs, and how often the answer is exactly theirs.

Legend: N answer rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

import pact_kernels as pk
from pact.data.examples import Conversation
from pact.evaluation.generate import generate_answers
from pact.evaluation.inference import answer_batches, looking_at
from pact.evaluation.intervals import Rate
from pact.models import head_and_states

SPARE_TOKENS = 8
"""Tokens beyond the longest expected answer: its end of turn, and room to see it go on."""
LARGEST_NATS = 700.0
"""Beyond it the exponential is no number of float64."""


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Cross-entropy of the answer tokens, each with the same weight."""

    mean_nats: float
    """Mean of -log P(token | everything before it)."""
    perplexity: float
    """exp(mean_nats)."""
    tokens: int
    """Answer tokens, ends of turns among them."""


class ExactMatch(NamedTuple):
    """Generated answers beside those expected."""

    rate: Rate
    answers: list[str]
    expected: list[str]
    matches: list[bool]


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    max_length: int | None = None,
    progress: bool = True,
) -> HeldOutLoss:
    """Loss on the answers of held-out conversations, by the fused cross-entropy: no full logits.

    Args:
        model: a causal language model, with or without PEFT adapters; its mode is put back after.
        tokenizer: a fast tokenizer with a chat template.
        conversations: every assistant turn counts.
        batch_size: conversations in a batch.
        max_length: tokens kept of each conversation, from its beginning; None keeps all.
        progress: whether to show a bar.

    Raises:
        ValueError: the loss is not finite.
    """
    total_nats, tokens = 0.0, 0
    with looking_at(model):
        for inputs, hidden in answer_batches(
            model,
            tokenizer,
            conversations,
            batch_size=batch_size,
            max_length=max_length,
            title="held-out loss",
            progress=progress,
        ):
            hidden, head = head_and_states(model, hidden)
            losses = pk.linear_cross_entropy(
                hidden, head.weight, inputs["row_target"], reduction="none", **head.options
            )  # (N,)
            total_nats += losses.double().sum().item()
            tokens += losses.numel()
    mean_nats = total_nats / tokens
    if not math.isfinite(mean_nats):
        raise ValueError(
            f"the held-out loss must be finite, got {mean_nats}: the model's weights are damaged, "
            "or beyond the precision; look at it in fp32"
        )
    exponential = math.exp(mean_nats) if mean_nats < LARGEST_NATS else math.inf
    return HeldOutLoss(mean_nats=mean_nats, perplexity=exponential, tokens=tokens)


def exact_match(
    model: nn.Module,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    progress: bool = True,
) -> ExactMatch:
    """How often the greedy answer equals the last turn, runs of whitespace counted as one space.

    Answers may grow as long as the longest one expected, and SPARE_TOKENS more.

    Raises:
        ValueError: the last turn of a conversation is not the assistant's.
    """
    expected = expected_answers(conversations)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in expected]
    answers = generate_answers(
        model,
        tokenizer,
        conversations,
        max_new_tokens=max(lengths, default=0) + SPARE_TOKENS,
        batch_size=batch_size,
        progress=progress,
    )
    matches = [a.split() == e.split() for a, e in zip(answers, expected, strict=True)]
    return ExactMatch(Rate.of(matches), answers, expected, matches)


def expected_answers(conversations: Sequence[Conversation]) -> list[str]:
    """The last turns.

    Raises:
        ValueError: one of them is not the assistant's.
    """
    for number, turns in enumerate(conversations):
        if turns[-1]["role"] != "assistant":
            raise ValueError(
                "exact match needs conversations that end with the assistant's turn, got "
                f"{turns[-1]['role']!r} last in conversation {number}: add the answer wanted"
            )
    return [turns[-1]["content"] for turns in conversations]
