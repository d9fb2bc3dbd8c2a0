"""What files hold, as text that a terminal shows and does not obey."""

from __future__ import annotations

import logging
import unicodedata

KEPT = "\n\t"
"""Control characters that do no more than lay text out."""
ESCAPED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of what is escaped: controls, halves of surrogate pairs, line separators."""
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that reorder what is shown behind them."""


def printable(text: str) -> str:
    r"""Text with escapes, as Python spells them, in place of characters that a terminal obeys.

    Those are control characters but for line breaks and tabs, so that no escape sequence is left;
    marks of direction; line separators; and halves of surrogate pairs, which no encoding has.
    """
    if text.isprintable() and DIRECTIONS.isdisjoint(text):
        return text
    return "".join(_escape(c) if _is_obeyed(c) else c for c in text)


class PrintableFormatter(logging.Formatter):
    """Formats a record, and escapes in it what a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _is_obeyed(character: str) -> bool:
    if character in KEPT:
        return False
    return character in DIRECTIONS or unicodedata.category(character) in ESCAPED


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
