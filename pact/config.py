"""Settings of the PACT objective, as flags and YAML keys see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pact_kernels import GateConfig


@dataclass(frozen=True, kw_only=True)
class PactConfig:
    """What the student is pulled towards, and how hard.

    The defaults are those of the released implementation (arXiv 2603.07445).
    """

    over: Literal["selection", "vocabulary"] = "selection"
    """selection: softmax over the safety tokens alone (released); vocabulary: true confidences."""
    kl_weight: float = 1.0
    """Lambda: weight of the KL beside the cross-entropy."""
    kl_temperature: float | None = None
    """Temperature of the KL; unset is 2 for over=selection, and 1 (the only one) for vocabulary."""
    kl_step_tau: float | None = None
    """Weight the KL of answer step t by exp(-t / tau), since the first steps decide a refusal;
    unset weights all steps alike (released)."""
    gate: bool = True
    """Mix the post-only reference in; off keeps the full-context one alone and saves a forward."""
    gate_top_p: float = GateConfig.top_p
    """Probability mass that defines the gate's token count."""
    gate_alpha: float = GateConfig.alpha
    """Slope of the gate's sigmoid."""
    gate_bias: float = GateConfig.bias
    """Difference of relative token counts at which the gate is one half."""
    gate_temperature: float = GateConfig.temperature
    """Temperature of the softmax whose tokens the gate counts."""
    gate_prefix_length: int = GateConfig.prefix_length
    """Answer steps before the gate decays."""
    gate_decay_tau: float = GateConfig.decay_tau
    """Decay length of the gate in answer steps; 0 cuts it off at the prefix."""
    gate_prefix_boost: float = GateConfig.prefix_boost
    """Factor on the whole gate."""

    def __post_init__(self) -> None:
        if self.over not in ("selection", "vocabulary"):
            raise ValueError(f"over must be 'selection' or 'vocabulary', got {self.over!r}")
        if not self.kl_weight >= 0:
            raise ValueError(f"kl_weight must be at least 0, got {self.kl_weight}")
        if self.over == "vocabulary" and self.kl_temperature not in (None, 1.0):
            raise ValueError(
                "over='vocabulary' matches confidences at temperature 1, got kl_temperature="
                f"{self.kl_temperature}: leave it unset"
            )
        if self.kl_temperature is not None and not self.kl_temperature > 0:
            raise ValueError(f"kl_temperature must be positive, got {self.kl_temperature}")
        if self.kl_step_tau is not None and not self.kl_step_tau > 0:
            raise ValueError(f"kl_step_tau must be positive or unset, got {self.kl_step_tau}")
        self.gate_config()

    def gate_config(self) -> GateConfig | None:
        """The gate that the ops take, or None where it is off."""
        if not self.gate:
            return None
        return GateConfig(
            top_p=self.gate_top_p,
            alpha=self.gate_alpha,
            bias=self.gate_bias,
            temperature=self.gate_temperature,
            prefix_length=self.gate_prefix_length,
            decay_tau=self.gate_decay_tau,
            prefix_boost=self.gate_prefix_boost,
        )
