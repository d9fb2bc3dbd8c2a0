"""An operator's arguments as a NamedTuple, and as the flat list that torch's schemas know.

A field that is itself a NamedTuple becomes its fields, each behind the field's name: `head: Head`
is `Tensor head_weight, Tensor? head_bias, float? head_softcap, float head_logit_scale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

from torch import Tensor

Arguments = TypeVar("Arguments", bound=tuple[Any, ...])

TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    int | None: "SymInt?",
    float: "float",
    float | None: "float?",
    str: "str",
    list[bool]: "bool[]",
    list[float] | None: "float[]?",
}
"""What a field's annotation is called in a schema."""


class Argument(NamedTuple):
    """One entry of a schema."""

    name: str
    type_name: str

    def __str__(self) -> str:
        return f"{self.type_name} {self.name}"


@cache
def _fields(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def schema(cls: type, prefix: str = "") -> Iterator[Argument]:
    """The entries of a NamedTuple, in order."""
    for name, hint in _fields(cls).items():
        if hint in TYPES:
            yield Argument(prefix + name, TYPES[hint])
        else:
            yield from schema(hint, f"{prefix}{name}_")


def flat(arguments: tuple[Any, ...]) -> list[Any]:
    """The values of a NamedTuple, in the order of its schema."""
    values: list[Any] = []
    for value in arguments:
        if isinstance(value, tuple):
            values += flat(value)
        else:
            values.append(value)
    return values


def width(cls: type) -> int:
    """Entries of a NamedTuple's schema."""
    return sum(last - first for _, first, last in _places(cls))


def nested(cls: type[Arguments], values: Sequence[Any]) -> Arguments:
    """The inverse of `flat`."""
    return cls(
        *(
            values[first] if inner is None else nested(inner, values[first:last])
            for inner, first, last in _places(cls)
        )
    )


@cache
def _places(cls: type) -> tuple[tuple[type | None, int, int], ...]:
    """Every field: the NamedTuple that it is, if any, and where its entries start and end."""
    places, first = [], 0
    for hint in _fields(cls).values():
        inner = None if hint in TYPES else hint
        last = first + (1 if inner is None else width(inner))
        places.append((inner, first, last))
        first = last
    return tuple(places)
