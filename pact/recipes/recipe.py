"""A recipe: one YAML file with a section for every command of a run, and the model's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pact.common.outputs import check_folder
from pact.common.settings import (
    check_known,
    make_configs,
    missing_settings,
    read_mapping,
    read_values,
    settings_of,
    short,
    user_path,
)
from pact.discovery import DiscoverConfig
from pact.evaluation import EvaluateConfig
from pact.evaluation.refusals import RefusalsConfig
from pact.objective import PactConfig
from pact.recipes.architecture import Architecture
from pact.training.config import TrainConfig

COMMANDS: dict[str, Sequence[type]] = {
    "refusals": (RefusalsConfig,),
    "discover": (DiscoverConfig,),
    "train": (TrainConfig, PactConfig),
    "evaluate": (EvaluateConfig,),
}
"""The sections that are settings of a command of the same name, in the order of a run."""
SECTIONS: dict[str, Sequence[type]] = {"architecture": (Architecture,), **COMMANDS}
CONFIGS = Path(str(files("pact.recipes") / "configs"))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of all commands of a run on one model; local paths are relative to its folder."""

    name: str
    """How `pact recipe` calls it."""
    description: str
    """In one line."""
    architecture: Architecture
    """The sizes of the aligned model and of its base."""
    refusals: RefusalsConfig
    """The aligned model's refusals."""
    discover: DiscoverConfig
    """The safety tokens."""
    train: TrainConfig
    """Fine-tuning."""
    pact: PactConfig
    """Its objective."""
    evaluate: EvaluateConfig
    """The first evaluation, from which the others differ by flags."""

    def __post_init__(self) -> None:
        """A recipe's stages hand files to each other: their names must agree."""
        for reader, read, writer, written in (
            ("discover.aligned", self.discover.aligned, "refusals.model", self.refusals.model),
            ("train.model", self.train.model, "refusals.model", self.refusals.model),
            ("discover.data", self.discover.data, "refusals.output", self.refusals.output),
            ("train.tokens", self.train.tokens, "discover.output", self.discover.output),
            ("evaluate.model", self.evaluate.model, "train.output_dir", self.train.output_dir),
        ):
            if read != written:
                raise ValueError(f"{reader} must be {writer}={written!r}, got {read!r}")


def recipe_names() -> list[str]:
    """The recipes of this package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """A recipe's YAML file as it is written.

    Args:
        name: of this package's recipes, or the path of another file of the kind.
    """
    return _path(name).read_text(encoding="utf-8")


def load_recipe(name: str) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        name: of this package's recipes, or the path of another file of the kind.

    Raises:
        ValueError: there is none of that name; a section or a key is unknown or missing; a value
            has the wrong type or is out of range; or stages do not fit together.
    """
    path = _path(name)
    sections = read_mapping(path)
    description = sections.pop("description", "")
    if not isinstance(description, str) or not description.isprintable():
        raise ValueError(f"description in {path} must be one line, got {short(description)}")
    for key in sections:
        check_known(key, {"description": (), **SECTIONS}, path)
    absent = [section for section in SECTIONS if section not in sections]
    if absent:
        raise ValueError(f"{path} must have the sections {', '.join(SECTIONS)}, not {absent}")
    made = [_made(section, sections[section], path) for section in SECTIONS]
    (architecture,), (refusals,), (discover,), (train, pact), (evaluate,) = made
    return Recipe(
        name=path.stem,
        description=description,
        architecture=architecture,
        refusals=refusals,
        discover=discover,
        train=train,
        pact=pact,
        evaluate=evaluate,
    )


def write_configs(
    name: str, folder: str | Path, others: Mapping[str, str] | None = None
) -> list[Path]:
    """Write a recipe's sections as the files that `--config` of its commands reads.

    Args:
        name: of the recipe.
        folder: made if it is not there.
        others: what else to write, name -> text.

    Returns:
        refusals.yaml, discover.yaml, train.yaml and evaluate.yaml, and the others.

    Raises:
        ValueError: one of the files exists, none can be written there, or the recipe is not sound.
    """
    load_recipe(name)
    sections = read_mapping(_path(name))
    texts = {
        f"{command}.yaml": yaml.safe_dump(sections[command], sort_keys=False)
        for command in COMMANDS
    }
    texts |= others or {}
    folder = user_path(folder)
    paths = [folder / file for file in texts]
    for path in paths:
        if path.exists():
            raise ValueError(f"output_dir must hold no {path.name}, got {path}: name another")
    check_folder(folder, "output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as partial:
        for file, text in texts.items():
            (Path(partial) / file).write_text(text, encoding="utf-8")
        for path in paths:
            (Path(partial) / path.name).rename(path)
    return paths


def _made(section: str, values: Any, path: Path) -> list[Any]:
    """The configs of one section."""
    where = f"section {section} of {path.name}"
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must map names to values, got a {type(values).__name__}")
    settings = settings_of(SECTIONS[section])
    read = read_values(values, settings, where)
    missing = missing_settings(settings, read)
    if missing:
        raise ValueError(f"{where} must have {', '.join(setting.name for setting in missing)}")
    try:
        return make_configs(SECTIONS[section], read)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _path(name: str) -> Path:
    if name in recipe_names():
        return CONFIGS / f"{name}.yaml"
    path = user_path(name)
    if path.suffix != ".yaml" or not path.is_file():
        raise ValueError(
            f"a recipe is one of {', '.join(recipe_names())}, or the path of a .yaml file, got "
            f"{name!r}"
        )
    return path
