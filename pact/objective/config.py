"""Settings of the PACT objective, as flags and YAML keys see them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from inspect import signature
from typing import Literal, NamedTuple

from pact.common.fields import MOST, Bounds, check_fields
from pact_kernels import GateConfig, pact_loss

OP = {name: given.default for name, given in signature(pact_loss).parameters.items()}
"""The op's own defaults are the released objective's."""


class Settled(NamedTuple):
    """The settings that may be left unset, once they are known."""

    kl_weight: float
    kl_step_tau: float
    kl_margin: float
    positive_only: bool
    gate: bool


DEFAULTS = {
    "vocabulary": Settled(
        kl_weight=10.0, kl_step_tau=0.5, kl_margin=0.0, positive_only=True, gate=False
    ),
    "selection": Settled(
        kl_weight=OP["kl_weight"],
        kl_step_tau=math.inf,
        kl_margin=0.0,
        positive_only=False,
        gate=OP["gate"] is not None,
    ),
}
"""By `over`: what docs/evidence.md recommends, with some refusals in the data, and as released."""


TEMPERATURE = Bounds(1e-3, 1000)
BOUNDS = {
    "kl_weight": Bounds(0, 10**6),
    "kl_temperature": TEMPERATURE,
    "kl_step_tau": Bounds(1e-3, 10**9, or_inf=True),
    "kl_margin": Bounds(0, 50),
    "gate_top_p": Bounds(0, 1, open_least=True),
    "gate_alpha": Bounds(-(10**6), 10**6),
    "gate_bias": Bounds(-(10**6), 10**6),
    "gate_temperature": TEMPERATURE,
    "gate_prefix_length": Bounds(0, MOST),
    "gate_decay_tau": Bounds(0, 10**9, or_inf=True),
    "gate_prefix_boost": Bounds(0, 1000),
}
"""Those of numbers: within them exp, sigmoid and T^2 are finite in fp32."""


@dataclass(frozen=True, kw_only=True)
class PactConfig:
    """What the student is pulled towards, and how hard.

    `PactConfig()` is the recommended objective, `PactConfig(over="selection")` the one released
    with arXiv 2603.07445, as the ops run it by themselves: what is left unset is filled in by
    `over`.
    """

    over: Literal["vocabulary", "selection"] = "vocabulary"
    """vocabulary: true confidences; selection: softmax over the safety tokens alone (released)."""
    kl_weight: float | None = None
    """Lambda: weight of the KL beside the cross-entropy; unset is 10 for over=vocabulary, 1 for
    selection."""
    kl_temperature: float | None = None
    """Temperature of the KL; unset is 2 for over=selection, and 1 (the only one) for vocabulary."""
    kl_step_tau: float | None = None
    """Weight the KL of answer step t by exp(-t / tau), since the first steps decide a refusal; inf
    weighs all steps alike. Unset is 0.5 for over=vocabulary, inf for selection."""
    kl_margin: float | None = None
    """Nats by which the reference's log-odds of the safety tokens are raised. It makes up for what
    benign rows alone cannot hold, at the price of over-refusal: about 1.5 where the data hold
    neither refusals nor harmful requests, for over=vocabulary. Unset is 0."""
    positive_only: bool | None = None
    """Take the safety tokens of positive weight alone: the others are likelier in what is no
    refusal, and to hold them holds back what is to be learnt. Unset is on for over=vocabulary, off
    for selection, whose weights leave them no target either."""
    anchors_only: bool = False
    """Hold the rows of anchors alone: those of the data have the cross-entropy and no KL, so that
    an answer may open as no answer of the reference does. Of a run with anchors."""
    gate: bool | None = None
    """Mix the post-only reference in; off keeps the full-context one alone and saves a forward.
    Unset is off for over=vocabulary, on for selection."""
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
        check_fields(self, BOUNDS)
        for name, value in DEFAULTS[self.over]._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.over == "vocabulary" and self.kl_temperature not in (None, 1.0):
            raise ValueError(
                "over='vocabulary' matches confidences at temperature 1, got kl_temperature="
                f"{self.kl_temperature}: leave it unset"
            )
        if self.kl_margin and self.over != "vocabulary":
            raise ValueError(
                "a margin raises confidences over the vocabulary, got "
                f"kl_margin={self.kl_margin} with over={self.over!r}: set over=vocabulary, or no "
                "margin"
            )
        if 0 < self.gate_decay_tau < 1e-3:
            raise ValueError(
                f"gate_decay_tau must be at least 0.001, or 0 for a hard cut, got "
                f"{self.gate_decay_tau!r}"
            )
        self._gate_settings()  # refuses what is out of range, gate or none

    @property
    def settled(self) -> Settled:
        """What the unset settings became."""
        return Settled(*(getattr(self, name) for name in Settled._fields))

    def gate_config(self) -> GateConfig | None:
        """The gate that the ops take, or None where it is off."""
        return self._gate_settings() if self.settled.gate else None

    def _gate_settings(self) -> GateConfig:
        return GateConfig(
            top_p=self.gate_top_p,
            alpha=self.gate_alpha,
            bias=self.gate_bias,
            temperature=self.gate_temperature,
            prefix_length=self.gate_prefix_length,
            decay_tau=self.gate_decay_tau,
            prefix_boost=self.gate_prefix_boost,
        )
