"""The result of an evaluation: what was measured, and every generated answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pact.evaluation.drift import Drift
from pact.evaluation.heldout import HeldOutLoss
from pact.evaluation.intervals import Rate


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """How many of a set's answers refuse, counted both ways."""

    starts: Rate
    """Answers that open with a refusal."""
    contains: Rate
    """Answers that refuse anywhere."""

    @classmethod
    def of(cls, generations: Sequence[Generation]) -> Refusals:
        """Count the verdicts of at least one judged answer."""
        return cls(
            starts=Rate.of(answer.verdict["starts_with_refusal"] for answer in generations),
            contains=Rate.of(answer.verdict["contains_refusal"] for answer in generations),
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated answer."""

    set: str
    """harmful, benign or task."""
    prompt: str
    """What was asked; the turns of a longer conversation have their roles before them."""
    answer: str
    """As generated, without special tokens and without the prefill."""
    verdict: Mapping[str, bool]
    """starts_with_refusal and contains_refusal, or exact_match."""
    expected: str | None = None
    """The answer wanted, for task."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured; None where there were no data for it."""

    settings: Mapping[str, Any]
    """How it was measured."""
    harmful: Refusals | None = None
    """Refusals of harmful prompts."""
    benign: Refusals | None = None
    """Refusals of benign prompts: over-refusal."""
    heldout: HeldOutLoss | None = None
    """Loss on held-out answers."""
    task: Rate | None = None
    """Exact matches."""
    drift: Drift | None = None
    """Distance from the reference on the safety tokens."""
    generations: tuple[Generation, ...] = ()
    """Every answer, set by set, in the order of the prompts."""
