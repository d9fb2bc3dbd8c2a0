"""Config dataclasses as settings: what each is called, what it may be, and its values from YAML.

A setting has its field's name, type and default. tyro reads no YAML: PyYAML does, and what it takes
beyond a file of settings (a key twice, aliases that multiply, another type) is refused here.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

import yaml

from pact.common.fields import LONGEST, is_of, kinds_of, short, word

MOST_BYTES = 2**18
"""The longest file of settings; YAML is read at about a megabyte in ten seconds."""
MERGE = "tag:yaml.org,2002:merge"
DEEPEST = 100
"""Levels of lists and mappings within each other."""


class Setting(NamedTuple):
    """One field of a config."""

    name: str
    hint: Any  # bool, int, float, str, Literal, a tuple of texts, a dict; or None beside one
    default: Any  # dataclasses.MISSING where it must be given

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def settings_of(configs: Sequence[Any]) -> dict[str, Setting]:
    """Every setting of several configs by its name; no two share one."""
    hints = {name: hint for config in configs for name, hint in get_type_hints(config).items()}
    fields = [field for config in configs for field in dataclasses.fields(config)]
    return {field.name: Setting(field.name, hints[field.name], field.default) for field in fields}


def make_configs(configs: Sequence[Any], values: Mapping[str, Any]) -> list[Any]:
    """One instance of each config from values by name, where a missing one is the default."""
    own = [{n: values[n] for n in c.__dataclass_fields__ if n in values} for c in configs]
    return [config(**given) for config, given in zip(configs, own, strict=True)]


def missing_settings(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> list[Setting]:
    """The settings without a default that have no value."""
    unset = [setting for setting in settings.values() if setting.name not in values]
    return [setting for setting in unset if setting.default is dataclasses.MISSING]


def user_path(path: str | Path) -> Path:
    """A path as users write it, with ~ or ~name for a home folder.

    Raises:
        ValueError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"a path that begins with ~ must name a user who has a home folder, got {path} "
            f"({error}): write the folder out"
        ) from error


def read_mapping(path: Path) -> dict[Any, Any]:
    """What a YAML file maps.

    Raises:
        ValueError: it does not exist, is not YAML as `read_yaml` takes it, or holds something else.
    """
    path = user_path(path)
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist"
        raise ValueError(f"config file {path} {what}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"config file {path} must have at most {MOST_BYTES} bytes, got {path.stat().st_size}: "
            "it is no file of settings"
        )
    try:
        read = read_yaml(path.read_text(encoding="utf-8")) or {}
    except ValueError as error:
        raise ValueError(f"config file {path} must be YAML, got: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(
            f"config file {path} must map names to values, got a {type(read).__name__}"
        )
    return read


def read_yaml(text: str) -> Any:
    """The value of a YAML text, without tags of Python's.

    Raises:
        ValueError: it is not YAML, or nested too deeply; a key stands twice in one mapping; or an
            alias is of a list or mapping, by which a short text may stand for more than memory
            holds.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # of a tag whose value its reader does not know
        raise ValueError(
            f"a value that cannot be read ({type(error).__name__}: {error})"
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML whose keys stand once and whose aliases are of single values, or merged by <<."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            is_merge = isinstance(index, yaml.ScalarNode) and index.tag == MERGE  # <<: *name
            if not is_merge and isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                raise yaml.MarkedYAMLError(
                    problem=f"*{event.anchor} is of a list or mapping: write it out",
                    problem_mark=event.start_mark,
                )
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"lists and mappings stand more than {DEEPEST} deep",
                problem_mark=self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # which the base refuses
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {short(key)} stands twice: leave one of them",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


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
    return {key: _typed(settings[key], value, where) for key, value in given.items()}


def check_known(key: object, known: Mapping[str, Any], where: object) -> None:
    """Refuse a key that is not known, and name the nearest one that is."""
    if key not in known:
        name = str(key)[:LONGEST]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown key {short(key)} in {where}: the nearest is {nearest!r}")


def _typed(setting: Setting, value: Any, where: object) -> Any:
    """A YAML value as its setting's type, which YAML may have no way to write."""
    kind = kinds_of(setting.hint)[0]
    with suppress(ValueError, OverflowError):  # of what is no number
        typed = value
        if get_origin(kind) is tuple and isinstance(value, list):
            typed = tuple(value)
        if kind is float and type(value) in (int, str):  # YAML 1.1 reads 3e-5 as a string
            typed = float(value)
        if is_of(typed, setting.hint):
            return typed
    wanted = kind.__name__ if isinstance(kind, type) else word(kind)
    raise ValueError(f"{setting.name} in {where} must be {wanted}, got {short(value)}")
