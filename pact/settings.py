"""Config dataclasses as settings: what each is called, what it may be, and its values from YAML.

A setting has its field's name, type and default, and its help is the docstring under the field.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml


class Setting(NamedTuple):
    """One field of a config."""

    name: str
    kind: Any  # bool, int, float, str, Path, a Literal, a tuple or list of one of them, or a dict
    optional: bool  # whether None is a value
    default: Any  # dataclasses.MISSING where it must be given
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def settings_of(configs: Sequence[type]) -> dict[str, Setting]:
    """Every setting of several configs by its name; no two share one."""
    return {setting.name: setting for config in configs for setting in own_settings(config)}


def own_settings(config: type, inherited: bool = True) -> list[Setting]:
    """The settings of one config, with or without those of the configs that it extends."""
    hints = get_type_hints(config)
    docs = {name: text for owner in owners([config]) for name, text in _docstrings(owner).items()}
    settings = []
    for field in dataclasses.fields(config):
        if inherited or field.name in inspect.get_annotations(config):
            kind, optional = _kind(hints[field.name])
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            settings.append(Setting(field.name, kind, optional, default, docs[field.name]))
    return settings


def owners(configs: Sequence[type]) -> list[type]:
    """Each config and the configs it extends, itself first."""
    lines = [base for config in configs for base in config.__mro__]
    return [base for base in lines if dataclasses.is_dataclass(base)]


def make_configs(configs: Sequence[type], values: Mapping[str, Any]) -> list[Any]:
    """One instance of each config from values by name, where a missing one is the default."""
    instances = []
    for config in configs:
        names = [field.name for field in dataclasses.fields(config)]
        instances.append(config(**{name: values[name] for name in names if name in values}))
    return instances


def missing_settings(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> list[Setting]:
    """The settings without a default that have no value."""
    required = [s for s in settings.values() if s.default is dataclasses.MISSING]
    return [setting for setting in required if setting.name not in values]


def read_mapping(path: Path) -> dict[Any, Any]:
    """What a YAML file maps.

    Raises:
        ValueError: it does not exist, is not YAML, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"config file {path} must be YAML, got: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(
            f"config file {path} must map names to values, got a {type(read).__name__}"
        )
    return read


def read_values(
    given: Mapping[Any, Any], settings: Mapping[str, Setting], where: object
) -> dict[str, Any]:
    """Values as YAML gives them, each as its setting's type.

    Args:
        given: name -> value.
        settings: name -> setting.
        where: what errors call the place they are from.

    Raises:
        ValueError: a name is unknown, or a value has the wrong type.
    """
    for key in given:
        check_known(key, settings, where)
    return {key: _checked(settings[key], value, where) for key, value in given.items()}


def check_known(key: object, known: Mapping[str, Any], where: object) -> None:
    """Refuse a key that is not known, and name the nearest one that is."""
    if key not in known:
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown key {key!r} in {where}: the nearest is {nearest!r}")


def _kind(hint: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
    assert len(kinds) == 1, f"a setting has one type beside None, got {hint}"
    return kinds[0], True


def _docstrings(config: type) -> dict[str, str]:
    """The string that stands under each field in the class's source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def _checked(setting: Setting, value: Any, where: object) -> Any:
    """A YAML value as its setting's type."""
    kind = get_origin(setting.kind) or setting.kind
    if value is None and setting.optional:
        return None
    if kind in (tuple, list) and isinstance(value, list):
        item = get_args(setting.kind)[0]
        return kind(_checked(setting._replace(kind=item), entry, where) for entry in value)
    if kind is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    if kind is Literal and value in get_args(setting.kind):
        return value
    if kind is float and type(value) in (int, float, str):  # YAML 1.1 reads 3e-5 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    wanted = f"one of {get_args(setting.kind)}" if kind is Literal else kind.__name__
    wanted = "a mapping of names to values" if kind is dict else wanted
    raise ValueError(f"{setting.name} in {where} must be {wanted}, got {value!r}")
