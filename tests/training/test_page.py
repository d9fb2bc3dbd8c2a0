"""What docs/guides/training.md says of flags, defaults and files is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from pact.cli.merge import MergeConfig
from pact.common.settings import settings_of
from pact.evaluation.refusals import RefusalsConfig
from pact.objective import PactConfig
from pact.recipes.step import CARDS, StepConfig
from pact.training.config import Schedule, TrainConfig
from pact.training.identity import FREE_ON_RESUME

PAGE = (Path(__file__).parents[2] / "docs/guides/training.md").read_text(encoding="utf-8")
SETTINGS = {setting.flag: setting for setting in settings_of([TrainConfig, PactConfig]).values()}
ROWS = re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE)


def shown(default: Any) -> str:
    """A default as the table has it."""
    if isinstance(default, bool) or default in (None, ()):
        return "on" if default else "off" if default is False else "none"
    return " ".join(default) if isinstance(default, tuple) else str(default)


@pytest.mark.parametrize(("flags", "defaults"), ROWS, ids=[flags for flags, _ in ROWS])
def test_a_default_is_the_settings(flags: str, defaults: str) -> None:
    names = re.findall(r"`(--[a-z-]+)`", flags)
    assert ", ".join(shown(SETTINGS[name].default) for name in names) == defaults


def test_every_flag_is_one() -> None:
    others = settings_of([StepConfig]) | settings_of([MergeConfig]) | settings_of([RefusalsConfig])
    launchers = {
        "--help",
        "--config",
        "--cpu",
        "--num",
        "--nproc-per-node",
        "--no-keep-best",
        "--no-cache",
    }
    known = {*SETTINGS, *(setting.flag for setting in others.values()), *launchers}
    assert len(ROWS) > 10
    assert set(re.findall(r"--[a-z][a-z-]*[a-z]", PAGE)) <= known


def test_lists_are_whole() -> None:
    lists = {"**Schedules.**": get_args(Schedule), "`pact plan": (*CARDS, "cpu")}
    for start, names in lists.items():
        (paragraph,) = (part for part in PAGE.split("\n\n") if part.startswith(start))
        assert {f"`{name}`" for name in names} <= set(re.findall(r"`[a-z0-9_]+`", paragraph))
    free = {setting.flag for setting in SETTINGS.values() if setting.name in FREE_ON_RESUME}
    (paragraph,) = (part for part in PAGE.split("\n\n") if "--resume` goes on from" in part)
    assert free - {"--dry-run"} <= set(re.findall(r"--[a-z-]+[a-z]", paragraph))
