"""Settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pact.common.fields import COUNT, MOST, Bounds, check_fields
from pact.objective.config import BOUNDS as OBJECTIVE

RATE = Bounds(0, 100, open_least=True)
TOKENS = Bounds(2, MOST)
"""How many tokens: their scores are centred among them."""
BOUNDS = {
    "harmful_share": Bounds(0, 1, open_most=True),
    "seed": Bounds(0, MOST),
    "align_steps": COUNT,
    "align_batch_size": COUNT,
    "align_learning_rate": RATE,
    "steps": COUNT,
    "batch_size": COUNT,
    "learning_rate": RATE,
    "top_k": TOKENS,
    "selection_weight": OBJECTIVE["kl_weight"],
    "anchor_weight": OBJECTIVE["kl_weight"],
    "max_response_length": COUNT,
    "max_new_tokens": COUNT,
}

OF_ALIGNMENT = ("align_steps", "align_batch_size", "align_learning_rate")
"""Settings of refusal training, which is part of a demo from scratch alone."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Fine-tune a small aligned chat model three ways, and look at what is left of its refusals.

    The defaults were chosen on the dev splits of the demo's data; its table shows held-out prompts.
    """

    output_dir: str = "runs/demo"
    """Folder for the page, the table, the picture, the adapters, the tokens and every answer; an
    earlier demo's are replaced."""
    cache_dir: str = "~/.cache/pact-kernels"
    """Where the converted model is kept between runs."""
    from_scratch: bool = False
    """Train the adapters that teach the model to refuse, rather than take those that the demo
    ships."""
    harmful_share: float = 0.0
    """Share of the fine-tuning examples that are harmful requests, answered "Sure, here is how:
    [removed]"."""
    quick: bool = False
    """Half of the steps of fine-tuning, at a higher rate, and a quarter of the prompts."""
    seed: int = 0
    """Order of the data and the adapters' first values, in each training of this demo."""
    align_steps: int = 70
    """Optimiser steps of refusal training; with from_scratch."""
    align_batch_size: int = 8
    """Conversations of a step of refusal training; with from_scratch."""
    align_learning_rate: float = 2e-3
    """Peak learning rate of refusal training; with from_scratch."""
    steps: int = 24
    """Optimiser steps of a fine-tuning; of that with anchors twice as many, for half of its
    examples are others."""
    batch_size: int = 4
    """Conversations of a step of fine-tuning."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of fine-tuning."""
    top_k: int = 50
    """Safety tokens of both PACT arms, and of the table's confidence."""
    selection_weight: float = 1.0
    """kl_weight of the arm with the released objective."""
    anchor_weight: float = 10.0
    """kl_weight of the arm with anchors."""
    max_response_length: int = 8
    """First tokens of each refusal that discovery looks at: the demo's refusals are short, and
    their ends would make the end of turn its first safety token."""
    max_new_tokens: int = 20
    """Most tokens of a generated answer."""

    def __post_init__(self) -> None:
        check_fields(self, BOUNDS)
        for name in () if self.from_scratch else OF_ALIGNMENT:
            given, shipped = getattr(self, name), getattr(type(self), name)
            if given != shipped:
                raise ValueError(
                    f"{name} is for from_scratch, got {given} where the shipped adapters were "
                    f"trained with {shipped}: set from_scratch, or leave it out"
                )

    def shortened(self) -> DemoConfig:
        """These settings or, where the demo is quick, half of its steps, at a higher rate."""
        if not self.quick:
            return self
        return replace(self, steps=max(1, self.steps // 2), learning_rate=1.5 * self.learning_rate)
