"""The fenced blocks of README.md and docs/, and which test runs which of them.

The blocks of a section share one namespace, which holds what the page says that they assume. Every
section begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).parents[2]
HEADING = re.compile(r"^#{1,3} (.+)$")
FENCE = re.compile(r"^ *```(.*)$")
Test = TypeVar("Test", bound=Callable[..., Any])


class Block(NamedTuple):
    """What stands between two fences."""

    page: str
    """Its path below the repository's root."""
    heading: str
    """The last one above it."""
    language: str
    line: int
    """That of the fence above it."""
    text: str


def pages() -> list[str]:
    """README.md and every page of docs/."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", *(str(path.relative_to(ROOT)) for path in found)]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """A page's blocks of some languages, or all."""
    found: list[Block] = []
    heading, start, language, lines = "", 0, None, []
    for number, line in enumerate(read(page).splitlines(), 1):
        if match := FENCE.match(line):
            if language is None:
                language, start, lines = match[1], number, []
                continue
            found.append(Block(page, heading, language, start, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
        elif match := HEADING.match(line):
            heading = match[1]
    assert language is None, f"{page}: the block of line {start} is not closed"
    return [block for block in found if block.language in languages or not languages]


RUN: set[tuple[str, str]] = set()
"""(page, heading) of the sections whose Python or YAML a test runs."""


def runs(page: str, heading: str) -> Callable[[Test], Test]:
    """The test below runs the blocks of a section."""
    RUN.add((page, heading))
    return lambda test: test


def run(page: str, heading: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute a section's Python in order; a failure names the page and its line."""
    assert (page, heading) in RUN, "say so above the test: @runs(page, heading)"
    chosen = [block for block in blocks(page, "python") if block.heading == heading]
    assert chosen, f"{page} has no Python under {heading!r}"
    for block in chosen:
        exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), names)
    return names
