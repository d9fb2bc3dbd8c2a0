"""Config dataclasses as flags and YAML keys, so that nothing about a setting is written twice.

A flag has its field's name, type and default, and its help is the docstring under the field. A YAML
file sets fields by name, and flags win over it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pact.cli import COMMANDS, USER_ERROR
from pact.settings import (
    Setting,
    make_configs,
    missing_settings,
    own_settings,
    owners,
    read_mapping,
    read_values,
    settings_of,
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
    values = (read_values(read_mapping(Path(path)), settings, path) if path else {}) | given
    missing = missing_settings(settings, values)
    if missing:
        raise ValueError(
            f"{', '.join(s.flag for s in missing)} must be given, as a flag or in --config"
        )
    return make_configs(configs, values)


class _Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message} ({self.prog} --help)\n")


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
        "--config", metavar="FILE", help="YAML file of settings, named like the flags with _ for -"
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
        value = None if text == "none" else json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}") from error
    if value is not None and not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


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
