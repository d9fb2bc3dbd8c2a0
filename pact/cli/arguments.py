"""Config dataclasses as flags and YAML keys, so that nothing about a setting is written twice.

A flag has its field's name, type and default, and its help is the docstring under the field. A YAML
file sets fields by name, and flags win over it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from pact.cli import COMMANDS, USER_ERROR


class Setting(NamedTuple):
    """One field of a config."""

    name: str
    kind: Any  # bool, int, float, str, Path, a Literal, or a tuple or list of one of them
    optional: bool  # whether None is a value
    default: Any  # dataclasses.MISSING where it must be given
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def parse(command: str, configs: Sequence[type], argv: Sequence[str]) -> list[Any]:
    """Make one instance of each config from flags and, with `--config`, a YAML file.

    Args:
        command: name of the command, a key of `pact.cli.COMMANDS`.
        configs: keyword-only dataclasses without a field name in common.
        argv: what stands after the command.

    Returns:
        The instances, in the order of `configs`.

    Raises:
        ValueError: the file is malformed or has an unknown key; a value is missing or wrong.
        SystemExit: with code 0 after `--help`, 2 after a line on stderr for flags that are wrong.
    """
    settings = {setting.name: setting for config in configs for setting in _settings(config)}
    flags = vars(_parser(command, configs).parse_args(argv))
    path = flags.pop("config", None)
    given = {name: _as_declared(settings[name], value) for name, value in flags.items()}
    values = (_read_yaml(Path(path), settings) if path else {}) | given
    missing = [s for s in settings.values() if s.default is dataclasses.MISSING]
    missing = [s for s in missing if s.name not in values]
    if missing:
        raise ValueError(
            f"{', '.join(s.flag for s in missing)} must be given, as a flag or in --config"
        )
    instances = []
    for config in configs:
        names = [field.name for field in dataclasses.fields(config)]
        instances.append(config(**{name: values[name] for name in names if name in values}))
    return instances


class _Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message} ({self.prog} --help)\n")


class _Formatter(argparse.HelpFormatter):
    """Wide enough for one line per setting in most cases."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def _parser(command: str, configs: Sequence[type]) -> _Parser:
    parser = _Parser(
        prog=f"pact {command}",
        description=f"pact {command}: {COMMANDS[command]}.",
        usage=f"pact {command} [--config run.yaml] [flags]",
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of settings, named like the flags with _ for -"
    )
    for owner in _owners(configs):
        title = (owner.__doc__ or "").split("\n")[0].rstrip(".")
        group = parser.add_argument_group(title)
        for setting in _settings(owner, inherited=False):
            group.add_argument(setting.flag, **_options(setting))
    return parser


def _options(setting: Setting) -> dict[str, Any]:
    """The keywords of `add_argument`."""
    options: dict[str, Any] = {"help": _help(setting), "dest": setting.name}
    if setting.kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if get_origin(setting.kind) is Literal:
        return options | {"choices": get_args(setting.kind)}
    if get_origin(setting.kind) in (tuple, list):
        item = get_args(setting.kind)[0]
        return options | {"nargs": "+", "type": item, "metavar": item.__name__.upper()}
    convert = partial(_or_none, setting.kind) if setting.optional else setting.kind
    return options | {"type": convert, "metavar": setting.kind.__name__.upper()}


def _or_none(kind: type, text: str) -> Any:
    """The flag's value; the word none unsets an optional setting."""
    try:
        return None if text == "none" else kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from error


def _as_declared(setting: Setting, value: Any) -> Any:
    """A flag's value; argparse makes a list where a setting may be a tuple."""
    return tuple(value) if get_origin(setting.kind) is tuple else value


def _help(setting: Setting) -> str:
    default = setting.default
    if default is dataclasses.MISSING:
        note = " (required)"
    elif default is None:
        note = ""
    elif isinstance(default, bool):
        note = f" (default: {'on' if default else 'off'})"
    elif isinstance(default, (tuple, list)):
        note = f" (default: {' '.join(map(str, default))})"
    else:
        note = f" (default: {default})"
    return (setting.help + note).replace("%", "%%")


def _owners(configs: Sequence[type]) -> list[type]:
    """Each config and the configs it extends, itself first."""
    lines = [base for config in configs for base in config.__mro__]
    return [base for base in lines if dataclasses.is_dataclass(base)]


def _settings(config: type, inherited: bool = True) -> list[Setting]:
    hints = get_type_hints(config)
    docs = {name: text for owner in _owners([config]) for name, text in _docstrings(owner).items()}
    settings = []
    for field in dataclasses.fields(config):
        if inherited or field.name in inspect.get_annotations(config):
            kind, optional = _kind(hints[field.name])
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            settings.append(Setting(field.name, kind, optional, default, docs[field.name]))
    return settings


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


def _read_yaml(path: Path, settings: Mapping[str, Setting]) -> dict[str, Any]:
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
    for key in read:
        if key not in settings:
            nearest = difflib.get_close_matches(str(key), settings, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown key {key!r} in {path}: the nearest is {nearest!r}")
    return {key: _checked(settings[key], value, path) for key, value in read.items()}


def _checked(setting: Setting, value: Any, path: Path) -> Any:
    """A YAML value as its setting's type."""
    kind = get_origin(setting.kind) or setting.kind
    if value is None and setting.optional:
        return None
    if kind in (tuple, list) and isinstance(value, list):
        item = get_args(setting.kind)[0]
        return kind(_checked(setting._replace(kind=item), entry, path) for entry in value)
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
    raise ValueError(f"{setting.name} in {path} must be {wanted}, got {value!r}")
