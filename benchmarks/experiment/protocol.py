"""What all cells share: their records can be compared, those of another protocol cannot."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.experiment.alignment import Alignment

PROTOCOL_FILE = "protocol.json"
"""Beside the records: what they share, and of which models they are."""
PLAIN_BASE = "plainly fine-tuned"
"""What the records call a base that is none."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How much is asked of every model."""

    outside: int = 40
    """How many of HarmBench's requests are asked."""
    heldout: int | None = None
    """How many of each held-out set are taken; None takes all of it."""
    max_new_tokens: int = 20
    """Most tokens of an answer to a request; answers to a task get as many as they need."""
    batch_size: int = 40
    """Prompts in one forward pass."""


@dataclass(frozen=True)
class SecondJudge:
    """Who judges the answers beside the keywords, as `pact evaluate --judge` names it."""

    name: str
    """classifier:PATH, guard:PATH or guard:HUB/NAME."""
    refusal_label: str | None = None
    """The label of a classifier that means refusal."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """From the aligned model to the last prompt."""

    alignment: Alignment = Alignment()
    """The refusal training."""
    prompts: Prompts = Prompts()
    """The evaluation."""
    batch_size: int = 4
    """Conversations of an optimiser step of fine-tuning."""
    learning_rate: float = 1e-3
    """Peak, of adapters; chosen on dev prompts."""
    full_learning_rate: float = 2e-5
    """Peak, of full fine-tuning."""
    second_judge: SecondJudge | None = None
    """Its counts and the agreement of both are recorded beside the others; None asks none."""
