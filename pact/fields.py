"""Checks of settings: each is of its kind, and a number is one that means something."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pact.settings import short

MOST = 2**31 - 1
"""The largest count."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Bounds(NamedTuple):
    """Between which ends a number lies."""

    least: float
    most: float
    open_least: bool = False
    """Whether `least` itself is left out."""
    open_most: bool = False
    """Whether `most` itself is left out."""
    or_inf: bool = False
    """Whether infinity is a value."""

    def holds(self, value: float) -> bool:
        """Whether a number lies between them; NaN never does."""
        if value in (math.inf, -math.inf):  # math.isinf knows no whole number beyond its range
            return value > 0 and self.or_inf
        above = self.least < value if self.open_least else self.least <= value
        return above and (value < self.most if self.open_most else value <= self.most)

    def need(self, value: float) -> str:
        """What a number that they do not hold must be."""
        if value != value or value in (math.inf, -math.inf):
            text = "finite"
        elif self.most <= 1:
            left, right = "[("[self.open_least], "])"[self.open_most]
            text = f"in {left}{self.least}, {self.most}{right}"
        elif value > self.least:
            text = f"{'below' if self.open_most else 'at most'} {self.most}"
        else:
            text = "positive" if self.open_least else f"at least {self.least}"
        return text + (", or inf" if self.or_inf else "")


COUNT = Bounds(1, MOST)
"""How many of something."""


def check_fields(config: Any, bounds: Mapping[str, Bounds]) -> None:
    """Refuse values that are of another kind than their fields, or beyond their bounds.

    A whole number may stand for a number, a list for a tuple, and neither true nor false for a
    number.

    Args:
        config: a dataclass whose annotations are plain types, Literals, tuples, dicts and None.
        bounds: those of numbers, by field; None, where it is a value, is within them.

    Raises:
        ValueError: a field's value is neither; it names the field.
    """
    kind: Any = type(config)
    for name, kinds in _kinds(kind):
        value = getattr(config, name)
        if not any(_is_of(value, kind) for kind in kinds):
            wanted = " or ".join(_word(kind) for kind in kinds)
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if name in bounds and value is not None and not bounds[name].holds(value):
            unset = ", or unset" if types.NoneType in kinds else ""
            raise ValueError(
                f"{name} must be {bounds[name].need(value)}{unset}, got {short(value)}"
            )


@cache
def _kinds(config: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The kinds that each field may be of."""

    def found() -> Iterator[tuple[str, tuple[Any, ...]]]:
        for name, hint in get_type_hints(config).items():
            is_union = get_origin(hint) in (Union, types.UnionType)
            yield name, get_args(hint) if is_union else (hint,)

    return tuple(found())


def _is_of(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if origin is tuple:
        item = get_args(kind)[0]
        return isinstance(value, (tuple, list)) and all(_is_of(each, item) for each in value)
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin)


def _word(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is tuple:
        return f"a list, each {WORDS[get_args(kind)[0]]}"
    if kind is types.NoneType:
        return "unset"
    return WORDS.get(origin, "a mapping of names to values")
