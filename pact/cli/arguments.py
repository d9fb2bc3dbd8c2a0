"""Config dataclasses as flags, by tyro, over the values of a YAML file.

A flag has its field's name, type and default, and its help is the docstring under the field. What
is here beside the call is what tyro has not: flags that stay unset, so that a file's values hold;
JSON objects and the word none; errors of one line; and texts that can be no name and no path.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pact.cli import COMMANDS
from pact.common.fields import kinds_of, short
from pact.common.printable import printable
from pact.common.settings import (
    Setting,
    make_configs,
    missing_settings,
    read_mapping,
    read_values,
    settings_of,
    user_path,
)
from pact.data.jsonl import parse_json

DRAWN = re.compile("[\u2500-\u257f-]*")
"""The lines of tyro's boxes."""
SHELLS = ("bash", "zsh", "tcsh", "fish")
"""Shells that tyro writes completions for; of another it ends in a traceback."""
FILE = tyro.conf.arg(
    metavar="FILE",
    help="YAML file of settings, named like the flags with _ for -",
    help_behavior_hint="(flags win over it)",
)
_registry = ConstructorRegistry()
_typed_dict: Any = TypedDict  # whose fields no type checker knows


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
    given = _flags(command, configs, argv, summary or COMMANDS[command])
    path = given.pop("config", None)
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


def _flags(
    command: str, configs: Sequence[type], argv: Sequence[str], summary: str
) -> dict[str, Any]:
    """The settings that are given as flags, and the file of settings."""
    if sum(word.partition("=")[0] == "--config" for word in argv) > 1:
        raise ValueError("--config must be given once, got two: put both files' settings into one")
    if argv[:1] and argv[0].startswith("--tyro-") and argv[1:2] and argv[1] not in SHELLS:
        raise ValueError(f"{argv[0]} must be of {', '.join(SHELLS)}, got {argv[1]}")
    owners = [base for config in configs for base in config.__mro__[:-1]]
    groups = {owner.__name__.removesuffix("Config").lower(): _group(owner) for owner in owners}
    said = StringIO()
    try:
        with redirect_stderr(said):
            given = tyro.cli(
                _typed_dict("Flags", {"config": Annotated[str, FILE], **groups}, total=False),
                prog=f"pact {command}",
                description=f"pact {command}: {summary}.",
                args=argv,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_registry,
            )
    except SystemExit as stop:
        if stop.code:
            print(f"pact {command}: error: {_one_line(said.getvalue())}", file=sys.stderr)
        raise
    flags = {name: value for group in groups for name, value in given.pop(group).items()}
    return given | flags


def _one_line(box: str) -> str:
    """What tyro says in a box, as sentences."""
    rows = [row.strip(" \u2502") for row in box.splitlines()[1:]]  # the first has the title
    parts = "".join("\n" if DRAWN.fullmatch(row) else f"{row} " for row in rows).splitlines()
    return printable(". ".join(" ".join(p.split()).rstrip(".") for p in parts if p))


def _group(owner: type) -> Any:
    """The flags of one config's own fields, as a mapping without what is not given."""
    docs = {
        doc.arg_name: doc.description for doc in docstring_parser.parse_from_object(owner).params
    }
    hints = get_type_hints(owner)
    flags = {}
    for name in inspect.get_annotations(owner):
        kind = bool if bool in kinds_of(hints[name]) else hints[name]
        text = " ".join((docs.get(name) or "").split())
        default = _shown(getattr(owner, name, dataclasses.MISSING))
        flags[name] = Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=default)]
    group = _typed_dict(owner.__name__, flags, total=False)
    group.__doc__ = owner.__doc__
    return group


def _shown(default: Any) -> str:
    """A default as the help shows it."""
    if default is dataclasses.MISSING:
        return "(required)"
    if isinstance(default, bool):
        default = "on" if default else "off"
    if isinstance(default, tuple):
        default = " ".join(default)
    return f"(default: { {None: 'none', '': 'empty'}.get(default, default) })"


@_registry.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A setting that the word none unsets."""
    kind, *others = kinds_of(info.type)
    if not others:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    assert isinstance(spec, PrimitiveConstructorSpec)
    return dataclasses.replace(
        spec,
        metavar=f"{spec.metavar}|none",
        choices=spec.choices and (*spec.choices, "none"),
        instance_from_str=lambda words: (
            None if words == ["none"] else spec.instance_from_str(words)
        ),
    )


@_registry.primitive_rule
def _mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A mapping, as a JSON object."""
    if info.type_origin is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def _json_object(words: list[str]) -> dict[str, Any]:
    """The object that a flag's one word is."""
    try:
        value = parse_json(words[0])
    except ValueError as error:
        raise ValueError(f"must be a JSON object, got {short(words[0])} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {short(words[0])}")
    return value


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
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    _check_text(flag, text)


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
    if "\0" in text:
        raise ValueError(f"{flag} must have no zero characters, got {text!r}: take them out")
    try:
        text.encode()
        user_path(text)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{flag} must be UTF-8 text, got {text!r}: give the file or folder another name"
        ) from error
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
