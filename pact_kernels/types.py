"""The values that the ops take and return beside plain tensors.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from torch import Tensor

LEAST_NUMBER = 2.0**-126
"""Least value of a positive setting: fp32, in which most are applied, holds it with all digits."""
MOST_NUMBER = 2.0**128 - 2.0**104
"""Largest value of any setting: the largest that fp32 holds."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How far a row's target moves from the full-context reference f to the post-only one p.

    With k(x) the least number of entries of softmax(x / temperature), in descending order, whose
    sum reaches top_p, and u the student's K selected logits at answer step t:

        c = sigmoid(alpha (k(u)/K - k(p)/K - bias)) * decay(t) * prefix_boost
        decay(t) = exp(-max(t - prefix_length, 0) / decay_tau)   if decay_tau > 0
                 = 1 if t < prefix_length else 0                 otherwise

    Source: arXiv 2603.07445 and the values of its released implementation.
    """

    top_p: float = 0.9
    """Probability mass, in (0, 1], that defines k; near 1 rounding has a say in the count."""
    alpha: float = 2.0
    """Slope of the sigmoid."""
    bias: float = 0.0
    """Difference of k/K at which the sigmoid is one half."""
    temperature: float = 1.0
    """Temperature of the softmax over the K logits from which k is counted."""
    prefix_length: int = 8
    """Answer steps before the decay sets in."""
    decay_tau: float = 8.0
    """Decay length in answer steps; 0 cuts the gate off at prefix_length, inf lets it be."""
    prefix_boost: float = 1.0
    """Factor on the whole gate."""

    def __post_init__(self) -> None:
        whole = isinstance(self.prefix_length, int)
        tau = self.decay_tau
        cut_or_decay = tau == 0.0 or LEAST_NUMBER <= tau <= MOST_NUMBER or tau == math.inf
        for name, valid, need in (
            ("top_p", LEAST_NUMBER <= self.top_p <= 1.0, "in (0, 1]"),
            ("alpha", abs(self.alpha) <= MOST_NUMBER, "finite"),
            ("bias", abs(self.bias) <= MOST_NUMBER, "finite"),
            ("temperature", LEAST_NUMBER <= self.temperature <= MOST_NUMBER, "positive and finite"),
            ("prefix_length", whole and self.prefix_length >= 0, "a whole number, at least 0"),
            ("decay_tau", cut_or_decay, "at least 0 (0 is a hard cut)"),
            ("prefix_boost", 0.0 <= self.prefix_boost <= MOST_NUMBER, "at least 0, and finite"),
        ):
            if not valid:
                value = getattr(self, name)
                raise ValueError(f"gate {name} must be {need}, got {value} (applied in fp32)")


class HeadOptions(TypedDict, total=False):
    """All of a head but its weight, as the ops take it by name."""

    bias: Tensor | None
    softcap: float | None
    logit_scale: float


class Head(NamedTuple):
    """The output head: logits z = softcap * tanh(logit_scale (hidden weight^T + bias) / softcap).

    It travels whole from the first line of an op to the device code, where weight and bias are
    what a kernel reads of them.
    """

    weight: Tensor
    """(V, D), or (K, D) of selected tokens."""
    bias: Tensor | None = None
    """(V,)"""
    softcap: float | None = None
    """None leaves the logits uncapped."""
    logit_scale: float = 1.0

    @property
    def options(self) -> HeadOptions:
        """All but the weight, as the ops take them."""
        return {"bias": self.bias, "softcap": self.softcap, "logit_scale": self.logit_scale}

    def select(self, token_ids: Tensor) -> Head:
        """The same for the tokens (K,) alone; autograd scatters gradients back."""
        bias = None if self.bias is None else self.bias.index_select(0, token_ids)
        return self._replace(weight=self.weight.index_select(0, token_ids), bias=bias)

    def tile(self, low: int, high: int) -> Head:
        """The same for tokens [low, high), without a copy."""
        bias = None if self.bias is None else self.bias[low:high]
        return self._replace(weight=self.weight[low:high], bias=bias)

    def at_temperature(self, temperature: float) -> Head:
        """The head of logits / temperature: softcap tanh(s x / softcap) / T has the same form."""
        softcap = None if self.softcap is None else self.softcap / temperature
        return self._replace(softcap=softcap, logit_scale=self.logit_scale / temperature)

    def logits(self, states: Tensor) -> Tensor:
        """(M, D) in any dtype -> (M, V) in the weight's."""
        return self.finish_(states.to(self.weight.dtype) @ self.weight.T)

    def finish_(self, products: Tensor) -> Tensor:
        """Raw products hidden weight^T (M, V) to logits, in place."""
        if self.bias is not None:
            products += self.bias
        if self.logit_scale != 1.0:
            products *= self.logit_scale
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the logits by the raw products: logit_scale (1 - (z / softcap)^2)."""
        if self.softcap is None:
            return self.logit_scale
        return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.logit_scale)


class ReferenceLogits(NamedTuple):
    """The reference's selected logits, formed earlier (a cache); no gradient reaches them."""

    full: Tensor
    """(N, K) on the full context."""
    post: Tensor | None = None
    """(N, K) on the post-only input; None only where gate=None."""
    full_lse: Tensor | None = None
    """(N,) log-sum-exp over the vocabulary; needed by over="vocabulary"."""
    post_lse: Tensor | None = None
    """(N,) log-sum-exp of the post-only logits; needed by over="vocabulary" with a gate."""


class ReferenceStates(NamedTuple):
    """The reference's hidden states: the op forms its logits itself; no gradient reaches them."""

    full_hidden: Tensor
    """(N, D) on the full context."""
    post_hidden: Tensor | None
    """(N, D) on the post-only input; None only where gate=None."""
    weight: Tensor
    """(V, D) the reference's head."""
    bias: Tensor | None = None
    """(V,) the reference's head bias; None takes the bias given to the op."""


class PactLoss(NamedTuple):
    """What `pact_loss` returns. Only `loss` carries a gradient; the others are for reports."""

    loss: Tensor
    """cross_entropy + kl_weight * kl."""
    cross_entropy: Tensor
    """Cross-entropy in nats, reduced like the loss."""
    kl: Tensor
    """KL to the reference's target in nats, reduced like the loss, before kl_weight."""
    num_rows: Tensor
    """() int64: rows of this call whose target was not ignored."""
    mean_gate: Tensor
    """() mean of the gate c over these rows; 0 with gate=None."""
