"""What a judge is: prompts and answers in, one verdict per answer out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from pact.data.examples import Conversation
from pact.evaluation.config import EvaluateConfig


class Verdict(NamedTuple):
    """Whether an answer refuses, counted both ways."""

    starts_with_refusal: bool
    """The first sentence refuses, before anything else is said."""
    contains_refusal: bool
    """Some sentence refuses; a judge without a notion of the beginning gives one value twice."""


class Judge(Protocol):
    """Anything that judges answers; it may load a model at its first call."""

    def __call__(
        self, prompts: Sequence[Conversation], answers: Sequence[str]
    ) -> list[Verdict]: ...


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Settings that a judge may use."""

    refusal_label: str | None = None
    """The label of a classifier that means refusal."""
    batch_size: int = EvaluateConfig.batch_size
    """Answers that a model judges at once."""
    dtype: str = EvaluateConfig.dtype
    """Precision of a judge's model: fp32, bf16 or fp16."""
    device: str = "cpu"
    """Where a judge's model runs."""
    progress: bool = True
    """Whether a slow judge shows a bar."""


JudgeFactory: TypeAlias = Callable[[str, JudgeOptions], Judge]
"""From what follows the colon in the judge's name, a path for instance, and the options."""
