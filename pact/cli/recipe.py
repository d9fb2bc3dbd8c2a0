"""`pact recipe <action>`: what can be done with the settings for a real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pact.cli import listed, unknown
from pact.common.printable import printable


@dataclass(frozen=True, kw_only=True)
class NameConfig:
    """Which recipe."""

    name: str
    """One of `pact recipe list`, or the path of a .yaml file of the kind; it may stand first
    without the flag."""


@dataclass(frozen=True, kw_only=True)
class WriteConfig(NameConfig):
    """Where the files go."""

    output_dir: str
    """Folder for refusals.yaml, discover.yaml, train.yaml, evaluate.yaml and run.sh."""


def run(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    action, *rest = argv
    if action not in ACTIONS:
        raise ValueError(unknown("action", action, ACTIONS))
    if action != "list" and rest and not rest[0].startswith("-"):
        rest = ["--name", *rest]
    ACTIONS[action][1](rest)


def _parsed(action: str, config: type, argv: Sequence[str]) -> Any:
    from pact.cli.arguments import parse

    return parse(f"recipe {action}", [config], argv, summary=ACTIONS[action][0])[0]


def _list(argv: Sequence[str]) -> None:
    if argv:
        raise ValueError(f"list takes nothing, got {' '.join(argv)}: leave that out")
    from pact.recipes.recipe import load_recipe, recipe_names

    for name in recipe_names():
        print(f"{name:<14}{load_recipe(name).description}")


def _show(argv: Sequence[str]) -> None:
    config = _parsed("show", NameConfig, argv)
    from pact.recipes.recipe import load_recipe, recipe_text

    load_recipe(config.name)
    print(printable(recipe_text(config.name)), end="")


def _plan(argv: Sequence[str]) -> None:
    from pact.recipes.memory import PlanConfig, memory_plan, plan_table

    config = _parsed("plan", PlanConfig, argv)
    from pact.recipes.recipe import load_recipe

    print(printable(plan_table(memory_plan(config.changed(load_recipe(config.name))))), end="")


def _dry_run(argv: Sequence[str]) -> None:
    config = _parsed("dry-run", NameConfig, argv)
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from pact.recipes.dry_run import dry_run, dry_run_report
    from pact.recipes.recipe import load_recipe

    recipe = load_recipe(config.name)
    with TemporaryDirectory(prefix="pact-dry-run-") as folder:
        print(dry_run_report(recipe, dry_run(recipe, Path(folder))), end="")


def _write(argv: Sequence[str]) -> None:
    config = _parsed("write", WriteConfig, argv)
    from pact.recipes.commands import script
    from pact.recipes.recipe import load_recipe, write_configs

    others = {"run.sh": script(load_recipe(config.name))}
    paths = write_configs(config.name, config.output_dir, others)
    print(f"{', '.join(path.name for path in paths)} in {config.output_dir}")


def _commands(argv: Sequence[str]) -> None:
    config = _parsed("commands", NameConfig, argv)
    from pact.recipes.commands import script
    from pact.recipes.recipe import load_recipe

    print(printable(script(load_recipe(config.name))), end="")


def _data(argv: Sequence[str]) -> None:
    from pact.recipes.data import SOURCES, DataConfig, write_data

    if not argv:
        for name, source in SOURCES.items():
            print(f"{name:<23}{source.licence:<12}{source.title}")
        return
    config = _parsed("data", DataConfig, argv)
    print(f"{write_data(config)} lines in {config.output}, licence: {SOURCES[config.name].licence}")


def _overview() -> str:
    summaries = {action: summary for action, (summary, _) in ACTIONS.items()}
    return f"usage: pact recipe <action> [NAME] [--help] [flags]\n\n{listed(summaries)}"


ACTIONS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "list": ("name the recipes", _list),
    "show": ("print a recipe", _show),
    "plan": ("count what a training step takes, beside the released algorithm", _plan),
    "dry-run": ("run all its stages on a tiny random model of its family", _dry_run),
    "write": ("write its settings as files, and the run's commands as run.sh", _write),
    "commands": ("print the run's commands", _commands),
    "data": ("fetch a public set as a .jsonl file; without a name, list them", _data),
}
