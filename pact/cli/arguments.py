"""Config dataclasses as flags and YAML keys, so that nothing about a setting is written twice.

A flag has its field's name, type and default, and its help is the docstring under the field. A YAML
file sets fields by name, and flags win over it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pact.cli import COMMANDS, USER_ERROR
from pact.data.jsonl import parse_json
from pact.printable import printable
from pact.settings import (
    Setting,
    make_configs,
    missing_settings,
    own_settings,
    owners,
    read_mapping,
    read_values,
    settings_of,
    short,
    user_path,
)


def parse(
    command: str, configs: Sequence[type], argv: Sequence[str], summary: str | None = None
) -> list[Any]:
    """Make one instance of each config from flags and, with `--config`, a YAML file.

    Args:
        command: name of the command, a key of `pact.cli.COMMANDS`.
        configs: keyword-only dataclasses without a field name in common.
        argv: what stands after the command.
        summary: what the command does, for one that is not in `pact.cli.COMMANDS`.

    Returns:
        The instances, in the order of `configs`.

    Raises:
        ValueError: the file is malformed or has an unknown key; a value is missing or wrong.
        SystemExit: with code 0 after `--help`, 2 after a line on stderr for flags that are wrong.
    """
    settings = settings_of(configs)
    parser = _parser(command, configs, summary or COMMANDS[command])
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config", None)
    given = {name: _as_declared(settings[name], value) for name, value in flags.items()}
    if path is not None:
        _check_text("--config", path)
        given = read_values(read_mapping(Path(path)), settings, path) | given
    _check_values(settings, given)
    missing = missing_settings(settings, given)
    if missing:
        raise ValueError(
            f"{', '.join(s.flag for s in missing)} must be given, as a flag or in --config"
        )
    return make_configs(configs, given)


class _Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage before them."""

    def error(self, message: str) -> NoReturn:
        line = printable(" ".join(message.split()))
        self.exit(USER_ERROR, f"{self.prog}: error: {line} ({self.prog} --help)\n")


class _Once(argparse.Action):
    """A flag that stands once: of two files the first would have no effect."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(
                f"{option_string} must be given once, got two: put both files' settings "
                "into one, or give some as flags"
            )
        setattr(namespace, self.dest, values)


class _Formatter(argparse.HelpFormatter):
    """Wide enough for one line per setting in most cases."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def _parser(command: str, configs: Sequence[type], summary: str) -> _Parser:
    parser = _Parser(
        prog=f"pact {command}",
        description=f"pact {command}: {summary}.",
        usage=f"pact {command} [--config run.yaml] [flags]",
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        action=_Once,
        metavar="FILE",
        help="YAML file of settings, named like the flags with _ for -",
    )
    for owner in owners(configs):
        title = (owner.__doc__ or "").split("\n")[0].rstrip(".")
        group = parser.add_argument_group(title)
        for setting in own_settings(owner, inherited=False):
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
    if get_origin(setting.kind) is dict:
        return options | {"type": _json_object, "metavar": "JSON"}
    convert = partial(_or_none, setting.kind) if setting.optional else setting.kind
    return options | {"type": convert, "metavar": setting.kind.__name__.upper()}


def _or_none(kind: type, text: str) -> Any:
    """The flag's value; the word none unsets an optional setting."""
    try:
        return None if text == "none" else kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from error


def _json_object(text: str) -> dict[str, Any] | None:
    """The flag's JSON object; the word none unsets it."""
    try:
        value = None if text == "none" else parse_json(text)
    except ValueError as error:
        message = f"must be a JSON object, got {short(text)} ({error})"
        raise argparse.ArgumentTypeError(message) from error
    if value is not None and not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {short(text)}")
    return value


def _as_declared(setting: Setting, value: Any) -> Any:
    """A flag's value; argparse makes a list where a setting may be a tuple."""
    return tuple(value) if get_origin(setting.kind) is tuple else value


def _check_values(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> None:
    """Refuse texts that are no name and no path, and mappings that no checkpoint could keep.

    A setting that is empty by default may be any text.
    """
    for name, value in values.items():
        flag = settings[name].flag
        if isinstance(value, dict) and not _is_json(value):
            raise ValueError(
                f"{flag} must hold texts, finite numbers, true, false, null, lists and objects of "
                f"them, got {short(value)}: put a date in quotes"
            )
        if settings[name].default != "":
            for text in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(text, (str, Path)):
                    _check_text(flag, str(text))


def _is_json(value: dict[str, Any]) -> bool:
    """Whether JSON gives back what it is given."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        return False


def _check_text(flag: str, text: str) -> None:
    """Refuse an empty text, one that no file can be called, and the home of nobody.

    Raises:
        ValueError: it is one of them.
    """
    if not text:
        raise ValueError(f"{flag} must be a name or a path, got an empty text: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{flag} must be UTF-8 text, got {text!r}: give the file or folder another name"
        ) from error
    if "\0" in text:
        raise ValueError(f"{flag} must have no zero characters, got {text!r}: take them out")
    try:
        user_path(text)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


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
