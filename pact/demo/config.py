"""Settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from pact.config import PactConfig
from pact.training.config import FitConfig, TrainConfig

ADAPTERS = {"lora_r": 8, "lora_alpha": 32, "lora_targets": ("q_proj", "v_proj")}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Teach a small chat model to refuse, fine-tune it three ways, and look at what is left."""

    output_dir: str = "runs/demo"
    """Folder for the table, the plot, the generations and the tokens; a demo's earlier run in it is
    replaced.
    """
    cache_dir: str = "~/.cache/pact-kernels"
    """Where the converted model and the aligned model are kept between runs."""
    harmful_share: float = 0.0
    """Share of the fine-tuning examples that are harmful requests answered 'Sure, here is how:
    [removed]'.
    """
    quick: bool = False
    """Half the steps and half of the held-out prompts."""
    seed: int = 0
    """Order of the data and the adapters' first values."""
    align_steps: int = 60
    """Optimiser steps of refusal training, which makes the aligned model."""
    steps: int = 60
    """Optimiser steps of each of the three fine-tunings."""
    batch_size: int = 8
    """Conversations of one optimiser step."""
    learning_rate: float = 1e-3
    """Peak learning rate of every training in the demo."""
    top_k: int = 50
    """Tokens that discovery keeps, before it drops those without a score."""
    selection_weight: float = 1.0
    """kl_weight of the arm with the released objective."""
    vocabulary_weight: float = 1.0
    """kl_weight of the arm that matches confidences over the vocabulary."""
    max_new_tokens: int = 24
    """Most tokens of a generated answer."""

    def __post_init__(self) -> None:
        for name, valid, need in (
            ("harmful_share", 0.0 <= self.harmful_share < 1.0, "in [0, 1)"),
            ("align_steps", self.align_steps >= 1, "at least 1"),
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("top_k", self.top_k >= 2, "at least 2 (scores are centred among them)"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {need}, got {getattr(self, name)!r}")
