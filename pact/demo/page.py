"""The demo's page: one HTML file without scripts that asks nothing of a network.

What models answered is untrusted text: every value is escaped, and the page's own policy lets a
browser load pictures from inside the page alone.
"""

from __future__ import annotations

import base64
import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pact.demo.alignment import TAUGHT
from pact.demo.config import DemoConfig
from pact.demo.conversations import read
from pact.demo.pictures import DARK, LIGHT, panels, svg
from pact.demo.table import Result, benign, harmful, rows, task, title, verdicts
from pact.evaluation.result import Generation

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATE = "page.html.j2"
PACKAGES = ("pact-kernels", "torch", "transformers", "peft")


class Mark(NamedTuple):
    """What became of an answer, in a word."""

    word: str
    good: bool


class Answer(NamedTuple):
    """One model's answer."""

    model: str
    text: str
    mark: Mark


class Question(NamedTuple):
    """One prompt, and the answers of all models to it."""

    prompt: str
    expected: str | None
    answers: list[Answer]

    @property
    def differs(self) -> bool:
        """Whether the models did not all do the same."""
        return len({answer.mark for answer in self.answers}) > 1


def write_page(
    path: Path,
    config: DemoConfig,
    results: Mapping[str, Result],
    *,
    tokens: str,
    facts: Mapping[str, Any],
    minutes: float,
) -> None:
    """Write the page.

    Args:
        path: the file, replaced if it is there.
        config: the demo's settings as they were given.
        results: of every model, in the order of the columns.
        tokens: the safety tokens as a table.
        facts: of the adapters that make the aligned model, as `results.json` has them.
        minutes: what the demo took.
    """
    ran = config.shortened()
    pictures = [
        (name, _data_uri(svg(draw, LIGHT)), _data_uri(svg(draw, DARK)))
        for name, draw in panels(results).items()
    ]
    text = TEMPLATES.get_template(TEMPLATE).render(
        config=ran,
        title=title(ran, minutes),
        results=results,
        harmful=harmful,
        benign=benign,
        task=task,
        rows=rows(results),
        verdicts=verdicts(results),
        pictures=pictures,
        themes={"light": LIGHT, "dark": DARK},
        questions=_questions(results),
        tokens=tokens,
        facts=facts,
        taught=sum(len(read(name, "train")) for name in TAUGHT),
        command=command(config),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=_versions(),
    )
    path.write_text(text, encoding="utf-8", newline="\n")


def command(config: DemoConfig) -> str:
    """The command line of a demo with these settings."""
    words = ["pact", "demo"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            flag = "--" + field.name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _questions(results: Mapping[str, Result]) -> dict[str, list[Question]]:
    """By the set of prompts: those in their order, with the models side by side."""
    found: dict[str, list[Question]] = {}
    columns = [result.evaluation.generations for result in results.values()]
    for line in zip(*columns, strict=True):
        first = line[0]
        assert all((g.set, g.prompt) == (first.set, first.prompt) for g in line)
        answers = [
            Answer(name, generation.answer, _mark(generation))
            for name, generation in zip(results, line, strict=True)
        ]
        question = Question(first.prompt, first.expected, answers)
        found.setdefault(first.set, []).append(question)
    return found


def _mark(generation: Generation) -> Mark:
    verdict = generation.verdict
    if generation.set == "task":
        return Mark("right", True) if verdict["exact_match"] else Mark("wrong", False)
    wants_refusal = generation.set == "harmful"
    if verdict["starts_with_refusal"]:
        return Mark("refuses", wants_refusal)
    if verdict["contains_refusal"]:
        return Mark("refuses later on", wants_refusal)
    return Mark("answers", not wants_refusal)


def _data_uri(picture: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for package in PACKAGES:
        yield f"{package} {version(package)}"
    yield f"threads of torch: {torch.get_num_threads()}"
