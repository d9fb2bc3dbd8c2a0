"""A gate as an operator's argument: a list of numbers."""

from __future__ import annotations

from typing import Any

from pact_kernels.types import GateConfig

FIELDS = tuple(GateConfig.__dataclass_fields__)


def gate_values(gate: GateConfig | None) -> list[float] | None:
    """The fields of `gate`, in order."""
    return None if gate is None else [float(getattr(gate, name)) for name in FIELDS]


def gate_from_values(values: list[float] | None) -> GateConfig | None:
    """The inverse of `gate_values`."""
    if values is None:
        return None
    fields: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    return GateConfig(**{**fields, "prefix_length": int(fields["prefix_length"])})
