"""A KL as an operator takes it, in tensors, numbers and lists, and back.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from pact_kernels.common.requests import KlRequest
from pact_kernels.types import GateConfig, Head

GATE_FIELDS = tuple(GateConfig.__dataclass_fields__)


def gate_values(gate: GateConfig | None) -> list[float] | None:
    """The fields of `gate`, in order."""
    return None if gate is None else [float(getattr(gate, name)) for name in GATE_FIELDS]


def gate_from_values(values: list[float] | None) -> GateConfig | None:
    """The inverse of `gate_values`."""
    if values is None:
        return None
    fields: dict[str, Any] = dict(zip(GATE_FIELDS, values, strict=True))
    return GateConfig(**{**fields, "prefix_length": int(fields["prefix_length"])})


def kl_request(arguments: dict[str, Any], head: Head) -> KlRequest:
    """The request that an operator's arguments make; the reference's head is capped as `head`."""
    fields: dict[str, Any] = {name: arguments.get(name) for name in KlRequest.__dataclass_fields__}
    reference = None
    if arguments["reference_weight"] is not None:
        weight, bias = arguments["reference_weight"], arguments["reference_bias"]
        reference = head._replace(weight=weight, bias=bias)
    gate = gate_from_values(arguments["gate"])
    return KlRequest(**{**fields, "reference_head": reference, "gate": gate})
