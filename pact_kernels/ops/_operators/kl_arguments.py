"""A KL as an operator takes it, in tensors, numbers and lists, and the request that it makes.

Legend: N rows, D' hidden size of the reference, K selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor

from pact_kernels.common.requests import KlRequest, Over
from pact_kernels.types import GateConfig, Head

GATE_FIELDS = tuple(GateConfig.__dataclass_fields__)


class ReferenceArguments(NamedTuple):
    """The reference's logits of the K tokens, or what they are formed from."""

    full: Tensor | None = None
    """(N, K) logits, or (N, D') states if a weight is given."""
    post: Tensor | None = None
    """Likewise."""
    weight: Tensor | None = None
    """(K, D')"""
    bias: Tensor | None = None
    """(K,)"""
    full_lse: Tensor | None = None
    """(N,)"""
    post_lse: Tensor | None = None
    """(N,)"""


class KlArguments(NamedTuple):
    """The KL of a loss; without token weights there is none."""

    token_weights: Tensor | None = None
    """(K,)"""
    step: Tensor | None = None
    """(N,)"""
    reference: ReferenceArguments = ReferenceArguments()
    row_weight: Tensor | None = None
    """(N,)"""
    gate: list[float] | None = None
    """The fields of GateConfig, in order."""
    over: str = "selection"
    temperature: float = 1.0
    kl_weight: float = 1.0

    def request(self, head: Head) -> KlRequest | None:
        """What they ask for; the reference's logits are capped and scaled as those of `head`."""
        if self.token_weights is None:
            return None
        reference = self.reference
        assert self.step is not None and reference.full is not None
        reference_head = None
        if reference.weight is not None:
            reference_head = head._replace(weight=reference.weight, bias=reference.bias)
        return KlRequest(
            token_weights=self.token_weights,
            step=self.step,
            reference_full=reference.full,
            reference_post=reference.post,
            reference_head=reference_head,
            full_lse=reference.full_lse,
            post_lse=reference.post_lse,
            row_weight=self.row_weight,
            gate=gate_from_values(self.gate),
            over=cast("Over", self.over),
            temperature=self.temperature,
            kl_weight=self.kl_weight,
        )


def gate_values(gate: GateConfig | None) -> list[float] | None:
    """The fields of `gate`, in order."""
    return None if gate is None else [float(getattr(gate, name)) for name in GATE_FIELDS]


def gate_from_values(values: list[float] | None) -> GateConfig | None:
    """The inverse of `gate_values`."""
    if values is None:
        return None
    fields: dict[str, Any] = dict(zip(GATE_FIELDS, values, strict=True))
    return GateConfig(**{**fields, "prefix_length": int(fields["prefix_length"])})
