"""Config dataclasses as settings: what each is called, what it may be, and its values from YAML.

A setting has its field's name, type and default, and its help is the docstring under the field.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import reprlib
import textwrap
import types
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

MOST_BYTES = 2**18
"""The longest file of settings; YAML is read at about a megabyte in ten seconds."""
MERGE = "tag:yaml.org,2002:merge"
DEEPEST = 100
"""Levels of lists and mappings within each other."""
LONGEST = 100
"""Characters of a value that an error shows."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST
_SHORT.maxlist = _SHORT.maxdict = 20


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
    return {key: _checked(settings[key], value, where) for key, value in given.items()}


def check_known(key: object, known: Mapping[str, Any], where: object) -> None:
    """Refuse a key that is not known, and name the nearest one that is."""
    if key not in known:
        name = str(key)[:LONGEST]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown key {short(key)} in {where}: the nearest is {nearest!r}")


def short(value: Any) -> str:
    """A value as errors show it: its repr, cut where it is long, deep or repeated."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number with more digits than Python writes
        return f"a long {type(value).__name__}"


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
        except (ValueError, OverflowError):
            pass
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    wanted = f"one of {get_args(setting.kind)}" if kind is Literal else kind.__name__
    wanted = "a mapping of names to values" if kind is dict else wanted
    raise ValueError(f"{setting.name} in {where} must be {wanted}, got {short(value)}")
