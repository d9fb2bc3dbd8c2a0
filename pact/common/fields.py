"""Checks of settings: each is of its kind, and a number is one that means something.

tyro knows no ranges, and sees nothing of a config that is made in Python.
"""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

MOST = 2**31 - 1
"""The largest count."""
LONGEST = 100
"""Characters of a value that an error shows."""
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping of names to values",
    types.NoneType: "unset",
}

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST
_SHORT.maxlist = _SHORT.maxdict = 20
_hints: Any = cache(get_type_hints)


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
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if not is_of(value, hint):
            wanted = " or ".join(map(word, kinds_of(hint)))
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if name in bounds and value is not None and not bounds[name].holds(value):
            unset = ", or unset" if types.NoneType in kinds_of(hint) else ""
            raise ValueError(
                f"{name} must be {bounds[name].need(value)}{unset}, got {short(value)}"
            )


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """What a union is of, else the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as `check_fields` has it."""
    return any(_is_one(value, kind, get_origin(kind) or kind) for kind in kinds_of(hint))


def short(value: Any) -> str:
    """A value as errors show it: its repr, cut where it is long, deep or repeated."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number with more digits than Python writes
        return f"a long {type(value).__name__}"


def word(kind: Any) -> str:
    """What a type is called in an error."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is tuple:
        return f"a list, each {WORDS[get_args(kind)[0]]}"
    return WORDS[origin]


def _is_one(value: Any, kind: Any, origin: Any) -> bool:
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if origin is tuple:
        item = get_args(kind)[0]
        return isinstance(value, (tuple, list)) and all(is_of(each, item) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if origin in (int, float):
        wanted = (int, float) if origin is float else int
        return isinstance(value, wanted) and not isinstance(value, bool)
    return isinstance(value, origin)
